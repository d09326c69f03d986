"""When to ask the kubelet: a pure state machine, time is an argument.

    due ──started──▶ in flight ──finished──▶ waiting ──time passes──▶ due

A GET is due when the refresh interval has passed since the last one began, when a wanted container's turn has
come, or soon after something happened to a pod whose status is not complete: as late as may be, since the
kubelet's status lags behind, and one GET for all that happens until then. Each wanted container has a back-off of
its own: it is fetched for at once, and after every answer that did not settle it again in 50 ms, 100 ms, … 5 s. An
answer counts for all that were wanted when its GET began, so that many unknown containers share their GETs instead
of multiplying them.

Two rules stand above these. GETs begin at least 100 ms apart and never overlap. And while the kubelet fails,
the next try comes after 0.5 s, 1 s, … up to the refresh interval, whoever wants what.
"""

from __future__ import annotations

from dataclasses import dataclass

_MS = 1_000_000

SPACING = 100 * _MS
STIR = 450 * _MS
FIRST_RETRY = 50 * _MS
LAST_RETRY = 5_000 * _MS
FIRST_FAILURE_PAUSE = 500 * _MS
MAX_WANTED = 4096


@dataclass(slots=True)
class _Want:
    """``due``: when to fetch for it. ``pause``: how long that is after the last answer without it."""

    due: int
    pause: int = 0
    asked: bool = False


class Refresher:
    """The schedule of GETs. All times and ``interval`` are nanoseconds of one clock that never steps back."""

    def __init__(self, interval: int, *, max_wanted: int = MAX_WANTED) -> None:
        self._interval = interval
        self._max_wanted = max_wanted
        self._wants: dict[str, _Want] = {}
        self._in_flight = False
        self._began: int | None = None
        self._ended = 0
        self._failures = 0
        self._stirred: int | None = None
        # The earliest turn of all wants, kept so that a burst of them does not make each look at all others.
        self._soonest: int | None = None
        self._soonest_known = True

    @property
    def wanted(self) -> int:
        """How many containers are wanted now."""
        return len(self._wants)

    def want(self, container_id: str, now: int) -> None:
        """Ask for a container that nobody knows; again for the same one changes nothing.

        Of more than ``max_wanted`` the one wanted first is forgotten.
        """
        if container_id in self._wants:
            return
        if len(self._wants) >= self._max_wanted:
            self.settle(next(iter(self._wants)))
        self._wants[container_id] = _Want(now)
        if self._soonest is None or now < self._soonest:
            self._soonest = now

    def settle(self, container_id: str) -> None:
        """The container became known, or is gone: it is fetched for no more."""
        want = self._wants.pop(container_id, None)
        if want is not None and want.due == self._soonest:
            self._soonest_known = False

    def stir(self, now: int) -> None:
        """Something happened to a pod whose status is not complete; more of it until the next GET changes nothing."""
        if self._stirred is None:
            self._stirred = now + STIR

    def next_fetch(self, now: int) -> int | None:
        """When the next GET is due, never earlier than ``now``; ``None`` while one is in flight."""
        if self._in_flight:
            return None
        if self._began is None:
            return now
        if self._failures:
            return max(now, self._began + SPACING, self._ended + self._failure_pause())
        # A kubelet that takes longer than the interval is left alone for a moment all the same.
        due = max(self._began + self._interval, self._ended + SPACING)
        for other in (self._soonest_want(), self._stirred):
            if other is not None:
                due = min(due, other)
        return max(now, due, self._began + SPACING)

    def started(self, now: int) -> None:
        """A GET begins. Raises RuntimeError when one is in flight."""
        if self._in_flight:
            raise RuntimeError("a GET is in flight already")
        self._in_flight = True
        self._began = now
        if self._stirred is not None and self._stirred <= now:
            self._stirred = None
        for want in self._wants.values():
            want.asked = True

    def finished(self, now: int, ok: bool) -> None:
        """The GET ended, with a list (``ok``) or an error. Raises RuntimeError when none is in flight."""
        if not self._in_flight:
            raise RuntimeError("no GET is in flight")
        self._in_flight = False
        self._ended = now
        if not ok:
            self._failures += 1
            return
        self._failures = 0
        began = self._began or 0
        for want in self._wants.values():
            if not want.asked:
                continue
            # Fetched for on another's behalf, before its own turn, it waits as long again and no longer.
            if want.due <= began:
                want.pause = min(max(want.pause * 2, FIRST_RETRY), LAST_RETRY)
            want.due = now + want.pause
        self._soonest_known = False

    def _failure_pause(self) -> int:
        # Shifts are capped: after a night of failures the number would have thousands of digits.
        return min(self._interval, FIRST_FAILURE_PAUSE << min(self._failures - 1, 32))

    def _soonest_want(self) -> int | None:
        if not self._soonest_known:
            self._soonest = min((want.due for want in self._wants.values()), default=None)
            self._soonest_known = True
        return self._soonest
