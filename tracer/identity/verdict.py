"""What the pod lists say of a container's cgroup: the decisions behind the states of the index.

A list may lag behind the node, lack pods that could not be read, or be old because sources fail; and a cgroup may be
named after a container by whoever may make cgroups. What is not certain stays ``pending`` or becomes ``unknown``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tracer.identity.cgroups import CgroupTree, Entry, first_workload
from tracer.identity.grants import grant, is_ambiguous, is_pod_enough
from tracer.identity.places import REFUSED, Places, Standing, agreement, is_within_resolved
from tracer.identity.pods import PodTable, pod_has_uid, resolved, same_uid
from tracer.identity.runtime import Runtime
from tracer.model import Container, ContainerRef, Pod, RuntimeContainer, State, Workload

# The kubelet's status lags behind a restart by up to a second, and then names the container that ended. One that a
# list calls running but of which no cgroup was ever seen is believed in after this long.
_STATUS_LAG = 5_000_000_000
# The runtime's word for a container without a cgroup is kept for this long: its cgroup may be yet to come, and one that
# ended is in its pod's status by then.
_RECORDS_KEPT = 300_000_000_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What can be set. Times in nanoseconds.

    ``give_up`` is how long a container may stay unlisted before it is ``unknown``, ``max_stale`` how long sources may
    fail before what they told is no longer believed. With ``namespace_labels`` nobody is resolved before the labels of
    the pod's namespace are known.
    """

    give_up: int = 30_000_000_000
    max_stale: int = 600_000_000_000
    prefix: str | None = None
    disable_container_selectors: bool = False
    namespace_labels: bool = False
    ephemeral_containers: bool = False


