"""What each operation of the socket does: a request of an authorised peer in, lines out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

from tracer import clock, pidfd
from tracer.histogram import Histogram
from tracer.identity.index import gone
from tracer.model import Clock, Identity, State
from tracer.serve.access import Access
from tracer.serve.answers import Answers, encode, line
from tracer.serve.connection import Connection, Line
from tracer.serve.desk import Desk
from tracer.serve.requests import Refused, Request, internal, refusal
from tracer.serve.trust import MAX_PID, Trust, check_descriptors
from tracer.serve.waits import Wait, Waits
from tracer.version import __version__

_MOST_WAITS = 1024  # of one connection
_MOST_OWN_WAITS = 16  # of one that may ask about itself only
_MOST_STREAMS = 8  # of one connection
_SLICE = 32  # identities made before others have their turn
_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_log = logging.getLogger("podtracer.socket")
_TOOK = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 1e-1)  # seconds


def _is_start(ours: int, theirs: int) -> bool:
    """Whether two starts are the same, in boot time nanoseconds; one of them may come from ``/proc``, which knows the
    tick alone."""
    if ours == theirs:
        return True
    return ours // _TICK == theirs // _TICK and 0 in (ours % _TICK, theirs % _TICK)


class _Question(NamedTuple):
    """``ask`` answers a request, ``mark`` changes when its answer may have changed, and ``end`` is called once it is
    answered or given up."""

    ask: Callable[[], Sequence[Identity]]
    mark: Callable[[], object]
    end: Callable[[], None] | None = None


class Operations:
    """``wake`` has the server's loop run again, from any thread; ``status`` says how the daemon fares. Counts what it
    answers in ``lookups``, by state, and how long that took in ``took``."""

    def __init__(
        self, desk: Desk, access: Access, *, status: Callable[[], dict[str, Any]], wake: Callable[[], None]
    ) -> None:
        self.trust = Trust(desk, access)
        self.waits = Waits()
        self.lookups = dict.fromkeys((state.value for state in State), 0)
        self._desk = desk
        self._wake = wake
        self._status_of = status
        self._answers = Answers()
        self.took = Histogram(_TOOK)
        self._do: dict[str, Callable[[Connection, Request, Line], None]] = {
            "lookup": self._lookup,
            "cancel": self._cancel,
            "ps": self._ps,
            "watch": self._watch,
            "explain": self._explain,
            "status": self._status,
            "version": self._version,
        }

    def run(self, connection: Connection, request: Request, sent: Line) -> None:
        """Answers a request, or sees to it that it is answered. Raises :class:`Refused`."""
        if request.op != "version" and not connection.peer.take(request.nonce, sent.sender):
            hint = "send the request again with this nonce: before Linux 6.5 that shows who asks"
            raise Refused("permission_denied", "who asks is not certain yet", hint, nonce=connection.peer.nonce)
        self._do[request.op](connection, request, sent)

    # ---- lookup ----

    def _lookup(self, connection: Connection, request: Request, sent: Line) -> None:
        if request.pid is not None and not (request.wait_ms or request.settled_wait_ms):
            self._lookup_now(connection, request, sent)
            return
        self._check_inode(request)
        check_descriptors(request, sent)
        self.trust.check_numbers(connection, request)
        question = self._question(connection, request, sent)
        try:
            if self._answer_or_wait(connection, request, question):
                question = question._replace(end=None)  # by the wait, when it ends
        finally:
            if question.end is not None:
                question.end()

    def _answer_or_wait(self, connection: Connection, request: Request, question: _Question) -> bool:
        """Answers now, or starts to wait. Returns whether it waits, or waited and has answered already."""
        ask, mark, end = question
        pending, settled = request.wait_ms / 1000, request.settled_wait_ms / 1000
        is_list = request.pids is not None
        if not pending and not settled and is_list:
            found = (self._one(connection, pid, request) for pid in request.pids or ())
            connection.make(self._pieces(connection, request, found))
            return False

        wanted = request.container_id

        def done(answers: Sequence[Identity]) -> None:
            now = clock.read()
            said = b",".join([self._said(answer, request, now) for answer in answers])
            connection.say(self._result(request, b"[%b]" % said if is_list else said))

        if not pending and not settled:
            began = time.perf_counter()
            done(ask())
            self.took.observe(time.perf_counter() - began)
            return False
        key = (connection, request.id)
        if key in self.waits:
            raise Refused("bad_request", "a request with this id waits already", "count them", id_=request.id)
        most = _MOST_WAITS if connection.is_trusted else _MOST_OWN_WAITS
        if connection.waits >= most:
            raise Refused("too_large", f"more than {most} requests wait", "cancel some", id_=request.id)

        def failed(error: Exception) -> None:
            if isinstance(error, Refused):  # the caller may not ask any more
                connection.say(refusal(error))
                return
            _log.error("a request failed", exc_info=error)
            connection.say(refusal(internal(error, request.id, is_trusted=connection.is_trusted)))

        def ended() -> None:
            connection.waits -= 1
            if wanted is not None:
                self._desk.unwant(wanted)
            if end is not None:
                end()

        connection.waits += 1
        if wanted is not None:
            self._desk.want(wanted)
        now = time.monotonic()
        wait = Wait(ask, mark, done, failed, ended, pending=pending, settled=settled, now=now)
        if not wait.is_answered(now):
            self.waits.add(key, wait)
        return True

    def _lookup_now(self, connection: Connection, request: Request, sent: Line) -> None:
        """What is asked most: one process, by its number, as it is now."""
        assert request.pid is not None
        began = time.perf_counter()
        self._check_inode(request)
        check_descriptors(request, sent)
        self.trust.check_numbers(connection, request)
        self.trust.authorise(connection, request, about=request.pid)
        said = self._said(self._about(connection, request.pid, request), request, clock.read())
        connection.say(self._result(request, said))
        self.took.observe(time.perf_counter() - began)

    def _check_inode(self, request: Request) -> None:
        if request.pidfd_ino is not None and not self._desk.pidfs:
            hint = "send start_time"
            raise Refused("bad_request", "this kernel has no inodes of pidfds", hint, id_=request.id)

    def _question(self, connection: Connection, request: Request, sent: Line) -> _Question:
        """What answers the request, which is authorised here. A request about others is authorised again with each
        answer, since the caller may have become a pod while it waited."""
        desk = self._desk
        if request.pid is not None:
            pid = request.pid
            self.trust.authorise(connection, request, about=pid)
            return _Question(lambda: (self._about(connection, pid, request),), self._mark_of(pid, request))
        if request.pids is not None:
            pids = request.pids

            def of_many() -> Sequence[Identity]:
                self.trust.authorise(connection, request)
                return [self._one(connection, pid, request) for pid in pids]

            self.trust.authorise(connection, request)
            return _Question(of_many, lambda: [desk.mark(pid) for pid in pids if pid <= MAX_PID])
        if request.container_id is not None:
            container, uid = request.container_id, request.pod_uid
            selectors = request.container_selectors

            def of_container() -> Sequence[Identity]:
                self.trust.authorise(connection, request)
                return (desk.lookup_container(container, uid, mode=request.mode, container_selectors=selectors),)

            self.trust.authorise(connection, request)
            return _Question(of_container, lambda: None)
        if sent.fds or sent.is_stripped:
            return self._question_of_pidfd(connection, request, self.trust.number_of(connection, request, sent), sent)
        self.trust.peer_or_refuse(connection, request)
        return _Question(lambda: (self._itself(connection, request),), self._mark_of(connection.peer.pid, request))

    def _question_of_pidfd(self, connection: Connection, request: Request, pid: int, sent: Line) -> _Question:
        # Kept open while the request waits: before pidfs only this tells a process from a later one with its PID.
        waits = request.wait_ms or request.settled_wait_ms
        fd = os.dup(sent.fds[0]) if waits else sent.fds[0]

        def of_pidfd() -> Sequence[Identity]:
            self.trust.authorise(connection, request)
            return (self._desk.lookup_pidfd(fd, **self._how(connection, request)),)

        return _Question(of_pidfd, self._mark_of(pid, request), (lambda: os.close(fd)) if waits else None)

    def _how(self, connection: Connection, request: Request) -> dict[str, Any]:
        """The options of a look-up. A caller that may ask about itself only is answered by the daemon's own rules: in
        parity mode the caller's files would decide which container it is in, and without container selectors it would
        need none."""
        if request.mode is None and request.container_selectors and not request.parity:
            return {}
        if not self.trust.holds(connection):
            return {"parity": True} if request.parity else {}
        return {
            "mode": request.mode,
            "container_selectors": request.container_selectors,
            "parity": request.parity,
        }

    def _mark_of(self, pid: int, request: Request) -> Callable[[], object]:
        if request.mode is not None or not request.container_selectors or pid > MAX_PID:
            return lambda: None  # hangs on more than a mark says
        return lambda: self._desk.mark(pid)

    def _one(self, connection: Connection, pid: int, request: Request) -> Identity:
        if pid > MAX_PID:
            return gone(pid)
        how = self._how(connection, request)
        identity = self._desk.lookup(pid, **how)
        if not request.container_selectors and "mode" not in how and identity.state is State.RESOLVED:
            # The daemon's own rules have resolved it, so leaving selectors out gives it nothing.
            identity = self._desk.lookup(pid, **how, container_selectors=False)
        if request.pidfd_ino is not None and identity.key.ino != request.pidfd_ino:
            return gone(pid)
        if request.start_time is None and request.start_ns is None:
            return identity
        process = identity.process
        if process is None or not process.start:
            return gone(pid)
        if request.start_ns is not None and not _is_start(process.start, request.start_ns):
            return gone(pid)
        # By any time that the wall clock had for it: a process is not gone because somebody set the clock.
        if request.start_time is not None and not clock.said(request.start_time, process.start):
            return gone(pid)
        return identity

    def _about(self, connection: Connection, pid: int, request: Request) -> Identity:
        """The identity of a process; for who may ask about itself only, never that of another one which has got its
        number since it was let pass."""
        identity = self._one(connection, pid, request)
        if self.trust.holds(connection) or identity.key == self.trust.peer(connection).key:
            return identity
        return gone(pid)

    def _itself(self, connection: Connection, request: Request) -> Identity:
        identity = self._one(connection, connection.peer.pid, request)
        if self._desk.pidfs:
            return identity if identity.key.ino == connection.peer.ino else gone(connection.peer.pid)
        return identity if connection.peer.is_alive() else gone(connection.peer.pid)

    def _said(self, identity: Identity, request: Request, now: Clock) -> bytes:
        self.lookups[identity.workload.state.value] += 1
        return self._answers.identity(identity, now, labels=request.labels)

    @staticmethod
    def _result(request: Request, said: bytes) -> bytes:
        id_ = request.id
        return b'{"id":%b,"ok":true,"result":%b}\n' % (b"%d" % id_ if type(id_) is int else encode(id_), said)

    def _pieces(
        self, connection: Connection, request: Request, identities: Iterable[Identity]
    ) -> Generator[bytes, None, None]:
        """The line of a list, a few identities at a time. A slow peer may lose its right to ask about others meanwhile:
        then the daemon stops and closes the connection."""
        yield self._result(request, b"[")[:-2]
        parts: list[bytes] = []
        is_first = True
        now = clock.read()
        for identity in identities:
            parts.append(self._said(identity, request, now))
            if len(parts) == _SLICE:
                yield (b"" if is_first else b",") + b",".join(parts)
                is_first, parts, now = False, [], clock.read()
                if not self.trust.holds(connection):
                    connection.break_off()
                    return
        if parts:
            yield (b"" if is_first else b",") + b",".join(parts)
        yield b"]}\n"

    # ---- the others ----

    def _cancel(self, connection: Connection, request: Request, _sent: Line) -> None:
        found = self.waits.cancel((connection, request.of), time.monotonic())
        stream = connection.streams.pop(request.of, None)
        if stream is not None:
            stream.close()
            connection.say(line({"id": request.of, "ok": True, "result": {"ended": True}}))
        result = {"cancelled": found or stream is not None}
        connection.say(line({"id": request.id, "ok": True, "result": result}))

    def _ps(self, connection: Connection, request: Request, _sent: Line) -> None:
        self.trust.authorise(connection, request)

        def found() -> Iterable[Identity]:
            for pid in self._desk.pids():
                identity = self._desk.lookup(pid, **self._how(connection, request))
                if identity.state is not State.GONE:
                    yield identity

        connection.make(self._pieces(connection, request, found()))

    def _watch(self, connection: Connection, request: Request, _sent: Line) -> None:
        self.trust.authorise(connection, request)
        if request.id in connection.streams:
            raise Refused("bad_request", "a watch has this id already", "count them", id_=request.id)
        if len(connection.streams) >= _MOST_STREAMS:
            raise Refused("too_large", f"more than {_MOST_STREAMS} watches", "connect anew", id_=request.id)
        parity = request.parity or request.mode == "parity"
        connection.streams[request.id] = self._desk.watch(snapshot=request.snapshot, parity=parity, on_event=self._wake)

    def pump(self, connection: Connection, most: int) -> bool:
        """Writes events of the connection's watches, as many as it takes; whether there may be more."""
        more = False
        if not self.trust.holds(connection):
            self._end_streams(connection)
        for id_, stream in connection.streams.items():
            now = clock.read()
            for _ in range(most):
                if connection.is_full:
                    return True
                event = stream.next(0)
                if event is None:
                    break
                connection.out += b'{"id":%b,"event":%b}\n' % (encode(id_), self._answers.event(event, now))
            else:
                more = True
        return more

    def _end_streams(self, connection: Connection) -> None:
        """Whoever watched may not any more."""
        message, hint = self.trust.why_not(connection, self.trust.peer(connection))
        for id_, stream in connection.streams.items():
            stream.close()
            connection.out += refusal(Refused("permission_denied", message, hint, id_=id_))
        connection.streams.clear()

    def _explain(self, connection: Connection, request: Request, sent: Line) -> None:
        check_descriptors(request, sent)
        self.trust.check_numbers(connection, request)
        if request.itself:
            pid = self.trust.peer_or_refuse(connection, request).key.pid
        elif sent.fds or sent.is_stripped:
            pid = self.trust.number_of(connection, request, sent)
        elif request.pid is not None:
            pid = request.pid
        else:
            raise Refused("bad_request", "explain names no process", "send a pid, a pidfd or itself", id_=request.id)
        self.trust.authorise(connection, request, about=pid)
        if pid > MAX_PID:
            raise Refused("bad_request", f"{pid} is too great for a PID", id_=request.id)
        if self.trust.holds(connection):
            said = self._desk.explain_record(pid)
        else:
            said = self._desk.explain_record(pid, of_itself=True)
        self.trust.authorise(connection, request, about=pid)  # and has not ended meanwhile
        if sent.fds and not pidfd.alive(sent.fds[0]):
            said = self._desk.explain_record(0)  # its number may have been another's by then
        connection.say(line({"id": request.id, "ok": True, "result": said}))

    def _status(self, connection: Connection, request: Request, _sent: Line) -> None:
        self.trust.authorise(connection, request)
        connection.say(line({"id": request.id, "ok": True, "result": self._status_of()}))

    @staticmethod
    def _version(connection: Connection, request: Request, _sent: Line) -> None:
        result = {"version": __version__, "same_pid_namespace": connection.peer.counts_alike}
        connection.say(line({"id": request.id, "ok": True, "result": result}))
