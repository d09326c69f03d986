"""Whether the daemon can be asked, and asking it without ever hanging on it.

    unknown ──an answer──▶ up ──the connection breaks, or is silent──▶ down
                           ▲──────────── a probe is answered ───────────┘

While it is up, requests go over one connection that is kept; while it is down nobody waits for it, and probes find out
when it is back. A daemon that is stopped takes connections and requests like one that is alive, and a wait may be long,
so that a request that takes long is no sign: then the daemon is asked for its version, and when that gets no answer
either, all who wait are told.

Why not ``tracer.aioclient``: one attestation is one request, and what that costs beside the daemon's own time has to be
small. Here it is a line, a future, and the few fields of the answer that matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from tracer.errors import DaemonError, DaemonUnreachable, TracerError

REACHED_WITHIN = 0.1
"""Seconds within which a daemon that is there is connected to, and answers."""

_PROBES = (0.1, 0.5)  # seconds between two probes of a daemon that is down: at first, and at last
_SILENT = 1.0  # seconds without an answer to the simplest question: a machine may be busy
_LATE = 0.1  # seconds after which a request is looked after …
_LATER = 0.5  # … and again
_LONGEST_LINE = 16 << 20

# What the daemon says when it would not answer anybody's request, or none of ours.
_UNUSABLE = ("permission_denied", "not_ready")


class Result(msgspec.Struct, frozen=True):
    """What matters of the daemon's answers: of a look-up the first six, of ``status`` the others."""

    state: str = ""
    reason: str | None = None
    reason_text: str | None = None
    settled: bool | None = None
    selectors: tuple[str, ...] = ()
    kind: str | None = None
    namespace_labels: bool = False
    disable_container_selectors: bool = False


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str
    hint: str | None = None
    nonce: str | None = None
    wants_pidfd: bool = False


class _Reply(msgspec.Struct, frozen=True):
    id: int | None = None
    ok: bool = False
    result: Result | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Reply).decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True, eq=False)
class _Asked:
    """A request in flight: ``answer`` is ``None`` once its ``deadline`` has passed; times are of the loop's clock."""

    answer: asyncio.Future[_Reply | None]
    since: float
    deadline: float


class _Connection(asyncio.Protocol):
    """Requests out, each reply to who asked. ``on_lost`` is called when it breaks."""

    def __init__(self, path: str, on_lost: Callable[[_Connection, TracerError], None]) -> None:
        self.asked: dict[int, _Asked] = {}
        self._path = path
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data if self._rest else data).split(b"\n")
        for line in lines:
            try:
                reply = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.end(DaemonUnreachable("the daemon sent what is no answer", self._path))
                return
            asked = self.asked.get(reply.id) if reply.id is not None else None
            if asked is not None and not asked.answer.done():
                asked.answer.set_result(reply)
        if len(self._rest) > _LONGEST_LINE:
            self.end(DaemonUnreachable("the daemon sent what has no end", self._path))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.end(DaemonUnreachable("the daemon closed the connection", self._path))

    @property
    def has_ended(self) -> bool:
        """Whether it was closed, by either side."""
        return self._transport is None

    def end(self, error: TracerError) -> None:
        """Closes it; who waits gets the error."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.abort()
        for asked in self.asked.values():
            if not asked.answer.done():
                asked.answer.set_exception(error)
        self._on_lost(self, error)

    async def ask(self, request: dict[str, Any], deadline: float) -> Result | None:
        """The result; ``None`` when none came by the deadline. Raises DaemonUnreachable and DaemonError."""
        reply = await self._ask(request, deadline)
        if reply is not None and reply.error is not None and reply.error.nonce is not None:
            # Before Linux 6.5 that shows the daemon who asks.
            reply = await self._ask({**request, "nonce": reply.error.nonce}, deadline)
        if reply is None:
            return None
        if reply.error is not None:
            error = DaemonError(reply.error.code, reply.error.message, None, reply.error.hint)
            error.wants_pidfd = reply.error.wants_pidfd
            raise error
        return reply.result or Result()

    async def _ask(self, request: dict[str, Any], deadline: float) -> _Reply | None:
        if self._transport is None:
            raise DaemonUnreachable("the daemon closed the connection", self._path)
        self._number = number = self._number + 1
        asked = self.asked[number] = _Asked(self._loop.create_future(), self._loop.time(), deadline)
        self._transport.write(_encode({"id": number, **request}) + b"\n")
        try:
            return await asked.answer
        except asyncio.CancelledError:
            if self._transport is not None:
                self._number += 1
                self._transport.write(_encode({"id": self._number, "op": "cancel", "of": number}) + b"\n")
            raise
        finally:
            del self.asked[number]


def _is_unusable(error: DaemonError) -> bool:
    """Whether we cannot use this daemon. In another PID namespace the agent's PIDs mean other processes."""
    return error.code in _UNUSABLE or error.wants_pidfd


