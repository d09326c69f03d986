"""The daemon's socket: one thread, one epoll, and nobody who keeps the others waiting.

Each connection has its turn: a piece of what it sent is read, a few of its requests are answered, as much is written as
it takes. Who does not read is not read from either. What takes long (lists, watches) is made piece by piece.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from tracer.errors import MissingError
from tracer.serve import requests
from tracer.serve.access import Access
from tracer.serve.connection import Connection, Line, close_all
from tracer.serve.desk import Desk
from tracer.serve.operations import Operations
from tracer.serve.peers import pin
from tracer.serve.requests import Refused

_BACKLOG = 1024
_ACCEPTED = 32  # connections accepted in one turn
_TURN = 32  # requests of one connection answered in one turn
_EVENTS = 64  # events of one watch written in one turn
_WAITS = 64  # waits looked at in one turn
_MOST = 1024  # connections in all
_RESERVED = 64  # of them for those who may ask about others
_MOST_OF_ONE = 256  # connections of one container, or of one user of the host
_STALLED = 30.0  # seconds after which one that takes nothing is given up
_PULSE = 0.05  # seconds between two looks at what waits: processes end without anyone telling
_IDLE = 1.0
_ALIVE = 30.0

_log = logging.getLogger("podtracer.socket")


class Server:
    """Serves ``desk`` at ``path``, mode 0666: each request is decided for its peer by ``access``.

    ``status`` says how the daemon fares. ``by_number`` pins peers as kernels before 6.5 make necessary. Raises
    :class:`MissingError` where the socket cannot be made. To be started and closed.
    """

    def __init__(
        self,
        desk: Desk,
        path: str,
        access: Access,
        *,
        status: Callable[[], dict[str, Any]],
        by_number: bool = False,
    ) -> None:
        self.path = path
        self.accepted = 0
        self.turned_away = 0
        self._by_number = by_number
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_woken = False
        self._stopping = False
        self._turned = time.monotonic()
        self.operations = Operations(desk, access, status=status, wake=self.wake)
        self._connections: dict[int, Connection] = {}
        self._owners: Counter[object] = Counter()
        # Those to be given a turn, in the order they asked for it.
        self._ready: OrderedDict[Connection, None] = OrderedDict()
        self._news = False
        self._is_paused = False
        self._poll = select.epoll()
        self._thread = threading.Thread(target=self._run, name="podtracer-socket", daemon=True)
        try:
            self._listener = _listen(path)
        except OSError as error:
            self._close_descriptors()
            hint = "make its folder, or name another place with --socket"
            raise MissingError(f"the socket cannot be made: {error.strerror}", path, hint) from error
        self._identity = os.stat(path)

    def start(self) -> None:
        """Begins to answer."""
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(self._wake_fd, select.EPOLLIN)
        self._thread.start()

    def close(self) -> None:
        """Ends all connections, and removes the socket if it is still ours."""
        with contextlib.suppress(OSError):
            now = os.stat(self.path)
            if (now.st_dev, now.st_ino) == (self._identity.st_dev, self._identity.st_ino):
                os.unlink(self.path)
        self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()
        for connection in list(self._connections.values()):
            self._close(connection)
        self._listener.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        os.close(self._wake_fd)
        self._poll.close()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs, and had its turn in the last half minute."""
        return self._thread.is_alive() and time.monotonic() - self._turned < _ALIVE

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    def wake(self) -> None:
        """Has the loop look at everything again. From any thread."""
        if not self._is_woken:
            self._is_woken = True
            os.eventfd_write(self._wake_fd, 1)

    def news(self) -> None:
        """Answers may have changed: those that wait are looked at. From any thread."""
        if len(self.operations.waits):
            self._news = True
            self.wake()

    # ---- the loop ----

    def _run(self) -> None:
        waits = self.operations.waits
        looked = 0.0
        while not self._stopping:
            try:
                for fd, events in self._poll.poll(self._timeout()):
                    self._take(fd, events)
                self._turned = now = time.monotonic()
                if self._news or now - looked >= _PULSE:
                    self._news, looked = False, now
                    waits.news()
                    self._look_after(now)
                waits.end(now)
                waits.look(now, _WAITS)
                for _ in range(len(self._ready)):
                    self._turn(self._ready.popitem(last=False)[0])
            except Exception:
                # The only thread that answers: it outlives what nobody thought of.
                _log.exception("serving the socket failed")

    def _timeout(self) -> float:
        if self._ready or self.operations.waits.is_due:
            return 0.0
        end = self.operations.waits.next_end(time.monotonic())
        return _IDLE if end is None else min(_PULSE, end)

    def _take(self, fd: int, events: int) -> None:
        if fd == self._wake_fd:
            os.eventfd_read(self._wake_fd)
            self._is_woken = False  # only now: whoever wakes us between the two would find nobody woken ever after
            for connection in self._connections.values():
                if connection.streams:
                    self._ready[connection] = None
            return
        if fd == self._listener.fileno():
            self._accept()
            return
        connection = self._connections[fd]
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self._close(connection)  # nobody reads any more
            return
        if events & select.EPOLLIN:
            try:
                connection.receive()
            except BlockingIOError:
                pass
            except OSError:
                self._close(connection)
                return
        self._turn(connection)

    def _turn(self, connection: Connection) -> None:
        """Gives a connection its turn; one whose turn fails is closed: what it is owed is not certain any more."""
        if connection.is_closed:
            return
        try:
            self._serve(connection)
        except Exception:
            _log.exception("serving a connection failed")
            self._close(connection)

    def _serve(self, connection: Connection) -> None:
        """Answers a few requests, makes a piece of what is being made, and writes what the peer takes."""
        for _ in range(_TURN):
            if not connection.lines or connection.is_full or connection.is_last:
                break
            self._answer(connection, connection.lines.popleft())
        connection.work()
        has_more = bool(connection.jobs)
        if connection.streams and not has_more:
            has_more = self.operations.pump(connection, _EVENTS)
        try:
            connection.flush()
        except OSError:
            self._close(connection)
            return
        if connection.is_done:
            self._close(connection)
            return
        self._ready.pop(connection, None)
        if (has_more or connection.lines) and not connection.is_full:
            self._ready[connection] = None
        self._look_for(connection)

    def _look_for(self, connection: Connection) -> None:
        is_read = not (connection.is_over or connection.is_full or connection.lines)
        wanted = (select.EPOLLIN if is_read else 0) | (select.EPOLLOUT if connection.out else 0)
        if wanted != connection.events:
            connection.events = wanted
            self._poll.modify(connection.fd, wanted)

    def _answer(self, connection: Connection, line: Line) -> None:
        try:
            if line.data is None:
                raise requests.too_long()
            request = requests.parse(line.data)
            try:
                self.operations.run(connection, request, line)
            except Refused as refused:
                refused.id = request.id
                raise
            except Exception as error:
                _log.exception("a request failed")
                raise requests.internal(error, request.id, is_trusted=connection.is_trusted) from error
        except Refused as refused:
            connection.say(requests.refusal(refused))
            connection.is_last = connection.is_last or refused.is_last
        finally:
            close_all(line.fds)

    def _look_after(self, now: float) -> None:
        """Gives up who takes nothing; who watches may take its time, since it only loses events of its own."""
        for connection in list(self._connections.values()):
            since = connection.stalled_since
            if since is not None and now - since > _STALLED and not connection.streams:
                self._close(connection)
        if self._is_paused:
            self._is_paused = False
            self._poll.modify(self._listener, select.EPOLLIN)

    # ---- connections ----

    def _accept(self) -> None:
        for _ in range(_ACCEPTED):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors: it would be told again and again.
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._is_paused = True
                    self._poll.modify(self._listener, 0)
                return
            try:
                self._welcome(sock)
            except OSError:
                sock.close()

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        peer = pin(sock, by_number=self._by_number)
        connection = Connection(sock, peer, self._ready)
        try:
            identity = self.operations.trust.peer(connection)
            connection.owner = (peer.uid, identity.workload.container_id)
            is_trusted = self.operations.trust.holds(connection)
            self.accepted += 1
            most = _MOST if is_trusted else _MOST - _RESERVED
            if len(self._connections) >= most or self._owners[connection.owner] >= _MOST_OF_ONE:
                self._turn_away(sock)
                connection.close()
                return
            self._poll.register(connection.fd, select.EPOLLIN)
        except BaseException:
            connection.close()
            raise
        connection.events = select.EPOLLIN
        self._owners[connection.owner] += 1
        self._connections[connection.fd] = connection

    def _turn_away(self, sock: socket.socket) -> None:
        self.turned_away += 1
        refused = Refused("too_large", "too many connections", "close some", is_last=True)
        with contextlib.suppress(OSError):
            sock.send(requests.refusal(refused))

    def _close(self, connection: Connection) -> None:
        if connection.is_closed:
            return
        self._ready.pop(connection, None)
        self._connections.pop(connection.fd, None)
        self._owners[connection.owner] -= 1
        if not self._owners[connection.owner]:
            del self._owners[connection.owner]
        with contextlib.suppress(OSError):
            self._poll.unregister(connection.fd)
        self.operations.waits.drop(connection)
        connection.close()


def _listen(path: str) -> socket.socket:
    """A listening socket at ``path``, put there at once, whatever was there before: a client finds one or the other."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    folder, name = os.path.split(path)
    new = os.path.join(folder, f".{name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        listener.bind(new)
        os.chmod(new, 0o666)  # noqa: S103 - who may ask what is decided for each peer
        listener.listen(_BACKLOG)
        os.rename(new, path)
    except BaseException:
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    return listener
