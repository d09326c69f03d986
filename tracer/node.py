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
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tracer import clock
from tracer.about import About
from tracer.clock import boottime
from tracer.entries_feed import EntriesFeed
from tracer.errors import TracerError, UsageError
from tracer.feed import Feed
from tracer.identity.explained import Explained
from tracer.identity.index import Index, Rules
from tracer.kernel import machine
from tracer.kernel.loader import Programs
from tracer.lookups import Lookups, Mode
from tracer.model import Event, Identity, State
from tracer.podsources import PodSources
from tracer.settings import Settings
from tracer.spire_view import ViewWatch
from tracer.standing import Check, Standing, first, require
from tracer.watching import Watch

if TYPE_CHECKING:
    pass

FIXED = ("procfs", "cgroupfs", "cgroup_prefix", "mode")
"""Settings that stay what they were when the tracer was started."""
_ALIVE = 30.0  # seconds
_SERVED = 8192  # events that are kept for a watch that is served, beside its snapshot
_LOOK_AROUND = 5.0  # seconds between two checks of where we run: they read some files
_DRAIN = 0.05  # seconds between two looks at the ring of processes
_log = logging.getLogger("podtracer")


class Tracer(About):
    """Every process of this node, with its workload, from memory.

    ``warn`` gets sentences for a person (an absent kubelet, say), ``note`` those that are no warnings (which kubelet is
    asked, where none was named); the default logs them. ``load`` loads the programs, other than usual for whoever
    measures them. Raises ``PermissionMissing`` and ``MissingError`` from ``start``, or on entering the context, if this
    machine or user cannot trace, or answers would be wrong from where it runs. With ``whole`` it also raises if answers
    would be ``unknown``, since it cannot name cgroups. With ``anywhere`` it starts all the same, to report what is
    missing.

    Look-ups may come from any thread.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        warn: Callable[[str], None] | None = None,
        note: Callable[[str], None] | None = None,
        load: Callable[[], Programs] = Programs,
        whole: bool = False,
        anywhere: bool = False,
    ) -> None:
        self.settings = settings or Settings()
        self._warn = warn or _log.warning
        self._note = note or _log.info
        self._load = load
        self._whole = whole
        self._anywhere = anywhere
        self._standing: Standing | None = None
        self._looked = 0.0
        self.missing: tuple[Check, ...] = ()
        self._index = Index(_rules(self.settings))
        self._watches: list[Watch] = []
        self._listeners: list[Callable[[], None]] = []
        self._news = threading.Condition()
        self._synced = False
        self._thread: threading.Thread | None = None
        self._feed: Feed | None = None
        self._wake = -1
        self._stopping = False
        self._turned = time.monotonic()
        self._lookups = Lookups(self._index, self.settings, lambda: self._live, self._publish)
        self._view = self._lookups.view
        # Watches that want to know of moves in every hierarchy.
        self._all_moves: list[Watch] = []
        self._lock = threading.RLock()
        self._entries = EntriesFeed(self._lookups, self._index, lock=self._lock, warn=self._warn)
        self._sources = self._make_sources(self.settings)

    def _make_sources(self, settings: Settings) -> PodSources:
        return PodSources(
            settings,
            self._index,
            lock=self._lock,
            drain=self._drain,
            publish=self._publish,
            on_change=self._changed,
            on_first=self._set_synced,
            warn=self._warn,
            note=self._note,
        )

    # ---- life ----

    def start(self) -> None:
        """Loads and attaches the programs, scans what runs already, and starts to ask for pods."""
        try:
            self._entries.use(self.settings)
            machine.check()
            if not self._anywhere:
                require(first(self.settings))
            # One after the other: the compiler alone comes close to filling a memory limit of 64 MB.
            programs = self._load()
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
            self._standing = Standing(self._feed, self.settings)
            if not self._anywhere:
                require([self._standing.seeing()])
                if self._whole:
                    require(self._standing.naming())
                self._look_around()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="podtracer-feed", daemon=True)
        self._thread.start()

    def reconfigure(self, settings: Settings) -> None:
        """Takes other settings on while running: where pod data and entries come from, and limits. What is known stays.
        Raises :class:`UsageError` for what cannot be changed any more, :class:`InputError` for entries that cannot be
        read; nothing has changed then."""
        fixed = [name for name in FIXED if getattr(settings, name) != getattr(self.settings, name)]
        if fixed:
            raise UsageError("this cannot be changed while podtracer runs", ", ".join(fixed), "start it anew")
        before, new = self.settings, settings
        if (before.entries_file, before.agent_id) != (new.entries_file, new.agent_id):
            self._entries.use(new)
        self.settings = new
        with self._lock:
            self._index.set_rules(_rules(new))
            self._publish(self._index.refresh(boottime()))
        old, made = self._sources, self._make_sources(new)
        made.take_wants_of(old)
        self._sources = made
        old.stop()
        self._sources.start()
        with self._lock:
            self._index.want_again()

    def close(self) -> None:
        """Detaches everything. Watches end; may be called twice."""
        self._sources.stop()
        self._entries.stop()
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
    def is_alive(self) -> bool:
        """Whether the thread that keeps up with the kernel runs, and had its turn in the last half minute."""
        return self._thread is not None and self._thread.is_alive() and time.monotonic() - self._turned < _ALIVE

    @property
    def standing(self) -> Standing:
        """The checks of where we run, made again at each call. ``missing`` has those that failed last."""
        if self._standing is None:
            raise RuntimeError("the tracer is not running: use it as a context manager, or call start()")
        return self._standing

    @property
    def _live(self) -> Feed:
        if self._feed is None:
            raise RuntimeError("the tracer is not running: use it as a context manager, or call start()")
        return self._feed

    # ---- asking ----

    def lookup(
        self,
        pid: int,
        *,
        verify: bool = False,
        parity: bool = False,
        mode: Mode | None = None,
        container_selectors: bool = True,
    ) -> Identity:
        """Who has this PID. A thread's ID is answered as its process (``asked`` keeps the number).

        The answer is for whoever had the PID when the slot was read. ``verify`` makes sure that the process still
        lived after that, at the price of two system calls; before pidfs (Linux 6.9) that is always done. ``parity``
        also says whether SPIRE's rules give the same container, from the process's files, which parity mode reads
        always. ``mode`` is the rule of this answer where it is not that of the settings; without
        ``container_selectors`` those of the pod are given alone, which need no container to be listed.
        """
        return self._lookups.lookup(
            pid, verify=verify, parity=parity, mode=mode, container_selectors=container_selectors
        )

    def lookup_pidfd(
        self, fd: int, *, parity: bool = False, mode: Mode | None = None, container_selectors: bool = True
    ) -> Identity:
        """Who the process behind a pidfd is; ``gone`` once it has ended, whoever has its number then."""
        return self._lookups.lookup_pidfd(fd, parity=parity, mode=mode, container_selectors=container_selectors)

    def lookup_container(
        self,
        container_id: str,
        pod_uid: str | None = None,
        *,
        mode: Mode | None = None,
        container_selectors: bool = True,
    ) -> Identity:
        """Which workload a container is, of this pod where that is given; the identity is that of no process. In parity
        mode as SPIRE answers once it has taken these two from a process's files."""
        return self._lookups.lookup_container(container_id, pod_uid, mode=mode, container_selectors=container_selectors)

    def explain(self, pid: int) -> Explained:
        """All that is known of a process, and how: for whoever asks why its identity is what it is."""
        return self._lookups.explain(pid)

    def explain_record(self, pid: int, *, of_itself: bool = False) -> dict[str, Any]:
        """The same as ``podtracer explain -o json`` prints it, with what the entries say where there are any.
        ``of_itself`` leaves out what is about others: see ``tracer.explaining``."""
        from tracer import explaining

        said = explaining.record(self.explain(pid), clock.read(), of_itself=of_itself)
        entries = self._lookups.issuing.entries if self._lookups.issuing is not None else None
        if entries is not None:
            explaining.compare(
                said, entries, self.settings.agent_id, self.settings.entries_file, time.time(), of_itself=of_itself
            )
        return said

    def mark(self, pid: int) -> object:
        """What the strict answer for a process hangs on: as long as marks are equal, so are answers. ``None`` is equal
        to nothing."""
        return self._lookups.mark(pid)

    def ps(self, *, parity: bool = False) -> list[Identity]:
        """The identities of all processes, in the order of their numbers."""
        found = (self.lookup(pid, parity=parity) for pid in self.pids())
        return [identity for identity in found if identity.state is not State.GONE]

    def pids(self) -> list[int]:
        """The processes that are known, in the order of their numbers."""
        return sorted(self._index.processes)

    def watch(
        self, *, snapshot: bool = True, parity: bool = False, on_event: Callable[[], None] | None = None
    ) -> Watch | ViewWatch:
        """A stream of events: first a ``snapshot`` of what runs and ``synced``, then live. ``parity`` as of a look-up;
        each process's files are read once then, and when it moves in any hierarchy. ``on_event`` is called, from any
        thread, when events were queued."""
        feed = self._live
        parity = parity or self._view.changes_mode
        if on_event is None:
            watch = Watch(self._unsubscribe)
        else:  # one of many perhaps, for readers that nobody knows
            most = _SERVED + len(self._index.processes)
            watch = Watch(self._unsubscribe, limit=most, on_event=on_event)
        with feed.lock:
            feed.drain()
            if snapshot:
                events = self._index.snapshot(boottime())
                watch.push(events if self._lookups.issuing is None else self._lookups.issuing.events(events))
            watch.push([Event("synced", boottime())])
            self._watches.append(watch)
            self._index.watched = True
            if parity:
                self._all_moves.append(watch)
                feed.on_other_move = self._on_other_move
                feed.report_all_moves(True)
        return ViewWatch(watch, self._view, self._lookups.finished) if parity else watch

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

    def listen(self, listener: Callable[[], None]) -> None:
        """Has ``listener`` called, from any thread, when answers may have changed because of what sources told."""
        self._listeners.append(listener)

    def want(self, container_id: str) -> None:
        """Has the sources look for a container, as for one whose cgroup nobody knows."""
        self._sources.want(container_id)

    def unwant(self, container_id: str) -> None:
        """Takes one :meth:`want` back."""
        self._sources.unwant(container_id)

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
                self._turned = time.monotonic()
                try:
                    with feed.lock:
                        feed.drain()
                        soon = feed.care(boottime())
                        if time.monotonic() - self._looked > _LOOK_AROUND and not self._anywhere:
                            self._look_around()
                    self._sources.pass_wants()
                    timeout = _DRAIN if soon is None else min(_DRAIN, soon / 1e9)
                except Exception:
                    # The only thread that keeps the table: it outlives what nobody thought of.
                    _log.exception("keeping up with the kernel failed")
                    timeout = _DRAIN

    def _look_around(self) -> None:
        """Checks where we run, and warns once of each failure: answers are ``unknown`` then, or cover a part of the
        machine. With the lock held."""
        self._looked = time.monotonic()
        before, self.missing = self.missing, self.standing.missing()
        new = [check for check in self.missing if check not in before]
        if new:
            others = f"; and {len(new) - 1} more, see podtracer doctor" if len(new) > 1 else ""
            self._warn(f"{new[0].found}{others} (hint: {new[0].hint})")
        if self.missing != before:
            for listener in self._listeners:
                listener()

    def _publish(self, events: list[Event]) -> None:
        if events and self._watches:
            if self._lookups.issuing is not None:
                events = self._lookups.issuing.events(events)
            for watch in self._watches:
                if watch in self._all_moves or not self._all_moves:
                    watch.push(events)
                else:
                    watch.push(event for event in events if not event.extra.get("elsewhere"))

    def _changed(self) -> None:
        self._entries.prepare()
        for listener in self._listeners:
            listener()

    # ---- pods ----

    def _drain(self) -> None:
        if self._feed is not None:
            self._feed.drain()

    def _set_synced(self) -> None:
        with self._news:
            self._synced = True
            self._news.notify_all()


def _rules(settings: Settings) -> Rules:
    return Rules(
        give_up=round(settings.poll_budget * 1e9),
        max_stale=round(settings.pods_max_stale * 1e9),
        prefix=settings.cgroup_prefix,
        disable_container_selectors=settings.disable_container_selectors,
        namespace_labels=settings.enable_namespace_labels,
        ephemeral_containers=settings.ephemeral_containers,
    )


__all__ = ["FIXED", "Tracer", "TracerError"]
