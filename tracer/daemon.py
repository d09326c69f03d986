"""The daemon: one tracer for the node, and those who serve it, wired together. No logic of its own.

The order of its start: the lock that only one has, the programs and the scan, the socket, then health and metrics.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import logging
import os
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracer import clock, notify
from tracer.errors import BusyError, MissingError, TracerError
from tracer.node import FIXED, Tracer
from tracer.serve.access import Access
from tracer.serve.http import HttpServer
from tracer.serve.metrics import Exposition, Figures
from tracer.serve.socket import Server
from tracer.settings import Settings
from tracer.status import Readiness, events, status

_SWITCH = 0.0005  # seconds after which a thread that computes lets one in that answers; Python's own is ten times that
_DESCRIPTORS = 8192  # two for each connection, and then some
_END = 1.5  # seconds for everything to end
_log = logging.getLogger("podtracer")


@dataclass(frozen=True, slots=True)
class Serving:
    """Where and whom the daemon serves. ``http`` is (host, port), ``None`` for none; ``allowed`` holds sets of
    selectors, see ``tracer.serve.access``; ``group`` is the name or number of the socket's group."""

    socket: str
    http: tuple[str, int] | None = None
    group: str = "podtracer"
    allowed: Sequence[frozenset[str]] = ()
    by_number: bool = False

    def access(self) -> Access:
        """Who may ask about others. A group that this machine does not have gives nobody anything."""
        if self.group.isdigit():
            return Access(int(self.group), self.allowed)
        try:
            return Access(grp.getgrnam(self.group).gr_gid, self.allowed)
        except KeyError:
            return Access(None, self.allowed)


class Lock:
    """Held by the one daemon of a socket, for as long as it lives: a crash leaves nothing that has to be cleared away.

    Raises :class:`BusyError`, which names the process that has it, and :class:`MissingError` where it cannot be made.
    """

    def __init__(self, socket_path: str) -> None:
        self.path = f"{socket_path}.lock"
        try:
            os.makedirs(os.path.dirname(socket_path) or ".", mode=0o755, exist_ok=True)
            # Nobody else may open it: to read it is enough to lock it, and to keep the next daemon from starting.
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.fchmod(self._fd, 0o600)
        except OSError as error:
            hint = "run as root, or name another place with --socket"
            raise MissingError(f"the lock cannot be made: {error.strerror}", self.path, hint) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            hint = f"end process {holder} first, or name another socket with --socket"
            raise BusyError(f"a daemon runs already, with PID {holder}", socket_path, hint) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Lets go of it. The file stays: who removes it may remove another's."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


