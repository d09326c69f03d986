"""Asking podtracer's daemon from asyncio: many requests at once over one connection.

async with AsyncClient() as client:
    identity = await client.lookup(4321, wait=5)
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from tracer import clock, protocol
from tracer import pidfd as pidfds
from tracer.client import unreachable
from tracer.errors import DaemonError
from tracer.model import Event, Identity
from tracer.protocol import DEFAULT_SOCKET, Reply

_FIRST_PAUSE, _LAST_PAUSE = 0.01, 0.1  # seconds between two attempts to connect
_QUEUED = 4096  # events of a watch that wait to be taken before the daemon is kept waiting


class _Connection(asyncio.Protocol):
    """One connection: requests out, each reply to the queue of its request. ``maker`` is the process that
    connected, which is the caller to the daemon."""

    def __init__(self, sock: socket.socket) -> None:
        self.maker = pidfds.whereabouts()
        self._socket = sock
        self._writable = asyncio.Event()  # set while nothing is left to write
        self._writable.set()
        self._lines = protocol.Lines()
        self._number = 0
        self._waiting: dict[Any, asyncio.Queue[Reply | OSError]] = {}
        self._transport: asyncio.Transport | None = None
        self.broken: OSError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(0)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            for line in self._lines.feed(data):
                self._take(protocol.reply(line))
        except DaemonError as error:
            self._break(ConnectionResetError(error.what))
            self.close()

    def _take(self, said: Reply) -> None:
        if said.id is None:  # to what could not be read as a request, or to one connection too many
            self._break(ConnectionRefusedError(str(said.error)))
            return
        queue = self._waiting.get(said.id)
        if queue is not None:
            queue.put_nowait(said)
            if queue.qsize() >= _QUEUED and self._transport is not None:
                self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(exc if isinstance(exc, OSError) else ConnectionResetError("the daemon closed the connection"))

    def _break(self, error: OSError) -> None:
        self.broken = self.broken or error
        self._writable.set()
        for queue in self._waiting.values():
            queue.put_nowait(error)

    def ask(self, op: str, fields: Mapping[str, Any]) -> tuple[int, asyncio.Queue[Reply | OSError]]:
        """Sends a request; (its number, where its replies come). To be ended by :meth:`forget`."""
        if self.broken is not None or self._transport is None:
            raise self.broken or ConnectionResetError("not connected")
        self._number += 1
        queue: asyncio.Queue[Reply | OSError] = asyncio.Queue()
        self._waiting[self._number] = queue
        self._transport.write(protocol.request(self._number, op, fields))
        return self._number, queue

    async def ask_with(self, op: str, fields: Mapping[str, Any], fd: int) -> tuple[int, asyncio.Queue[Reply | OSError]]:
        """As :meth:`ask`, with a descriptor sent beside the line."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        while True:
            await self._writable.wait()
            if self.broken is not None or self._transport is None or self._transport.is_closing():
                raise self.broken or ConnectionResetError("not connected")
            line = protocol.request(self._number + 1, op, fields)
            try:
                sent = self._socket.sendmsg([line], rights)
            except BlockingIOError:
                await asyncio.sleep(_FIRST_PAUSE)
                continue
            self._number += 1
            queue: asyncio.Queue[Reply | OSError] = asyncio.Queue()
            self._waiting[self._number] = queue
            if sent < len(line):
                self._transport.write(line[sent:])
            return self._number, queue

    def forget(self, number: int, *, cancel: bool = False) -> None:
        """No more replies of this request are wanted; ``cancel`` ends it in the daemon too."""
        self._waiting.pop(number, None)
        if cancel and self.broken is None and self._transport is not None:
            self._number += 1
            self._transport.write(protocol.request(self._number, "cancel", {"of": number}))

    def resume(self) -> None:
        """Takes more replies in, where they were held back."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Closes it."""
        if self._transport is not None:
            self._transport.close()


