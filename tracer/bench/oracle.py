"""Judging answers: what is true of a process at its place, and what an answer makes of that."""

from __future__ import annotations

from dataclasses import dataclass, field

from tracer.bench.lanes import Truth
from tracer.model import Identity, State

DUE = 1_000_000_000  # ns after a source has listed a container, in which its processes may still be unresolved


@dataclass(slots=True)
class Place:
    """Where a process can be: in a container (all names are set), or in none (``pod_uid`` is ``None``).

    ``listed`` is when the list with this container was there to be asked for, in nanoseconds of ``CLOCK_MONOTONIC``,
    ``path`` the path in its hierarchy of a container's own cgroup, or that path's end.
    """

    folder: str
    namespace: str | None = None
    pod: str | None = None
    pod_uid: str | None = None
    container: str | None = None
    container_id: str | None = None
    listed: int = 0
    restartable: bool = False
    path: str = ""

    def is_of(self, identity: Identity) -> bool:
        """Whether the answer names this very container."""
        w = identity.workload
        return (w.namespace, w.pod, w.pod_uid, w.container, w.container_id) == (
            *(self.namespace, self.pod, self.pod_uid),
            *(self.container, self.container_id),
        )


@dataclass(slots=True)
class Score:
    """Answers by what they were worth. ``due`` are those on living processes that stayed where they were, in a
    container that had been listed for a second; ``late`` of them said nothing yet. ``overtaken`` are look-ups during
    which the process changed: they may say what was before or what came after, and nothing else."""

    lookups: int = 0
    right: int = 0
    wrong: int = 0
    late: int = 0
    pending: int = 0
    unknown: int = 0
    due: int = 0
    overtaken: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def resolved_share(self) -> float:
        """The share of due look-ups that were resolved."""
        return (self.due - self.late) / self.due if self.due else 0.0

    def is_wrong(self, identity: Identity, why: str) -> None:
        """Counts a wrong answer, and keeps the first ones."""
        self.wrong += 1
        if len(self.examples) < 10:
            w = identity.workload
            named = f"{w.namespace}/{w.pod}/{w.container} {w.container_id}" if w.container_id else w.reason
            self.examples.append(f"{identity.asked}: {w.state.value} {named}, {why}")

    def settled(self, identity: Identity, truth: Truth, place: Place, at: int, *, inodes: bool) -> None:
        """Counts the answer of a look-up during which the process lived in this place. ``at`` is when it began;
        ``inodes`` whether the kernel tells processes apart by them."""
        self.lookups += 1
        state = identity.state
        in_container = place.pod_uid is not None
        is_due = in_container and at - place.listed >= DUE
        self.due += is_due
        if state is State.GONE:
            self.is_wrong(identity, f"it lives in {place.folder}")
        elif inodes and identity.key.ino != truth.inode:
            self.is_wrong(identity, f"for another process, its inode is {truth.inode} and not {identity.key.ino}")
        elif state in (State.PENDING, State.UNKNOWN):
            self.pending += state is State.PENDING
            self.unknown += state is State.UNKNOWN
            self.late += is_due
        elif (state is State.RESOLVED) is in_container and (not in_container or place.is_of(identity)):
            self.right += 1
        else:
            self.is_wrong(identity, f"it is in {place.folder}")

    def moved(self, identity: Identity, before: Place, after: Place | None) -> None:
        """Counts the answer of a look-up during which the process changed once: from one place to another, or to its
        end. In between it was nowhere, or in no container."""
        self.lookups += 1
        self.overtaken += 1
        if identity.state is State.RESOLVED and not (
            before.is_of(identity) or (after is not None and after.is_of(identity))
        ):
            where = after.folder if after is not None else "its end"
            self.is_wrong(identity, f"it went from {before.folder} to {where}")

    def named(self, identity: Identity, place: Place, at: int) -> None:
        """Counts the answer about a container that was asked for by its ID: itself, in its own cgroup or in none yet,
        or not resolved, which is late for one that never ends."""
        self.lookups += 1
        state = identity.state
        is_due = not place.restartable and at - place.listed >= DUE
        self.due += is_due
        path = identity.cgroup.path if identity.cgroup is not None else None
        if state is not State.RESOLVED:
            self.pending += state is State.PENDING
            self.unknown += state is State.UNKNOWN
            self.late += is_due
        elif place.is_of(identity) and (path is None or path.endswith(place.path)):
            self.right += 1
        else:
            self.is_wrong(identity, f"at {path}, for {place.container_id} in {place.folder}")

    def ended(self, identity: Identity, where: Place | None = None) -> None:
        """Counts the answer about a process that had ended before the look-up began: ``gone``, or whoever has its
        number, which is none of ours."""
        self.lookups += 1
        if identity.state is State.RESOLVED:
            self.is_wrong(identity, "it has ended" + (f", in {where.folder}" if where else ""))
        else:
            self.right += 1
