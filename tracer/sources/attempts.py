"""Which container to ask the runtime for next, and when: a pure state machine, time is an argument.

    due ──take──▶ in flight ──missed──▶ waiting ──time passes──▶ due
                      ├──────done, or missed too often──▶ forgotten
                      └──────failed──▶ due

A container that is wanted is due at once. One that the runtime does not have is asked for again after 1, 2, 4 …
64 ms: CRI-O makes the cgroup before the container can be listed. Then the pauses double on to a second, for
sandboxes: containerd lists one only when its network is there, 180 ms after the cgroup on an idle machine.

What a listing named comes after everything that is wanted, is asked for once, and has no end to its number but
the listing's own.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

_MS = 1_000_000

PAUSES = tuple(_MS << n for n in range(11))
MAX_FAILURES = 3
MAX_WANTED = 4096


@dataclass(slots=True, eq=False)
class Want:
    """One container that is asked for. ``tries`` counts answers that did not have it, ``failures`` the failed calls."""

    container_id: str
    background: bool = False
    in_flight: bool = False
    tries: int = 0
    failures: int = 0


class Attempts:
    """The containers asked for. All times are nanoseconds of one clock that never steps back."""

    def __init__(self, *, max_wanted: int = MAX_WANTED) -> None:
        self._max_wanted = max_wanted
        self._wants: dict[str, Want] = {}
        self._due: list[tuple[int, int, Want]] = []
        self._background: deque[Want] = deque()
        self._count = 0
        self._listed = 0

    @property
    def wanted(self) -> int:
        """How many containers are wanted now, without those that only a listing named."""
        return len(self._wants) - self._listed

    @property
    def listed(self) -> int:
        """How many of those that a listing named are not done with."""
        return self._listed

    def want(self, container_id: str, now: int) -> None:
        """Ask for a container; again for the same one changes nothing.

        Of more than ``max_wanted`` the one wanted first is forgotten.
        """
        want = self._wants.get(container_id)
        if want is not None:
            if want.background:
                want.background = False
                self._listed -= 1
                if not want.in_flight:
                    self._push(want, now)
            return
        if self.wanted >= self._max_wanted:
            self.settle(next(want.container_id for want in self._wants.values() if not want.background))
        want = self._wants[container_id] = Want(container_id)
        self._push(want, now)

    def add(self, container_ids: Iterable[str]) -> None:
        """Ask for these too, when there is nothing more urgent."""
        for container_id in container_ids:
            if container_id not in self._wants:
                want = self._wants[container_id] = Want(container_id, background=True)
                self._background.append(want)
                self._listed += 1

    def settle(self, container_id: str) -> None:
        """The container became known, or is gone: it is asked for no more."""
        want = self._wants.pop(container_id, None)
        if want is not None and want.background:
            self._listed -= 1

    def current(self, want: Want) -> bool:
        """Whether this is still asked for."""
        return self._wants.get(want.container_id) is want

    def next_due(self) -> int | None:
        """When something is due: maybe in the past; 0 where only listed ones wait, ``None`` where nothing does."""
        self._drop_stale()
        if self._background:
            return 0
        return self._due[0][0] if self._due else None

    def take(self, now: int) -> Want | None:
        """What to ask for now; it is in flight until ``done``, ``missed`` or ``failed`` is said of it."""
        self._drop_stale()
        want = None
        if self._due and self._due[0][0] <= now:
            want = heapq.heappop(self._due)[2]
        elif self._background:
            want = self._background.popleft()
        if want is not None:
            want.in_flight = True
        return want

    def done(self, want: Want) -> bool:
        """An answer has it; whether it was still asked for."""
        if not self.current(want):
            return False
        self.settle(want.container_id)
        return True

    def missed(self, want: Want, now: int) -> bool:
        """An answer does not have it; whether it is given up for that."""
        want.in_flight = False
        if not self.current(want):
            return False
        if want.background or want.tries >= len(PAUSES):
            self.settle(want.container_id)
            return True
        self._push(want, now + PAUSES[want.tries])
        want.tries += 1
        return False

    def failed(self, want: Want, now: int) -> bool:
        """There was no answer; whether it is given up for that: three times it has its turn once others can."""
        want.in_flight = False
        if not self.current(want):
            return False
        want.failures += 1
        if want.failures >= MAX_FAILURES:
            self.settle(want.container_id)
            return True
        if want.background:
            self._background.append(want)
        else:
            self._push(want, now)
        return False

    def _push(self, want: Want, due: int) -> None:
        self._count += 1
        heapq.heappush(self._due, (due, self._count, want))

    def _drop_stale(self) -> None:
        while self._due and not self.current(self._due[0][2]):
            heapq.heappop(self._due)
        while self._background and not (self._background[0].background and self.current(self._background[0])):
            self._background.popleft()
