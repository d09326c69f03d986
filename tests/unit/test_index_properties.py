"""The index against a simulated node that knows the truth: whatever is lost, late, reordered or forged, no process is
ever given another's identity, and once everything was told everyone has their own.

The node has pods in two places whose containers restart and nest cgroups named after others, a hostile container of
Docker's, a user who owns a delegated subtree and names cgroups after listed containers from before the start on,
processes that move and whose PIDs are used again, rings that lose records, and a kubelet whose lists lag, overtake each
other, and name containers of before a reboot. The index is driven as the feed drives it: births first, slots instead of
records, names read from cgroupfs, scans after losses.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.index_lab import named
from tracer.identity.index import Index, Rules
from tracer.model import (
    CgroupEvent,
    CgroupEventKind,
    Container,
    Event,
    Identity,
    Pod,
    ProcessEvent,
    ProcessEventKind,
    ProcessKey,
    State,
)

SECOND = 1_000_000_000
TOP, HIERARCHY = 1, 5
LAG = 4 * SECOND  # of a kubelet's status; what the index allows for is 5 s
PIDS = range(100, 108)

FORGERIES = st.sampled_from(["pod", "id", "root", "colon", "conmon", "any"])

Owner = tuple[str, str] | None
"""(pod UID, container ID) of a container; ``None`` for the host."""


@dataclass
class Place:
    """A cgroup of the simulated kernel."""

    parent: int
    name: str
    owner: Owner
    hostile: bool = False


@dataclass
class Group:
    """A pod of the simulated kubelet: the containers that run, by name, and those that are over."""

    uid: str
    number: int
    cgroup: int
    names: tuple[str, ...]
    systemd: bool = False
    homes: dict[str, int] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    label: int = 0


class Node(RuleBasedStateMachine):
    """The truth, the ways in which it is told, and what the index makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000 * SECOND
        self.count = 0
        self.places: dict[int, Place] = {}
        self.groups: list[Group] = []
        self.leaving: list[Group] = []
        self.processes: dict[int, tuple[int, int]] = {}  # PID → inode, cgroup
        self.owners: dict[ProcessKey, set[Owner]] = {}
        self.births: deque[CgroupEvent] = deque()
        self.records: deque[ProcessEvent] = deque()
        self.lost_births = self.lost_records = False
        self.ghosts: list[Group] = []  # pods that the kubelet lists as before a reboot
        self.writable: set[int] = set()  # what an ordinary user may write
        self.history: deque[tuple[int, tuple[Pod, ...]]] = deque()
        self.lists: list[tuple[int, tuple[Pod, ...], bool]] = []
        self.delivered: dict[int, dict[str, Pod]] = {}
        self.newest = -1
        self.listed: dict[str, Pod] = {}

    @initialize(
        prefix=st.booleans(), kind=st.booleans(), systemd=st.booleans(), early=st.booleans(), names=st.integers(1, 2)
    )
    def boot(self, prefix: bool, kind: bool, systemd: bool, early: bool, names: int) -> None:
        """A node with one pod, one hostile Docker container and a hostile user that ran before the index came, and a
        list that has a pod of before the reboot. On a node of KIND the index runs in it, or is given a prefix."""
        docker = self._mkdir(TOP, "docker", None)
        above = self._mkdir(docker, self._id(), None) if kind else TOP
        self.roots = {system: self._mkdir(above, "kubepods.slice" if system else "kubepods", None) for system in (0, 1)}
        self.drivers = [systemd] if prefix else [False, True]
        self.host = self._mkdir(TOP, "system.slice", None)
        slices = self._mkdir(self._mkdir(TOP, "user.slice", None), "user-1000.slice", None)
        self.user = self._mkdir(slices, "user@1000.service", None, hostile=True)
        self.writable.add(self.user)
        self.docker = self._mkdir(self._mkdir(docker, self._id(), None), "init", None, hostile=True)
        path = self._path(self.roots[systemd])
        self.index = Index(Rules(prefix=path if prefix else None))
        self.index.hierarchy = HIERARCHY
        self.index.cgroups.track(TOP)
        self.index.cgroups.guard = lambda cgroups: self.writable.isdisjoint(cgroups)
        self.index.watched = True
        if kind and not prefix:
            self.index.cgroups.own = f"{self._path(above)}/init.scope"
        self._new_pod(names, systemd)
        group = self.groups[0]
        self.ghosts = [Group(f"{0:08x}-0000-4000-8000-000000000000", 0, TOP, ("c0",), ids={"c0": self._id()})]
        for at, victim in itertools.product((self.docker, self.user), (group, *self.ghosts)):
            forged = self._mkdir(
                self._mkdir(at, "kubepods", None, hostile=True), f"pod{victim.uid}", None, hostile=True
            )
            home = self._mkdir(forged, victim.ids["c0"], None, hostile=True)
            if victim is group and at == self.docker:
                self._start(PIDS[0], home)
            elif at == self.user:
                self._start(PIDS[-1], home)
        for pid, name in zip(PIDS[1:], group.names, strict=False):
            self._start(pid, group.homes[name])
        self.births.clear()
        self.records.clear()
        self._fetch(self._truth(), self.now, True)
        if early:
            self._deliver(0)
        self._scan()
        self._check_events(self.index.refresh(self.now))
        if not early:
            self._deliver(0)

    # ---- the truth ----

    def _id(self) -> str:
        self.count += 1
        return f"{self.count:064x}"

    def _path(self, cgroup: int) -> str:
        return "" if cgroup == TOP else f"{self._path(self.places[cgroup].parent)}/{self.places[cgroup].name}"

    def _mkdir(self, parent: int, name: str, owner: Owner, *, hostile: bool = False) -> int:
        self.count += 1
        cgroup = 10_000 + self.count
        self.places[cgroup] = Place(parent, name, owner, hostile)
        if parent in self.writable:
            self.writable.add(cgroup)
        self._told(CgroupEventKind.MKDIR, cgroup)
        return cgroup

    def _told(self, kind: CgroupEventKind, cgroup: int) -> None:
        place = self.places[cgroup]
        self.births.append(CgroupEvent(kind, HIERARCHY, self.now, cgroup, place.parent, 1, place.name.encode()))

    def _rmdir(self, cgroup: int) -> None:
        for below in [each for each, place in self.places.items() if place.parent == cgroup]:
            self._rmdir(below)
        for pid in [pid for pid, (_, where) in self.processes.items() if where == cgroup]:
            self._end(pid)
        self._told(CgroupEventKind.RMDIR, cgroup)
        self._told(CgroupEventKind.RELEASE, cgroup)
        del self.places[cgroup]

    def _record(self, kind: ProcessEventKind, pid: int, arg: int = 0) -> None:
        ino, cgroup = self.processes[pid]
        self.owners.setdefault(ProcessKey(pid, ino), set()).add(self.places[cgroup].owner)
        self.records.append(ProcessEvent(kind, pid, 1, HIERARCHY, self.now, 1, ino, cgroup, arg, b"sh"))

    def _start(self, pid: int, cgroup: int) -> None:
        self.count += 1
        self.processes[pid] = (self.count, cgroup)
        self._record(ProcessEventKind.FORK, pid)

    def _end(self, pid: int) -> None:
        self._record(ProcessEventKind.EXIT, pid)
        del self.processes[pid]

    @staticmethod
    def _pod_segment(group: Group) -> str:
        return f"kubepods-pod{group.uid.replace('-', '_')}.slice" if group.systemd else f"pod{group.uid}"

    @staticmethod
    def _leaf(group: Group, container: str) -> str:
        return f"cri-containerd-{container}.scope" if group.systemd else container

    def _new_pod(self, names: int, systemd: bool) -> None:
        self.count += 1
        number = self.count
        uid = f"{number:08x}-0000-4000-8000-000000000000"
        group = Group(uid, number, TOP, tuple(f"c{n}" for n in range(names)), systemd)
        group.cgroup = self._mkdir(self.roots[systemd], self._pod_segment(group), None)
        self._mkdir(group.cgroup, self._leaf(group, self._id()), None)  # pause
        self.groups.append(group)
        self.now += 1
        for name in group.names:
            self._run(group, name)

    def _run(self, group: Group, name: str) -> None:
        container = self._id()
        group.ids[name] = container
        group.homes[name] = self._mkdir(group.cgroup, self._leaf(group, container), (group.uid, container))

    def _truth(self) -> tuple[Pod, ...]:
        return tuple(
            Pod(
                uid=group.uid,
                namespace=f"ns-{group.number}",
                name=f"pod-{group.number}",
                service_account="sa",
                node="node",
                labels={"v": str(group.label)},
                owners=(),
                containers=tuple(
                    Container(name, group.ids.get(name), "image", "digest", "app", "running") for name in group.names
                ),
                init_containers=(),
                ephemeral_containers=(),
                spec=named(*group.names),
            )
            for group in (*self.groups, *self.ghosts)
        )

    def _pass(self, time: int) -> None:
        self.history.append((self.now, self._truth()))
        self.now += time
        while len(self.history) > 1 and self.history[1][0] < self.now - LAG:
            self.history.popleft()

    # ---- how it is told ----

    def _chain(self, cgroup: int) -> list[tuple[int, str]] | None:
        links: list[tuple[int, str]] = []
        while cgroup != TOP:
            place = self.places.get(cgroup)
            if place is None:
                return None
            links.append((cgroup, place.name))
            cgroup = place.parent
        return links[::-1]

    def _name(self, cgroup: int) -> None:
        if self.index.locate(cgroup) is None and (chain := self._chain(cgroup)) is not None:
            self.index.cgroups.learn(chain, self.now)
            self.index.locate(cgroup)

    def _drain(self) -> None:
        while self.births:
            event = self.births.popleft()
            self.index.cgroups.apply(event)
            if event.kind == CgroupEventKind.MKDIR:
                self._name(event.id)
        while self.records:
            self._take(self.records.popleft())

    def _take(self, record: ProcessEvent) -> None:
        cgroup = record.cgroup
        slot = self.processes.get(record.pid)
        if record.kind != ProcessEventKind.EXIT and slot is not None and slot[0] == record.ino:
            cgroup = slot[1]
        self._name(cgroup)
        event = self.index.process_event(record, HIERARCHY, cgroup)
        self._check_events([event] if event else [])

    def _scan(self) -> None:
        self.now += 1
        started = self.now
        for pid, (ino, cgroup) in self.processes.items():
            self._take(ProcessEvent(ProcessEventKind.SCAN, pid, 1, HIERARCHY, self.now, 1, ino, cgroup, 0, b"sh"))
        alive = {pid: ino for pid, (ino, _) in self.processes.items()}
        self._check_events(self.index.reconcile(alive, started))

    def _repair(self) -> None:
        if self.lost_births:
            homes = [entry.home for entry in self.index.cgroups.containers() if entry.live]
            self.index.cgroups.forget_names()
            for home in homes:
                self._name(home)
        if self.lost_births or self.lost_records:
            self._scan()
        self.lost_births = False
        # A record that is unread may be of a process whose end was lost: the next scan finds out.
        self.lost_records = bool(self.lost_records and self.records)

    def _fetch(self, pods: tuple[Pod, ...], at: int, complete: bool) -> None:
        self.lists.append((at, pods, complete))

    def _deliver(self, which: int) -> None:
        self._drain()
        at, pods, complete = self.lists.pop(which % len(self.lists))
        if at >= self.newest:
            self.newest = at
            table = {pod.uid: pod for pod in pods}
            self.delivered.setdefault(at, {}).update(table)
            self.listed = table if complete else {**self.listed, **table}
        self._check_events(self.index.pods(pods, at, complete=complete, source="kubelet", now=self.now))

    # ---- what happens ----

    @rule(names=st.integers(1, 2), driver=st.integers(0, 1))
    @precondition(lambda self: len(self.groups) < 3)
    def pod_is_made(self, names: int, driver: int) -> None:
        """A pod starts, its sandbox first; perhaps below another root than the others."""
        self._new_pod(names, self.drivers[driver % len(self.drivers)])

    @rule()
    @precondition(lambda self: self.ghosts)
    def kubelet_forgets_what_was_before_the_reboot(self) -> None:
        """The kubelet found out that the container is gone."""
        self.ghosts.clear()

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: len(self.groups) > 1)
    def pod_is_deleted(self, which: int) -> None:
        """A pod leaves the list while its processes still run."""
        self.leaving.append(self.groups.pop(which % len(self.groups)))

    @rule()
    @precondition(lambda self: self.leaving)
    def pod_ends(self) -> None:
        """A pod that was deleted ends with all that is in it."""
        self._rmdir(self.leaving.pop().cgroup)

    @rule(which=st.integers(0, 9))
    def container_is_added(self, which: int) -> None:
        """A pod gets one more container, as ``kubectl debug`` does it."""
        group = self.groups[which % len(self.groups)]
        if len(group.names) < 3:
            group.names += (f"c{len(group.names)}",)
            self._pass(1)
            self._run(group, group.names[-1])

    @rule(which=st.integers(0, 9), name=st.integers(0, 1), gap=st.sampled_from([1, SECOND // 2]))
    def container_restarts(self, which: int, name: int, gap: int) -> None:
        """A container ends, and starts again under another ID."""
        group = self.groups[which % len(self.groups)]
        chosen = group.names[name % len(group.names)]
        self._rmdir(group.homes[chosen])
        self._pass(gap)
        self._run(group, chosen)

    @rule(which=st.integers(0, 9))
    def pod_is_edited(self, which: int) -> None:
        """A label changes, and with it the selectors."""
        self.groups[which % len(self.groups)].label += 1

    @rule(where=st.integers(0, 99), victim=st.integers(0, 9), what=FORGERIES)
    def cgroup_is_nested(self, where: int, victim: int, what: str) -> None:
        """A container, or one of Docker's, makes a cgroup whose name is another's."""
        places = [c for c, p in self.places.items() if (p.owner or p.hostile) and len(self._path(c)) < 900]
        parent = places[where % len(places)]
        self._mkdir(parent, self._forged(victim, what), self.places[parent].owner, hostile=True)

    @rule(where=st.integers(0, 99), victim=st.integers(0, 9), inner=st.booleans())
    def victim_is_forged(self, where: int, victim: int, inner: bool) -> None:
        """The whole of a victim's names, below a cgroup of one's own."""
        places = [c for c, p in self.places.items() if (p.owner or p.hostile) and len(self._path(c)) < 900]
        at = places[where % len(places)]
        owner = self.places[at].owner
        for what in (["root"] if inner else []) + ["pod", "id"]:
            at = self._mkdir(at, self._forged(victim, what), owner, hostile=True)
        if free := [pid for pid in PIDS if pid not in self.processes]:
            self._start(free[0], at)

    @rule(victim=st.integers(0, 9), what=st.sampled_from(["id", "colon", "conmon"]))
    def user_makes_a_name(self, victim: int, what: str) -> None:
        """A user with a delegated subtree makes a cgroup called like a container, below no pod's."""
        at = self._mkdir(self.user, self._forged(victim, what), None, hostile=True)
        if free := [pid for pid in PIDS if pid not in self.processes]:
            self._start(free[0], at)

    def _victim(self, number: int) -> Group:
        victims = (*self.groups, *self.ghosts)
        return victims[number % len(victims)]

    def _forged(self, victim: int, what: str) -> str:
        group = self._victim(victim)
        container = group.ids["c0"]
        return {
            "pod": self._pod_segment(group),
            "id": self._leaf(group, container),
            "root": "kubepods",
            "colon": f"kubepods-pod{group.uid}.slice:cri-containerd:{container}",
            "conmon": f"crio-conmon-{container}.scope",
            "any": "x",
        }[what]

    @rule(which=st.integers(0, 99), victim=st.integers(0, 9), what=st.sampled_from(["pod", "id", "root", "any"]))
    def nested_cgroup_is_renamed(self, which: int, victim: int, what: str) -> None:
        """On v1 whoever made a cgroup may rename it."""
        nested = [c for c, p in self.places.items() if p.hostile and c not in (self.docker, self.user)]
        cgroup = nested[which % len(nested)] if nested else None
        if cgroup is not None:
            self.places[cgroup].name = self._forged(victim, what)
            self._told(CgroupEventKind.RENAME, cgroup)

    @rule(which=st.integers(0, 9), victim=st.integers(0, 9))
    def resolved_container_is_renamed(self, which: int, victim: int) -> None:
        """Whoever runs the node renames a container's cgroup: it is bound, and stays what it is."""
        group = self.groups[which % len(self.groups)]
        home = group.homes[group.names[0]]
        entry = self.index.cgroups.entries.get(home)
        if entry is not None and entry.workload.state is State.RESOLVED:
            self.places[home].name = self._forged(victim, "id")
            self._told(CgroupEventKind.RENAME, home)

    @rule(which=st.integers(0, 99))
    def nested_cgroup_is_removed(self, which: int) -> None:
        """What was made goes."""
        nested = [c for c, p in self.places.items() if p.hostile and c not in (self.docker, self.user)]
        if nested:
            self._rmdir(nested[which % len(nested)])

    @rule(pid=st.sampled_from(PIDS), where=st.integers(0, 99))
    def process_starts(self, pid: int, where: int) -> None:
        """A process is forked into any cgroup; the number may have been another's."""
        if pid in self.processes:
            self._end(pid)
        self._start(pid, list(self.places)[where % len(self.places)])

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.processes)
    def process_executes(self, which: int) -> None:
        """A process executes a program."""
        self._record(ProcessEventKind.EXEC, list(self.processes)[which % len(self.processes)])

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.processes)
    def process_ends(self, which: int) -> None:
        """A process ends."""
        self._end(list(self.processes)[which % len(self.processes)])

    @rule(which=st.integers(0, 99), where=st.integers(0, 99))
    @precondition(lambda self: self.processes)
    def process_moves(self, which: int, where: int) -> None:
        """A process is attached to any cgroup."""
        pid = list(self.processes)[which % len(self.processes)]
        ino, before = self.processes[pid]
        self.processes[pid] = (ino, list(self.places)[where % len(self.places)])
        self._record(ProcessEventKind.ATTACH, pid, before)

    # ---- how much of it is told, and when ----

    @rule(time=st.sampled_from([1, SECOND // 10, SECOND, 6 * SECOND, 31 * SECOND]))
    def time_passes(self, time: int) -> None:
        """The feed looks after itself."""
        self._drain()
        self._repair()
        self._pass(time)
        self._check_events(self.index.tick(self.now))

    @rule()
    def news_is_drained(self) -> None:
        """Whoever looks something up drains first."""
        self._drain()

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.records)
    def process_record_is_lost(self, which: int) -> None:
        """The large ring was full."""
        del self.records[which % len(self.records)]
        self.lost_records = True

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.births)
    def birth_record_is_lost(self, which: int) -> None:
        """The small ring was full."""
        event = self.births[which % len(self.births)]
        if event.kind != CgroupEventKind.RELEASE:
            self.births.remove(event)
            self.lost_births = True

    @rule()
    def losses_are_repaired(self) -> None:
        """Names are read again, and everyone is scanned; records that were not read yet come later."""
        self._repair()

    @rule(lag=st.integers(0, 20), complete=st.booleans(), skip=st.integers(0, 9))
    def list_is_fetched(self, lag: int, complete: bool, skip: int) -> None:
        """A list of now, or of a while ago; perhaps one pod of it cannot be read."""
        pods = [*self.history, (self.now, self._truth())][-1 - min(lag, len(self.history))][1]
        # What lags is the status, which the kubelet writes when it gets round to it; its specs are those it acts on.
        specs = {group.uid: named(*group.names) for group in (*self.groups, *self.ghosts)}
        pods = tuple(replace(pod, spec=specs.get(pod.uid, pod.spec)) for pod in pods)
        if not complete and pods:
            pods = tuple(pod for pod in pods if pod is not pods[skip % len(pods)])
        self._fetch(pods, self.now, complete)

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.lists)
    def list_is_delivered(self, which: int) -> None:
        """Lists may overtake each other."""
        self._deliver(which)

    # ---- what is true of the answers ----

    def _check(self, identity: Identity, owners: set[Owner]) -> None:
        work = identity.workload
        if work.state is not State.RESOLVED:
            assert work.selectors == ()
            assert work.reason
            return
        assert work.pod_uid is not None
        assert (work.pod_uid, work.container_id) in owners, f"{identity} is of {owners}"
        number = int(work.pod_uid[:8], 16)
        assert (work.namespace, work.pod) == (f"ns-{number}", f"pod-{number}")
        assert f"k8s:pod-uid:{work.pod_uid}" in work.selectors
        assert identity.pods_at is not None
        label = self.delivered[identity.pods_at][work.pod_uid].labels["v"]
        assert f"k8s:pod-label:v:{label}" in work.selectors

    def _check_events(self, events: list[Event]) -> None:
        for event in events:
            assert event.identity is not None
            self._check(event.identity, self.owners[event.identity.key])
            assert event.event != "resolved" or event.identity.state is State.RESOLVED

    def _ask(self, pid: int) -> Identity:
        ino, cgroup = self.processes[pid]
        self._name(cgroup)
        return self.index.identify(ProcessKey(pid, ino), pid, HIERARCHY, cgroup, None)

    @rule()
    def everyone_is_asked(self) -> None:
        """A look-up reads names that are not known yet, and is right whatever was not told so far."""
        for pid, (_, cgroup) in self.processes.items():
            identity = self._ask(pid)
            owner = self.places[cgroup].owner
            self._check(identity, {owner})
            if identity.state is State.RESOLVED:
                listed = self.listed[identity.workload.pod_uid or ""]
                assert identity.workload.labels == listed.labels
            elif owner is not None and not self.lost_births and not self.births:
                assert identity.state is not State.HOST, identity

    @invariant()
    def no_answer_from_memory_is_anothers(self) -> None:
        """The fast way of a look-up, which reads what is there."""
        for pid, (ino, cgroup) in self.processes.items():
            view = self.index.cgroups.views.get(cgroup)
            if view is not None:
                work = view.entry.workload if view.entry else view.workload
                at = view.entry.pods_at if view.entry else None
                self._check(Identity(ProcessKey(pid, ino), pid, work, pods_at=at), {self.places[cgroup].owner})

    @rule()
    def all_is_told(self) -> None:
        """With everything told and a fresh complete list, everyone has their own identity, and only they."""
        self._drain()
        self._repair()
        self._pass(1)
        self.lists.clear()
        self._fetch(self._truth(), self.now, True)
        self._deliver(0)
        self._check_events(self.index.tick(self.now))
        known = self.index.processes
        assert {pid: known[pid].key.ino for pid in known} == {pid: ino for pid, (ino, _) in self.processes.items()}
        listed = {group.uid for group in self.groups}
        for pid, (_, cgroup) in self.processes.items():
            identity = self._ask(pid)
            owner = self.places[cgroup].owner
            assert identity.cgroup is not None
            assert identity.cgroup.path == (self._path(cgroup) or "/")
            if owner is not None and owner[0] in listed:
                assert (identity.workload.pod_uid, identity.workload.container_id) == owner
                assert identity.state is State.RESOLVED, identity
            else:
                assert identity.state is not State.RESOLVED

    def teardown(self) -> None:
        """However it went, it ends well."""
        if hasattr(self, "index"):
            self.all_is_told()


TestNode = Node.TestCase
TestNode.settings = settings(
    max_examples=int(os.environ.get("PODTRACER_EXAMPLES", "400")),
    stateful_step_count=40,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
