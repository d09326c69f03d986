"""The index: which workload is this process? A pure state machine; time is an argument of whatever needs it.

In comes what the kernel tells (``process_event``, ``cgroups.apply``), what sources list (``pods``) and the passing of
time (``tick``); out come identities and events. A container's entry goes through these states:

    pending ──listed──▶ resolved ──its pod left the list──▶ unknown: deleted ──listed──▶ resolved
       │  └─all of its pod's containers accounted for, it is none of them──▶ host: sandbox
       └────not listed by the time limit──▶ unknown: not_listed
    any ──listed in two pods, or in another pod than its path names──▶ unknown: conflict
    resolved ──sources silent for too long──▶ unknown: stale

Nothing is final but what the kernel says is over: a list that names the container resolves it from every state. A
wrong identity is worse than a late one, so whatever is not certain is ``pending`` or ``unknown``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tracer.identity.cgroups import CgroupTree, Entry, View
from tracer.identity.pods import PodTable, pod_has_uid
from tracer.identity.selectors import selectors
from tracer.model import (
    GONE,
    Cgroup,
    Container,
    Event,
    Identity,
    Pod,
    Process,
    ProcessEvent,
    ProcessEventKind,
    ProcessKey,
    Source,
    State,
    Workload,
)

# A container that a list calls running but of which no cgroup was ever seen is believed in after this long: the
# kubelet's status lags behind a restart by up to a second, and then names the container that ended.
_STATUS_LAG = 5_000_000_000
_ENDED = 4096

SWITCHING = Workload(State.PENDING, "hierarchy", "which cgroup hierarchy holds the containers is being found out")
UNNAMED = Workload(State.UNKNOWN, "unnamed", "the name of its cgroup cannot be told")

_SOURCES = {
    ProcessEventKind.FORK: Source.FORK,
    ProcessEventKind.EXEC: Source.EXEC,
    ProcessEventKind.ATTACH: Source.ATTACH,
    ProcessEventKind.SCAN: Source.SCAN,
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What can be set. Times in nanoseconds.

    ``give_up`` is how long a container may stay unlisted before it is ``unknown``, ``max_stale`` how long sources may
    fail before what they told is no longer believed.
    """

    give_up: int = 30_000_000_000
    max_stale: int = 600_000_000_000
    prefix: str | None = None
    disable_container_selectors: bool = False


class Known:
    """A process that the records told of."""

    __slots__ = ("cgroup", "hierarchy", "key", "process")

    def __init__(self, key: ProcessKey, process: Process, hierarchy: int, cgroup: int) -> None:
        self.key = key
        self.process = process
        self.hierarchy = hierarchy
        self.cgroup = cgroup


