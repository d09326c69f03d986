"""Looking a process up: the slot that the kernel keeps for it, joined with what the index knows. Any thread may ask.

The common answer is a few reads of memory. Whatever is not there yet, a cgroup's name or the record of a process, is
taken in first, under the lock; and an empty slot of a living process is repaired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from tracer import pidfd
from tracer.clock import boottime
from tracer.feed import Feed
from tracer.identity.explained import Explained
from tracer.identity.index import SWITCHING, Index, gone
from tracer.identity.parity import Located
from tracer.kernel import procfs
from tracer.kernel.cgroupfs import readable
from tracer.kernel.slots import Slot
from tracer.model import Event, Identity, Process, ProcessKey, Source, State, Workload
from tracer.settings import Settings
from tracer.spire_view import Answer, SpireView

if TYPE_CHECKING:
    from tracer.issuing import Issuing

Mode = Literal["strict", "parity"]
_NEWEST = 128  # unread records that a look-up looks through
_PID_FIELD = 1  # of a record of a process, see wire.PROCESS
_RETRIES = 3  # look-ups of a process that moves while its files are read
T = TypeVar("T")


class Lookups:
    """``live`` gives the feed, or raises where there is none; ``publish`` gets the events that come of taking in what
    is there. ``issuing`` gives identities their SPIFFE IDs, where there are entries."""

    def __init__(
        self,
        index: Index,
        settings: Settings,
        live: Callable[[], Feed],
        publish: Callable[[list[Event]], None],
    ) -> None:
        self.issuing: Issuing | None = None
        self.view = SpireView(index, settings.procfs, self.read_of, changes_mode=settings.mode == "parity")
        self._index = index
        self._procfs = settings.procfs
        self._live = live
        self._publish = publish

    # ---- a process ----

    def lookup(
        self,
        pid: int,
        *,
        verify: bool = False,
        parity: bool = False,
        mode: Mode | None = None,
        container_selectors: bool = True,
    ) -> Identity:
        """See ``tracer.node.Tracer.lookup``."""
        by_files = self.view.changes_mode if mode is None else mode == "parity"
        if parity or by_files or not container_selectors:
            strict, answer = self._with_answer(pid, verify=verify, reads=parity or by_files)
            return self._filled(strict, answer, by_files=by_files, container_selectors=container_selectors)
        return self._lookup(pid, verify=verify)

    def _lookup(self, pid: int, *, verify: bool) -> Identity:
        feed = self._live()
        try:
            return self._lookup_in(feed, pid, verify)
        except ValueError:
            self._live()  # what was mapped is not any more: raises, since it was closed meanwhile
            raise

    def _lookup_in(self, feed: Feed, pid: int, verify: bool) -> Identity:
        slot = feed.programs.slots.read(pid)
        if feed.behind() and not (slot and self._is_known(feed, pid, slot)):
            with feed.lock:
                feed.drain()
            slot = feed.programs.slots.read(pid)
        if slot is None or verify or not feed.programs.features.pidfs:
            return self._lookup_pinned(pid)
        return self._answer(pid, slot)

    def _is_known(self, feed: Feed, pid: int, slot: Slot) -> bool:
        """Whether the answer can do without what is unread: this very process is known to be in the cgroup that its
        slot names, and the newest records, as far as they are looked through, are of others. Else each look-up would
        pay for what everybody does. Who it is stays exact; in a storm what the process calls itself may be as old as
        the last drain."""
        known = self._index.processes.get(pid)
        if known is None or known.key.ino != slot.ino or known.cgroup != slot.cgroup:
            return False
        programs = feed.programs
        if slot.cgroup not in self._index.cgroups.views or programs.cgroups.pending():
            return False
        return not programs.processes.names(pid, _PID_FIELD, _NEWEST)

    def lookup_pidfd(
        self, fd: int, *, parity: bool = False, mode: Mode | None = None, container_selectors: bool = True
    ) -> Identity:
        """See ``tracer.node.Tracer.lookup_pidfd``."""
        pid = pidfd.number(fd)
        if pid is None or not pidfd.alive(fd):
            return gone(pid or 0)
        feed = self._live()
        slot = feed.programs.slots.read(pid) or self._repair(pid, fd)
        if slot is None or (feed.programs.features.pidfs and slot.ino != pidfd.inode(fd)):
            return gone(pid)
        identity = self._answer(pid, slot)
        by_files = self.view.changes_mode if mode is None else mode == "parity"
        if parity or by_files or not container_selectors:
            answer = self.view.read(identity.key) if parity or by_files else None
            identity = self._filled(identity, answer, by_files=by_files, container_selectors=container_selectors)
        return identity if pidfd.alive(fd) else gone(pid)

    def mark(self, pid: int) -> object:
        """What the strict answer for a process hangs on: as long as marks are equal, so are answers."""
        slot = self._live().programs.slots.read(pid)
        view = self._index.cgroups.views.get(slot.cgroup) if slot is not None else None
        if view is None or self._index.doubtful:
            return None
        return slot, view.workload if view.entry is None else view.entry.workload

    def explain(self, pid: int) -> Explained:
        """See ``tracer.node.Tracer.explain``."""
        strict, answer = self._with_answer(pid, verify=True, reads=True)
        index = self._index
        table = index.pod_table
        return Explained(
            identity=self._filled(strict, answer, by_files=self.view.changes_mode),
            strict=strict.workload,
            answer=answer,
            outcome=self.view.outcome(answer),
            hierarchy=self._live().mount.name,
            root=index.cgroups.prefix,
            unix=self.unix_selectors(strict.key),
            pods=None if table is None else len(table.pods),
            pods_at=index.pods_at,
            pods_from=index.pods_from,
        )

    def _with_answer(self, pid: int, *, verify: bool, reads: bool) -> tuple[Identity, Answer | None]:
        """The strict identity, and what SPIRE's rules make of the files of the same process in the same cgroup."""
        if not reads:
            return self._lookup(pid, verify=verify), None
        slots = self._live().programs.slots
        for _ in range(_RETRIES):
            identity = self._lookup(pid, verify=True)
            if identity.state is State.GONE:
                return identity, None
            answer = self.view.read(identity.key)
            slot = slots.read(identity.key.pid)
            if slot is None or identity.cgroup is None or slot.cgroup == identity.cgroup.id:
                break  # else it has moved meanwhile
        return identity, answer

    def _filled(
        self, identity: Identity, answer: Answer | None, *, by_files: bool, container_selectors: bool = True
    ) -> Identity:
        """The identity with what SPIRE's rules say beside it or, where it goes ``by_files``, instead."""
        changed = identity
        if not container_selectors and not by_files:
            changed = identity._replace(workload=self._index.without_container(identity))
        if answer is not None or by_files:
            changed = self.view.fill(
                changed, answer, by_files=by_files, container_selectors=container_selectors, strict=identity.workload
            )
        return changed if changed.workload is identity.workload else self.issued(changed)

    def issued(self, identity: Identity) -> Identity:
        """The identity with the SPIFFE IDs of its workload."""
        return identity if self.issuing is None else self.issuing.identity(identity)

    def finished(self, identity: Identity) -> Identity:
        """The identity with the SPIFFE IDs of its workload, which SPIRE's rules may have replaced."""
        return self.issued(identity) if self.view.changes_mode else identity

    def _answer(self, pid: int, slot: Slot) -> Identity:
        ino, hierarchy, cgroup = slot
        index = self._index
        known = index.processes.get(pid)
        view = index.cgroups.views.get(cgroup)
        if known is None or known.key.ino != ino or view is None or index.doubtful or hierarchy != index.hierarchy:
            return self._answer_slowly(pid, slot)
        if known.cgroup != cgroup:  # it has moved: how that came about is still unread
            return self._answer_slowly(pid, slot)
        entry = view.entry
        if entry is not None and entry.workload.state is State.PENDING:
            return self._answer_slowly(pid, slot)
        if entry is None:
            identity = Identity(known.key, pid, view.workload, view.cgroup, known.process)
        else:
            identity = Identity(known.key, pid, entry.workload, view.cgroup, known.process, entry.pods_at)
        return identity if self.issuing is None else self.issuing.identity(identity)

    def _answer_slowly(self, pid: int, slot: Slot) -> Identity:
        """The cgroup's name or the process's record is not there yet, or what is pending may be known by now: all news
        is taken in, and what follows from it, before the answer."""
        feed = self._live()
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
            if self._index.doubtful and slot.hierarchy == self._index.hierarchy:
                identity = self._verified(feed, identity, slot)
        return self.issued(identity)

    def _verified(self, feed: Feed, identity: Identity, slot: Slot) -> Identity:
        """The identity while a container may be in another hierarchy. A process that seems to be on the host is so only
        if its files say that it is in no container's cgroup there."""
        key, workload = identity.key, identity.workload
        if workload is not SWITCHING and workload.state is not State.HOST:
            return identity
        is_elsewhere = feed.may_be_elsewhere(key.pid)
        now = feed.programs.slots.read(key.pid)
        if is_elsewhere or (now is not None and now != slot):
            return identity._replace(workload=SWITCHING)
        return self._index.identify(
            key, identity.asked, slot.hierarchy, slot.cgroup, identity.process, is_verified=True
        )

    def _process_from_procfs(self, pid: int) -> Process | None:
        stat = procfs.stat(self._procfs, pid)
        if stat is None:
            return None
        return Process(stat.ppid, readable(stat.comm), stat.start, Source.SCAN, boottime())

    def _lookup_pinned(self, pid: int) -> Identity:
        """Between a pidfd opened before the slot was read and one that still lives after it, the number was one
        process's. An empty slot is never "gone" as long as the process lives."""
        with pidfd.pinned(pid) as fd:
            if fd is None:
                leader = procfs.process_of(self._procfs, pid)
                if leader is None or leader == pid:
                    return gone(pid)
                return self._lookup(leader, verify=False)._replace(asked=pid)
            slot = self._live().programs.slots.read(pid)
            if slot is None:
                slot = self._repair(pid, fd)
            if slot is None:
                return gone(pid)
            identity = self._answer(pid, slot)
            return identity if pidfd.alive(fd) else gone(pid)

    def _repair(self, pid: int, fd: int) -> Slot | None:
        feed = self._live()
        if not pidfd.alive(fd):
            return None
        with feed.lock:
            slot = feed.repair(pid, fd)
        if slot is None and pidfd.alive(fd):
            # Alive, but no word of where: an identity of unknown place is better than "gone".
            return Slot(pidfd.inode(fd), feed.mount.info.hierarchy, 0)
        return slot

    # ---- a container ----

    def lookup_container(
        self,
        container_id: str,
        pod_uid: str | None = None,
        *,
        mode: Mode | None = None,
        container_selectors: bool = True,
    ) -> Identity:
        """See ``tracer.node.Tracer.lookup_container``."""
        by_files = self.view.changes_mode if mode is None else mode == "parity"
        nobody = Identity(ProcessKey(0, 0), 0, gone(0).workload)
        if by_files:
            answer = Located(pod_uid=pod_uid, container_id=container_id)
            return self._filled(
                nobody._replace(workload=Workload(State.PENDING)), answer, by_files=True,
                container_selectors=container_selectors,
            )._replace(parity=None)  # fmt: skip
        feed = self._live()
        with feed.lock:
            feed.drain()
            self._publish(self._index.tick(boottime()))
            identity = self._index.identify_container(nobody, container_id, pod_uid, boottime())
        if not container_selectors:
            identity = identity._replace(workload=self._index.without_container(identity, pod_uid))
        return self.issued(identity)

    # ---- the process's own files ----

    def unix_selectors(self, key: ProcessKey) -> tuple[str, ...] | None:
        """Those of this process and of nobody who has its number later."""
        return self.read_of(key, lambda: procfs.unix_selectors(self._procfs, key.pid))

    def read_of(self, key: ProcessKey, read: Callable[[], T]) -> T | None:
        """What ``read`` gives of this process; ``None`` where another may have its number by now."""
        feed = self._live()
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
