"""What SPIRE's rules make of living processes: their files, read and remembered.

Files are read once for each process, and again when it moved in any hierarchy, since its rules read them all. Whoever
reads makes sure that they are of the process meant, and not of one that has its number by now (``read_of``).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from tracer.clock import boottime
from tracer.errors import ParityError
from tracer.identity import parity
from tracer.identity.index import Index
from tracer.identity.parity import Located, Outcome
from tracer.kernel import procfs
from tracer.model import Event, Identity, ProcessKey, State, Workload
from tracer.watching import Watch

_KEPT = 65536  # processes whose answer is remembered
_PENDING = 4096  # processes whose resolution is announced
_LOOK = 0.1  # seconds between two looks at those
_UNREAD = Workload(State.UNKNOWN, "unreadable", "its files could not be read")
_STALE = Workload(State.UNKNOWN, "stale", "the pod data is too old: no source has answered since")
_NO_LABELS = Workload(State.PENDING, "namespace_labels", "the labels of its namespace are not known yet")

Answer = Located | ParityError
ReadOf = Callable[[ProcessKey, Callable[[], Answer | None]], Answer | None]


class SpireView:
    """Answers by SPIRE's rules, on the index's pod data. ``changes_mode`` where they are *the* answer (mode parity),
    else they are only compared with it."""

    def __init__(self, index: Index, procfs_dir: str, read_of: ReadOf, *, changes_mode: bool) -> None:
        self.changes_mode = changes_mode
        self._index = index
        self._procfs = procfs_dir
        self._read_of = read_of
        # By PID: whose answer it is, the answer, and whether it still holds, which it does not after a move.
        self._known: OrderedDict[int, tuple[ProcessKey, Answer, bool]] = OrderedDict()
        self._moves = 0

    def read(self, key: ProcessKey) -> Answer | None:
        """What the files of this process say now; ``None`` where they cannot be read, as of one that has ended."""
        return self._read_of(key, lambda: self._read(key.pid))

    def _read(self, pid: int) -> Answer | None:
        cgroup = procfs.read(self._procfs, pid, "cgroup")
        if cgroup is None:
            return None
        try:
            found = parity.locate(cgroup, None)
            if found.container_id is None:  # only then: a mountinfo may be long
                found = parity.locate(cgroup, procfs.read(self._procfs, pid, "mountinfo"))
        except ParityError as error:
            return error
        return found

    def recall(self, key: ProcessKey) -> Answer | None:
        """What the files said when they were last read, without reading anything."""
        known = self._known.get(key.pid)
        return known[1] if known is not None and known[0] == key else None

    def look(self, key: ProcessKey) -> Answer | None:
        """What the files say, read only where that is not known; of a process that has ended, what was known."""
        known = self._known.get(key.pid)
        if known is not None and known[0] == key and known[2]:
            return known[1]
        moves = self._moves
        answer = self.read(key)
        if answer is None:
            return self.recall(key)
        self._known.pop(key.pid, None)
        self._known[key.pid] = (key, answer, moves == self._moves)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return answer

    def moved(self, pid: int) -> None:
        """The process moved in some hierarchy, so that its files are to be read again. May come from any thread."""
        self._moves += 1
        known = self._known.get(pid)
        if known is not None:
            self._known[pid] = (known[0], known[1], False)

    def forget(self, pid: int) -> None:
        """The process has ended."""
        self._known.pop(pid, None)

    def outcome(self, answer: Answer | None, *, container_selectors: bool = True) -> Outcome | None:
        """What SPIRE answers with the newest pod list; ``None`` before the first, and where it ends in an error."""
        table, rules = self._index.pod_table, self._index.rules
        if table is None or not isinstance(answer, Located):
            return None
        return parity.attest(
            answer,
            table,
            disable_container_selectors=rules.disable_container_selectors or not container_selectors,
            namespace_labels=self._index.namespace_labels if rules.namespace_labels else None,
        )

    def fill(
        self,
        identity: Identity,
        answer: Answer | None,
        *,
        by_files: bool | None = None,
        container_selectors: bool = True,
        strict: Workload | None = None,
    ) -> Identity:
        """The identity with ``parity``, and ``by_files`` (in parity mode, where it is not said) with SPIRE's answer in
        place of the strict one, which ``strict`` is where the identity was changed already."""
        if identity.state is State.GONE:
            return identity
        same = None if answer is None else parity.is_same(strict or identity.workload, answer)
        if not (self.changes_mode if by_files is None else by_files):
            return identity._replace(parity=same)
        in_container = isinstance(answer, Located) and answer.container_id is not None
        return identity._replace(
            workload=self._workload(identity, answer, container_selectors=container_selectors),
            pods_at=self._index.pods_at if in_container else None,
            mode="parity",
            parity=same,
            spiffe_ids=None,
        )

    def _workload(self, identity: Identity, answer: Answer | None, *, container_selectors: bool) -> Workload:
        if answer is None:
            return _UNREAD
        index, now = self._index, boottime()
        outcome, at, rules = self.outcome(answer, container_selectors=container_selectors), index.pods_at, index.rules
        if outcome is not None and outcome.pod is not None:
            if at is not None and now - at > rules.max_stale:
                return _STALE
            if rules.namespace_labels and outcome.pod.namespace not in index.namespace_labels:
                return _NO_LABELS
        since = identity.process.since if identity.process else now
        return parity.workload(answer, outcome, source=index.pods_from, given_up=now - since > rules.give_up)


class ViewWatch:
    """A watch whose events carry ``parity``, or in parity mode SPIRE's answers. Used like the watch it wraps.

    ``finish`` is given each identity whose workload was replaced.
    """

    def __init__(self, watch: Watch, view: SpireView, finish: Callable[[Identity], Identity]) -> None:
        self._watch = watch
        self._view = view
        self._finish = finish
        self._ready: deque[Event] = deque()
        # Announced as pending by SPIRE's rules, to be told again when they come true.
        self._pending: OrderedDict[ProcessKey, Identity] = OrderedDict()
        self._looked = 0.0

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; ``None`` when none came within ``timeout`` seconds, or the watch is closed."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._look_again()
            if self._ready:
                return self._ready.popleft()
            left = None if end is None else max(0.0, end - time.monotonic())
            wait = left if not self._pending else _LOOK if left is None else min(_LOOK, left)
            event = self._watch.next(wait)
            shown = self._filled(event) if event is not None else None
            if shown is not None:
                return shown
            if event is None and (self._watch.is_closed or (end is not None and time.monotonic() >= end)):
                return None

    def _filled(self, event: Event) -> Event | None:
        if event.identity is None:
            return event
        strict, key = event.identity, event.identity.key
        before = self._view.recall(key)
        if event.event == "exit":
            answer = before
            self._view.forget(key.pid)
        else:
            if event.event == "move":
                self._view.moved(key.pid)
            answer = self._view.look(key)
            if event.extra.get("elsewhere") and answer == before:
                return None  # a runtime joins a dozen hierarchies, one after the other
        identity = self._view.fill(strict, answer)
        if not self._view.changes_mode:
            return replace(event, identity=identity)
        if event.event == "resolved":
            return None  # by the strict rule, which is not asked for
        self._pending.pop(key, None)
        if identity.state is State.PENDING and event.event != "exit":
            self._pending[key] = strict
            if len(self._pending) > _PENDING:
                self._pending.popitem(last=False)
        return replace(event, identity=self._finish(identity))

    def _look_again(self) -> None:
        now = time.monotonic()
        if not self._pending or now - self._looked < _LOOK:
            return
        self._looked = now
        for key, strict in tuple(self._pending.items()):
            identity = self._view.fill(strict, self._view.recall(key))
            if identity.state is State.PENDING:
                continue
            del self._pending[key]
            if identity.state is State.RESOLVED:
                self._ready.append(Event("resolved", boottime(), self._finish(identity)))

    def close(self) -> None:
        """Ends the stream."""
        self._watch.close()

    def __enter__(self) -> ViewWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> ViewWatch:
        return self

    def __next__(self) -> Event:
        event = self.next()
        if event is None:
            raise StopIteration
        return event
