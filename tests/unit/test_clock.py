"""The two clocks."""

from __future__ import annotations

from tracer import clock


def test_a_moment_has_the_same_name_in_every_answer() -> None:
    """However often the clocks are read, one moment of boot time is the same moment of the day, to the millisecond."""
    moment = clock.boottime()
    assert len({clock.read().rfc3339(moment) for _ in range(2000)}) == 1
