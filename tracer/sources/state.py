"""How a source of pod data fares, since when, and what went wrong last: for ``doctor``, ``status`` and the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tracer.errors import SourceError
from tracer.model import Clock

LISTING = ("pods-api", "kubelet")
"""The sources that list pods, the one that goes first where both answer first."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """How the source fares. Times are boot time nanoseconds.

    ``ok`` is ``None`` until the first answer or failure; ``since`` is when it became what it is, or failing
    took another form. ``last_success`` is when the last good fetch started. ``skipped`` says which pods of
    its list could not be used. ``error`` is what fails now, ``last_error`` what failed last, at ``last_error_at``, also
    when it is over.
    """

    ok: bool | None
    since: int
    last_success: int | None = None
    error: SourceError | None = None
    fetches: int = 0
    failures: int = 0
    skipped: tuple[str, ...] = ()
    last_error: SourceError | None = None
    last_error_at: int | None = None

    @property
    def kind(self) -> tuple[bool | None, str | None, int | None]:
        """What of the state is worth telling: not the text of an answer, which may differ from try to try and stands
        behind ``": "``."""
        if self.error is None:
            return self.ok, None, None
        return self.ok, self.error.what.partition(": ")[0], self.error.status

    def good(self, at: int, now: int, skipped: tuple[str, ...] = ()) -> SourceState:
        """The state after a complete answer, at ``now``, to what was asked at ``at``."""
        return self._after(replace(self, ok=True, error=None, last_success=at, skipped=skipped), now)

    def bad(self, error: SourceError, now: int) -> SourceState:
        """The state after no answer, or none that can be used."""
        failed = replace(self, ok=False, error=error, failures=self.failures + 1, last_error=error, last_error_at=now)
        return self._after(failed, now)

    def _after(self, after: SourceState, now: int) -> SourceState:
        since = self.since if after.kind == self.kind else now
        return replace(after, since=since, fetches=self.fetches + 1)

    def to_json(self, clock: Clock) -> dict[str, Any]:
        """The state as it is shown to programs: every key is always there, times are RFC 3339."""
        return {
            "state": "starting" if self.ok is None else "ok" if self.ok else "failing",
            "since": clock.rfc3339(self.since),
            "last_success": _time(self.last_success, clock),
            "requests": self.fetches,
            "failures": self.failures,
            "skipped": list(self.skipped),
            "error": _error(self.error),
            "last_error": _error(self.last_error),
            "last_error_at": _time(self.last_error_at, clock),
        }


def in_use(states: Mapping[str, SourceState]) -> str | None:
    """Which source tells the pods now; ``None`` while nobody does."""
    return next((name for name in LISTING if name in states and states[name].ok), None)


def report(states: Mapping[str, SourceState], clock: Clock) -> dict[str, Any]:
    """Which source is in use and since when, and how each of them fares."""
    name = in_use(states)
    return {
        "in_use": name,
        "since": clock.rfc3339(states[name].since) if name is not None else None,
        "sources": {each: state.to_json(clock) for each, state in states.items()},
    }


def _time(at: int | None, clock: Clock) -> str | None:
    return None if at is None else clock.rfc3339(at)


def _error(error: SourceError | None) -> dict[str, str | None] | None:
    return None if error is None else {"what": error.what, "object": error.obj, "hint": error.hint}
