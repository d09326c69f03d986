"""The whole tracer in one process: programs, index and pod data, wired together and kept live.

with Tracer() as tracer:
    print(tracer.lookup(4321).workload.pod)
    for event in tracer.watch():
        ...
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from tracer import pidfd
from tracer.clock import boottime
from tracer.errors import TracerError
from tracer.feed import Feed
from tracer.identity.explained import Explained
from tracer.identity.index import Index, Rules, gone
from tracer.kernel import machine, procfs
from tracer.kernel.cgroupfs import Mount, readable
from tracer.kernel.loader import Features, Programs, ScanHeader
from tracer.kernel.slots import Slot
from tracer.model import Clock, Event, Identity, Process, ProcessKey, Source, State
from tracer.podsources import PodSources
from tracer.settings import Settings
from tracer.spire_view import Answer, SpireView, ViewWatch
from tracer.watching import Watch

if TYPE_CHECKING:
    from tracer.identity.entries import Entries
    from tracer.issuing import Issuing
    from tracer.sources.entries_file import EntriesFile
    from tracer.sources.state import SourceState

_DRAIN = 0.05  # seconds between two looks at the ring of processes
_RETRIES = 3  # look-ups of a process that moves while its files are read
T = TypeVar("T")
_log = logging.getLogger("podtracer")


class Tracer:
    """Every process of this node, with its workload, from memory.

    ``warn`` gets sentences for a person (an absent kubelet, say), ``note`` those that are no warnings (which kubelet is
    asked, where none was named); the default logs them. Raises ``PermissionMissing``
    and ``MissingError`` where this machine or user cannot trace, from ``start`` or on entering the context.

    Look-ups may come from any thread.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        warn: Callable[[str], None] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._warn = warn or _log.warning
        self._note = note or _log.info
        self._index = Index(
            Rules(
                give_up=round(self.settings.poll_budget * 1e9),
                max_stale=round(self.settings.pods_max_stale * 1e9),
                prefix=self.settings.cgroup_prefix,
                disable_container_selectors=self.settings.disable_container_selectors,
                namespace_labels=self.settings.enable_namespace_labels,
            )
        )
        self._watches: list[Watch] = []
        self._news = threading.Condition()
        self._synced = False
        self._issuing: Issuing | None = None
        self._entries_file: EntriesFile | None = None
        self._thread: threading.Thread | None = None
        self._feed: Feed | None = None
        self._wake = -1
        self._stopping = False
        self._view = SpireView(
            self._index, self.settings.procfs, self._read_of, changes_mode=self.settings.mode == "parity"
        )
        # Watches that want to know of moves in every hierarchy.
        self._all_moves: list[Watch] = []
        self._lock = threading.RLock()
        self._sources = PodSources(
            self.settings,
            self._index,
            lock=self._lock,
            drain=self._drain,
            publish=self._publish,
            on_change=self._prepare_issuing,
            on_first=self._set_synced,
            warn=self._warn,
            note=self._note,
        )

    # ---- life ----

    def start(self) -> None:
        """Loads and attaches the programs, scans what runs already, and starts to ask for pods."""
        try:
            self._start_issuing()
            machine.check()
            # One after the other: the compiler alone comes close to filling a memory limit of 64 MB.
            programs = Programs()
            self._sources.start()
            self._start_feed(programs)
        except BaseException:
            self.close()
            raise

    def _start_feed(self, programs: Programs) -> None:
        try:
            self._feed = Feed(
                programs,
                self._index,
                procfs_dir=self.settings.procfs,
                cgroupfs_dir=self.settings.cgroupfs,
                publish=self._publish,
                lock=self._lock,
            )
        except BaseException:
            programs.close()
            raise
        with self._lock:
            self._feed.start()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="podtracer-feed", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Detaches everything. Watches end; may be called twice."""
        self._sources.stop()
        if self._entries_file is not None:
            self._entries_file.stop()
            self._entries_file = None
        self._stopping = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None
        for watch in tuple(self._watches):
            watch.close()
        feed, self._feed = self._feed, None  # look-ups that come from now on are told so
        if feed is not None:
            with self._lock:
                feed.close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def __enter__(self) -> Tracer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def programs(self) -> Programs:
        """The loaded programs, for whoever measures them."""
        return self._live.programs

    @property
    def features(self) -> Features:
        """Which ways were taken on this kernel."""
        return self._live.programs.features

    @property
    def hierarchy(self) -> str:
        """Name of the cgroup hierarchy that is tracked: ``v2``, or the controllers of a v1 one."""
        return self._live.mount.name

    @property
    def mount(self) -> Mount:
        """Where the tracked hierarchy is mounted."""
        return self._live.mount

    @property
    def mounts(self) -> list[Mount]:
        """Every hierarchy that could be tracked."""
        return self._live.mounts

    @property
    def certainty(self) -> tuple[bool, bool]:
        """(whether it is certain that the tracked hierarchy holds the containers, whether one seems to be in another
        one)."""
        return self._live.certain, self._index.uncertain

    @property
    def header(self) -> ScanHeader:
        """The PID namespace of all PIDs, and the hierarchies as the kernel numbers them."""
        return self._live.header

    @property
    def sources(self) -> Mapping[str, SourceState]:
        """The state of each source of pod data that is in use, by its name."""
        return self._sources.states

    def pod_data(self, clock: Clock) -> dict[str, Any]:
        """Which source tells the pods and since when, how each source fares and what failed last, and what is known:
        JSON for whoever asks how the tracer is. Every key is always there."""
        from tracer.sources.state import report

        index = self._index
        table, at = index.pod_table, index.pods_at
        return {
            **report(self._sources.states, clock),
            "pods": None if table is None else len(table.pods),
            "pods_from": index.pods_from,
            "pods_age_ms": None if at is None else max(0.0, round((clock.now - at) / 1e6, 1)),
            "other_tags": index.other_tags,
        }

    def counters(self) -> dict[str, int]:
        """Lost records and slots, runs the kernel left out, slots repaired: all of them 0 on a good day."""
        return {**self._live.programs.counters(), "repairs": self._live.repairs}

    @property
    def _live(self) -> Feed:
        if self._feed is None:
            raise RuntimeError("the tracer is not running: use it as a context manager, or call start()")
        return self._feed

    # ---- asking ----

    def lookup(self, pid: int, *, verify: bool = False, parity: bool = False) -> Identity:
        """Who has this PID. A thread's ID is answered as its process (``asked`` keeps the number).

        The answer is for whoever had the PID when the slot was read. ``verify`` makes sure that the process still
        lived after that, at the price of two system calls; before pidfs (Linux 6.9) that is always done. ``parity``
        also says whether SPIRE's rules give the same container, from the process's files, which parity mode reads
        always.
        """
        if parity or self._view.changes_mode:
            return self._filled(*self._with_answer(pid))
        return self._lookup(pid, verify=verify)

    def _lookup(self, pid: int, *, verify: bool) -> Identity:
        feed = self._live
        try:
            return self._lookup_in(feed, pid, verify)
        except ValueError:
            self._check_running()  # what was mapped is not any more: it was closed meanwhile
            raise

    def _check_running(self) -> None:
        """Raises ``RuntimeError`` once the tracer was closed."""
        _ = self._live

    def _lookup_in(self, feed: Feed, pid: int, verify: bool) -> Identity:
        if feed.behind() and feed.lock.acquire(blocking=False):
            try:
                feed.drain()
            finally:
                feed.lock.release()
        slot = feed.programs.slots.read(pid)
        if slot is None or verify or not feed.programs.features.pidfs:
            return self._lookup_pinned(pid)
        return self._answer(pid, slot)

    def lookup_pidfd(self, fd: int) -> Identity:
        """Who the process behind a pidfd is; ``gone`` once it has ended, whoever has its number then."""
        pid = pidfd.number(fd)
        if pid is None or not pidfd.alive(fd):
            return gone(pid or 0)
        feed = self._live
        slot = feed.programs.slots.read(pid) or self._repair(pid, fd)
        if slot is None or (feed.programs.features.pidfs and slot.ino != pidfd.inode(fd)):
            return gone(pid)
        identity = self._answer(pid, slot)
        if self._view.changes_mode:
            identity = self._filled(identity, self._view.read(identity.key))
        return identity if pidfd.alive(fd) else gone(pid)

    def explain(self, pid: int) -> Explained:
        """All that is known of a process, and how: for whoever asks why its identity is what it is."""
        strict, answer = self._with_answer(pid)
        index = self._index
        table = index.pod_table
        return Explained(
            identity=self._filled(strict, answer),
            strict=strict.workload,
            answer=answer,
            outcome=self._view.outcome(answer),
            hierarchy=self.hierarchy,
            root=index.cgroups.root,
            unix=self._unix_selectors(strict.key),
            pods=None if table is None else len(table.pods),
            pods_at=index.pods_at,
            pods_from=index.pods_from,
        )

    def _with_answer(self, pid: int) -> tuple[Identity, Answer | None]:
        """The strict identity, and what SPIRE's rules make of the files of the same process in the same cgroup."""
        slots = self._live.programs.slots
        for _ in range(_RETRIES):
            identity = self._lookup(pid, verify=True)
            if identity.state is State.GONE:
                return identity, None
            answer = self._view.read(identity.key)
            slot = slots.read(identity.key.pid)
            if slot is None or identity.cgroup is None or slot.cgroup == identity.cgroup.id:
                break  # else it has moved meanwhile
        return identity, answer

    def _filled(self, identity: Identity, answer: Answer | None) -> Identity:
        return self._finished(self._view.fill(identity, answer))

    def _finished(self, identity: Identity) -> Identity:
        """The identity with the SPIFFE IDs of its workload, which SPIRE's rules may have replaced."""
        if self._issuing is None or not self._view.changes_mode:
            return identity
        return self._issuing.identity(identity)

    def _answer(self, pid: int, slot: Slot) -> Identity:
        ino, hierarchy, cgroup = slot
        index = self._index
        known = index.processes.get(pid)
        view = index.cgroups.views.get(cgroup)
        if known is None or known.key.ino != ino or view is None or index.uncertain or hierarchy != index.hierarchy:
            return self._answer_slowly(pid, slot)
        entry = view.entry
        if entry is not None and entry.workload.state is State.PENDING:
            return self._answer_slowly(pid, slot)
        if entry is None:
            identity = Identity(known.key, pid, view.workload, view.cgroup, known.process)
        else:
            identity = Identity(known.key, pid, entry.workload, view.cgroup, known.process, entry.pods_at)
        return identity if self._issuing is None else self._issuing.identity(identity)

    def _answer_slowly(self, pid: int, slot: Slot) -> Identity:
        """The cgroup's name or the process's record is not there yet, or what is pending may be known by now: all news
        is taken in, and what follows from it, before the answer."""
        feed = self._live
        with feed.lock:
            feed.drain()
            self._publish(self._index.tick(boottime()))
            known = self._index.processes.get(pid)
            key = ProcessKey(pid, slot.ino)
            met = known is not None and known.key == key
            process = known.process if known and met else self._process_from_procfs(pid)
            if slot.hierarchy == self._index.hierarchy:
                feed.name(slot.cgroup)
            identity = self._index.identify(key, pid, slot.hierarchy, slot.cgroup, process)
        return identity if self._issuing is None else self._issuing.identity(identity)

    def _process_from_procfs(self, pid: int) -> Process | None:
        stat = procfs.stat(self.settings.procfs, pid)
        if stat is None:
            return None
        return Process(stat.ppid, readable(stat.comm), stat.start, Source.SCAN, boottime())

    def _lookup_pinned(self, pid: int) -> Identity:
        """Between a pidfd opened before the slot was read and one that still lives after it, the number was one
        process's. An empty slot is never "gone" as long as the process lives."""
        with pidfd.pinned(pid) as fd:
            if fd is None:
                leader = procfs.process_of(self.settings.procfs, pid)
                if leader is None or leader == pid:
                    return gone(pid)
                return self._lookup(leader, verify=False)._replace(asked=pid)
            slot = self._live.programs.slots.read(pid)
            if slot is None:
                slot = self._repair(pid, fd)
            if slot is None:
                return gone(pid)
            identity = self._answer(pid, slot)
            return identity if pidfd.alive(fd) else gone(pid)

    def _repair(self, pid: int, fd: int) -> Slot | None:
        feed = self._live
        if not pidfd.alive(fd):
            return None
        with feed.lock:
            slot = feed.repair(pid, fd)
        if slot is None and pidfd.alive(fd):
            # Alive, but no word of where: an identity of unknown place is better than "gone".
            return Slot(pidfd.inode(fd), feed.mount.info.hierarchy, 0)
        return slot

    def watch(self, *, snapshot: bool = True, parity: bool = False) -> Watch | ViewWatch:
        """A stream of events: first a ``snapshot`` of what runs and ``synced``, then live. ``parity`` as of a look-up;
        each process's files are read once then, and when it moves in any hierarchy."""
        feed = self._live
        parity = parity or self._view.changes_mode
        watch = Watch(self._unsubscribe)
        with feed.lock:
            feed.drain()
            if snapshot:
                events = self._index.snapshot(boottime())
                watch.push(events if self._issuing is None else self._issuing.events(events))
            watch.push([Event("synced", boottime())])
            self._watches.append(watch)
            self._index.watched = True
            if parity:
                self._all_moves.append(watch)
                feed.on_other_move = self._on_other_move
                feed.report_all_moves(True)
        return ViewWatch(watch, self._view, self._finished) if parity else watch

    def _on_other_move(self, pid: int) -> Event | None:
        """A process moved in a hierarchy that is not tracked, which SPIRE's rules read too."""
        self._view.moved(pid)
        known = self._index.processes.get(pid)
        if known is None:
            return None
        identity = self._index.identify(known.key, pid, known.hierarchy, known.cgroup, known.process)
        path = identity.cgroup.path if identity.cgroup else None
        return Event("move", boottime(), identity, {"from": path, "elsewhere": True})

    def _unsubscribe(self, watch: Watch) -> None:
        with self._lock:
            self._watches.remove(watch)
            self._index.watched = bool(self._watches)
            if watch in self._all_moves:
                self._all_moves.remove(watch)
                if not self._all_moves and self._feed is not None:
                    self._feed.report_all_moves(False)

    def wait_synced(self, timeout: float) -> bool:
        """Waits until the first pod list has come, or it is clear that none will; whether that is so."""
        with self._news:
            return self._news.wait_for(lambda: self._synced, timeout)

    def wait_known(self, pids: Sequence[int], timeout: float | None) -> None:
        """Waits until none of these processes is ``pending``, for ``timeout`` seconds at most."""
        end = None if timeout is None else time.monotonic() + timeout
        while any(self.lookup(pid).state is State.PENDING for pid in pids):
            left = _DRAIN if end is None else min(_DRAIN, end - time.monotonic())
            if left <= 0:
                return
            with self._news:
                self._news.wait(left)

    # ---- the thread that keeps up ----

    def _run(self) -> None:
        feed = self._live
        with select.epoll() as poll:
            # Only births wake us up; polling the other ring would spin on what is unread.
            poll.register(feed.programs.cgroups.fd, select.EPOLLIN)
            poll.register(self._wake, select.EPOLLIN)
            timeout = _DRAIN
            while not self._stopping:
                poll.poll(timeout)
                try:
                    with feed.lock:
                        feed.drain()
                        soon = feed.care(boottime())
                    self._sources.pass_wants()
                    timeout = _DRAIN if soon is None else min(_DRAIN, soon / 1e9)
                except Exception:
                    # The only thread that keeps the table: it outlives what nobody thought of.
                    _log.exception("keeping up with the kernel failed")
                    timeout = _DRAIN

    def _publish(self, events: list[Event]) -> None:
        if events and self._watches:
            if self._issuing is not None:
                events = self._issuing.events(events)
            for watch in self._watches:
                if watch in self._all_moves or not self._all_moves:
                    watch.push(events)
                else:
                    watch.push(event for event in events if not event.extra.get("elsewhere"))

    # ---- registration entries ----

    def _start_issuing(self) -> None:
        if self.settings.entries_file is None:
            return
        from tracer.issuing import Issuing
        from tracer.sources.entries_file import EntriesFile

        self._issuing = Issuing(self.settings.agent_id, self._unix_selectors)
        self._entries_file = EntriesFile(self.settings.entries_file, on_entries=self._on_entries, warn=self._warn)
        self._entries_file.start()

    def _on_entries(self, entries: Entries) -> None:
        assert self._issuing is not None
        if not self._issuing.take(entries):
            self._warn(f"no registration entry has a chain of parents that reaches {self.settings.agent_id}")
        with self._lock:
            self._prepare_issuing()

    def _prepare_issuing(self) -> None:
        if self._issuing is not None:
            self._issuing.prepare(entry.workload for entry in self._index.cgroups.containers())

    def _unix_selectors(self, key: ProcessKey) -> tuple[str, ...] | None:
        """Those of this process and of nobody who has its number later."""
        return self._read_of(key, lambda: procfs.unix_selectors(self.settings.procfs, key.pid))

    def _read_of(self, key: ProcessKey, read: Callable[[], T]) -> T | None:
        """What ``read`` gives of this process; ``None`` where another may have its number by now."""
        feed = self._live
        with pidfd.pinned(key.pid) as fd:
            if fd is None:
                return None
            if feed.programs.features.pidfs:
                met = pidfd.inode(fd) == key.ino
            else:
                slot = feed.programs.slots.read(key.pid)
                met = slot is not None and slot.ino == key.ino
            found = read() if met else None
            return found if pidfd.alive(fd) else None

    # ---- pods ----

    def _drain(self) -> None:
        if self._feed is not None:
            self._feed.drain()

    def _set_synced(self) -> None:
        with self._news:
            self._synced = True
            self._news.notify_all()


__all__ = ["Tracer", "TracerError"]