class Index:
    """Joins processes, cgroups and pods. Not for several threads at once, but for ``cgroups.views`` and
    ``processes``, which may be read while it works."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.cgroups = CgroupTree(self.rules.prefix)
        self.processes: dict[int, Known] = {}
        self.hierarchy = 0
        # Set while it is not certain which hierarchy holds the containers: nobody is "host" then.
        self.uncertain = False
        # Whether anybody watches; without, events are not made.
        self.watched = False
        self.pods_at: int | None = None
        self._pods_from: str | None = None
        self._table: PodTable | None = None
        self._now = 0
        self._stale = False
        self._ended: OrderedDict[ProcessKey, None] = OrderedDict()
        # Announced while it was not certain which hierarchy holds the containers.
        self._undecided: dict[ProcessKey, Process] = {}
        self._wanted: list[str] = []
        self._settled: list[str] = []

    # ---- asking ----

    def identify(self, key: ProcessKey, asked: int, hierarchy: int, cgroup: int, process: Process | None) -> Identity:
        """The identity of a process that is in this cgroup. Its names are to be learnt before (``locate``)."""
        if hierarchy != self.hierarchy:
            return Identity(key, asked, SWITCHING, None, process)
        view = self.locate(cgroup)
        if view is None:
            return Identity(key, asked, UNNAMED, Cgroup(cgroup, None), process)
        entry = view.entry
        if entry is not None:
            if not self.uncertain or entry.workload.state is not State.HOST:
                return Identity(key, asked, entry.workload, view.cgroup, process, entry.pods_at)
        elif not self.uncertain:
            return Identity(key, asked, view.workload, view.cgroup, process)
        return Identity(key, asked, SWITCHING, view.cgroup, process)

    def locate(self, cgroup: int) -> View | None:
        """The view of a cgroup, its container considered; ``None`` where its names have to be learnt first."""
        view = self.cgroups.views.get(cgroup)
        if view is None:
            view = self.cgroups.locate(cgroup)
            if self.cgroups.fresh:
                if self.cgroups.root is None:
                    self._learn_root()
                    view = self.cgroups.locate(cgroup)
                fresh, self.cgroups.fresh = self.cgroups.fresh, []
                for entry in fresh:
                    self.consider(entry, self._now)
        return view

    def snapshot(self, now: int) -> list[Event]:
        """An event for each process that is known, as it is now."""
        return [
            Event("snapshot", now, self.identify(p.key, p.key.pid, p.hierarchy, p.cgroup, p.process))
            for p in tuple(self.processes.values())
        ]

    # ---- processes ----

    def process_event(self, event: ProcessEvent, hierarchy: int, cgroup: int) -> Event | None:
        """Takes a process record in. ``hierarchy`` and ``cgroup`` are where the process is *now*, from its slot; the
        record's own only for one that is gone. Answers the event to show, if there is any."""
        key = ProcessKey(event.pid, event.ino)
        if event.kind == ProcessEventKind.EXIT:
            return self._exit(event, key, hierarchy, cgroup)
        known = self.processes.get(event.pid)
        again = known is not None and known.key == key
        if key in self._ended:
            return None
        if event.kind == ProcessEventKind.SCAN and again and known is not None:
            known.hierarchy, known.cgroup = hierarchy, cgroup
            return None
        comm = event.comm.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        if again and known is not None and known.process.source is Source.SCAN and event.time < known.process.since:
            comm = known.process.comm  # the scan saw it later than this record did
        start = event.start or (known.process.start if again and known is not None else 0)
        process = Process(event.ppid, comm, start, _SOURCES[ProcessEventKind(event.kind)], event.time)
        self.processes[event.pid] = Known(key, process, hierarchy, cgroup)
        if not self.watched:
            return None
        identity = self._announce(key, process, hierarchy, cgroup)
        if event.kind == ProcessEventKind.FORK:
            return Event("fork", event.time, identity)
        if event.kind == ProcessEventKind.EXEC:
            return Event("exec", event.time, identity)
        if event.kind == ProcessEventKind.SCAN:
            return Event("snapshot", event.time, identity)
        left = self.locate(event.arg) if event.arg else None
        return Event("move", event.time, identity, {"from": left.cgroup.path if left else None})

    def _exit(self, event: ProcessEvent, key: ProcessKey, hierarchy: int, cgroup: int) -> Event | None:
        if key in self._ended:
            return None  # before 5.12 two threads that end together both report it
        self._ended[key] = None
        if len(self._ended) > _ENDED:
            self._ended.popitem(last=False)
        known = self.processes.get(event.pid)
        if known is not None and known.key == key:
            del self.processes[event.pid]
            process = known.process
        else:
            process = Process(event.ppid, "", event.start, Source.SCAN, event.time)
        if not self.watched:
            return None
        comm = event.comm.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        identity = self._announce(key, replace(process, comm=comm), hierarchy, cgroup)
        signal = event.arg & 0x7F
        extra = {"exit_code": None if signal else event.arg >> 8 & 0xFF, "signal": signal or None}
        return Event("exit", event.time, identity, extra)

    def _announce(self, key: ProcessKey, process: Process, hierarchy: int, cgroup: int) -> Identity:
        identity = self.identify(key, key.pid, hierarchy, cgroup, process)
        if identity.workload is SWITCHING:
            if len(self._undecided) < _ENDED:
                self._undecided[key] = process
        elif identity.state in (State.PENDING, State.UNKNOWN):
            view = self.cgroups.views.get(cgroup)
            if view is not None and view.entry is not None and hierarchy == self.hierarchy:
                view.entry.await_resolution(key, process, view.cgroup)
        return identity

    def decided(self, now: int) -> list[Event]:
        """It is certain again which hierarchy holds the containers: those who were announced meanwhile and still live
        are looked at once more."""
        self.uncertain = False
        undecided, self._undecided = self._undecided, {}
        events = []
        for key, process in undecided.items():
            known = self.processes.get(key.pid)
            if known is not None and known.key == key:
                identity = self._announce(key, process, known.hierarchy, known.cgroup)
                if identity.state is State.RESOLVED:
                    events.append(Event("resolved", now, identity))
        return events

    def reconcile(self, alive: Mapping[int, int], before: int) -> list[Event]:
        """After records were lost: ends every process that was known before the scan started and that the scan, PID
        → inode of all that live, did not find. What it found anew came in as SCAN records."""
        events = []
        for pid, known in tuple(self.processes.items()):
            if alive.get(pid) == known.key.ino or known.process.since >= before:
                continue
            del self.processes[pid]
            self._ended[known.key] = None
            if self.watched:
                identity = self._announce(known.key, known.process, known.hierarchy, known.cgroup)
                events.append(Event("exit", before, identity, {"exit_code": None, "signal": None}))
        return events

    # ---- pods ----

    def pods(self, pods: Iterable[Pod], at: int, *, complete: bool, source: str, now: int) -> list[Event]:
        """Takes a pod list in, fetched at ``at``. An incomplete one (some pods could not be read) takes nothing away.
        Answers a ``resolved`` event for each process that was announced before its container was known."""
        if self.pods_at is not None and at < self.pods_at:
            return []
        listed = tuple(pods)
        if not complete and self._table is not None:
            there = {pod.uid for pod in listed}
            listed += tuple(pod for pod in self._table.pods if pod.uid not in there)
        self._table = PodTable.build(listed)
        self.pods_at, self._pods_from, self._now, self._stale = at, source, now, False
        return self.refresh(now)

    def refresh(self, now: int) -> list[Event]:
        """Considers every container anew, and what the node's kubepods root is before that."""
        self._learn_root()
        return self._update_all(now)

    def _learn_root(self) -> None:
        table = self._table
        if table is not None:
            self.cgroups.learn_root(
                entry for entry in self.cgroups.containers() if entry.live and self._listed(entry, table)
            )

    def tick(self, now: int) -> list[Event]:
        """Lets time pass: limits end, released cgroups are forgotten."""
        self._now = now
        self.cgroups.prune(now)
        if not self._stale and self.pods_at is not None and now - self.pods_at > self.rules.max_stale:
            self._stale = True
            return self._update_all(now)
        return []

    def take_wants(self) -> tuple[list[str], list[str]]:
        """Container IDs that no source lists yet, and those that are no longer wanted, since the last call."""
        changed, self.cgroups.changed = self.cgroups.changed, False
        for entry in self.cgroups.containers() if changed else ():
            want = entry.live and entry.root is not None and entry.workload.state is State.PENDING
            if want != entry.wanted:
                entry.wanted = want
                (self._wanted if want else self._settled).append(entry.ref.container_id)
        wanted, settled = self._wanted, self._settled
        self._wanted, self._settled = [], []
        return wanted, settled

    def consider(self, entry: Entry, now: int) -> list[Event]:
        """Decides what is known of one container now; its ``resolved`` events if that resolves it."""
        workload = self._decide(entry, now)
        if workload is entry.workload:
            return []
        entry.workload = workload
        self.cgroups.changed = True
        if workload.state is not State.RESOLVED:
            return []
        self.cgroups.bind(entry)
        awaiting, entry.awaiting = entry.awaiting, {}
        return [
            Event("resolved", now, Identity(key, key.pid, workload, cgroup, process, entry.pods_at))
            for key, (process, cgroup) in awaiting.items()
        ]

    def _update_all(self, now: int) -> list[Event]:
        return [event for entry in self.cgroups.containers() for event in self.consider(entry, now)]

    @staticmethod
    def _listed(entry: Entry, table: PodTable) -> list[tuple[Pod, Container]]:
        """The places where a list has this container, in the pod that its path names if it names one."""
        uid = entry.ref.pod_uid
        return [
            (pod, container)
            for pod, container in table.find(entry.ref.container_id)
            if uid is None or pod_has_uid(pod, uid)
        ]

    def _decide(self, entry: Entry, now: int) -> Workload:
        table, at = self._table, self.pods_at
        if table is None or at is None:
            return entry.workload
        if now - at > self.rules.max_stale:
            if entry.pod is None:
                return entry.workload
            return self._unknown(entry, "stale", "its pod data is too old: no source has answered since")
        found = self._listed(entry, table)
        if len({pod.uid for pod, _ in found}) > 1:
            return self._unknown(entry, "conflict", "two pods are listed with this container ID")
        if found and entry.root is None and self._runs_in_pod(entry):
            return entry.workload
        if found:
            return self._resolve(entry, *found[0], at)
        if table.find(entry.ref.container_id):
            return self._unknown(entry, "conflict", "it is listed in another pod than the one its cgroup names")
        if entry.pod is not None and entry.container is not None:
            pod = table.by_uid.get(entry.pod.uid)
            if pod is None:
                return self._unknown(entry, "deleted", "its pod has left the list")
            return self._resolve(entry, pod, entry.container, at)
        if entry.root is None:
            return entry.workload
        return self._unlisted(entry, table, at)

    def _unlisted(self, entry: Entry, table: PodTable, at: int) -> Workload:
        uid = entry.ref.pod_uid or ""
        # By metadata.uid first: the annotation that names a static pod is one that any pod's author may write.
        pod = table.by_uid.get(uid) or next((pod for pod in table.pods if uid and pod_has_uid(pod, uid)), None)
        if pod is not None and at >= entry.born and self._accounted(pod, entry, at):
            return _same(entry, _of_pod(entry, pod, State.HOST, "sandbox", "it is its pod's sandbox (pause)"))
        if at - entry.born > self.rules.give_up:
            return self._unknown(entry, "not_listed", "no source lists this container", pod)
        if pod is None:
            pending = replace(entry.workload, state=State.PENDING)
            if entry.workload.state is State.PENDING:
                return entry.workload
            return _same(entry, pending)
        text = "its pod is known, but the list does not have this container yet"
        return _same(entry, _of_pod(entry, pod, State.PENDING, "not_listed_yet", text))

    def _runs_in_pod(self, entry: Entry) -> bool:
        """Whether the container's own cgroup below a pod is there: one of the same name elsewhere is only a name,
        which any user with a delegated subtree can give."""
        return any(
            other.live and other.root is not None and other.ref.container_id == entry.ref.container_id
            for other in self.cgroups.containers()
        )

    def _accounted(self, pod: Pod, entry: Entry, at: int) -> bool:
        """Whether every container of the pod is listed with an ID, and none of those can be out of date, so that one
        that is not among them is no container of the pod. A list that lags behind a restart names the container that
        ended; believing it would call the new one a sandbox."""
        statuses = (*pod.containers, *pod.init_containers, *pod.ephemeral_containers)
        named = {status.name for status in statuses if status.container_id}
        if not pod.containers or not named.issuperset(pod.spec_names):
            return False
        for status in statuses:
            if not status.container_id or status.state == "waiting":
                return False
            if status.state == "terminated":
                if status.role == "app":
                    return False
                continue
            others = [e for e in self.cgroups.containers() if e.ref.container_id == status.container_id]
            if any(other.live for other in others):
                continue
            if others or at < entry.born + _STATUS_LAG:
                return False
        return True

    def _unknown(self, entry: Entry, reason: str, text: str, pod: Pod | None = None) -> Workload:
        pod = pod or entry.pod
        if pod is None:
            ref = entry.ref
            workload = Workload(State.UNKNOWN, reason, text, pod_uid=ref.pod_uid, container_id=ref.container_id)
            return _same(entry, workload)
        return _same(entry, _of_pod(entry, pod, State.UNKNOWN, reason, text))

    def _resolve(self, entry: Entry, pod: Pod, container: Container, at: int) -> Workload:
        entry.pods_at = at
        old = entry.workload
        if (
            old.state is State.RESOLVED
            and old.pods_from == self._pods_from
            and entry.pod == pod
            and entry.container == container
        ):
            return old
        entry.pod, entry.container = pod, container
        return Workload(
            State.RESOLVED,
            settled=True,
            pods_from=self._pods_from,
            namespace=pod.namespace,
            service_account=pod.service_account,
            pod=pod.name,
            pod_uid=pod.uid,
            container=container.name,
            container_id=entry.ref.container_id,
            image=container.image,
            node=pod.node,
            selectors=selectors(pod, container, disable_container_selectors=self.rules.disable_container_selectors),
            labels=pod.labels,
        )


def _of_pod(entry: Entry, pod: Pod, state: State, reason: str, text: str) -> Workload:
    """What is known of a container whose pod is known, short of its selectors."""
    container = entry.container
    return Workload(
        state,
        reason,
        text,
        namespace=pod.namespace,
        service_account=pod.service_account,
        pod=pod.name,
        pod_uid=pod.uid,
        container=container.name if container else None,
        container_id=entry.ref.container_id,
        image=container.image if container else None,
        node=pod.node,
        labels=pod.labels,
    )


def _same(entry: Entry, workload: Workload) -> Workload:
    """The old object where nothing changed, so that change can be told by identity."""
    return entry.workload if entry.workload == workload else workload


def gone(pid: int) -> Identity:
    """The answer for a number that nobody has."""
    return Identity(ProcessKey(pid, 0), pid, GONE)
