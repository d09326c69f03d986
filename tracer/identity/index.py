"""The index: which workload is this process? A pure state machine; time is an argument of whatever needs it.

In comes what the kernel tells (``process_event``, ``cgroups.apply``), what sources list (``pods``) and the passing of
time (``tick``); out come identities and events. A container's entry goes through these states:

    pending ──listed──▶ resolved ──its pod left the list──▶ unknown: deleted ──listed──▶ resolved
       │  └─all of its pod's containers accounted for, it is none of them──▶ host: sandbox
       └────not listed by the time limit──▶ unknown: not_listed
    any ──listed in two pods, or in another pod than its path names, or its cgroup is no evidence──▶ unknown: conflict
    resolved ──sources silent for too long──▶ unknown: stale

Nothing is final but what the kernel says is over: a list that names the container resolves it from every state. A
wrong identity is worse than a late one, so whatever is not certain is ``pending`` or ``unknown``. The decisions are
those of ``verdict``, and which cgroups are evidence is decided by ``places``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from tracer.histogram import Histogram
from tracer.identity.cgroups import CgroupTree, Entry, View
from tracer.identity.places import is_within_resolved
from tracer.identity.pods import PodTable, same_uid
from tracer.identity.selectors import without_container
from tracer.identity.verdict import Rules, Verdicts
from tracer.model import (
    GONE,
    Cgroup,
    ContainerRef,
    Event,
    Identity,
    Pod,
    Process,
    ProcessEvent,
    ProcessEventKind,
    ProcessKey,
    RuntimeContainer,
    Source,
    State,
    Workload,
)

__all__ = ["Index", "Known", "Rules", "gone"]

# Processes that ended, remembered to drop repeats of their last records; and those that wait for a decision.
_ENDED = 4096

SWITCHING = Workload(State.PENDING, "hierarchy", "which cgroup hierarchy holds the containers is being found out")
UNNAMED = Workload(State.UNKNOWN, "unnamed", "the name of its cgroup cannot be told")

_READY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds

# What may become of a resolved container though nothing that was told of it was wrong.
_ENDS = ("deleted", "stale", "namespace_labels")

# Why a process has no container yet, or none, where its pod alone says who it is.
_POD_IS_ENOUGH = ("not_listed_yet", "no_pod_yet", "not_listed", "sandbox")

_SOURCES = {
    ProcessEventKind.FORK: Source.FORK,
    ProcessEventKind.EXEC: Source.EXEC,
    ProcessEventKind.ATTACH: Source.ATTACH,
    ProcessEventKind.SCAN: Source.SCAN,
}


class Known:
    """A process that the records told of. ``awaited`` is the container whose identity its watchers still wait for."""

    __slots__ = ("awaited", "cgroup", "hierarchy", "key", "process")

    def __init__(self, key: ProcessKey, process: Process, hierarchy: int, cgroup: int) -> None:
        self.key = key
        self.process = process
        self.hierarchy = hierarchy
        self.cgroup = cgroup
        self.awaited: Entry | None = None

    def wait_for(self, entry: Entry | None) -> None:
        """Sets what is awaited; nobody waits for where the process was before."""
        if self.awaited is not None and self.awaited is not entry:
            self.awaited.awaiting.pop(self.key, None)
        self.awaited = entry


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
        # Set also while a container is known of which only another hierarchy has a cgroup: then each process that is
        # "host" is to be verified.
        self.doubtful = False
        # Whether anybody watches; without, events are not made.
        self.watched = False
        self._verdicts = Verdicts(self.rules, self.cgroups)
        self._now = 0
        # Whether something changed that may change the answers for other containers: the next tick considers all.
        self.due = False
        self._stale = False
        self._ended: OrderedDict[ProcessKey, None] = OrderedDict()
        # Announced while it was not certain which hierarchy holds the containers.
        self._undecided: dict[ProcessKey, Process] = {}
        self._wanted: set[str] = set()
        # (pod UID, container ID) of those whose pod's images may still change.
        self._unsettled: set[tuple[str, str]] = set()
        # Events that came of something else than pod data, told with the next tick.
        self._late: list[Event] = []
        # How long containers took from the birth of their cgroup to their identity.
        self.ready = Histogram(_READY)

    @property
    def pods_at(self) -> int | None:
        """When the newest pod list was fetched."""
        return self._verdicts.pods_at

    @property
    def pods_from(self) -> str | None:
        """Where that list came from."""
        return self._verdicts.source

    @property
    def pod_table(self) -> PodTable | None:
        """The newest pod data, by which SPIRE's rules answer too; ``None`` before the first list."""
        return self._verdicts.table

    @property
    def namespace_labels(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of the namespaces that are known."""
        return self._verdicts.namespaces

    # ---- asking ----

    def identify(
        self,
        key: ProcessKey,
        asked: int,
        hierarchy: int,
        cgroup: int,
        process: Process | None,
        *,
        is_verified: bool = False,
    ) -> Identity:
        """The identity of a process that is in this cgroup. Its names are to be learnt before (``locate``).
        ``is_verified`` says that it is in no container's cgroup of another hierarchy."""
        if hierarchy != self.hierarchy:
            return Identity(key, asked, SWITCHING, None, process)
        view = self.locate(cgroup)
        if view is None:
            return Identity(key, asked, UNNAMED, Cgroup(cgroup, None), process)
        entry = view.entry
        if entry is not None:
            if is_verified or not self.uncertain or entry.workload.state is not State.HOST:
                return Identity(key, asked, entry.workload, view.cgroup, process, entry.pods_at)
        elif is_verified or not self.uncertain:
            return Identity(key, asked, view.workload, view.cgroup, process)
        return Identity(key, asked, SWITCHING, view.cgroup, process)

    def without_container(self, identity: Identity, pod_uid: str | None = None) -> Workload:
        """The workload of an identity for whoever leaves container selectors out: the pod is enough then, also while
        its container is not listed, and for one that never will be. ``pod_uid`` is what the asker's path names, where
        there is no cgroup."""
        workload = identity.workload
        view = self.cgroups.views.get(identity.cgroup.id) if identity.cgroup is not None else None
        entry = view.entry if view is not None else None
        if workload.state is State.RESOLVED:
            if workload.selectors and workload.kind != "ephemeral":
                return replace(workload, selectors=without_container(workload.selectors))
            # SPIRE does not find the container: the path has to name the pod. What is nested counts for nothing.
            while entry is not None and is_within_resolved(entry):
                entry = entry.outer
            if entry is not None:
                alone = self._verdicts.of_pod_only(entry, self._now)
            else:
                alone = self._verdicts.of_uid(ContainerRef(workload.container_id or "", pod_uid), self._now)
            if alone is None:
                return replace(workload, selectors=())
            return replace(workload, selectors=alone.selectors, reason_text=None)
        if entry is None or workload.reason not in _POD_IS_ENOUGH:
            return workload
        return self._verdicts.of_pod_only(entry, self._now) or workload

    def identify_container(self, nobody: Identity, container_id: str, pod_uid: str | None, now: int) -> Identity:
        """What is known of a container: by its cgroup where it has one, else by the list. ``nobody`` is the identity
        without it."""
        self._now = now
        named = [
            entry
            for entry in self.cgroups.named(container_id)
            if pod_uid is None or (entry.ref.pod_uid is not None and same_uid(entry.ref.pod_uid, pod_uid))
            if entry.live and self._verdicts.is_claim(entry)
        ]
        # Newest last; one that is another's copy does not hide the container.
        for entry in sorted(named, key=lambda entry: entry.workload.state is State.RESOLVED, reverse=True):
            if (view := self.locate(entry.home)) is not None:
                return self.identify(nobody.key, nobody.asked, self.hierarchy, view.cgroup.id, None)
        workload, at = self._verdicts.of_list(ContainerRef(container_id, pod_uid), now)
        return nobody._replace(workload=workload, pods_at=at)

    def locate(self, cgroup: int) -> View | None:
        """The view of a cgroup, its container considered; ``None`` where its names have to be learnt first."""
        view = self.cgroups.views.get(cgroup)
        if view is None:
            view = self.cgroups.locate(cgroup)
            if self.cgroups.fresh:
                self._consider_fresh()
        return view

    def _consider_fresh(self) -> None:
        fresh, self.cgroups.fresh = self.cgroups.fresh, []
        for entry in fresh:
            if self.cgroups.entries.get(entry.home) is not entry:
                continue  # renamed meanwhile
            self._late += self.consider(entry, self._now)
            self.due |= self._verdicts.places.add(entry)
            for other in self.cgroups.named(entry.ref.container_id) if entry.guarded else ():
                if other is not entry and other.live:  # which of the two is the container is to be decided
                    self._late += self.consider(other, self._now)

    def snapshot(self, now: int) -> list[Event]:
        """An event for each process that is known, as it is now. What is pending is announced again when it is not."""
        return [
            Event("snapshot", now, self._announce(p.key, p.process, p.hierarchy, p.cgroup))
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
            self._rescanned(known, hierarchy, cgroup)
            return None
        comm = event.comm.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        if again and known is not None and known.process.source is Source.SCAN and event.time < known.process.since:
            comm = known.process.comm  # the scan saw it later than this record did
        start = event.start or (known.process.start if again and known is not None else 0)
        process = Process(event.ppid, comm, start, _SOURCES[ProcessEventKind(event.kind)], event.time)
        if again and known is not None:
            known.process, known.hierarchy, known.cgroup = process, hierarchy, cgroup
            if not self.watched:
                known.wait_for(None)
        elif known is None or event.time >= known.process.since:
            self.processes[event.pid] = Known(key, process, hierarchy, cgroup)
        # else the number is another's by now: a scan was ahead of the records
        if not self.watched:
            return None
        identity = self._announce(key, process, hierarchy, cgroup)
        if event.kind == ProcessEventKind.FORK:
            return Event("fork", event.time, identity)
        if event.kind == ProcessEventKind.EXEC:
            return Event("exec", event.time, identity)
        if event.kind == ProcessEventKind.SCAN:
            return Event("snapshot", event.time, identity)
        left = self.locate(event.arg) if event.arg and event.hierarchy == self.hierarchy else None
        return Event("move", event.time, identity, {"from": left.cgroup.path if left else None})

    def _exit(self, event: ProcessEvent, key: ProcessKey, hierarchy: int, cgroup: int) -> Event | None:
        if key in self._ended:
            return None  # before 5.12 two threads that end together both report it
        self._remember_end(key)
        known = self.processes.get(event.pid)
        if known is not None and known.key == key:
            del self.processes[event.pid]
            known.wait_for(None)
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

    def _remember_end(self, key: ProcessKey) -> None:
        self._ended[key] = None
        if len(self._ended) > _ENDED:
            self._ended.popitem(last=False)

    def _rescanned(self, known: Known, hierarchy: int, cgroup: int) -> None:
        """A scan met a known process: perhaps the record of a move was lost."""
        moved = (known.hierarchy, known.cgroup) != (hierarchy, cgroup)
        known.hierarchy, known.cgroup = hierarchy, cgroup
        if moved and known.awaited is not None:
            identity = self._announce(known.key, known.process, hierarchy, cgroup)
            if identity.state is State.RESOLVED:
                self._late.append(Event("resolved", self._now, identity))

    def _announce(self, key: ProcessKey, process: Process, hierarchy: int, cgroup: int) -> Identity:
        identity = self.identify(key, key.pid, hierarchy, cgroup, process)
        awaited = None
        if identity.workload is SWITCHING:
            if len(self._undecided) < _ENDED:
                self._undecided[key] = process
        elif identity.state not in (State.RESOLVED, State.GONE):
            view = self.cgroups.views.get(cgroup)
            if view is not None and view.entry is not None:
                awaited = view.entry
                awaited.await_resolution(key, process, view.cgroup)
        known = self.processes.get(key.pid)
        if known is not None and known.key == key:
            known.wait_for(awaited)
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

    def told(self) -> dict[ProcessKey, tuple[State, str | None, str | None]]:
        """What is said of each process now: its state, pod and container; nothing while nobody watches."""
        found = {}
        for known in tuple(self.processes.values()) if self.watched else ():
            workload = self.identify(known.key, known.key.pid, known.hierarchy, known.cgroup, None).workload
            found[known.key] = (workload.state, workload.pod_uid, workload.container_id)
        return found

    def retold(self, before: Mapping[ProcessKey, tuple[State, str | None, str | None]], now: int) -> list[Event]:
        """Tells anew of each process of which something else was ``told`` before another hierarchy was tracked."""
        undecided, self._undecided = self._undecided, {}
        # Announced after that was asked, while the slots still had the old hierarchy's number.
        before = {**dict.fromkeys(undecided, (State.PENDING, None, None)), **before}
        events = []
        for known in tuple(self.processes.values()) if self.watched else ():
            identity = self._announce(known.key, known.process, known.hierarchy, known.cgroup)
            workload = identity.workload
            is_resolved = workload.state is State.RESOLVED
            was = before.get(known.key)
            if was is None or was == (workload.state, workload.pod_uid, workload.container_id):
                continue
            if is_resolved and was[0] is not State.RESOLVED:
                events.append(Event("resolved", now, identity))
            elif is_resolved or was[0] is State.RESOLVED:
                path = identity.cgroup.path if identity.cgroup else None
                events.append(Event("move", now, identity, {"from": path, "corrected": True}))
        return events

    def reconcile(self, alive: Mapping[int, int], before: int) -> list[Event]:
        """After records were lost: ends every process that was known before the scan started and that the scan, PID
        → inode of all that live, did not find. What it found anew came in as SCAN records."""
        events = []
        for pid, known in tuple(self.processes.items()):
            if alive.get(pid) == known.key.ino or known.process.since >= before:
                continue
            del self.processes[pid]
            self._remember_end(known.key)
            if self.watched:
                identity = self._announce(known.key, known.process, known.hierarchy, known.cgroup)
                events.append(Event("exit", before, identity, {"exit_code": None, "signal": None}))
        return events

    # ---- pods ----

    def pods(self, pods: Iterable[Pod], at: int, *, complete: bool, source: str, now: int) -> list[Event]:
        """Takes a pod list in, fetched at ``at``. An incomplete one (some pods could not be read) takes nothing away.
        Answers a ``resolved`` event for each process that was announced before its container was known."""
        if not self._verdicts.take(pods, at, complete=complete, source=source):
            return []
        self._now, self._stale = now, False
        return self.refresh(now)

    def pod_changed(self, pod: Pod, at: int, now: int) -> list[Event]:
        """Takes in one pod that a source pushed, as of ``at``; before the first list it says nothing."""
        self._verdicts.change(pod, at)
        return self.refresh(now)

    def pod_deleted(self, pod_uid: str, at: int, now: int) -> list[Event]:
        """Takes in that a source pushed the end of a pod."""
        self._verdicts.delete(pod_uid, at)
        return self.refresh(now)

    def container(self, record: RuntimeContainer, now: int) -> list[Event]:
        """Takes in what the container runtime tells of a container."""
        self._verdicts.runtime.take(record)
        return self.refresh(now)

    def sandbox(self, container_id: str, now: int) -> list[Event]:
        """Takes in that this container is a pod's sandbox (pause)."""
        self._verdicts.runtime.take_sandbox(container_id, now)
        return self.refresh(now)

    def is_listed(self, ref: ContainerRef) -> bool:
        """Whether a source has this container, in the pod that its path names."""
        return self._verdicts.is_listed(ref)

    def take_disputes(self) -> list[str]:
        """Sentences on containers whose image the runtime and the list tell differently, each once."""
        return self._verdicts.take_disputes()

    @property
    def other_tags(self) -> int:
        """How many containers the list names by another tag of their image than the runtime."""
        return self._verdicts.other_tags

    def namespaces(self, labels: Mapping[str, Mapping[str, str]], now: int) -> list[Event]:
        """Takes in the labels of namespaces; where the rules ask for them, containers in others wait for theirs."""
        self._verdicts.namespaces = labels
        return self.refresh(now)

    @property
    def pod_namespaces(self) -> set[str]:
        """The namespaces of the pods that sources told of."""
        return self._verdicts.pod_namespaces

    def refresh(self, now: int) -> list[Event]:
        """Considers every container anew, and where containers live before that."""
        self.due = False
        self._verdicts.places.survey()
        events = [
            event
            for entry in self.cgroups.containers()
            if entry.live or entry.guarded
            for event in self.consider(entry, now)
        ]
        self._consider_fresh()
        return events

    def tick(self, now: int) -> list[Event]:
        """Lets time pass: limits end, released cgroups are forgotten. All news is to be taken in before."""
        self._now = now
        self.cgroups.prune(now)
        self._consider_fresh()
        at = self._verdicts.pods_at
        if not self._stale and at is not None and now - at > self.rules.max_stale:
            self._stale = self.due = True
        events = self.refresh(now) if self.due and self._verdicts.ready else []
        late, self._late = self._late, []
        return [*late, *events]

    def set_rules(self, rules: Rules) -> None:
        """From the next refresh on these rules count; the prefix stays."""
        self.rules = rules
        self._verdicts.set_rules(rules)

    def want_again(self) -> None:
        """There is a source that was not told yet which containers nobody knows."""
        self._wanted = set()
        self.cgroups.changed = True

    def take_wants(self) -> tuple[list[str], list[str]]:
        """Container IDs that no source lists yet, and those that are no longer wanted, since the last call."""
        if not self.cgroups.changed:
            return [], []
        self.cgroups.changed = False
        wanted = {
            entry.ref.container_id
            for entry in self.cgroups.containers()
            if entry.live and entry.workload.state is State.PENDING and entry.workload.reason != "namespace_labels"
        }
        before, self._wanted = self._wanted, wanted
        return sorted(wanted - before), sorted(before - wanted)

    def take_unsettled(self) -> tuple[set[str], set[str]]:
        """UIDs of pods of which a container came up while others are still to come, and of those for which that is
        over, since the last call."""
        unsettled = {
            (entry.workload.pod_uid or "", entry.ref.container_id)
            for entry in self.cgroups.containers()
            if entry.live and entry.workload.state is State.RESOLVED and not entry.workload.settled
        }
        before, self._unsettled = self._unsettled, unsettled
        waiting = {uid for uid, _ in unsettled}
        return {uid for uid, _ in unsettled - before}, {uid for uid, _ in before} - waiting

    def take_stir(self) -> bool:
        """Whether a container was made or removed, since the last call, in a pod whose status in the list is not
        complete: the next list may say more."""
        stirred = self.cgroups.stirred
        if not stirred:
            return False
        self.cgroups.stirred = set()
        return any(self._verdicts.is_incomplete(ref) for ref in stirred)

    def lacks_live(self, uids: Set[str]) -> bool:
        """Whether a pod that is known, and of which a container has a cgroup, is not among these."""
        return any(
            entry.live and entry.pod is not None and entry.pod.uid not in uids for entry in self.cgroups.containers()
        )

    def consider(self, entry: Entry, now: int) -> list[Event]:
        """Decides what is known of one container now; its ``resolved`` events if that resolves it."""
        workload = self._verdicts.of(entry, now)
        if workload is entry.workload:
            return []
        before = entry.workload
        if workload.state is State.RESOLVED and before.state is State.PENDING and entry.seen:
            self.ready.observe((now - entry.born) / 1e9)
        entry.workload = workload
        self.cgroups.changed = True
        is_other = (before.pod_uid, before.container_id) != (workload.pod_uid, workload.container_id)
        if workload.state is not State.RESOLVED:
            is_wrong = before.state is State.RESOLVED and workload.reason not in _ENDS
            return self._corrected(entry, now) if is_wrong else []
        self.cgroups.bind(entry)
        awaiting, entry.awaiting = entry.awaiting, {}
        if before.state is State.RESOLVED and is_other:
            return self._corrected(entry, now)
        return [
            Event("resolved", now, Identity(key, key.pid, workload, cgroup, process, entry.pods_at))
            for key, (process, cgroup) in awaiting.items()
        ]

    def _corrected(self, entry: Entry, now: int) -> list[Event]:
        """What was told of a container's processes was wrong: they are told anew, as moves to where they are."""
        if not self.watched:
            return []
        events = []
        for known in tuple(self.processes.values()):
            view = self.cgroups.locate(known.cgroup) if known.hierarchy == self.hierarchy else None
            if view is not None and view.entry is entry:
                identity = self._announce(known.key, known.process, known.hierarchy, known.cgroup)
                events.append(Event("move", now, identity, {"from": view.cgroup.path, "corrected": True}))
        return events


def gone(pid: int) -> Identity:
    """The answer for a number that nobody has."""
    return Identity(ProcessKey(pid, 0), pid, GONE)
