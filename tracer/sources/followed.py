"""Pods whose next container is about to be made, and when to list them: a pure state machine, time is an argument.

    follow ──▶ listed every 10 ms ──all there, or 400 ms without news──▶ forgotten

A container's cgroup is made some 50 ms after the runtime lists it. Whoever asked by then which images its pod has was
told that they may still change; that is over sooner where the listing is looked at. The kubelet makes one container
right after the other, unless it has to wait for an image or a hook, so a moment is enough; what comes later is known
by its cgroup. However many pods are followed, one listing serves them all.
"""

from __future__ import annotations

_MS = 1_000_000

PAUSE = 10 * _MS
SPAN = 400 * _MS


class Followed:
    """The pods that are followed. All times are nanoseconds of one clock that never steps back."""

    def __init__(self) -> None:
        self._ends: dict[str, int] = {}
        self._due = 0

    @property
    def pods(self) -> frozenset[str]:
        """The UIDs of those that are followed."""
        return frozenset(self._ends)

    def follow(self, pod_uid: str, now: int) -> None:
        """A container of this pod is there, and others are to come."""
        if not self._ends:
            self._due = now + PAUSE
        self._ends[pod_uid] = now + SPAN

    def leave(self, pod_uid: str) -> None:
        """All of its containers are there, or it is gone."""
        self._ends.pop(pod_uid, None)

    def next_due(self) -> int | None:
        """When to list next: maybe in the past, ``None`` where no pod is followed."""
        return self._due if self._ends else None

    def listed(self, now: int) -> None:
        """A listing has ended; the next one is due after a pause."""
        self._due = now + PAUSE
        self._ends = {pod_uid: end for pod_uid, end in self._ends.items() if now < end}

    def clear(self) -> None:
        """The runtime fails: nobody is followed."""
        self._ends.clear()
