"""Ending on SIGINT and SIGTERM: never in the middle of a line, always in the middle of a wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 1.0  # seconds for the reader of a full pipe to take what was begun


class Stop(BaseException):
    """SIGINT or SIGTERM came. Not an Exception: nobody but who waits for it may catch it."""


class Stopper:
    """While entered, SIGINT and SIGTERM raise :class:`Stop` where that is allowed, else as soon as it is.

    What keeps the program from there for longer than a second, a full pipe say, is interrupted too.
    After Stop, or :meth:`shield`, signals change nothing, so that what was opened is closed.
    """

    def __init__(self) -> None:
        self._is_stopped = False
        self._is_shielded = False
        self._is_allowed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shield()
        for number, before in self._before.items():
            signal.signal(number, before)

    def shield(self) -> None:
        """From here on no signal raises anything."""
        self._is_shielded = True
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _raise(self) -> None:
        if not self._is_shielded:
            self.shield()
            raise Stop

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_stopped = True
        if self._is_allowed:
            self._raise()
        elif not self._is_shielded:
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        self._raise()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this block a signal raises :class:`Stop` at once, one that came before does so at its start."""
        self._is_allowed = True
        try:
            if self._is_stopped:
                self._raise()
            yield
        finally:
            self._is_allowed = False