def _unusable(error: DaemonError, path: str) -> DaemonUnreachable:
    return DaemonUnreachable(f"the daemon refuses: {error.what}", path)


class Daemon:
    """The daemon at one socket. ``probe_pid`` is a process that it is asked about to see whether it answers us;
    ``on_change`` is called with ``None`` when it can be asked, with what went wrong when it cannot any more.

    Used in one event loop.
    """

    def __init__(self, path: str, probe_pid: int, on_change: Callable[[TracerError | None], None]) -> None:
        self.path = path
        self._probe_pid = probe_pid
        self._on_change = on_change
        self._connection: _Connection | None = None
        self._is_down = False
        self._is_closed = False
        self._back = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_down(self) -> bool:
        """Whether it is known that it cannot be asked now."""
        return self._is_down

    async def wait_back(self, timeout: float) -> bool:
        """Whether it can be asked, waited for ``timeout`` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._back.wait()
        return not self._is_down

    async def request(self, op: str, fields: dict[str, Any], deadline: float) -> Result | None:
        """The result of a request; ``None`` when none came by ``deadline``, of the loop's clock.

        Raises DaemonUnreachable, and DaemonError for what the daemon refuses.
        """
        if self._connection is None:
            await self._connected()
        assert self._connection is not None
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._look_after())
        connection = self._connection
        try:
            return await connection.ask({"op": op, **fields}, deadline)
        except DaemonError as error:
            if _is_unusable(error):
                connection.end(_unusable(error, self.path))
            raise

    async def close(self) -> None:
        """Ends it; whoever waits gets DaemonUnreachable."""
        self._is_closed = True
        for task in (self._opening, self._prober, self._keeper):
            if task is not None:
                task.cancel()
        if self._connection is not None:
            self._connection.end(DaemonUnreachable("the plugin asks another daemon", self.path))

    # ---- the connection ----

    async def _connected(self) -> None:
        if self._is_down or self._is_closed:
            raise DaemonUnreachable("the daemon cannot be asked", self.path)
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        error = None if opening.cancelled() else opening.exception()
        if isinstance(error, TracerError):
            self._went_down(error)

    async def _open(self) -> None:
        """Connect, and see whether the daemon answers us. Raises DaemonUnreachable."""
        loop = asyncio.get_running_loop()
        made: _Connection | None = None
        try:
            async with asyncio.timeout(REACHED_WITHIN):
                _, made = await loop.create_unix_connection(lambda: _Connection(self.path, self._lost), self.path)
                await made.ask({"op": "lookup", "pid": self._probe_pid}, loop.time() + 1.0)
        except DaemonError as error:
            assert made is not None
            if _is_unusable(error):
                made.end(_unusable(error, self.path))
                raise _unusable(error, self.path) from error
        except BaseException as error:
            if made is not None:
                made.end(DaemonUnreachable("the daemon does not answer", self.path))
            if isinstance(error, OSError):  # a TimeoutError too
                what = error.strerror or "it does not answer"
                raise DaemonUnreachable(f"no daemon can be asked: {what}", self.path) from error
            raise
        if made.has_ended:  # with the very answer
            raise DaemonUnreachable("no daemon can be asked: it closed the connection", self.path)
        self._connection = made
        self._is_down = False
        self._back.set()
        self._on_change(None)

    def _lost(self, connection: _Connection, error: TracerError) -> None:
        if connection is self._connection:
            self._connection = None
            self._went_down(error)

    def _went_down(self, error: TracerError) -> None:
        if self._is_down or self._is_closed:
            return
        self._is_down = True
        self._back.clear()
        self._prober = asyncio.create_task(self._probe())
        self._on_change(error)

    async def _probe(self) -> None:
        pause = _PROBES[0]
        while self._is_down:
            await asyncio.sleep(pause)
            pause = min(_PROBES[1], pause * 1.5)
            with suppress(TracerError):
                await self._open()

    # ---- silence ----

    async def _look_after(self) -> None:
        loop, pause = asyncio.get_running_loop(), _LATE
        while self._connection is not None and self._connection.asked:
            await asyncio.sleep(pause)
            connection, now = self._connection, loop.time()
            late = [asked for asked in connection.asked.values() if now - asked.since > _LATE] if connection else []
            if connection is None or not late:
                continue
            pause = _LATER
            for asked in late:
                if now > asked.deadline and not asked.answer.done():
                    asked.answer.set_result(None)
            with suppress(TracerError):  # an error is an answer, and whoever waits sees a broken connection as well
                try:
                    async with asyncio.timeout(_SILENT):
                        await connection.ask({"op": "version"}, now + 2 * _SILENT)
                except TimeoutError:
                    connection.end(DaemonUnreachable("the daemon does not answer", self.path))
        self._keeper = None
