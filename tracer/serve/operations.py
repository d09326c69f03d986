"""What each operation of the socket does: a request of an authorised peer in, lines out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from tracer import clock
from tracer.histogram import Histogram
from tracer.identity.index import gone
from tracer.model import Clock, Identity, State
from tracer.serve.access import Access, why_not
from tracer.serve.answers import Answers, encode, line
from tracer.serve.connection import Connection, Line
from tracer.serve.desk import Desk
from tracer.serve.requests import Refused, Request, internal, refusal
from tracer.serve.waits import Wait, Waits
from tracer.version import __version__

_MOST_WAITS = 1024  # of one connection
_MOST_OWN_WAITS = 16  # of one that may ask about itself only
_MOST_STREAMS = 8  # of one connection
_SLICE = 32  # identities made before others have their turn
_MAX_PID = 2**31 - 1
_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_log = logging.getLogger("podtracer.socket")
_TOOK = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 1e-1)  # seconds


def _is_start(ours: int, theirs: int) -> bool:
    """Whether two starts are the same, in boot time nanoseconds; one of them may come from ``/proc``, which knows the
    tick alone."""
    if ours == theirs:
        return True
    return ours // _TICK == theirs // _TICK and 0 in (ours % _TICK, theirs % _TICK)


class Operations:
    """``wake`` has the server's loop run again, from any thread; ``status`` says how the daemon fares. Counts what it
    answers in ``lookups``, by state, and how long that took in ``took``."""

    def __init__(
        self, desk: Desk, access: Access, *, status: Callable[[], dict[str, Any]], wake: Callable[[], None]
    ) -> None:
        self.access = access
        self.waits = Waits()
        self.lookups = dict.fromkeys((state.value for state in State), 0)
        self.refused = 0
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

    # ---- who asks ----

    def peer(self, connection: Connection) -> Identity:
        """Who the peer is now: whoever was pinned when it connected, and nobody else who has its number."""
        peer = connection.peer
        if peer.fd < 0 or peer.nonce is not None:
            return gone(peer.pid)
        identity = self._desk.lookup(peer.pid, mode="strict")  # by whatever rule others are answered
        is_same = identity.key.ino == peer.ino if self._desk.pidfs else peer.is_alive()
        return identity if is_same and identity.key.pid == peer.pid else gone(peer.pid)

    def trusts(self, connection: Connection) -> bool:
        """Whether the peer may ask about others; looked at anew only where something of it has changed."""
        peer = connection.peer
        mark = (self.access, self._desk.mark(peer.pid)) if self._desk.pidfs and peer.nonce is None else None
        if mark is not None and mark[1] is not None and mark == connection.trusted_by:
            return connection.is_trusted
        trusted = self.access.may_ask_about_others(self.peer(connection), peer.uid, peer.gids)
        connection.is_trusted, connection.trusted_by = trusted, mark
        return trusted

    def _authorise(self, connection: Connection, request: Request, *, about: int | None = None) -> None:
        """Lets pass who may ask about others, and who asks about itself, by the number of a thread perhaps."""
        if self.trusts(connection):
            return
        peer = self.peer(connection)
        asks = about is not None and about <= _MAX_PID and peer.state is not State.GONE
        if asks and (about == peer.key.pid or self._desk.lookup(about or 0).key == peer.key):
            return
        self.refused += 1
        message, hint = why_not(peer)
        raise Refused("permission_denied", message, hint, id_=request.id)

    # ---- lookup ----

    def _lookup(self, connection: Connection, request: Request, sent: Line) -> None:
        if request.pid is not None and not (request.wait_ms or request.settled_wait_ms):
            self._lookup_now(connection, request)
            return
        self._check_inode(request)
        ask, mark = self._question(connection, request, sent)
        pending, settled = request.wait_ms / 1000, request.settled_wait_ms / 1000
        is_list = request.pids is not None
        if not pending and not settled and is_list:
            connection.make(self._pieces(request, (self._one(pid, request) for pid in request.pids or ())))
            return

        wanted = request.container_id

        def done(answers: Sequence[Identity]) -> None:
            now = clock.read()
            said = b",".join([self._said(answer, request, now) for answer in answers])
            connection.say(self._result(request, b"[%b]" % said if is_list else said))

        if not pending and not settled:
            began = time.perf_counter()
            done(ask())
            self.took.observe(time.perf_counter() - began)
            return
        key = (connection, request.id)
        if key in self.waits:
            raise Refused("bad_request", "a request with this id waits already", "count them", id_=request.id)
        most = _MOST_WAITS if connection.is_trusted else _MOST_OWN_WAITS
        if connection.waits >= most:
            raise Refused("too_large", f"more than {most} requests wait", "cancel some", id_=request.id)

        def failed(error: Exception) -> None:
            _log.error("a request failed", exc_info=error)
            connection.say(refusal(internal(error, request.id)))

        def ended() -> None:
            connection.waits -= 1
            if wanted is not None:
                self._desk.unwant(wanted)

        connection.waits += 1
        if wanted is not None:
            self._desk.want(wanted)
        now = time.monotonic()
        wait = Wait(ask, mark, done, failed, ended, pending=pending, settled=settled, now=now)
        if not wait.is_answered(now):
            self.waits.add(key, wait)

    def _lookup_now(self, connection: Connection, request: Request) -> None:
        """What is asked most: one process, by its number, as it is now."""
        assert request.pid is not None
        began = time.perf_counter()
        self._check_inode(request)
        self._authorise(connection, request, about=request.pid)
        said = self._said(self._about(connection, request.pid, request), request, clock.read())
        connection.say(self._result(request, said))
        self.took.observe(time.perf_counter() - began)

    def _check_inode(self, request: Request) -> None:
        if request.pidfd_ino is not None and not self._desk.pidfs:
            hint = "send start_time"
            raise Refused("bad_request", "this kernel has no inodes of pidfds", hint, id_=request.id)

    def _question(
        self, connection: Connection, request: Request, sent: Line
    ) -> tuple[Callable[[], Sequence[Identity]], Callable[[], object]]:
        """(what answers the request, what its answer hangs on); authorised."""
        desk, how = self._desk, self._how(request)
        peer = connection.peer
        if request.pid is not None:
            pid = request.pid
            self._authorise(connection, request, about=pid)
            return lambda: (self._about(connection, pid, request),), self._mark_of(pid, request)
        if request.pids is not None:
            self._authorise(connection, request)
            pids = request.pids
            return (
                lambda: [self._one(pid, request) for pid in pids],
                lambda: [desk.mark(pid) for pid in pids if pid <= _MAX_PID],
            )
        if request.container_id is not None:
            self._authorise(connection, request)
            container, uid = request.container_id, request.pod_uid
            selectors = request.container_selectors
            return (
                lambda: (desk.lookup_container(container, uid, mode=request.mode, container_selectors=selectors),),
                lambda: None,
            )
        if sent.is_stripped:
            # Never to be taken for a question about the peer itself.
            self._authorise(connection, request)
            what = "the descriptor was not taken: who sent it was not known to be allowed to"
            raise Refused("not_ready", what, "send it again", id_=request.id)
        if sent.fds:
            self._authorise(connection, request)
            found = desk.lookup_pidfd(sent.fds[0], **how)
            if request.wait_ms or request.settled_wait_ms:
                # The number stays the process's for as long as its slot has this inode, and that is asked for.
                pid, ino = found.key
                return lambda: (self._same(pid, ino, request),), self._mark_of(pid, request)
            return lambda: (found,), lambda: None
        if self.peer(connection).state is State.GONE:
            raise Refused("permission_denied", "the process that connected has ended", "connect anew", id_=request.id)
        return lambda: (self._itself(connection, request),), self._mark_of(peer.pid, request)

    @staticmethod
    def _how(request: Request) -> dict[str, Any]:
        if request.mode is None and request.container_selectors and not request.parity:
            return {}
        return {
            "mode": request.mode,
            "container_selectors": request.container_selectors,
            "parity": request.parity,
        }

    def _mark_of(self, pid: int, request: Request) -> Callable[[], object]:
        if request.mode is not None or not request.container_selectors or pid > _MAX_PID:
            return lambda: None  # hangs on more than a mark says
        return lambda: self._desk.mark(pid)

    def _one(self, pid: int, request: Request) -> Identity:
        if pid > _MAX_PID:
            return gone(pid)
        identity = self._desk.lookup(pid, **self._how(request))
        if request.pidfd_ino is not None and identity.key.ino != request.pidfd_ino:
            return gone(pid)
        if request.start_time is None and request.start_ns is None:
            return identity
        process = identity.process
        if process is None or not process.start:
            return gone(pid)
        if request.start_ns is not None and not _is_start(process.start, request.start_ns):
            return gone(pid)
        # Whatever the wall clock said when the text was made: a process is not gone because the clock was set.
        if request.start_time is not None and not clock.said(request.start_time, process.start):
            return gone(pid)
        return identity

    def _about(self, connection: Connection, pid: int, request: Request) -> Identity:
        """The identity of a process; for who may ask about itself only, never that of another one which has got its
        number since it was let pass."""
        identity = self._one(pid, request)
        if self.trusts(connection) or identity.key == self.peer(connection).key:
            return identity
        return gone(pid)

    def _same(self, pid: int, ino: int, request: Request) -> Identity:
        identity = self._one(pid, request) if pid else gone(pid)
        return identity if identity.key.ino == ino else gone(pid)

    def _itself(self, connection: Connection, request: Request) -> Identity:
        identity = self._one(connection.peer.pid, request)
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

    def _pieces(self, request: Request, identities: Iterable[Identity]) -> Generator[bytes, None, None]:
        """The line of a list, a few identities at a time."""
        yield self._result(request, b"[")[:-2]
        parts: list[bytes] = []
        is_first = True
        now = clock.read()
        for identity in identities:
            parts.append(self._said(identity, request, now))
            if len(parts) == _SLICE:
                yield (b"" if is_first else b",") + b",".join(parts)
                is_first, parts, now = False, [], clock.read()
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
        self._authorise(connection, request)

        def found() -> Iterable[Identity]:
            for pid in self._desk.pids():
                identity = self._desk.lookup(pid, **self._how(request))
                if identity.state is not State.GONE:
                    yield identity

        connection.make(self._pieces(request, found()))

    def _watch(self, connection: Connection, request: Request, _sent: Line) -> None:
        self._authorise(connection, request)
        if request.id in connection.streams:
            raise Refused("bad_request", "a watch has this id already", "count them", id_=request.id)
        if len(connection.streams) >= _MOST_STREAMS:
            raise Refused("too_large", f"more than {_MOST_STREAMS} watches", "connect anew", id_=request.id)
        parity = request.parity or request.mode == "parity"
        connection.streams[request.id] = self._desk.watch(snapshot=request.snapshot, parity=parity, on_event=self._wake)

    def pump(self, connection: Connection, most: int) -> bool:
        """Writes events of the connection's watches, as many as it takes; whether there may be more."""
        more = False
        if not self.trusts(connection):
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
        message, hint = why_not(self.peer(connection))
        for id_, stream in connection.streams.items():
            stream.close()
            connection.out += refusal(Refused("permission_denied", message, hint, id_=id_))
        connection.streams.clear()

    def _explain(self, connection: Connection, request: Request, _sent: Line) -> None:
        assert request.pid is not None
        self._authorise(connection, request, about=request.pid)
        if request.pid > _MAX_PID:
            raise Refused("bad_request", f"{request.pid} is no process ID", id_=request.id)
        said = self._desk.explain_record(request.pid)
        self._authorise(connection, request, about=request.pid)  # and has not ended meanwhile
        connection.say(line({"id": request.id, "ok": True, "result": said}))

    def _status(self, connection: Connection, request: Request, _sent: Line) -> None:
        self._authorise(connection, request)
        connection.say(line({"id": request.id, "ok": True, "result": self._status_of()}))

    @staticmethod
    def _version(connection: Connection, request: Request, _sent: Line) -> None:
        connection.say(line({"id": request.id, "ok": True, "result": {"version": __version__}}))
