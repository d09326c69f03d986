"""The kernel's news carried into the index: draining, repairing what was lost, and settling on a hierarchy.

Births come first, always: they are few and urgent, and behind ten thousand unread forks they would be late. All of
this runs under one lock, which look-ups take only where the fast way does not do.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

from tracer import pidfd
from tracer.clock import boottime
from tracer.errors import MissingError
from tracer.identity.index import Index
from tracer.kernel import cgroupfs, procfs, viewpoint
from tracer.kernel.cgroupfs import CgroupNames, Mount, Ownership
from tracer.kernel.loader import Programs, ScanHeader
from tracer.kernel.slots import Slot
from tracer.model import CgroupEvent, CgroupEventKind, Event, ProcessEvent, ProcessEventKind, State
from tracer.scout import Scout, Tracked, first_choice

_BATCH = 512  # process records between two looks at the ring of births
_RESCAN_GAP = 50_000_000  # ns between two scans at least
_MISSED_GAP = 5_000_000_000  # ns between two looks at runs that the kernel left out: a few files to read
_REPAIRED = 4096  # processes with an empty slot that are remembered
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO

# Places in Programs.lost().
_LOST_PROCESS, _LOST_CGROUP, _SPILLED = 0, 1, 5


class Feed:
    """Everything between the programs and the index. Its methods want ``lock`` held, but for ``behind``.

    ``publish`` gets the events that come of it.
    """

    def __init__(
        self,
        programs: Programs,
        index: Index,
        *,
        procfs_dir: str,
        cgroupfs_dir: str,
        publish: Callable[[list[Event]], None],
        lock: threading.RLock,
    ) -> None:
        self.lock = lock
        self.programs = programs
        self.index = index
        self.repairs = 0
        # Process records taken in, by kind, and cgroup records.
        self.records = [0] * (max(ProcessEventKind) + 1)
        self.cgroup_records = 0
        self.lost = 0
        # When the last scan began and when it had repaired what was lost before that, in ns of boot time.
        self.last_scan = (0, 0)
        # Called with the PID of a process that moved on another hierarchy, which SPIRE's rules read too; gives the
        # event to tell, if there is any.
        self.on_other_move: Callable[[int], Event | None] = lambda _pid: None
        self._all_moves = False
        self._procfs = procfs_dir
        self._publish = publish
        found = programs.read_iterator()
        self.header = found[0] if found else self._header_without_iterator()
        self.mounts = cgroupfs.find_mounts(
            cgroupfs_dir, procfs_dir, programs.controllers, self.header.hierarchies or None
        )
        self._is_initial = cgroupfs.is_initial(procfs_dir)
        self._prefix = index.rules.prefix
        self.mount = first_choice(self.mounts, prefix=self._prefix)
        self.names = CgroupNames(self.mount)
        self._ownership = Ownership(self.names, self._prefix)
        index.cgroups.guard = lambda cgroups: self._ownership.guards(cgroups)
        index.cgroups.writable = lambda cgroup: self._ownership.is_writable(cgroup)
        known = Tracked(self._has_populated, self._has_containers, index.is_listed)
        several = len(self.mounts) > 1
        self._scout = Scout(self.mounts, self.mount, known, prefix=self._prefix) if several else None
        self._seen = programs.lost()
        self._missed = 0
        self._missed_at = 0
        self._scan_due: int | None = None
        self._scan_after = 0
        self._repaired: dict[tuple[int, int], None] = {}

    @property
    def certain(self) -> bool:
        """Whether the tracked hierarchy is known to hold the containers: it is the only one, or has some and no other
        one has any that it lacks."""
        return self._scout is None or (self._has_containers() and not self._scout.doubtful)

    def _header_without_iterator(self) -> ScanHeader:
        inum = os.stat(os.path.join(self._procfs, "self/ns/pid")).st_ino
        if inum != _INITIAL_PID_NAMESPACE:
            raise MissingError(
                "the level of this PID namespace cannot be told without a task iterator",
                f"pid namespace {inum}",
                "run podtracer in the host's PID namespace",
            )
        return ScanHeader(0, inum, ())

    # ---- start ----

    def start(self) -> None:
        """Attach first, then scan: whoever is born between is told by both, whoever moves between is stored again."""
        self._configure()
        self.programs.attach()
        self.index.hierarchy = self.mount.info.hierarchy
        self.index.cgroups.track(self.mount.info.root)
        self.scan()
        now = boottime()
        self._find_own()
        if self._scout is not None:
            self._scout.look_through(now)
        self._look_elsewhere(now)
        self._publish(self.index.refresh(now))

    def _configure(self) -> None:
        self.programs.configure(
            hierarchy=self.mount.info,
            ns_level=self.header.ns_level,
            ns_inum=self.header.ns_inum,
            all_births=self._scout is not None,
            report_unseen=self.programs.features.no_iterator is not None,
            all_moves=self._all_moves,
        )

    def report_all_moves(self, wanted: bool) -> None:
        """Has moves on every hierarchy reported to ``on_other_move``, or no longer."""
        self._all_moves = wanted
        self._configure()

    # ---- draining ----

    def behind(self) -> bool:
        """Whether anything is unread: a few reads of memory, without the lock."""
        return self.programs.processes.pending() or self.programs.cgroups.pending()

    def drain(self) -> None:
        """Takes all news in that are there now; not what a fork bomb adds meanwhile, or it would never end.

        A look-up in another thread sees a record as unread until the index has it, and waits for it."""
        self._drain_cgroups()
        left = self.programs.processes.unread()
        try:
            while left > 0 and (records := self.programs.processes.drain(_BATCH, hold=True)):
                left -= len(records)
                events = []
                for record in records:
                    event = self._process(ProcessEvent._make(record))
                    if event is not None:
                        events.append(event)
                self.programs.processes.let_go()
                if events:
                    self._publish(events)
                self._drain_cgroups()
        finally:
            self.programs.processes.let_go()

    def _process(self, event: ProcessEvent) -> Event | None:
        # A record only names a PID: where the process is now, its slot knows. The record's own word serves one that
        # is gone.
        self.records[event.kind] += 1
        hierarchy, cgroup = event.hierarchy, event.cgroup
        if event.kind != ProcessEventKind.EXIT:
            if event.kind == ProcessEventKind.ATTACH and hierarchy != self.index.hierarchy:
                return self.on_other_move(event.pid)
            slot = self.programs.slots.read(event.pid)
            if slot is not None and slot.ino == event.ino:
                hierarchy, cgroup = slot.hierarchy, slot.cgroup
        if hierarchy == self.index.hierarchy:
            self.name(cgroup)
            if event.kind == ProcessEventKind.ATTACH and event.arg:
                self.name(event.arg)
        return self.index.process_event(event, hierarchy, cgroup)

    def _drain_cgroups(self) -> None:
        for record in self.programs.cgroups.drain():
            self.cgroup_records += 1
            size, name = record[-2:]
            event = CgroupEvent._make((*record[:-2], name[:size]))
            if event.hierarchy == self.index.hierarchy:
                self.index.cgroups.apply(event)
                if event.kind == CgroupEventKind.MKDIR and not self.index.cgroups.is_loose(event.id):
                    self.name(event.id)  # considered at birth, before anyone asks
            elif event.kind == CgroupEventKind.MKDIR and self._scout is not None:
                self._scout.born(event)
                self._tell_doubts(self._scout)
        if self.index.due:  # all births are taken in, so that what follows for others comes before processes are told
            self._publish(self.index.tick(boottime()))

    def name(self, cgroup: int) -> bool:
        """Has the index know a cgroup, by reading its names if need be. False where they cannot be told."""
        if self.index.locate(cgroup) is not None:
            return True
        chain = self.names.chain(cgroup)
        if chain is None:
            return False
        self.index.cgroups.learn(chain, boottime())
        return self.index.locate(cgroup) is not None

    # ---- what goes wrong, and is repaired ----

    def care(self, now: int) -> int | None:
        """What is to be done from time to time; answers in how many nanoseconds it is to be called again, at the
        latest, ``None`` for no wish."""
        self._look_elsewhere(now)
        self._count_losses(now)
        if self._scan_due is not None and now >= self._scan_due:
            self._rescan()
        self._publish(self.index.tick(now))
        if self._scan_due is not None:
            return max(0, self._scan_due - now)
        return 10_000_000 if self._scout is not None and self._scout.doubtful else None

    def repair(self, pid: int, fd: int) -> Slot | None:
        """What the slot of a living process should say, whose slot is empty; ``fd`` is its pidfd. Asks for a scan, but
        once for each process: one that the iterator leaves out stays without a slot."""
        self.repairs += 1
        slot = self.slot_from_procfs(pid, fd)
        if slot is not None and (pid, slot.ino) not in self._repaired:
            self._repaired[pid, slot.ino] = None
            if len(self._repaired) > _REPAIRED:
                self._repaired.pop(next(iter(self._repaired)))
            self.want_scan()
        return slot

    def want_scan(self) -> None:
        """Asks for a scan soon: a slot was found empty, or records were lost."""
        if self._scan_due is None:
            self._scan_due = max(boottime(), self._scan_after)

    def _count_losses(self, now: int) -> None:
        counts = self.programs.lost()
        if now - self._missed_at > _MISSED_GAP:
            self._missed_at = now
            missed = self.programs.counters()["missed"]
            if missed != self._missed:
                self._missed = missed
                self.want_scan()
        if counts == self._seen:
            return
        grown = [new - old for new, old in zip(counts, self._seen, strict=True)]
        self._seen = counts
        if grown[_LOST_CGROUP]:
            # Perhaps a rename: every name is read again, those of containers first.
            homes = [entry.home for entry in self.index.cgroups.containers() if entry.live]
            self.index.cgroups.forget_names()
            for home in homes:
                self.name(home)
        lost = grown[_LOST_PROCESS] + grown[_LOST_CGROUP]
        if lost:
            self.lost += lost
            self._publish([Event("lost", now, None, {"count": lost})])
        if any(grown[:_SPILLED]):
            self.want_scan()

    def _rescan(self) -> None:
        started = time.thread_time_ns()  # what it takes of a processor, however long it has to wait for one
        self._scan_due = None
        self.scan()
        took = time.thread_time_ns() - started
        self._scan_after = boottime() + max(_RESCAN_GAP, 3 * took)

    def scan(self) -> None:
        """Looks at every process: writes the slots anew, adds what was missed, ends what is over."""
        started = boottime()
        found = self.programs.read_iterator()
        records = [ProcessEvent._make(record) for record in found[1]] if found else []
        # Also what the iterator leaves out, as it does init on some machines; without an iterator that is everyone.
        records += self._scan_procfs({record.pid for record in records})
        alive = {record.pid: record.ino for record in records}
        self._publish([event for record in records if (event := self._process(record)) is not None])
        self.drain()  # who ended meanwhile has an exit record, which tells more than that it is not there
        for pid, known in self.index.processes.items():
            # Ending just now: full still, and so its exit record is yet to come.
            slot = self.programs.slots.read(pid) if pid not in alive else None
            if slot is not None and slot.ino == known.key.ino:
                alive[pid] = slot.ino
        self._publish(self.index.reconcile(alive, started))
        self.programs.slots.sweep(alive)
        self.last_scan = started, boottime()

    def _scan_procfs(self, seen: set[int]) -> Iterator[ProcessEvent]:
        for pid in procfs.pids(self._procfs):
            if pid in seen or self.programs.slots.read(pid) is not None:
                continue  # the second: born after the iterator had passed, so that its record is still to come
            with pidfd.pinned(pid) as fd:
                slot = self.slot_from_procfs(pid, fd) if fd is not None else None
                stat = procfs.stat(self._procfs, pid)
                if slot is None or stat is None or fd is None or not pidfd.alive(fd):
                    continue
            yield ProcessEvent(
                ProcessEventKind.SCAN,
                pid,
                stat.ppid,
                slot.hierarchy,
                boottime(),
                stat.start,
                slot.ino,
                slot.cgroup,
                0,
                stat.comm,
            )

    def slot_from_procfs(self, pid: int, fd: int) -> Slot | None:
        """What the process's slot should say, from ``/proc``; ``fd`` is its pidfd. ``None`` where it has ended or
        its cgroup cannot be told."""
        path = self._whole_path(pid)
        cgroup = self.names.find(path) if path is not None else None
        if cgroup is None:
            return None
        if self.programs.features.pidfs:
            ino = pidfd.inode(fd)
        else:
            stat = procfs.stat(self._procfs, pid)
            ino = stat.start if stat else 0
        return Slot(ino, self.mount.info.hierarchy, cgroup) if ino and pidfd.alive(fd) else None

    def _whole_path(self, pid: int) -> str | None:
        """The process's cgroup in the tracked hierarchy, from its root, whatever cgroup namespace we are in."""
        hierarchy, us = self.mount.info.hierarchy, os.getpid()
        if self._is_initial:
            return procfs.cgroup_path(self._procfs, pid, hierarchy)
        # Where /proc shows us to be, before and after: nobody has moved us meanwhile.
        before, slot = procfs.cgroup_path(self._procfs, us, hierarchy), self.programs.slots.read(us)
        shown = procfs.cgroup_path(self._procfs, pid, hierarchy)
        if shown is None or before is None or slot is None or slot.hierarchy != hierarchy:
            return None
        at = self.names.path(slot.cgroup)
        if at is None or procfs.cgroup_path(self._procfs, us, hierarchy) != before:
            return None
        return viewpoint.whole(shown, before, at)

    # ---- which hierarchy ----

    def _has_populated(self, container_id: str) -> bool:
        """Whether a process is in a cgroup of the tracked hierarchy that is this container's by evidence."""
        base = self.mount.path.rstrip("/")
        for entry in self.index.cgroups.named(container_id):
            path = self.index.cgroups.path(entry) if entry.live and entry.guarded else None
            if path is not None and cgroupfs.is_populated(base + path):
                return True
        return False

    def _has_containers(self) -> bool:
        """Whether the tracked hierarchy has the cgroup of a pod's container, or of one that a source lists."""
        return any(
            entry.live and entry.guarded and (entry.root is not None or entry.workload.state is State.RESOLVED)
            for entry in self.index.cgroups.containers()
        )

    def _find_own(self) -> None:
        """Tells the index where we are ourselves."""
        slot = self.programs.slots.read(os.getpid())
        view = None
        if slot is not None and slot.hierarchy == self.mount.info.hierarchy and self.name(slot.cgroup):
            view = self.index.locate(slot.cgroup)
        self.index.cgroups.own = None if view is None else view.cgroup.path

    def may_be_elsewhere(self, pid: int) -> bool:
        """Whether a process that seems to be on the host is in a container's cgroup of a hierarchy that is not tracked,
        by its files; also where they cannot be read."""
        if self._scout is None or not self._scout.doubtful:
            return self.index.uncertain
        paths = procfs.cgroup_paths(self._procfs, pid)
        return paths is None or self._scout.may_be_elsewhere(paths)

    def _tell_doubts(self, scout: Scout) -> None:
        self.index.uncertain, self.index.doubtful = scout.uncertain, scout.doubtful

    def _look_elsewhere(self, now: int) -> None:
        if self._scout is None:
            return
        was_uncertain = self.index.uncertain
        better = self._scout.look(now)
        self._tell_doubts(self._scout)
        if better is not None:
            self._switch(better)
        elif was_uncertain and not self.index.uncertain:
            self._publish(self.index.decided(now))

    def _switch(self, mount: Mount) -> None:
        """Tracks another hierarchy. Until the scan is over slots carry the old one's number, which tells. Processes of
        which something else was told before are told anew."""
        before = self.index.told()
        self.names.close()
        self.mount, self.names = mount, CgroupNames(mount)
        self._ownership = Ownership(self.names, self._prefix)
        self.index.hierarchy = mount.info.hierarchy
        self.index.cgroups.track(mount.info.root)
        self._configure()
        self.scan()
        self._find_own()
        now = boottime()
        if self._scout is not None:
            self._scout.track(mount)
            self._scout.look_through(now)
            self._scout.look(now)
            self._tell_doubts(self._scout)
        self._publish(self.index.refresh(now))
        self._publish(self.index.retold(before, now))

    def close(self) -> None:
        """Detaches the programs and closes what is open."""
        if self._scout is not None:
            self._scout.close()
        self.names.close()
        self.programs.close()
