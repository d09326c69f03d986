"""The two clocks."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tracer import clock

SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Sets the wall clock that podtracer reads, by so many seconds from the machine's."""
    real = time.time

    def by(seconds: float) -> None:
        monkeypatch.setattr(clock.time, "time", lambda: real() + seconds)

    monkeypatch.setattr(clock, "_boots", clock._boots.copy())
    return by


def test_a_moment_has_the_same_name_in_every_answer() -> None:
    """However often the clocks are read, one moment of boot time is the same moment of the day, to the millisecond."""
    moment = clock.boottime()
    assert len({clock.read().rfc3339(moment) for _ in range(2000)}) == 1


@pytest.mark.parametrize("seconds", [1, -1, 3600, -86400, 0.5])
def test_what_a_moment_was_called_is_known_after_the_clock_was_set(set_clock: SetClock, seconds: float) -> None:
    """The name of before and the new one are both the moment's, in any zone and with any digits; those of a
    millisecond beside it are not."""
    moment = clock.boottime() // 1_000_000 * 1_000_000
    before = clock.read().rfc3339(moment)
    set_clock(seconds)
    after = clock.read().rfc3339(moment)
    assert before != after
    for text in (before, after):
        assert clock.said(text, moment)
        assert clock.said(text.replace("Z", "000+00:00"), moment)
        assert not clock.said(text, moment + 2_000_000)
    set_clock(0)
    assert clock.read().rfc3339(moment) == before
    assert clock.said(after, moment)


def test_ages_do_not_hang_on_the_wall_clock(set_clock: SetClock) -> None:
    """Now is told in boot time, whatever the wall clock says."""
    before = clock.read().now
    set_clock(-10_000)
    assert 0 <= clock.read().now - before < 60_000_000_000


def test_a_time_that_no_calendar_has_is_nobodys() -> None:
    """A time at the calendar's end is no moment's name, rather than an error."""
    assert not clock.said("9999-12-31T23:59:59-23:00", clock.boottime())
    assert not clock.said("0001-01-01T00:00:00+23:00", clock.boottime())
