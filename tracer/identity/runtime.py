"""What the container runtime told of containers, and the pod status that the kubelet will write from it.

The kubelet writes ``containerStatuses`` from the same records, later: for each name of the spec the newest record's
image and reference; where there is none yet, what its status says already; else the image that the spec asks for and
no reference (Kubernetes ``pkg/kubelet``, ``convertToAPIContainerStatuses``).
"""

from __future__ import annotations

from dataclasses import replace

from tracer.model import Container, ContainerRef, Pod, RuntimeContainer

MOST = 16_384
"""Containers and sandboxes that are remembered; no node has as many. Those told first are forgotten first."""


class Runtime:
    """The runtime's records by container ID, and when each sandbox was told, by its ID. True once it told anything."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, int] = {}
        self._records: dict[str, RuntimeContainer] = {}
        self._by_pod: dict[str, dict[str, RuntimeContainer]] = {}

    def __bool__(self) -> bool:
        return bool(self._records or self.sandboxes)

    def take(self, record: RuntimeContainer) -> None:
        """Takes a record in; a newer one of the same container replaces it."""
        old = self._records.get(record.container_id)
        if old is not None and old.at > record.at:
            return
        if old is None and len(self._records) >= MOST:
            self.forget(next(iter(self._records)))
        self._records[record.container_id] = record
        newest = self._by_pod.setdefault(record.pod_uid, {})
        other = newest.get(record.name)
        if other is None or other.container_id == record.container_id or other.created_at <= record.created_at:
            newest[record.name] = record

    def take_sandbox(self, sandbox_id: str, at: int) -> None:
        """Takes in that this is a pod's sandbox."""
        if sandbox_id not in self.sandboxes and len(self.sandboxes) >= MOST:
            del self.sandboxes[next(iter(self.sandboxes))]
        self.sandboxes[sandbox_id] = at

    def forget(self, container_id: str) -> None:
        """Drops a container that is no more."""
        self.sandboxes.pop(container_id, None)
        record = self._records.pop(container_id, None)
        if record is None:
            return
        newest = self._by_pod[record.pod_uid]
        if newest.get(record.name) is record:
            del newest[record.name]
        if not newest:
            del self._by_pod[record.pod_uid]

    def told_before(self, time: int) -> list[str]:
        """The containers and sandboxes of which the last word is older than ``time``."""
        containers = [record.container_id for record in self._records.values() if record.at < time]
        return containers + [sandbox_id for sandbox_id, at in self.sandboxes.items() if at < time]

    def get(self, container_id: str) -> RuntimeContainer | None:
        """The record of a container."""
        return self._records.get(container_id)

    def is_of_pod(self, ref: ContainerRef) -> bool:
        """Whether the runtime has this container in a pod."""
        record = self._records.get(ref.container_id)
        return record is not None and bool(record.pod_uid)

    def foresee(self, pod: Pod, before: RuntimeContainer | None = None) -> Pod:
        """The pod with the status that the kubelet will write. A newer instance of ``before`` has ``before`` as its
        former one. Returns the pod unchanged if its spec is not known."""
        if not pod.spec:
            return pod
        newest = self._by_pod.get(pod.uid, {})
        listed = {status.name: status for status in (*pod.containers, *pod.init_containers)}

        def status(asked: Container) -> Container:
            record = newest.get(asked.name)
            if record is not None:
                is_later = before is not None and before.name == asked.name and before is not record
                former = before.container_id if before is not None and is_later else None
                return replace(_status(asked, record), former_id=former)
            own = listed.get(asked.name)
            return own if own is not None and own.container_id else asked

        return replace(
            pod,
            containers=tuple(status(asked) for asked in pod.spec if asked.role == "app"),
            init_containers=tuple(status(asked) for asked in pod.spec if asked.role == "init"),
        )

    def container_of(self, pod: Pod, record: RuntimeContainer) -> Container | None:
        """The container of a record, in the role that the spec gives its name. ``None`` if the spec does not have it,
        or not yet (``kubectl debug`` adds one to a running pod): its kind is not known then."""
        asked = next((each for each in pod.spec if each.name == record.name), None)
        return _status(asked, record) if asked is not None else None

    def is_settled(self, pod: Pod, container: Container) -> bool:
        """Whether the pod's images can change no more by containers that are still to be made: all app containers are
        there, or for an init container all up to it."""
        newest = self._by_pod.get(pod.uid, {})
        role = "init" if container.role == "init" else "app"
        names = [asked.name for asked in pod.spec if asked.role == role]
        if role == "init" and container.name in names:
            names = names[: names.index(container.name) + 1]
        return bool(names) and all(name in newest for name in names)


def _status(asked: Container, record: RuntimeContainer) -> Container:
    return replace(asked, container_id=record.container_id, image=record.image, image_id=record.image_id)