class Daemon:
    """Runs from :meth:`start` to :meth:`close`; ``reload`` gives the settings anew, or raises."""

    def __init__(self, settings: Settings, serving: Serving, reload: Callable[[], tuple[Settings, Serving]]) -> None:
        self.readiness = Readiness()
        self._serving = serving
        self._reload = reload
        self._tracer = Tracer(settings, warn=_log.warning, note=_log.info, whole=True)
        self._lock: Lock | None = None
        self._server: Server | None = None
        self._http: HttpServer | None = None

    # ---- life ----

    def start(self) -> None:
        """Traces and serves from here on. Raises what :class:`Tracer`, :class:`Lock` and the servers raise; nothing is
        left behind then."""
        sys.setswitchinterval(_SWITCH)
        _raise_descriptors()
        try:
            self._lock = Lock(self._serving.socket)
            self._tracer.start()
            self.readiness.bpf = self.readiness.scan = True
            self._server = Server(
                self._tracer, self._serving.socket, self._serving.access(), status=self.status,
                by_number=self._serving.by_number,
            )  # fmt: skip
            self._tracer.listen(self._on_news)
            self._server.start()
            if self._serving.http is not None:
                metrics = Exposition(self._figures)
                self._http = HttpServer(
                    self._serving.http, live=self._live, ready=self._ready, metrics=metrics
                )  # fmt: skip
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._announce, name="podtracer-ready", daemon=True).start()

    def _announce(self) -> None:
        """Tells systemd. A source that fails is no reason to be thought of as hanging: health says what is missing."""
        while not self._tracer.wait_synced(3600.0):
            pass
        self._on_news()
        text = "answering" if self.readiness.is_ready else "answering; no pod list yet"
        notify.ready(text)
        _log.info("%s at %s", text, self._serving.socket)

    def _on_news(self) -> None:
        self._look()
        self.readiness.pods = self.readiness.pods or self._tracer.has_pods or self._tracer.settings.kubelet == "none"
        if self._server is not None:
            self._server.news()

    def reload(self) -> None:
        """Reads the configuration again; what is wrong with it is logged, and all stays as it was."""
        notify.reloading()
        try:
            settings, serving = self._reload()
            fixed = [name for name in FIXED if getattr(settings, name) != getattr(self._tracer.settings, name)]
            if (serving.socket, serving.http) != (self._serving.socket, self._serving.http):
                fixed.append("socket" if serving.socket != self._serving.socket else "http_address")
            if fixed:
                _log.warning("changed only when the daemon is started anew: %s", ", ".join(fixed))
            kept = {name: getattr(self._tracer.settings, name) for name in FIXED}
            self._tracer.reconfigure(replace(settings, **kept))
            self._serving = replace(serving, socket=self._serving.socket, http=self._serving.http)
            if self._server is not None:
                self._server.operations.trust.access = self._serving.access()
            _log.info("the configuration was read again")
        except TracerError as error:
            hint = f" (hint: {error.hint})" if error.hint else ""
            _log.error("the configuration stays as it was: %s%s", error, hint)
        notify.ready("answering")

    def close(self) -> None:
        """Ends everything within about a second and a half, whatever hangs."""
        notify.stopping()
        ending = threading.Thread(target=self._close, name="podtracer-end", daemon=True)
        ending.start()
        ending.join(_END)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._http is not None:
            self._http.close()
        with contextlib.suppress(Exception):
            self._tracer.close()
        if self._lock is not None:
            self._lock.close()
        self._server = self._http = self._lock = None

    # ---- what is told of it ----

    def status(self) -> dict[str, Any]:
        """How the daemon fares."""
        server = self._server
        self._look()
        said = status(self._tracer, self.readiness)
        if server is not None:
            said["socket"] = {
                "path": server.path,
                "connections": server.connections,
                "accepted": server.accepted,
                "turned_away": server.turned_away,
                "waiting": len(server.operations.waits),
                "lookups": dict(server.operations.lookups),
                "refused": server.operations.trust.refused,
            }
        return said

    def _live(self) -> dict[str, bool]:
        server = self._server
        return {"bpf": self._tracer.is_alive, "socket": server is not None and server.is_alive}

    def _ready(self) -> dict[str, bool | str]:
        self._look()
        said: dict[str, bool | str] = {**self.readiness.checks()}
        if self.readiness.missing:
            said["scan"] = "; ".join(self.readiness.missing)
        return said

    def _look(self) -> None:
        self.readiness.missing = tuple(check.found for check in self._tracer.missing)

    def _figures(self) -> Figures:
        tracer, server = self._tracer, self._server
        assert server is not None
        now = clock.read()
        data = tracer.pod_data(now)
        age = data["pods_age_ms"]
        return Figures(
            events=events(tracer),
            lost=tracer.lost,
            repairs=tracer.counters()["repairs"],
            lookups=server.operations.lookups,
            refused=server.operations.trust.refused,
            took=server.operations.took,
            ready=tracer.ready_times,
            processes=len(tracer.pids()),
            containers=tracer.containers,
            connections=server.connections,
            kubelet_requests=tracer.kubelet_requests,
            sources={name: state.ok is True for name, state in tracer.sources.items()},
            pods=data["pods"],
            pods_age=None if age is None else age / 1000,
        )


def _raise_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
