"""How a source fares, told once per change: what was said of it before is not said again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tracer.clock import boottime
from tracer.errors import SourceError
from tracer.sources.state import SourceState

_log = logging.getLogger("podtracer.sources")

FIRST_PAUSE = 0.1
LAST_PAUSE = 5.0


def back_off(failures: int, longest: float = LAST_PAUSE) -> float:
    """Seconds to wait after this many failures in a row: 0.1, 0.2, 0.4 … ``longest``."""
    return min(longest, FIRST_PAUSE * 2.0 ** min(failures - 1, 16))


class Health:
    """The state of one source. ``on_state`` is called in the thread that brings the news; what it raises is logged."""

    def __init__(self, on_state: Callable[[SourceState], None]) -> None:
        self._on_state = on_state
        self._lock = threading.Lock()
        self._state = SourceState(None, boottime())

    @property
    def state(self) -> SourceState:
        """The state now."""
        with self._lock:
            return self._state

    def good(self, at: int, skipped: tuple[str, ...] = ()) -> None:
        """A complete answer to a question that was asked at ``at``, boot time nanoseconds."""
        self._become(lambda before, now: before.good(at, now, skipped))

    def bad(self, error: SourceError) -> None:
        """No answer, or none that can be used."""
        self._become(lambda before, now: before.bad(error, now))

    def _become(self, change: Callable[[SourceState, int], SourceState]) -> None:
        with self._lock:
            before = self._state
            self._state = after = change(before, boottime())
        if after.kind != before.kind:
            tell(self._on_state, after)


def tell(listener: Callable[..., None], *args: object) -> None:
    """Call a listener; what it raises is logged, since the thread that calls is the only one there is."""
    try:
        listener(*args)
    except Exception:
        _log.exception("a listener of pod data failed")
