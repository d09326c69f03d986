"""Look-ups that wait: while an answer is pending, or not settled, and time is left. No I/O, no clock, no polling.

A wait is asked again when there is news and its mark has changed, and once when its time is over. Those of one look at
the news are asked a few at a time, so that hundreds of them keep nobody else waiting.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from tracer.model import Identity, State

Key = tuple[object, Hashable]
"""Whose a wait is, and its id."""


class Wait:
    """One look-up. ``ask`` gives its answer now, ``mark`` what that hangs on, ``done`` takes the last one, ``failed``
    what one of these raised instead, ``ended`` is called when it waits no more, answered or not. ``pending`` and
    ``settled`` are how long it may wait while the answer is pending, and then while it is not settled; times are
    seconds of any clock that never steps back."""

    def __init__(
        self,
        ask: Callable[[], Sequence[Identity]],
        mark: Callable[[], object],
        done: Callable[[Sequence[Identity]], None],
        failed: Callable[[Exception], None],
        ended: Callable[[], None],
        *,
        pending: float,
        settled: float,
        now: float,
    ) -> None:
        self._ask = ask
        self._mark = mark
        self._done = done
        self._failed = failed
        self.ended = ended
        self._settled = settled
        self._pending_until = now + pending
        self._settled_until: float | None = None
        self._marked: object = None
        self.until = now

    def is_answered(self, now: float, *, at_last: bool = False) -> bool:
        """Asks, unless nothing has changed; answers when it is time, or ``at_last``, or when asking fails."""
        answers: Sequence[Identity] | None = None
        try:
            answers = self._asked(now, at_last=at_last)
            if answers is None:
                return False
            self.ended()
            self._done(answers)
        except Exception as error:
            if answers is None:
                self.ended()
            self._failed(error)
        return True

    def _asked(self, now: float, *, at_last: bool) -> Sequence[Identity] | None:
        """The last answer; ``None`` while another one may come."""
        mark = self._mark()
        if mark is not None and mark == self._marked and now < self.until and not at_last:
            return None
        self._marked = mark
        answers = self._ask()
        if not at_last:
            if any(answer.state is State.PENDING for answer in answers):
                self.until = self._pending_until
            elif self._settled and any(answer.workload.settled is False for answer in answers):
                if self._settled_until is None:
                    self._settled_until = now + self._settled
                self.until = self._settled_until
            else:
                self.until = now
            if now < self.until:
                return None
        return answers


class Waits:
    """All that wait."""

    def __init__(self) -> None:
        self._waits: dict[Key, Wait] = {}
        self._due: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waits)

    def __contains__(self, key: Key) -> bool:
        return key in self._waits

    def add(self, key: Key, wait: Wait) -> None:
        """Keeps a wait that was not answered."""
        self._waits[key] = wait

    def news(self) -> None:
        """Something changed: all are to be looked at, those first that were to be already."""
        self._due.update(dict.fromkeys(self._waits))

    @property
    def is_due(self) -> bool:
        """Whether some are to be looked at now."""
        return bool(self._due)

    def look(self, now: float, most: int) -> None:
        """Looks at ``most`` of those that are to be looked at."""
        while self._due and most > 0:
            key, _ = self._due.popitem(last=False)
            wait = self._waits.get(key)
            if wait is not None:
                most -= 1
                if wait.is_answered(now):
                    self._waits.pop(key, None)

    def next_end(self, now: float) -> float | None:
        """Seconds until the first one's time is over; ``None`` without any."""
        return max(0.0, min(wait.until for wait in self._waits.values()) - now) if self._waits else None

    def end(self, now: float) -> None:
        """Answers those whose time is over."""
        self._due.update((key, None) for key, wait in self._waits.items() if wait.until <= now)

    def cancel(self, key: Key, now: float) -> bool:
        """Answers this one now, as it stands; whether there was one."""
        wait = self._waits.pop(key, None)
        return wait is not None and wait.is_answered(now, at_last=True)

    def drop(self, owner: object) -> None:
        """Forgets all of one owner, unanswered."""
        for key in [key for key in self._waits if key[0] is owner]:
            self._waits.pop(key).ended()
