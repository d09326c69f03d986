"""The newest pod data: the pods that lists and pushes told of, and the runtime's word on single containers.

A list may lag behind the node, or lack pods that could not be read; what it lacks then stays as it was read before.
"""

from __future__ import annotations

from collections.abc import Iterable

from tracer.identity.cgroups import CgroupTree, Entry
from tracer.identity.images import ImageComparison
from tracer.identity.pods import PodTable, pod_has_uid, same_uid
from tracer.identity.runtime import Runtime
from tracer.model import Container, ContainerRef, Pod

# The runtime's word for a container without a cgroup is kept for this long: its cgroup may be yet to come, and one that
# ended is in its pod's status by then.
_RECORDS_KEPT = 300_000_000_000


class PodData:
    """What sources told. ``table`` has the pods, ``None`` before the first list; ``pods_at`` is when the newest list
    was fetched, ``source`` where; ``read_at`` is when each pod was read, by its UID: one that was carried over from an
    older list is as old as that."""

    def __init__(self, tree: CgroupTree) -> None:
        self.pods_at: int | None = None
        self.source: str | None = None
        self.table: PodTable | None = None
        self.read_at: dict[str, int] = {}
        self.runtime = Runtime()
        self.images = ImageComparison(self.runtime)
        self._tree = tree

    def take(self, pods: Iterable[Pod], at: int, *, complete: bool, source: str) -> bool:
        """Takes a pod list in, fetched at ``at``; False where it is older than what is known."""
        if self.pods_at is not None and at < self.pods_at:
            return False
        listed = tuple(pods)
        read_at = {pod.uid: at for pod in listed}
        if not complete and self.table is not None:
            kept = tuple(pod for pod in self.table.pods if pod.uid not in read_at)
            read_at |= {pod.uid: self.read_at[pod.uid] for pod in kept}
            listed += kept
        self.table, self.read_at = PodTable.build(listed), read_at
        self.pods_at, self.source = at, source
        for container_id in self.runtime.told_before(at - _RECORDS_KEPT):
            if not self._tree.named(container_id):
                self.runtime.forget(container_id)
                self.images.forget(container_id)
        return True

    def change(self, pod: Pod, at: int) -> None:
        """Takes in one pod that was pushed, as of ``at``, without a list."""
        if self.table is not None and at >= self.read_at.get(pod.uid, 0):
            self.table = PodTable.build((*(other for other in self.table.pods if other.uid != pod.uid), pod))
            self.read_at[pod.uid] = at

    def delete(self, pod_uid: str, at: int) -> None:
        """Takes in that a pod is no more."""
        if self.table is not None and at >= self.read_at.get(pod_uid, 0):
            self.table = PodTable.build(other for other in self.table.pods if other.uid != pod_uid)

    @property
    def pod_namespaces(self) -> set[str]:
        """The namespaces of the pods of this node."""
        return {pod.namespace for pod in self.table.pods} if self.table else set()

    @property
    def ready(self) -> bool:
        """Whether any source has told of anything."""
        return self.table is not None or bool(self.runtime)

    def is_incomplete(self, ref: ContainerRef) -> bool:
        """Whether the list that there is lacks this container, its pod, or the ID of another container of it."""
        if self.table is None or ref.pod_uid is None:
            return False
        pod = self.table.pod_of(ref.pod_uid)
        if pod is None:
            return True
        statuses = (*pod.containers, *pod.init_containers, *pod.ephemeral_containers)
        named = {status.name for status in statuses if status.container_id}
        is_known = ref.container_id in self.runtime.sandboxes or bool(self.table.find(ref.container_id))
        return not is_known or not named.issuperset(pod.spec_names)

    def is_listed(self, ref: ContainerRef) -> bool:
        """Whether the list or the runtime has this container, in the pod that its path names if it names one."""
        if self.runtime.is_of_pod(ref):
            return True
        found = self.table.find(ref.container_id) if self.table else ()
        return any(ref.pod_uid is None or pod_has_uid(pod, ref.pod_uid) for pod, _ in found)

    def listed(self, entry: Entry) -> list[tuple[Pod, Container]]:
        """The places where a list has this container, in the pod that its path names if it names one."""
        uid = entry.ref.pod_uid
        return [
            (pod, container)
            for pod, container in (self.table.find(entry.ref.container_id) if self.table else ())
            if uid is None or pod_has_uid(pod, uid)
        ]

    def confirms(self, entry: Entry) -> bool:
        """Whether a source has this container, in the pod that its path names. A nested one that a list calls ended
        does not count: a process in the outer container may have made its cgroup."""
        ref = entry.ref
        record = self.runtime.get(ref.container_id)
        if record is not None and record.pod_uid and (ref.pod_uid is None or same_uid(record.pod_uid, ref.pod_uid)):
            return True
        states = [container.state for _, container in self.listed(entry)]
        if entry.nest is not None:
            return any(not entry.live or state in ("running", None) for state in states)
        return bool(states)

    def uses_listed_id(self, entry: Entry) -> bool:
        """Whether a source has a container with this ID, in any pod."""
        container_id = entry.ref.container_id
        record = self.runtime.get(container_id)
        told = container_id in self.runtime.sandboxes or (record is not None and bool(record.pod_uid))
        return told or bool(self.table and self.table.find(container_id))
