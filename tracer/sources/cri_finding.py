"""The container runtime without a flag for its socket: the first known socket that answers CRI.

    looking ──a known socket answers ``Version``──▶ found: from then on that one, also while it is down

A socket that exists may not answer: it may be left over, or belong to Docker's containerd, whose CRI plugin is off.
Once one has answered podtracer keeps it: a runtime that restarts is down for a while.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tracer.sources.cri import TIMEOUT, CriClient, CriContainer, CriSandbox, CriVersion
from tracer.sources.known_sockets import not_roots
from tracer.sources.rpc import CallError

FIND_TIMEOUT = 2.0
"""Seconds within which a runtime has to answer ``Version`` during a search."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A known socket that exists and is not used; ``code`` is the gRPC status, if the socket answered one."""

    path: str
    why: str
    code: str | None = None

    def __str__(self) -> str:
        return f"{self.path} ({self.why})"


@dataclass(frozen=True, slots=True)
class Search:
    """The result of a search: the first socket that answers, and those passed over before it."""

    path: str | None
    passed: tuple[PassedOver, ...]


def search(candidates: Iterable[str]) -> Search:
    """Asks the known sockets that are there, in their order, up to the first that answers. Raises nothing."""
    passed = []
    for path in candidates:
        try:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                continue
            why = not_roots(path)
        except OSError:
            continue
        if why is not None:
            passed.append(PassedOver(path, why))
            continue
        try:
            with CriClient(path, timeout=FIND_TIMEOUT) as client:
                client.version()
        except CallError as error:
            passed.append(PassedOver(path, error.what, error.code))
            continue
        return Search(path, tuple(passed))
    return Search(None, tuple(passed))


class FoundCri:
    """A ``CriClient`` of the runtime that was found; until then every call searches for it.

    If the search passed sockets over, ``note`` gets one sentence about them. A call raises CallError while no socket
    answers.
    """

    def __init__(self, candidates: Iterable[str], *, note: Callable[[str], None] = lambda _text: None) -> None:
        self._candidates = tuple(candidates)
        self._note = note
        self._looking = threading.Lock()
        self._closing = threading.Lock()
        self._client: CriClient | None = None
        self._closed = False

    @property
    def url(self) -> str:
        """Where the runtime is asked."""
        client = self._client
        return client.url if client is not None else "auto"

    def close(self) -> None:
        """End the calls in flight; later ones fail."""
        with self._closing:
            self._closed = True
            client = self._client
        if client is not None:
            client.close()

    def version(self) -> CriVersion:
        """As of ``CriClient``."""
        return self._found().version()

    def container_status(self, container_id: str) -> CriContainer | None:
        """As of ``CriClient``."""
        return self._found().container_status(container_id)

    def list_containers(self, pod_uid: str | None = None) -> tuple[CriContainer, ...]:
        """As of ``CriClient``."""
        return self._found().list_containers(pod_uid)

    def list_sandboxes(self, sandbox_id: str | None = None) -> tuple[CriSandbox, ...]:
        """As of ``CriClient``."""
        return self._found().list_sandboxes(sandbox_id)

    def _found(self) -> CriClient:
        client = self._client
        if client is not None:
            return client
        with self._looking:
            if self._client is not None:
                return self._client
            found = search(self._candidates)
            with self._closing:
                if self._closed:
                    raise CallError("CANCELLED", "the client was closed", self.url)
                if found.path is None:
                    raise _nobody(found)
                self._client = client = CriClient(found.path, timeout=TIMEOUT)
        if found.passed:
            self._note(f"asking the container runtime at {client.url}, {passed_over(found)}")
        return client


def passed_over(found: Search) -> str:
    """Which known sockets were not used, and why, as text for the user."""
    return f"passed over: {', '.join(map(str, found.passed))}"


def _nobody(found: Search) -> CallError:
    said = ", ".join(map(str, found.passed)) or "no known socket exists"
    code = next((each.code for each in found.passed if each.code is not None), "UNAVAILABLE")
    return CallError(
        code, f"no container runtime answers: {said}", "cri", "name its socket with --cri, or say --cri none"
    )
