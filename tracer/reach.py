"""Whether the daemon can be asked, and asking it without ever hanging on it.

    unknown ──an answer──▶ up ──unreachable, refused, or silent──▶ down
                           ▲──────────── a probe is answered ───────┘

While it is up, requests go straight to it; one connection serves them all. While it is down nobody waits for it: probes
find out when it is back. A daemon that is stopped takes connections and requests like one that is alive, and a wait may
be long, so that a request that takes long is no sign: then the daemon is asked for its version, and when that gets no
answer either, all who wait are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tracer.aioclient import AsyncClient
from tracer.errors import DaemonError, DaemonUnreachable, TracerError

REACHED_WITHIN = 0.1
"""Seconds within which a daemon that is there is connected to."""

_PROBES = (0.1, 0.5)  # seconds between two probes of a daemon that is down: at first, and at last
_SILENT = 1.0  # seconds without an answer to the simplest question: a machine may be busy
_LATE = 0.1  # seconds after which a request is looked after …
_LATER = 0.5  # … and again
_NO_LIMIT = 86400.0  # of a request: its deadline is ours

# What the daemon says when it would not answer anybody's request, or none of ours.
_UNUSABLE = ("permission_denied", "not_ready")


class Daemon:
    """The daemon at one socket. ``probe_pid`` is a process that it is asked about to see whether it answers us;
    ``on_change`` is called with ``None`` when it can be asked, with what went wrong when it cannot any more.

    Used in one event loop.
    """

    def __init__(self, path: str, probe_pid: int, on_change: Callable[[TracerError | None], None]) -> None:
        self.path = path
        self._probe_pid = probe_pid
        self._on_change = on_change
        self._client = AsyncClient(path, timeout=_NO_LIMIT, retry=REACHED_WITHIN)
        self._is_up: bool | None = None
        self._asked: dict[asyncio.Timeout, float] = {}
        self._back = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_down(self) -> bool:
        """Whether it is known that it cannot be asked now."""
        return self._is_up is False

    async def wait_back(self, timeout: float) -> bool:
        """Whether it can be asked, waited for ``timeout`` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._back.wait()
        return not self.is_down

    async def request(self, op: str, fields: Mapping[str, Any], deadline: float) -> Any:
        """The result of a request; ``None`` when none came by ``deadline``, of the loop's clock.

        Raises DaemonUnreachable, and DaemonError for what the daemon refuses.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline) as scope:
                self._asked[scope] = loop.time()
                if self._keeper is None:
                    self._keeper = loop.create_task(self._look_after())
                try:
                    result = await self._client.request(op, **fields)
                finally:
                    del self._asked[scope]
        except TimeoutError:
            if loop.time() >= deadline:
                return None
            raise DaemonUnreachable("the daemon does not answer", self.path) from None
        except DaemonUnreachable as error:
            self._went_down(error)
            raise
        except DaemonError as error:
            if error.code in _UNUSABLE:
                self._went_down(error)
            raise
        if not self._is_up:
            self._came_up()
        return result

    async def close(self) -> None:
        """Ends it; whoever waits gets DaemonUnreachable."""
        for task in (self._prober, self._keeper):
            if task is not None:
                task.cancel()
        self._tell_who_wait()
        await self._client.close()

    def _came_up(self) -> None:
        self._is_up = True
        self._back.set()
        self._on_change(None)

    def _went_down(self, error: TracerError) -> None:
        if self.is_down:
            return
        self._is_up = False
        self._back.clear()
        # They would all try to connect, one after the other.
        self._tell_who_wait()
        self._prober = asyncio.create_task(self._probe())
        self._on_change(error)

    def _tell_who_wait(self) -> None:
        now = asyncio.get_running_loop().time()
        for scope in self._asked:
            scope.reschedule(now)

    async def _look_after(self) -> None:
        pause = _LATE
        while self._asked:
            await asyncio.sleep(pause)
            oldest = next(iter(self._asked.values()), None)
            if oldest is None or asyncio.get_running_loop().time() - oldest < _LATE:
                continue
            pause = _LATER
            try:
                async with asyncio.timeout(_SILENT):
                    await self._client.request("version")
            except TimeoutError:
                self._went_down(DaemonUnreachable("the daemon does not answer", self.path))
                await self._client.close()
            except TracerError:
                pass  # an error is an answer, and whoever waits sees a broken connection as well
        self._keeper = None

    async def _probe(self) -> None:
        pause = _PROBES[0]
        while True:
            await asyncio.sleep(pause)
            pause = min(_PROBES[1], pause * 1.5)
            probe = AsyncClient(self.path, timeout=REACHED_WITHIN, retry=0.0)
            try:
                await probe.request("lookup", pid=self._probe_pid)
            except TracerError:
                continue
            finally:
                await probe.close()
            if self.is_down:
                self._came_up()
            return
