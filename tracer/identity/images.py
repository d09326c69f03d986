"""Whether the list and the runtime tell the same image of a container."""

from __future__ import annotations

from tracer.identity.runtime import Runtime
from tracer.model import Container


class ImageComparison:
    """Compares the image of each listed container with the runtime's record. ``other_tags`` counts the containers whose
    image has another tag in the list than in the runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.other_tags = 0
        self._runtime = runtime
        # Containers whose images differ, as long as the runtime's record is kept; and sentences that nobody took yet.
        self._differing: set[str] = set()
        self._disputes: list[str] = []

    def compare(self, container_id: str, container: Container) -> None:
        """Notes where the list and the runtime disagree on a container's image. A digest may have several tags; two
        digests cannot be of one container."""
        record = self._runtime.get(container_id)
        if record is None or not container.container_id or record.container_id in self._differing:
            return
        if record.image_id and container.image_id and record.image_id != container.image_id:
            self._disputes.append(
                f"the runtime and the list disagree on the image of container {container_id}:"
                f" {record.image_id!r} and {container.image_id!r}; the list's is used"
            )
        elif record.image != container.image:
            self.other_tags += 1
        else:
            return
        self._differing.add(record.container_id)

    def take_disputes(self) -> list[str]:
        """Sentences on containers whose image the runtime and the list tell differently, each once."""
        found, self._disputes = self._disputes, []
        return found

    def forget(self, container_id: str) -> None:
        """Drops a container of which the runtime's record was dropped."""
        self._differing.discard(container_id)
