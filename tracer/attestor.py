"""The attestor behind the SPIRE plugin: the daemon's answers in SPIRE's words, and SPIRE's own way without a daemon.

    no configuration ─▶ FailedPrecondition
    the agent itself, a process that is gone ─▶ no selectors, asking nobody
    the daemon can be asked ─▶ its answer; while that is pending it is waited for, as long as SPIRE would try
    it cannot ─▶ SPIRE's way (``tracer.fallback``), or Unavailable

An answer that lacks what was configured (labels of the namespace, selectors of the container), because the daemon is
configured otherwise, is no answer: SPIRE's way then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tracer import pidfd
from tracer.errors import AttestError, DaemonError, DaemonUnreachable, TracerError
from tracer.fallback import Fallback
from tracer.identity.parity import INTERNAL, NOT_FOUND, TIMEOUT, TWO_PODS, Located
from tracer.identity.selectors import TYPE
from tracer.protocol import DEFAULT_SOCKET
from tracer.reach import REACHED_WITHIN, Daemon, Result
from tracer.serve.spire_config import PluginConfig

_log = logging.getLogger("podtracer.plugin")

_PREFIX = len(TYPE) + 1
_NAMESPACE = f"{TYPE}:ns-label:"
_CONTAINER = f"{TYPE}:container-name:"
_GRACE = 1.0  # seconds that the daemon may take longer than it was told to wait
_MOST_WAIT = 3600.0  # seconds that the daemon waits at most
_TOLD_EVERY = 10.0  # seconds between two lines that say the same


class _NotUsable(Exception):  # noqa: N818 - it reads as what it says
    """The daemon is not to be asked about this process: SPIRE's way."""


@dataclass(slots=True)
class Counts:
    """How many processes were attested, and how. ``unsettled`` answers came before all of the pod's images."""

    daemon: int = 0
    fallback: int = 0
    unsettled: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class _Setup:
    """One configuration and what serves it: kept until the last process that came under it is answered."""

    config: PluginConfig
    daemon: Daemon
    fallback: Fallback
    users: int = 0


