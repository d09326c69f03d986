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
from tracer.serve.access import Access, why_not
from tracer.serve.answers import Answers, encode, line
from tracer.serve.connection import Connection, Line
from tracer.serve.desk import Desk
from tracer.serve.requests import Refused, Request, internal, refusal
from tracer.serve.standing import is_of_host, is_of_own_container
from tracer.serve.waits import Wait, Waits
from tracer.version import __version__

_MOST_WAITS = 1024  # of one connection
_MOST_OWN_WAITS = 16  # of one that may ask about itself only
_MOST_STREAMS = 8  # of one connection
_SLICE = 32  # identities made before others have their turn
_MAX_PID = 2**31 - 1
_log = logging.getLogger("podtracer.socket")
_TOOK = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 1e-1)  # seconds


class _Question(NamedTuple):
    """What answers a request, what its answer hangs on, and what is to be done once it is answered or given up."""

    ask: Callable[[], Sequence[Identity]]
    mark: Callable[[], object]
    end: Callable[[], None] | None = None


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
        place = self._desk.mark(peer.pid) if peer.nonce is None else None
        mark = (self.access, place) if self._desk.pidfs else None
        if mark is not None and place is not None and mark == connection.trusted_by:
            return connection.is_trusted
        trusted = self._may_ask_about_others(connection, self.peer(connection), place)
        connection.is_trusted, connection.trusted_by = trusted, mark
        return trusted

    def _may_ask_about_others(self, connection: Connection, identity: Identity, place: object) -> bool:
        peer = connection.peer
        may = self.access.may_ask_about_others(identity, peer.uid, peer.gids)
        if may and identity.state is State.RESOLVED:
            return True  # a pod that was named, in whichever namespaces
        if not peer.counts_alike or identity.state is State.GONE:
            return False
        if not may and (peer.uid != os.geteuid() or identity.workload.container_id is None):
            return False
        # The peer's files are read once for each place where it is: for most peers, once.
        if connection.stands is None or place is None or connection.stands[0] != (may, place):
            if may:
                agrees = is_of_host(peer)
            else:
                own = self._desk.lookup(os.getpid(), mode="strict")
                agrees = is_of_own_container(peer, identity, own)
            connection.stands = (may, place), agrees
        return connection.stands[1]

    def _why_not(self, connection: Connection, identity: Identity) -> tuple[str, str]:
        peer = connection.peer
        return why_not(identity, would_be=self.access.may_ask_about_others(identity, peer.uid, peer.gids))

    def _authorise(self, connection: Connection, request: Request, *, about: int | None = None) -> None:
        """Lets pass who may ask about others, and who asks about itself, by the number of a thread perhaps."""
        if self.trusts(connection):
            return
        peer = self.peer(connection)
        asks = about is not None and about <= _MAX_PID and peer.state is not State.GONE
        if asks and (about == peer.key.pid or self._desk.lookup(about or 0, mode="strict").key == peer.key):
            return
        self.refused += 1
        message, hint = self._why_not(connection, peer)
        raise Refused("permission_denied", message, hint, id_=request.id)

    def _check_numbers(self, connection: Connection, request: Request) -> None:
        """A number of another PID namespace than ours is another process's here, a stranger's perhaps."""
        if connection.peer.counts_alike:
            return
        pid = request.pid if request.pid is not None else next(iter(request.pids or ()), None)
        if pid is None or self.peer(connection).state is State.GONE:
            return
        message = f"PID {pid} is a number of another PID namespace: send a pidfd"
        hint = "send a pidfd of each process beside its request, or ask about yourself without a number"
        raise Refused("bad_request", message, hint, id_=request.id, wants_pidfd=True)

    def _check_descriptors(self, request: Request, sent: Line) -> None:
        """One descriptor stands for a PID, and for one only; raises where the request names another one, or several
        came."""
        if not sent.fds and not sent.is_stripped:
            return
        named = [key for key in ("pid", "pids", "container_id") if getattr(request, key) is not None]
        if request.itself:
            named.append("itself")
        if named:
            raise Refused("bad_request", f"{named[0]} and a descriptor are both given", id_=request.id)
        if len(sent.fds) > 1:
            raise Refused("bad_request", f"{len(sent.fds)} descriptors came", "send one a request", id_=request.id)

    def _number_of(self, connection: Connection, request: Request, sent: Line) -> int:
        """Our number for the process behind the pidfd that came, 0 where it has none; of a peer that may ask about
        others."""
        self._authorise(connection, request)
        if sent.is_stripped:
            # Never to be taken for a question about the peer itself.
            what = "the descriptor was not taken: who sent it was not known to be allowed to"
            raise Refused("not_ready", what, "send it again", id_=request.id)
        try:
            found = pidfd.numbers(sent.fds[0])
        except OSError as error:
            what = f"the descriptor cannot be looked at: {error.strerror}"
            raise Refused("not_ready", what, "send it again", id_=request.id) from error
        if found is None:
            raise Refused("bad_request", "the descriptor is no pidfd", "send what pidfd_open gives", id_=request.id)
        return max(0, found[0])

    # ---- lookup ----

    def _lookup(self, connection: Connection, request: Request, sent: Line) -> None:
        if request.pid is not None and not (request.wait_ms or request.settled_wait_ms):
            self._lookup_now(connection, request, sent)
            return
        self._check_inode(request)
        self._check_descriptors(request, sent)
        self._check_numbers(connection, request)
        question = self._question(connection, request, sent)
        try:
            if self._is_waiting(connection, request, question):
                question = question._replace(end=None)  # by the wait, when it ends
        finally:
            if question.end is not None:
                question.end()

    def _is_waiting(self, connection: Connection, request: Request, question: _Question) -> bool:
        """Answers now, or has the answer wait; whether it waits, or did and is answered already."""
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
            if isinstance(error, Refused):  # who asked may not any more
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
        self._check_descriptors(request, sent)
        self._check_numbers(connection, request)
        self._authorise(connection, request, about=request.pid)
        said = self._said(self._about(connection, request.pid, request), request, clock.read())
        connection.say(self._result(request, said))
        self.took.observe(time.perf_counter() - began)

    def _check_inode(self, request: Request) -> None:
        if request.pidfd_ino is not None and not self._desk.pidfs:
            hint = "send start_time"
            raise Refused("bad_request", "this kernel has no inodes of pidfds", hint, id_=request.id)

    def _question(self, connection: Connection, request: Request, sent: Line) -> _Question:
        """What answers the request; authorised. What is about others is authorised again whenever it is answered, since
        who asks may have become a pod while it waited."""
        desk = self._desk
        if request.pid is not None:
            pid = request.pid
            self._authorise(connection, request, about=pid)
            return _Question(lambda: (self._about(connection, pid, request),), self._mark_of(pid, request))
        if request.pids is not None:
            pids = request.pids

            def of_many() -> Sequence[Identity]:
                self._authorise(connection, request)
                return [self._one(connection, pid, request) for pid in pids]

            self._authorise(connection, request)
            return _Question(of_many, lambda: [desk.mark(pid) for pid in pids if pid <= _MAX_PID])
        if request.container_id is not None:
            container, uid = request.container_id, request.pod_uid
            selectors = request.container_selectors

            def of_container() -> Sequence[Identity]:
                self._authorise(connection, request)
                return (desk.lookup_container(container, uid, mode=request.mode, container_selectors=selectors),)

            self._authorise(connection, request)
            return _Question(of_container, lambda: None)
        if sent.fds or sent.is_stripped:
            return self._question_of_pidfd(connection, request, self._number_of(connection, request, sent), sent)
        self._peer_or_refuse(connection, request)
        return _Question(lambda: (self._itself(connection, request),), self._mark_of(connection.peer.pid, request))

    def _question_of_pidfd(self, connection: Connection, request: Request, pid: int, sent: Line) -> _Question:
        # A copy, for as long as it waits: before pidfs nothing else tells a process from the next one of its number.
        waits = request.wait_ms or request.settled_wait_ms
        fd = os.dup(sent.fds[0]) if waits else sent.fds[0]

        def of_pidfd() -> Sequence[Identity]:
            self._authorise(connection, request)
            return (self._desk.lookup_pidfd(fd, **self._how(connection, request)),)

        return _Question(of_pidfd, self._mark_of(pid, request), (lambda: os.close(fd)) if waits else None)

    def _peer_or_refuse(self, connection: Connection, request: Request) -> Identity:
        peer = self.peer(connection)
        if peer.state is State.GONE:
            raise Refused("permission_denied", "the process that connected has ended", "connect anew", id_=request.id)
        return peer

    def _how(self, connection: Connection, request: Request) -> dict[str, Any]:
        """How the answer is to come about. By the daemon's own rules for who may ask about itself only: in parity mode
        a process chooses by its files whom it is taken for, and without container selectors it needs to be in none."""
        if request.mode is None and request.container_selectors and not request.parity:
            return {}
        if not self.trusts(connection):
            return {"parity": True} if request.parity else {}
        return {
            "mode": request.mode,
            "container_selectors": request.container_selectors,
            "parity": request.parity,
        }

    def _mark_of(self, pid: int, request: Request) -> Callable[[], object]:
        if request.mode is not None or not request.container_selectors or pid > _MAX_PID:
            return lambda: None  # hangs on more than a mark says
        return lambda: self._desk.mark(pid)

    def _one(self, connection: Connection, pid: int, request: Request) -> Identity:
        if pid > _MAX_PID:
            return gone(pid)
        how = self._how(connection, request)
        identity = self._desk.lookup(pid, **how)
        if not request.container_selectors and "mode" not in how and identity.state is State.RESOLVED:
            # By the daemon's rules it is who it is: now it may have some of its selectors left out.
            identity = self._desk.lookup(pid, **how, container_selectors=False)
        if request.pidfd_ino is not None and identity.key.ino != request.pidfd_ino:
            return gone(pid)
        if request.start_time is not None:
            process, now = identity.process, clock.read()
            if process is None or not process.start or now.rfc3339(process.start) != request.start_time:
                return gone(pid)
        return identity

    def _about(self, connection: Connection, pid: int, request: Request) -> Identity:
        """The identity of a process; for who may ask about itself only, never that of another one which has got its
        number since it was let pass."""
        identity = self._one(connection, pid, request)
        if self.trusts(connection) or identity.key == self.peer(connection).key:
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
        """The line of a list, a few identities at a time. It breaks off, with the connection, when the peer, which may
        be slow, may not ask about others any more."""
        yield self._result(request, b"[")[:-2]
        parts: list[bytes] = []
        is_first = True
        now = clock.read()
        for identity in identities:
            parts.append(self._said(identity, request, now))
            if len(parts) == _SLICE:
                yield (b"" if is_first else b",") + b",".join(parts)
                is_first, parts, now = False, [], clock.read()
                if not self.trusts(connection):
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
        self._authorise(connection, request)

        def found() -> Iterable[Identity]:
            for pid in self._desk.pids():
                identity = self._desk.lookup(pid, **self._how(connection, request))
                if identity.state is not State.GONE:
                    yield identity

        connection.make(self._pieces(connection, request, found()))

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
        message, hint = self._why_not(connection, self.peer(connection))
        for id_, stream in connection.streams.items():
            stream.close()
            connection.out += refusal(Refused("permission_denied", message, hint, id_=id_))
        connection.streams.clear()

    def _explain(self, connection: Connection, request: Request, sent: Line) -> None:
        self._check_descriptors(request, sent)
        self._check_numbers(connection, request)
        if request.itself:
            pid = self._peer_or_refuse(connection, request).key.pid
        elif sent.fds or sent.is_stripped:
            pid = self._number_of(connection, request, sent)
        elif request.pid is not None:
            pid = request.pid
        else:
            raise Refused("bad_request", "explain wants a pid, a pidfd or itself", id_=request.id)
        self._authorise(connection, request, about=pid)
        if pid > _MAX_PID:
            raise Refused("bad_request", f"{pid} is no process ID", id_=request.id)
        if self.trusts(connection):
            said = self._desk.explain_record(pid)
        else:
            said = self._desk.explain_record(pid, of_itself=True)
        self._authorise(connection, request, about=pid)  # and has not ended meanwhile
        if sent.fds and not pidfd.alive(sent.fds[0]):
            said = self._desk.explain_record(0)  # its number may have been another's by then
        connection.say(line({"id": request.id, "ok": True, "result": said}))

    def _status(self, connection: Connection, request: Request, _sent: Line) -> None:
        self._authorise(connection, request)
        connection.say(line({"id": request.id, "ok": True, "result": self._status_of()}))

    @staticmethod
    def _version(connection: Connection, request: Request, _sent: Line) -> None:
        result = {"version": __version__, "same_pid_namespace": connection.peer.counts_alike}
        connection.say(line({"id": request.id, "ok": True, "result": result}))
