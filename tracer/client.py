"""Asking podtracer's daemon over its socket: which workload is this process?

with Client() as client:
    print(client.lookup(4321).workload.pod)

Imports little, so that it costs a program little. A connection that breaks is made again, as when the daemon is started
anew: requests only read, so that they can be sent twice.
"""

from __future__ import annotations

import array
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from tracer import clock, protocol
from tracer import pidfd as pidfds
from tracer.errors import DaemonError, DaemonUnreachable
from tracer.model import Event, Identity
from tracer.protocol import DEFAULT_SOCKET, Reply

_CHUNK = 1 << 18
_FIRST_PAUSE, _LAST_PAUSE = 0.01, 0.1  # seconds between two attempts to connect
_ABSENT = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)


class Connection:
    """One connection to the daemon: lines out, replies in. Raises ``OSError`` when it breaks. ``maker`` is the process
    that connected, which is the caller to the daemon, also if a forked child sends the request."""

    def __init__(self, path: str, timeout: float | None) -> None:
        self.maker = pidfds.whereabouts()
        self._replies: deque[Reply] = deque()
        self._lines = protocol.Lines()
        self._number = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.settimeout(timeout)
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise

    def ask(self, op: str, fields: Mapping[str, Any], end: float, fd: int | None = None) -> Reply:
        """The first reply to a request, a descriptor sent beside it, until ``end`` (of the monotonic clock). Raises
        what the daemon answers as an error."""
        nonce: str | None = None
        sends_again = fd is not None
        while True:
            self._number += 1
            self._send(protocol.request(self._number, op, {**fields, "nonce": nonce}), fd)
            said = self._answer(self._number, end)
            if said.error is None:
                return said
            if sends_again and said.error.code == "not_ready":
                sends_again = False  # a descriptor is taken once it is known who sends it
                continue
            if said.nonce is None or nonce is not None:
                raise said.error
            nonce = said.nonce  # this kernel cannot tell who asks: it is shown by sending this back

    def _answer(self, number: int, end: float) -> Reply:
        while True:
            said = self.receive(max(0.001, end - time.monotonic()))
            if said is None:
                raise TimeoutError("no answer came in time")
            if said.id == number or (said.id is None and said.error is not None):
                return said

    def _send(self, line: bytes, fd: int | None) -> None:
        if fd is None:
            self.socket.sendall(line)
        else:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            sent = self.socket.sendmsg([line], rights)
            self.socket.sendall(line[sent:])

    def receive(self, timeout: float | None) -> Reply | None:
        """The next reply; ``None`` when none came within ``timeout`` seconds."""
        if not self._replies:
            self.socket.settimeout(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        while not self._replies:
            try:
                data = self.socket.recv(_CHUNK)
            except (TimeoutError, BlockingIOError):
                return None
            if not data:
                raise ConnectionResetError("the daemon closed the connection")
            self._replies.extend(map(protocol.reply, self._lines.feed(data)))
            if not self._replies and end is not None:
                self.socket.settimeout(max(0.0, end - time.monotonic()))
        return self._replies.popleft()

    def close(self) -> None:
        """Closes it."""
        self.socket.close()


class Client:
    """A connection to the daemon at ``path``, made when it is first needed, for any number of threads in turn.

    ``timeout`` is how long an answer may take in seconds, beside the time that the request itself waits, and how long a
    connection that broke is tried again. Every method raises :class:`DaemonUnreachable` where no daemon is there, and
    :class:`DaemonError` for what it refuses.
    """

    def __init__(self, path: str = DEFAULT_SOCKET, *, timeout: float = 5.0) -> None:
        self.path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._was_there = False
        self._sends_pidfds = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; a later request makes another one."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._sends_pidfds = False

    # ---- asking ----

    def lookup(
        self,
        pid: int | None = None,
        *,
        pidfd: int | None = None,
        pidfd_ino: int | None = None,
        start_time: str | None = None,
        start_ns: int | None = None,
        mode: str | None = None,
        wait: float = 0.0,
        settled_wait: float = 0.0,
        container_selectors: bool = True,
        parity: bool = False,
    ) -> Identity:
        """Which workload this process is: by its number, by a ``pidfd`` of it, or with neither, the caller itself.

        ``pid`` is one of the caller's own PID namespace, as is ``asked`` in the answer; ``key`` has the daemon's PID.
        If the two namespaces differ, the client sends a pidfd of the process, except for the caller itself.

        ``pidfd_ino`` (the inode of the pidfd), ``start_ns`` or ``start_time`` (as in an identity's JSON) say which
        process of this number is meant: another one is ``gone``. ``wait`` is how long the answer may take in seconds
        while it is ``pending``, ``settled_wait`` while it is not ``settled``. ``mode`` is ``strict`` or ``parity``,
        ``None`` the daemon's; ``parity`` also has the process's files read, for whether SPIRE's rules give the same
        container.
        """
        fields = protocol.lookup_fields(
            pidfd_ino=pidfd_ino, start_time=start_time, start_ns=start_ns, mode=mode, wait=wait,
            settled_wait=settled_wait, container_selectors=container_selectors, parity=parity,
        )  # fmt: skip
        patience = wait + settled_wait
        if pid is None:
            return protocol.identity(self.request("lookup", fd=pidfd, patience=patience, **fields), clock.read())
        try:
            said = self._about(pid, "lookup", patience, fields)
        except ProcessLookupError:
            return protocol.unknown_here(pid)
        return protocol.identity(said, clock.read())._replace(asked=pid)

    def lookup_many(self, pids: Sequence[int], *, wait: float = 0.0, parity: bool = False) -> list[Identity]:
        """Which workload each of these processes is, in the order asked; a thousand in a request, or one
        in each if the daemon's PID namespace is another one."""
        found: list[Identity] = []
        end = time.monotonic() + wait
        for at in range(0, len(pids), protocol.MAX_PIDS):
            fields = {"parity": parity or None, "labels": True, "wait_ms": round(wait * 1000) or None}
            some = list(pids[at : at + protocol.MAX_PIDS])
            if not self._sends_pidfds:
                try:
                    found += self.identities(self.request("lookup", patience=wait, pids=some, **fields))
                    continue
                except DaemonError as error:
                    if not error.wants_pidfd:
                        raise
                    self._sends_pidfds = True
            found += [self.lookup(pid, wait=max(0.0, end - time.monotonic()), parity=parity) for pid in some]
        return found

    def _about(self, pid: int, op: str, patience: float, fields: Mapping[str, Any]) -> Any:
        """The daemon's answer about the process with this PID here. If the daemon's PID namespace is another one and no
        process has it, raises ``ProcessLookupError``."""
        if pid == os.getpid() and self._is_ours():
            return self._about_itself(op, patience, fields)
        if not self._sends_pidfds:
            try:
                return self.request(op, patience=patience, **{**fields, "pid": pid})
            except DaemonError as error:
                if not error.wants_pidfd:
                    raise
                self._sends_pidfds = True
        if pidfds.is_own(pid) and self._is_ours():
            return self._about_itself(op, patience, fields)
        try:
            fd = pidfds.of(pid)
        except ProcessLookupError:
            raise
        except OSError:  # not allowed, or not in this kernel: the daemon refuses the number then
            return self.request(op, patience=patience, **{**fields, "pid": pid})
        try:
            return self.request(op, fd=fd, patience=patience, **fields)
        finally:
            os.close(fd)

    def _about_itself(self, op: str, patience: float, fields: Mapping[str, Any]) -> Any:
        itself = {"itself": True} if op == "explain" else {}
        return self.request(op, patience=patience, **fields, **itself)

    def _is_ours(self) -> bool:
        """Whether this process is the caller to the daemon, so that it may ask about itself without a number."""
        with self._lock:
            return self._connection is None or self._connection.maker == pidfds.whereabouts()

    def lookup_container(
        self,
        container_id: str,
        pod_uid: str | None = None,
        *,
        mode: str | None = None,
        wait: float = 0.0,
        settled_wait: float = 0.0,
        container_selectors: bool = True,
    ) -> Identity:
        """Which workload a container is; the identity is that of no process. Parameters as of :meth:`lookup`."""
        fields = protocol.lookup_fields(
            pidfd_ino=None, start_time=None, mode=mode, wait=wait, settled_wait=settled_wait,
            container_selectors=container_selectors, parity=False,
        )  # fmt: skip
        fields |= {"container_id": container_id, "pod_uid": pod_uid}
        return protocol.identity(self.request("lookup", patience=wait + settled_wait, **fields), clock.read())

    def ps(self, *, parity: bool = False) -> list[Identity]:
        """The identities of all processes."""
        return self.identities(self.request("ps", parity=parity or None, labels=True))

    @staticmethod
    def identities(said: Sequence[Mapping[str, Any]]) -> list[Identity]:
        """The identities that a result lists."""
        now = clock.read()
        return [protocol.identity(each, now) for each in said]

    def explain(self, pid: int) -> dict[str, Any]:
        """How the answer for a process came to be, as ``podtracer explain -o json`` prints it. ``pid`` is one of the
        caller's own PID namespace, as for :meth:`lookup`."""
        try:
            answer: dict[str, Any] = self._about(pid, "explain", 0.0, {})
        except ProcessLookupError:
            raise DaemonError(
                "bad_request", "no process has this PID", str(pid), "give the PID of a running process"
            ) from None
        return {**answer, "asked": pid} if "asked" in answer else answer

    def status(self) -> dict[str, Any]:
        """How the daemon fares: its sources, counters and settings."""
        answer: dict[str, Any] = self.request("status")
        return answer

    def version(self) -> str:
        """The daemon's version."""
        return str(self.request("version")["version"])

    def counts_alike(self) -> bool:
        """Whether the daemon is in the caller's PID namespace, so that a PID means the same process to both."""
        return self.request("version").get("same_pid_namespace") is True

    def watch(self, *, snapshot: bool = True, parity: bool = False) -> ClientWatch:
        """A stream of events on a connection of its own: first what runs already, then live."""
        fields = {"snapshot": None if snapshot else False, "parity": parity or None, "labels": True}
        return ClientWatch(self._connected(), fields, self.path, self._timeout)

    def request(self, op: str, *, fd: int | None = None, patience: float = 0.0, **fields: Any) -> Any:
        """The result of one request, as the daemon says it; ``patience`` is how long it may wait beside ``timeout``.
        ``fd`` is sent along; one that is not open raises ``OSError``."""
        if fd is not None:
            os.fstat(fd)
        with self._lock:
            end = time.monotonic() + self._timeout + patience
            while True:
                connection = self._connection or self._connected()
                try:
                    self._connection = connection
                    return connection.ask(op, fields, end, fd).result
                except OSError as error:
                    self._drop()
                    if time.monotonic() >= end:
                        raise unreachable(self.path, error) from error
                    time.sleep(_FIRST_PAUSE)  # one that accepts and hangs up is not asked without a pause
                except BaseException:
                    self._drop()  # an answer may be under way that nobody waits for
                    raise

    # ---- connecting ----

    def _connected(self) -> Connection:
        """A new connection. One that was there before is waited for: its daemon may be starting again."""
        end = time.monotonic() + (self._timeout if self._was_there else 0.0)
        pause = _FIRST_PAUSE
        while True:
            try:
                connection = Connection(self.path, max(0.001, self._timeout))
            except (*_ABSENT, ConnectionResetError, BlockingIOError, TimeoutError) as error:
                if time.monotonic() >= end:
                    raise unreachable(self.path, error) from error
            except OSError as error:
                raise unreachable(self.path, error) from error
            else:
                self._was_there = True
                return connection
            time.sleep(pause)
            pause = min(_LAST_PAUSE, pause * 2)


def unreachable(path: str, error: OSError) -> DaemonUnreachable:
    """The error that says why the daemon at ``path`` cannot be asked."""
    if isinstance(error, _ABSENT):
        return DaemonUnreachable(protocol.NOBODY, path, "start podtracer daemon, or name its socket")
    what = error.strerror or str(error) or type(error).__name__
    return DaemonUnreachable(f"the daemon cannot be asked: {what}", path, "see whether podtracer daemon runs there")


class ClientWatch:
    """A stream of events from the daemon, as a context manager and an iterator. It ends when the daemon does, with
    :class:`DaemonUnreachable`."""

    def __init__(self, connection: Connection, fields: Mapping[str, Any], path: str, timeout: float) -> None:
        self._connection = connection
        self._path = path
        try:
            self._first: Reply | None = connection.ask("watch", fields, time.monotonic() + timeout)
        except OSError as error:
            connection.close()
            raise unreachable(path, error) from error
        except BaseException:
            connection.close()
            raise

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; ``None`` when none came within ``timeout`` seconds."""
        said, self._first = self._first, None
        try:
            said = said or self._connection.receive(timeout)
        except OSError as error:
            raise unreachable(self._path, error) from error
        if said is None:
            return None
        if said.error is not None:
            raise said.error
        return protocol.event(said.event, clock.read()) if said.event is not None else None

    def __iter__(self) -> Iterator[Event]:
        while True:
            if (event := self.next()) is not None:
                yield event

    def close(self) -> None:
        """Ends the stream."""
        self._connection.close()

    def __enter__(self) -> ClientWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


__all__ = ["Client", "ClientWatch", "DaemonError", "DaemonUnreachable"]
