"""What whoever serves asks: the tracer, as the socket sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from tracer.model import Event, Identity

Mode = Literal["strict", "parity"]


class Stream(Protocol):
    """Events of a watch, taken without waiting."""

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; ``None`` when there is none now."""

    def close(self) -> None:
        """Ends the stream."""


class Desk(Protocol):
    """A running tracer. See ``tracer.node.Tracer``."""

    @property
    def pidfs(self) -> bool:
        """Whether the inode of a pidfd tells a process from all others."""

    def lookup(
        self,
        pid: int,
        *,
        verify: bool = False,
        parity: bool = False,
        mode: Mode | None = None,
        container_selectors: bool = True,
    ) -> Identity:
        """The identity of a process."""

    def lookup_pidfd(
        self, fd: int, *, parity: bool = False, mode: Mode | None = None, container_selectors: bool = True
    ) -> Identity:
        """The identity of the process behind a pidfd."""

    def lookup_container(
        self,
        container_id: str,
        pod_uid: str | None = None,
        *,
        mode: Mode | None = None,
        container_selectors: bool = True,
    ) -> Identity:
        """The identity of a container."""

    def mark(self, pid: int) -> object:
        """What the answer for a process hangs on: as long as marks are equal, so are answers."""

    def want(self, container_id: str) -> None:
        """Has the sources look for a container, until it is known or nobody waits for it any more."""

    def unwant(self, container_id: str) -> None:
        """Nobody waits for this container any more."""

    def pids(self) -> Iterable[int]:
        """The processes that are known."""

    def watch(self, *, snapshot: bool, parity: bool, on_event: Callable[[], None]) -> Stream:
        """A stream of events; ``on_event`` is called, from any thread, when there is something to take."""

    def explain_record(self, pid: int, *, of_itself: bool = False) -> dict[str, Any]:
        """How the answer for a process came to be, as JSON; ``of_itself`` leaves out what is about others."""