class Attestor:
    """Attests processes, in one event loop. ``parent`` is the agent's own PID, of the PID namespace of the others;
    ``socket`` is the daemon's, where the configuration names none."""

    def __init__(self, parent: int, *, socket: str = DEFAULT_SOCKET, procfs: str = "/proc") -> None:
        self.counts = Counts()
        self._parent = parent
        self._socket = socket
        self._procfs = procfs
        self._setup: _Setup | None = None
        self._live: set[_Setup] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._told: dict[str, float] = {}

    def configure(self, config: PluginConfig) -> None:
        """From now on, attest by this. Needs no daemon. Raises UsageError, and then everything is as it was."""
        fallback = Fallback(config, procfs=self._procfs)
        old, path = self._setup, config.socket_path or self._socket
        if old is not None and old.daemon.path == path:
            daemon = old.daemon
        else:
            daemon = Daemon(path, self._parent, self._daemon_changed)
        self._setup = _Setup(config, daemon, fallback)
        self._live.add(self._setup)
        if old is not None:
            self._let_go(old)

    def unconfigure(self) -> None:
        """From now on, nothing is attested."""
        old, self._setup = self._setup, None
        if old is not None:
            self._let_go(old)
        _log.info("attested", extra={"fields": self._counted()})

    async def attest(self, pid: int) -> tuple[str, ...]:
        """The selectors of a process, without their type; none for a process of no pod, and for one that is gone.

        Raises AttestError.
        """
        setup = self._setup
        if setup is None:
            raise AttestError("FailedPrecondition", "not configured")
        if pid == self._parent:
            return ()
        if setup.config.disable_kubelet_client:
            raise AttestError("FailedPrecondition", "kubelet client is disabled")
        setup.users += 1
        try:
            selectors = await self._pinned(setup, pid)
        except AttestError:
            self.counts.failed += 1
            raise
        finally:
            setup.users -= 1
            self._let_go(setup)
        return tuple(selector[_PREFIX:] for selector in selectors)

    async def close(self) -> None:
        """Ends everything."""
        self._setup = None
        for setup in tuple(self._live):
            setup.users = 0
            self._let_go(setup)
        if self._closing:
            await asyncio.wait(self._closing)

    # ---- one process ----

    async def _pinned(self, setup: _Setup, pid: int) -> tuple[str, ...]:
        """The selectors of the process that has this PID now."""
        fd = None
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return ()
        except OSError:
            # No process, a thread, or no descriptor left: /proc knows.
            if not os.path.exists(f"{self._procfs}/{pid}"):
                return ()
        try:
            ino = None
            if fd is not None and pidfd.tells_apart():
                ino = pidfd.inode(fd)
                os.close(fd)
                fd = None
            selectors = await self._selectors(setup, pid, ino)
            return selectors if fd is None or pidfd.alive(fd) else ()
        finally:
            if fd is not None:
                os.close(fd)

    async def _selectors(self, setup: _Setup, pid: int, ino: int | None) -> tuple[str, ...]:
        config = setup.config
        deadline = asyncio.get_running_loop().time() + config.poll_budget
        located = await self._locate(setup, pid, ino) if config.mode == "parity" else None
        if located is not None and located.container_id is None:
            return ()
        while True:
            try:
                return await self._ask_daemon(setup, _question(pid, ino, located), deadline)
            except (_NotUsable, DaemonUnreachable) as error:
                if not config.fallback:
                    raise AttestError("Unavailable", str(error)) from error
                # What the daemon cannot say it will not be able to say after a while.
                asks_again = isinstance(error, DaemonUnreachable)
            self.counts.fallback += 1
            found = located or await self._locate(setup, pid, ino)
            answer = await self._go_spires_way(setup, found, deadline, asks_again=asks_again)
            if answer is not None:
                return answer

    async def _locate(self, setup: _Setup, pid: int, ino: int | None) -> Located:
        """The container by SPIRE's rules, none where the PID is another process's by now."""
        located = await setup.fallback.locate(pid)
        if ino is None:
            return located
        with pidfd.pinned(pid) as fd:
            return located if fd is not None and pidfd.inode(fd) == ino else Located(None, None)

    async def _go_spires_way(
        self, setup: _Setup, located: Located, deadline: float, *, asks_again: bool
    ) -> tuple[str, ...] | None:
        """As ``Fallback.attest``, with the attempts that are left; ``None`` when the daemon is to be asked again."""
        config, daemon = setup.config, setup.daemon
        left = deadline - asyncio.get_running_loop().time()
        attempts = min(config.max_poll_attempts, max(1, math.ceil(left / config.poll_retry_interval)))
        return await setup.fallback.attest(located, attempts, lambda: asks_again and not daemon.is_down)

    async def _ask_daemon(self, setup: _Setup, question: dict[str, Any], deadline: float) -> tuple[str, ...]:
        config, daemon = setup.config, setup.daemon
        if daemon.is_down and (config.fallback or not await daemon.wait_back(REACHED_WITHIN)):
            raise DaemonUnreachable("the daemon cannot be asked", daemon.path)
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        question["wait_ms"] = round(min(left, _MOST_WAIT) * 1000)
        question["settled_wait_ms"] = round(config.pod_images_wait * 1000)
        question["container_selectors"] = not config.disable_container_selectors
        try:
            said = await daemon.request("lookup", question, deadline + config.pod_images_wait + _GRACE)
        except DaemonUnreachable:
            raise
        except DaemonError as error:
            if not daemon.is_down:  # it answers others
                self._tell(logging.ERROR, "the daemon refuses a request", error=str(error), code=error.code)
            raise _NotUsable(f"the daemon refuses: {error}") from error
        if said is None:
            raise AttestError(TIMEOUT, NOT_FOUND)
        if said.reason == "namespace_labels" and not config.enable_namespace_labels:
            raise _NotUsable("the daemon waits for labels that are not asked for")
        selectors = _answer(said)
        # With disable_container_selectors the daemon answers as SPIRE does, ephemeral or not.
        takes_ephemeral = config.ephemeral_containers or config.disable_container_selectors
        if said.kind == "ephemeral" and selectors and not takes_ephemeral:
            raise AttestError(TIMEOUT, NOT_FOUND)
        if selectors and not await _is_whole(selectors, config, daemon, deadline):
            raise _NotUsable("the daemon is configured otherwise: it lacks selectors that are asked for")
        self.counts.daemon += 1
        if selectors and said.settled is False:
            self._count_unsettled()
        return tuple(
            selector for selector in selectors if config.enable_namespace_labels or not selector.startswith(_NAMESPACE)
        )

    def _count_unsettled(self) -> None:
        self.counts.unsettled += 1
        what = "answered before all containers of the pod were made: pod-image selectors may be missing"
        self._tell(logging.WARNING, what, count=self.counts.unsettled)

    def _tell(self, level: int, what: str, **fields: object) -> None:
        """Logs what may come again and again, but not again at once."""
        now = asyncio.get_running_loop().time()
        if now - self._told.get(what, float("-inf")) >= _TOLD_EVERY:
            self._told[what] = now
            _log.log(level, what, extra={"fields": fields})

    # ---- changes ----

    def _daemon_changed(self, error: TracerError | None) -> None:
        fields = self._counted()
        if error is None:
            _log.info("asking the daemon", extra={"fields": fields})
            return
        what = "the daemon cannot be asked; going SPIRE's way"
        if self._setup is not None and not self._setup.config.fallback:
            what = "the daemon cannot be asked, and there is no fallback: nothing is attested"
        _log.warning(what, extra={"fields": {"error": str(error), **fields}})

    def _counted(self) -> dict[str, int]:
        counts = self.counts
        return {
            "by_daemon": counts.daemon,
            "by_fallback": counts.fallback,
            "unsettled": counts.unsettled,
            "failed": counts.failed,
        }

    def _let_go(self, setup: _Setup) -> None:
        """Ends a configuration that is not in force any more and that nobody waits under."""
        if setup is self._setup or setup.users or setup not in self._live:
            return
        self._live.discard(setup)
        setup.fallback.close()
        if all(other.daemon is not setup.daemon for other in self._live):
            task = asyncio.create_task(setup.daemon.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _question(pid: int, ino: int | None, located: Located | None) -> dict[str, Any]:
    if located is None:
        return {"mode": "strict", "pid": pid, "pidfd_ino": ino}
    return {"mode": "parity", "container_id": located.container_id, "pod_uid": located.pod_uid}


def _answer(said: Result) -> tuple[str, ...]:
    """The selectors of the daemon's answer, or its error in SPIRE's words. For a container without
    selectors SPIRE would find nothing in all its attempts; the daemon knows that, so the error comes at once."""
    state, reason, text = said.state, said.reason, said.reason_text
    if state == "resolved" and said.selectors:
        return said.selectors
    if state in ("host", "gone"):
        return ()
    if reason == "conflict":
        raise AttestError(INTERNAL, TWO_PODS)
    if reason in ("stale", "namespace_labels"):
        raise AttestError("Unavailable", str(text or reason))
    if reason in ("unnamed", "unreadable"):
        raise AttestError(INTERNAL, str(text or reason))
    raise AttestError(TIMEOUT, NOT_FOUND)


async def _is_whole(selectors: tuple[str, ...], config: PluginConfig, daemon: Daemon, deadline: float) -> bool:
    """Whether the answer has what is asked for; where it lacks something, the daemon says whether it ever has it."""
    lacks_labels = config.enable_namespace_labels and not any(map(_is_label, selectors))
    lacks_container = not config.disable_container_selectors and not any(map(_is_container, selectors))
    if not lacks_labels and not lacks_container:
        return True
    with suppress(DaemonError):
        status = await daemon.request("status", {}, deadline + _GRACE)
        if status is not None:
            is_without_containers = lacks_container and status.disable_container_selectors
            return not (lacks_labels and not status.namespace_labels) and not is_without_containers
    return False


def _is_label(selector: str) -> bool:
    return selector.startswith(_NAMESPACE)


def _is_container(selector: str) -> bool:
    return selector.startswith(_CONTAINER)