class AsyncClient:
    """As :class:`tracer.client.Client`, with the same parameters and errors; any number of tasks may ask at once.

    ``retry`` is how long a connection that broke is tried again, in seconds; ``None`` is as long as an answer may take.
    """

    def __init__(self, path: str = DEFAULT_SOCKET, *, timeout: float = 5.0, retry: float | None = None) -> None:
        self.path = path
        self._timeout = timeout
        self._retry = retry
        self._connection: _Connection | None = None
        self._connecting: asyncio.Lock | None = None
        self._was_there = False
        self._sends_pidfds = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; a later request makes another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- asking ----

    async def lookup(
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
        """Which workload this process is: by its PID here, by a ``pidfd`` of it, or the caller itself with
        neither."""
        fields = protocol.lookup_fields(
            pidfd_ino=pidfd_ino, start_time=start_time, start_ns=start_ns, mode=mode, wait=wait,
            settled_wait=settled_wait, container_selectors=container_selectors, parity=parity,
        )  # fmt: skip
        patience = wait + settled_wait
        if pid is None:
            said = await self.request("lookup", fd=pidfd, patience=patience, **fields)
            return protocol.identity(said, clock.read())
        try:
            said = await self._about(pid, "lookup", patience, fields)
        except ProcessLookupError:
            return protocol.unknown_here(pid)
        return protocol.identity(said, clock.read())._replace(asked=pid)

    async def lookup_many(self, pids: Sequence[int], *, wait: float = 0.0, parity: bool = False) -> list[Identity]:
        """Which workload each of these processes is, in the order asked."""
        found: list[Identity] = []
        end = time.monotonic() + wait
        for at in range(0, len(pids), protocol.MAX_PIDS):
            fields = {"parity": parity or None, "labels": True, "wait_ms": round(wait * 1000) or None}
            some = list(pids[at : at + protocol.MAX_PIDS])
            if not self._sends_pidfds:
                try:
                    said = await self.request("lookup", patience=wait, pids=some, **fields)
                except DaemonError as error:
                    if not error.wants_pidfd:
                        raise
                    self._sends_pidfds = True
                else:
                    now = clock.read()
                    found += [protocol.identity(each, now) for each in said]
                    continue
            found += [await self.lookup(pid, wait=max(0.0, end - time.monotonic()), parity=parity) for pid in some]
        return found

    async def _about(self, pid: int, op: str, patience: float, fields: Mapping[str, Any]) -> Any:
        """See ``tracer.client.Client``."""
        if pid == os.getpid() and self._is_ours():
            return await self._about_itself(op, patience, fields)
        if not self._sends_pidfds:
            try:
                return await self.request(op, patience=patience, **{**fields, "pid": pid})
            except DaemonError as error:
                if not error.wants_pidfd:
                    raise
                self._sends_pidfds = True
        if pidfds.is_own(pid) and self._is_ours():
            return await self._about_itself(op, patience, fields)
        try:
            fd = pidfds.of(pid)
        except ProcessLookupError:
            raise
        except OSError:
            return await self.request(op, patience=patience, **{**fields, "pid": pid})
        try:
            return await self.request(op, fd=fd, patience=patience, **fields)
        finally:
            os.close(fd)

    async def _about_itself(self, op: str, patience: float, fields: Mapping[str, Any]) -> Any:
        itself = {"itself": True} if op == "explain" else {}
        return await self.request(op, patience=patience, **fields, **itself)

    def _is_ours(self) -> bool:
        return self._connection is None or self._connection.maker == pidfds.whereabouts()

    async def lookup_container(
        self,
        container_id: str,
        pod_uid: str | None = None,
        *,
        mode: str | None = None,
        wait: float = 0.0,
        settled_wait: float = 0.0,
        container_selectors: bool = True,
    ) -> Identity:
        """Which workload a container is; the identity is that of no process."""
        fields = protocol.lookup_fields(
            pidfd_ino=None, start_time=None, mode=mode, wait=wait, settled_wait=settled_wait,
            container_selectors=container_selectors, parity=False,
        )  # fmt: skip
        fields |= {"container_id": container_id, "pod_uid": pod_uid}
        return protocol.identity(await self.request("lookup", patience=wait + settled_wait, **fields), clock.read())

    async def ps(self, *, parity: bool = False) -> list[Identity]:
        """The identities of all processes."""
        said = await self.request("ps", parity=parity or None, labels=True)
        now = clock.read()
        return [protocol.identity(each, now) for each in said]

    async def explain(self, pid: int) -> dict[str, Any]:
        """How the answer for a process came to be, as ``podtracer explain -o json`` prints it."""
        try:
            answer: dict[str, Any] = await self._about(pid, "explain", 0.0, {})
        except ProcessLookupError:
            raise DaemonError(
                "bad_request", "no process has this PID", str(pid), "give the PID of a running process"
            ) from None
        return {**answer, "asked": pid} if "asked" in answer else answer

    async def status(self) -> dict[str, Any]:
        """How the daemon fares: its sources, counters and settings."""
        answer: dict[str, Any] = await self.request("status")
        return answer

    async def version(self) -> str:
        """The daemon's version."""
        return str((await self.request("version"))["version"])

    async def watch(self, *, snapshot: bool = True, parity: bool = False) -> AsyncIterator[Event]:
        """A stream of events: first what runs already, then live. Ends with :class:`DaemonUnreachable`."""
        fields = {"snapshot": None if snapshot else False, "parity": parity or None, "labels": True}
        try:
            connection = await self._connect()  # one of its own: a slow reader keeps nobody else waiting
        except OSError as error:
            raise unreachable(self.path, error) from error
        try:
            _, queue = connection.ask("watch", fields)
            while True:
                said = await queue.get()
                if isinstance(said, OSError):
                    raise unreachable(self.path, said)
                if said.nonce is not None:
                    _, queue = connection.ask("watch", {**fields, "nonce": said.nonce})
                elif said.error is not None:
                    raise said.error
                elif said.event is not None:
                    yield protocol.event(said.event, clock.read())
                if queue.empty():
                    connection.resume()
        except OSError as error:
            raise unreachable(self.path, error) from error
        finally:
            connection.close()

    async def request(self, op: str, *, fd: int | None = None, patience: float = 0.0, **fields: Any) -> Any:
        """The result of one request, as the daemon says it; ``patience`` is how long it may wait beside ``timeout``.
        ``fd`` is sent along; one that is not open raises ``OSError``. When the task is cancelled, the daemon is told.
        """
        if fd is not None:
            os.fstat(fd)
        end = time.monotonic() + self._timeout + patience
        while True:
            try:
                async with asyncio.timeout(max(0.001, end - time.monotonic())):
                    connection = await self._connected(end)
                    try:
                        return await self._ask(connection, op, fields, fd)
                    except TimeoutError:
                        raise
                    except OSError:
                        await asyncio.sleep(_FIRST_PAUSE)  # it broke: asked again over the next one
            except OSError as error:
                raise unreachable(self.path, error) from error

    async def _ask(self, connection: _Connection, op: str, fields: Mapping[str, Any], fd: int | None) -> Any:
        nonce: str | None = None
        sends_again = fd is not None
        while True:
            if fd is None:
                number, queue = connection.ask(op, {**fields, "nonce": nonce})
            else:
                number, queue = await connection.ask_with(op, {**fields, "nonce": nonce}, fd)
            try:
                said = await queue.get()
            except asyncio.CancelledError:
                connection.forget(number, cancel=True)
                raise
            connection.forget(number)
            if isinstance(said, OSError):
                raise said
            if said.error is None:
                return said.result
            if sends_again and said.error.code == "not_ready":
                sends_again = False  # the daemon takes a descriptor once it knows the caller
                continue
            if said.nonce is None or nonce is not None:
                raise said.error
            nonce = said.nonce

    # ---- connecting ----

    async def _connected(self, end: float) -> _Connection:
        """The connection. One that was there before is waited for: its daemon may be starting again."""
        self._connecting = self._connecting or asyncio.Lock()
        async with self._connecting:
            pause = _FIRST_PAUSE
            if self._retry is not None:
                end = min(end, time.monotonic() + self._retry)
            while self._connection is None or self._connection.broken is not None:
                try:
                    self._connection = await self._connect()
                    self._was_there = True
                except OSError:
                    self._connection = None
                    if not self._was_there or time.monotonic() + pause >= end:
                        raise
                    await asyncio.sleep(pause)
                    pause = min(_LAST_PAUSE, pause * 2)
            return self._connection

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, self.path)
            _, made = await loop.create_unix_connection(lambda: _Connection(sock), sock=sock)
        except BaseException:
            sock.close()
            raise
        self._sends_pidfds = False
        return made