class Verdicts:
    """The newest pod data, and what follows from it for a container. ``pods_at`` is when the newest list was fetched,
    ``source`` where."""

    def __init__(self, rules: Rules, tree: CgroupTree) -> None:
        self.pods_at: int | None = None
        self.source: str | None = None
        self._rules = rules
        self._tree = tree
        self._table: PodTable | None = None
        self.runtime = Runtime()
        self.places = Places(tree, self._confirms)
        # Labels by namespace, as far as they are known.
        self.namespaces: Mapping[str, Mapping[str, str]] = {}
        # How many containers the list names by another tag than the runtime.
        self.other_tags = 0
        # Containers whose images were compared and found to differ, as long as the runtime's word is kept; and what is
        # to be said of some.
        self._differing: set[str] = set()
        self._disputes: list[str] = []
        # When each pod was read: one that was carried over from an older list is as old as that.
        self._read_at: dict[str, int] = {}

    def set_rules(self, rules: Rules) -> None:
        """From now on these rules count."""
        self._rules = rules
        for entry in self._tree.containers():
            if entry.workload.state is State.RESOLVED:  # so that it is computed anew, though its pod is the same
                entry.workload = replace(entry.workload, settled=None)

    def take(self, pods: Iterable[Pod], at: int, *, complete: bool, source: str) -> bool:
        """Takes a pod list in, fetched at ``at``; False where it is older than what is known."""
        if self.pods_at is not None and at < self.pods_at:
            return False
        listed = tuple(pods)
        read_at = {pod.uid: at for pod in listed}
        if not complete and self._table is not None:
            kept = tuple(pod for pod in self._table.pods if pod.uid not in read_at)
            read_at |= {pod.uid: self._read_at[pod.uid] for pod in kept}
            listed += kept
        self._table, self._read_at = PodTable.build(listed), read_at
        self.pods_at, self.source = at, source
        for container_id in self.runtime.told_before(at - _RECORDS_KEPT):
            if not self._tree.named(container_id):
                self.runtime.forget(container_id)
                self._differing.discard(container_id)
        return True

    def change(self, pod: Pod, at: int) -> None:
        """Takes in one pod that was pushed, as of ``at``, without a list."""
        if self._table is not None and at >= self._read_at.get(pod.uid, 0):
            self._table = PodTable.build((*(other for other in self._table.pods if other.uid != pod.uid), pod))
            self._read_at[pod.uid] = at

    def delete(self, pod_uid: str, at: int) -> None:
        """Takes in that a pod is no more."""
        if self._table is not None and at >= self._read_at.get(pod_uid, 0):
            self._table = PodTable.build(other for other in self._table.pods if other.uid != pod_uid)

    @property
    def pod_namespaces(self) -> set[str]:
        """The namespaces of the pods of this node."""
        return {pod.namespace for pod in self._table.pods} if self._table else set()

    @property
    def table(self) -> PodTable | None:
        """The pods, ``None`` before the first list."""
        return self._table

    @property
    def ready(self) -> bool:
        """Whether any source has told of anything."""
        return self._table is not None or bool(self.runtime)

    def is_incomplete(self, ref: ContainerRef) -> bool:
        """Whether the list that there is lacks this container, its pod, or the ID of another container of it."""
        if self._table is None or ref.pod_uid is None:
            return False
        pod = self._table.pod_of(ref.pod_uid)
        if pod is None:
            return True
        statuses = (*pod.containers, *pod.init_containers, *pod.ephemeral_containers)
        named = {status.name for status in statuses if status.container_id}
        is_known = ref.container_id in self.runtime.sandboxes or bool(self._table.find(ref.container_id))
        return not is_known or not named.issuperset(pod.spec_names)

    def is_listed(self, ref: ContainerRef) -> bool:
        """Whether the list or the runtime has this container, in the pod that its path names if it names one."""
        if self.runtime.is_of_pod(ref):
            return True
        found = self._table.find(ref.container_id) if self._table else ()
        return any(ref.pod_uid is None or pod_has_uid(pod, ref.pod_uid) for pod, _ in found)

    def listed(self, entry: Entry) -> list[tuple[Pod, Container]]:
        """The places where a list has this container, in the pod that its path names if it names one."""
        uid = entry.ref.pod_uid
        return [
            (pod, container)
            for pod, container in (self._table.find(entry.ref.container_id) if self._table else ())
            if uid is None or pod_has_uid(pod, uid)
        ]

    def _confirms(self, entry: Entry) -> bool:
        """Whether a source knows this container, in the pod that its path names. One below another container that a
        list calls ended may have been made by anyone there who knows its name."""
        ref = entry.ref
        record = self.runtime.get(ref.container_id)
        if record is not None and record.pod_uid and (ref.pod_uid is None or same_uid(record.pod_uid, ref.pod_uid)):
            return True
        states = [container.state for _, container in self.listed(entry)]
        if entry.nest is not None:
            return any(not entry.live or state in ("running", None) for state in states)
        return bool(states)

    def _uses_listed_id(self, entry: Entry) -> bool:
        """Whether a source has a container by this ID, in whatever pod."""
        container_id = entry.ref.container_id
        record = self.runtime.get(container_id)
        told = container_id in self.runtime.sandboxes or (record is not None and bool(record.pod_uid))
        return told or bool(self._table and self._table.find(container_id))

    def is_claim(self, entry: Entry) -> bool:
        """Whether a cgroup may be that of a pod's container which has this ID."""
        if entry.root is None and entry.workload.state is not State.RESOLVED:
            return False
        return not is_within_resolved(entry) and self.places.of(entry) not in REFUSED

    def of(self, entry: Entry, now: int) -> Workload:
        """What can be said of a container now; the same object as before where nothing changed."""
        outer = entry.outer
        if outer is not None and is_within_resolved(entry):
            entry.pods_at = outer.pods_at
            return outer.workload
        if self.places.is_node(entry):
            return _same(entry, Workload(State.HOST, "no_container", "it belongs to this node, which is a container"))
        standing = self.places.of(entry)
        if standing in REFUSED:
            return self._refused(entry, standing)
        table, at = self._table, self.pods_at
        if table is None or at is None:
            told = self._told_by_runtime(entry) if standing is Standing.BELIEVED else None
            return told or self._kept_or_first(entry)
        if now - at > self._rules.max_stale:
            return self._outdated(entry)
        if standing is Standing.UNSURE:
            text = "where this node's pods are kept is not certain yet"
            return self._unknown(entry, "not_listed", text) if at - entry.born > self._rules.give_up else _first(entry)
        return self._believed(entry, table, at, now)

    def _believed(self, entry: Entry, table: PodTable, at: int, now: int) -> Workload:
        """What sources say of a container whose cgroup is evidence."""
        found = self.listed(entry)
        if len({pod.uid for pod, _ in found}) > 1 or (found and is_ambiguous(entry.ref, table)):
            return self._unknown(entry, "conflict", "two pods are listed with this container ID")
        if found:
            return self._found(entry, *found[0], now)
        if table.find(entry.ref.container_id):
            return self._unknown(entry, "conflict", "it is listed in another pod than the one its cgroup names")
        told = self._told_by_runtime(entry)
        if self._rules.disable_container_selectors and (told is None or told.state in (State.PENDING, State.HOST)):
            told = self._of_pod_alone(entry, table, now) or told
        if told is not None:
            return told
        if entry.pod is not None:
            pod = table.by_uid.get(entry.pod.uid)
            if pod is None:
                return self._unknown(entry, "deleted", "its pod has left the list")
            if entry.container is not None:
                return self._found(entry, pod, entry.container, now)
        return self._unlisted(entry, table, at) if entry.root is not None else self._bare(entry, at)

    def _refused(self, entry: Entry, standing: Standing) -> Workload:
        """A container's cgroup that is no evidence is never anybody's, but for who it is nested in."""
        outer = entry.outer
        if outer is not None and outer.workload.state in (State.PENDING, State.UNKNOWN):
            return outer.workload
        entry.pod = entry.container = None
        if self._uses_listed_id(entry):
            text = f"its cgroup only looks like a listed container's: {REFUSED[standing]}"
            return self._unknown(entry, "conflict", text)
        if entry.root is None:
            return _not_a_pod(entry)
        text = f"its cgroup only looks like a pod's: {REFUSED[standing]}"
        return _same(entry, Workload(State.HOST, "outside_root", text))

    @staticmethod
    def _kept_or_first(entry: Entry) -> Workload:
        """What is said of a container of which no source said anything."""
        return entry.workload if entry.workload.state is State.PENDING else _first(entry)

    def _bare(self, entry: Entry, at: int) -> Workload:
        """A container below no pod's cgroup that is not listed: one outside Kubernetes, unless it is yet to be listed.

        On a node whose containers are all below pods it is not waited for long, and not at all where it ran before.
        """
        if self.places.has_bare or not self.places.has_pods:
            wait = self._rules.give_up
        else:
            wait = _STATUS_LAG if entry.seen else 0
        return _not_a_pod(entry) if at - entry.born >= wait else _first(entry)

    def _found(self, entry: Entry, pod: Pod, container: Container, now: int) -> Workload:
        if self._is_stale(pod, now):
            return self._outdated(entry)
        if self._is_copy(entry):
            entry.pod = entry.container = None
            return self._unknown(entry, "conflict", "another cgroup is called like this container too", pod)
        self._compare(entry, container)
        return self._resolve(entry, pod, container, self.source, settled=True)

    def _is_copy(self, entry: Entry) -> bool:
        """Whether another cgroup has as good a claim to this one's ID, or a better one."""
        rivals = self.places.rivals(entry)
        return bool(rivals) and max(map(self._rank, rivals)) >= self._rank(entry)

    def _rank(self, entry: Entry) -> tuple[int, bool, bool, bool]:
        """How good a cgroup's claim to an ID is: by the runtime's word, then by the pod above it, then by the place,
        which the kubelet calls kubepods, and has at the top if nobody says otherwise."""
        record = self.runtime.get(entry.ref.container_id)
        reported = record.cgroups_path if record is not None else None
        path = self._tree.path(entry) if reported else None
        told = agreement(path, reported) if reported and path else 0
        place = entry.root or ""
        return told, entry.root is not None, place in ("/kubepods", "/kubepods.slice"), "kubepods" in place

    def _told_by_runtime(self, entry: Entry) -> Workload | None:
        """What follows from the runtime's word for a container that no list has yet; ``None`` if it has none.

        The runtime lists a container before its first process runs, the kubelet's status lags. The pod itself (labels,
        service account, owners) is in the list long before; its statuses are those that the kubelet will write.
        """
        ref = entry.ref
        if ref.container_id in self.runtime.sandboxes:
            return self._sandbox(entry)
        record = self.runtime.get(ref.container_id)
        if record is None or not record.pod_uid:
            return None
        if ref.pod_uid is not None and not same_uid(record.pod_uid, ref.pod_uid):
            return self._unknown(entry, "conflict", "the runtime has it in another pod than the one its cgroup names")
        if self._is_copy(entry):
            entry.pod = entry.container = None
            return self._unknown(entry, "conflict", "another cgroup is called like this container too")
        pod = self._table.by_uid.get(record.pod_uid) if self._table else None
        if pod is None:
            if entry.pod is not None:
                return self._unknown(entry, "deleted", "its pod has left the list")
            workload = Workload(
                State.PENDING,
                "no_pod_yet",
                "the runtime knows the container, but no list has its pod yet",
                pods_from="cri",
                namespace=record.namespace,
                pod=record.pod,
                pod_uid=record.pod_uid,
                container=record.name,
                container_id=ref.container_id,
                image=record.image,
            )
            return _same(entry, workload)
        container = self.runtime.container_of(pod, record)
        if container is None:
            return self._unasked(entry, pod, record) if entry.container is None else None
        settled = self.runtime.is_settled(pod, container)
        return self._resolve(entry, self.runtime.foresee(pod, record), container, "cri", settled)

    def _unasked(self, entry: Entry, pod: Pod, record: RuntimeContainer) -> Workload:
        """The runtime has a container that the pod's spec, as it was read, does not ask for: of what kind it is will be
        told by the next list, and nothing is granted before."""
        if self.pods_at is not None and self.pods_at - entry.born > self._rules.give_up:
            told = self._unknown(entry, "not_listed", "the runtime has this container, but its pod does not", pod)
        else:
            text = "the runtime has this container, but its pod's spec does not have it yet"
            told = self._of_pod(entry, pod, State.PENDING, "not_listed_yet", text)
        return _same(entry, replace(told, container=record.name, image=record.image, kind=None))

    def _of_pod_alone(self, entry: Entry, table: PodTable, now: int) -> Workload | None:
        """Without container selectors the pod is enough, as it is for SPIRE: whatever runs in a container's cgroup of
        it, one that is not listed yet, or never will be, has its selectors. The pod is the one that the path names
        first on its way down, which nobody below it can have written."""
        pod = self._pod_alone(entry.ref, table) if entry.root is not None else None
        if pod is None:
            return None
        if self._is_stale(pod, now):
            return self._outdated(entry)
        return self._resolve(entry, pod, None, self.source, settled=True)

    @staticmethod
    def _pod_alone(ref: ContainerRef, table: PodTable) -> Pod | None:
        """The pod that a path names in the one form in which SPIRE finds it."""
        pod = table.by_uid.get(ref.pod_uid or "")
        return pod if pod is not None and is_pod_enough(ref, pod) else None

    def of_pod_only(self, entry: Entry, now: int) -> Workload | None:
        """What a process in this container gets by its pod alone, for whoever leaves container selectors out; ``None``
        where the pod is not known. Changes nothing."""
        if entry.root is None or is_within_resolved(entry) or self.places.of(entry) is not Standing.BELIEVED:
            return None
        return self.of_uid(entry.ref, now)

    def of_uid(self, ref: ContainerRef, now: int) -> Workload | None:
        """As ``of_pod_only``, of whatever is named by this path."""
        pod = self._pod_alone(ref, self._table) if self._table else None
        if pod is None or self._is_stale(pod, now):
            return None
        return self._workload(ref, pod, None, alone=True)

    def of_list(self, ref: ContainerRef, now: int) -> tuple[Workload, int | None]:
        """(what the newest list says of a container that no cgroup here is called like, when its pod was read)."""
        first = first_workload(ref)
        found = {
            pod.uid: (pod, container)
            for pod, container in (self._table.find(ref.container_id) if self._table else ())
            if ref.pod_uid is None or pod_has_uid(pod, ref.pod_uid)
        }
        if len(found) > 1 or (found and self._table and is_ambiguous(ref, self._table)):
            text = "two pods are listed with this container ID"
            return replace(first, state=State.UNKNOWN, reason="conflict", reason_text=text), None
        for pod, container in found.values():
            workload = self._workload(ref, pod, container)
            if workload is not None and not self._is_stale(pod, now):
                return workload, self._read_at[pod.uid]
        return first, None

    def _is_stale(self, pod: Pod, now: int) -> bool:
        return now - self._read_at[pod.uid] > self._rules.max_stale

    def _workload(
        self, ref: ContainerRef, pod: Pod, container: Container | None, *, alone: bool = False
    ) -> Workload | None:
        """The resolved workload by the list, perhaps by its pod ``alone``; ``None`` while the labels of its namespace
        are asked for and not known."""
        labels = self.namespaces.get(pod.namespace) if self._rules.namespace_labels else None
        if self._rules.namespace_labels and labels is None:
            return None
        rules = replace(self._rules, disable_container_selectors=True) if alone else self._rules
        return _resolved(ref, pod, container, self.source, rules, labels, settled=True)

    def _sandbox(self, entry: Entry) -> Workload:
        ref, text = entry.ref, "it is its pod's sandbox (pause)"
        pod = self._table.pod_of(ref.pod_uid) if self._table and ref.pod_uid else None
        if pod is not None:
            return self._of_pod(entry, pod, State.HOST, "sandbox", text)
        workload = Workload(State.HOST, "sandbox", text, pod_uid=ref.pod_uid, container_id=ref.container_id)
        return _same(entry, workload)

    def _compare(self, entry: Entry, container: Container) -> None:
        """Notes where the list and the runtime disagree on a container's image. A digest may have several tags; two
        digests cannot be of one container."""
        record = self.runtime.get(entry.ref.container_id)
        if record is None or not container.container_id or record.container_id in self._differing:
            return
        if record.image_id and container.image_id and record.image_id != container.image_id:
            self._disputes.append(
                f"the runtime and the list disagree on the image of container {entry.ref.container_id}:"
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

    def _unlisted(self, entry: Entry, table: PodTable, at: int) -> Workload:
        old = entry.workload
        if old.state is State.HOST and old.reason == "sandbox":
            return old  # it was none of its pod's containers, and cannot become one
        # By metadata.uid only: the annotation that names a static pod is one that any pod's author may write.
        pod = table.pod_of(entry.ref.pod_uid or "")
        if pod is not None and self._accounted(pod, entry):
            return self._sandbox(entry)
        if at - entry.born > self._rules.give_up:
            return self._unknown(entry, "not_listed", "no source lists this container", pod)
        if pod is None:
            return _first(entry)
        text = "its pod is known, but the list does not have this container yet"
        return self._of_pod(entry, pod, State.PENDING, "not_listed_yet", text)

    def _accounted(self, pod: Pod, entry: Entry) -> bool:
        """Whether every container of the pod is listed with an ID, and none of those can be out of date, so that one
        that is not among them is no container of the pod. A list that lags behind a restart names the container that
        ended; believing it would call the new one a sandbox."""
        at = self._read_at[pod.uid]
        statuses = (*pod.containers, *pod.init_containers, *pod.ephemeral_containers)
        named = {status.name for status in statuses if status.container_id}
        if at < entry.born or not pod.containers or not named.issuperset(pod.spec_names):
            return False
        if any(status.former_id or status.restarts for status in statuses):
            return False  # a former instance may have processes still, and its ID stands nowhere, or in lastState
        late = at >= entry.born + _STATUS_LAG
        running: list[Entry] = []
        for status in statuses:
            if not status.container_id or status.state == "waiting":
                return False
            if status.state == "terminated":
                if status.role == "app":
                    return False
                continue
            own = [other for other in self._tree.named(status.container_id) if self.is_claim(other)]
            if not any(other.live for other in own) and (own or not late):
                return False
            running += own
        if any(status.role == "init" and status.state == "terminated" for status in statuses):
            # It is done, or a sidecar that is being started again: then this is not the first of its pod's cgroups.
            if entry.seen and any(other.born < entry.born for other in running):
                return False
            return late or (entry.seen and all(other.seen for other in running))
        return True

    def _outdated(self, entry: Entry) -> Workload:
        if entry.pod is None:
            return entry.workload
        return self._unknown(entry, "stale", "its pod data is too old: no source has answered since")

    def _resolve(
        self, entry: Entry, pod: Pod, container: Container | None, source: str | None, settled: bool
    ) -> Workload:
        entry.pods_at = self._read_at[pod.uid]
        old = entry.workload
        of_namespace = self.namespaces.get(pod.namespace) if self._rules.namespace_labels else None
        if self._rules.namespace_labels and of_namespace is None:
            entry.pod, entry.container = pod, container
            text = "the labels of its namespace are not known yet"
            return self._of_pod(entry, pod, State.PENDING, "namespace_labels", text)
        if (
            of_namespace is None
            and old.state is State.RESOLVED
            and old.pods_from == source
            and old.settled == settled
            and entry.pod == pod
            and entry.container == container
        ):
            return old
        entry.pod, entry.container = pod, container
        workload = _resolved(entry.ref, pod, container, source, self._rules, of_namespace, settled=settled)
        return _same(entry, workload)

    def _unknown(self, entry: Entry, reason: str, text: str, pod: Pod | None = None) -> Workload:
        pod = pod or entry.pod
        if pod is not None:
            return self._of_pod(entry, pod, State.UNKNOWN, reason, text)
        ref = entry.ref
        return _same(entry, Workload(State.UNKNOWN, reason, text, pod_uid=ref.pod_uid, container_id=ref.container_id))

    def _of_pod(self, entry: Entry, pod: Pod, state: State, reason: str, text: str) -> Workload:
        """What is known of a container whose pod is known, short of its selectors."""
        entry.pods_at = self._read_at.get(pod.uid, entry.pods_at)
        container = entry.container
        workload = Workload(
            state,
            reason,
            text,
            pods_from=self.source,
            namespace=pod.namespace,
            service_account=pod.service_account,
            pod=pod.name,
            pod_uid=pod.uid,
            container=container.name if container else None,
            container_id=entry.ref.container_id,
            image=container.image if container else None,
            node=pod.node,
            labels=pod.labels,
            kind=container.kind if container else None,
        )
        return _same(entry, workload)


def _resolved(
    ref: ContainerRef,
    pod: Pod,
    container: Container | None,
    source: str | None,
    rules: Rules,
    namespace_labels: Mapping[str, str] | None,
    *,
    settled: bool,
) -> Workload:
    given = grant(
        ref,
        pod,
        container,
        disable_container_selectors=rules.disable_container_selectors,
        ephemeral_containers=rules.ephemeral_containers,
        namespace_labels=namespace_labels,
    )
    settled = settled or not given.selectors  # none: nothing is to be waited for
    return resolved(
        pod, container, ref.container_id, given.selectors,
        source=source, settled=settled, why_not=given.why_not,
    )  # fmt: skip


def _first(entry: Entry) -> Workload:
    return _same(entry, first_workload(entry.ref))


def _not_a_pod(entry: Entry) -> Workload:
    text = "a container that belongs to no pod"
    return _same(entry, Workload(State.HOST, "not_a_pod", text, container_id=entry.ref.container_id))


def _same(entry: Entry, workload: Workload) -> Workload:
    """The old object where nothing changed, so that change can be told by identity."""
    return entry.workload if entry.workload == workload else workload
