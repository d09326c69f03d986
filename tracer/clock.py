"""The two clocks: boot time, in which the kernel stamps records, and the wall clock, which people read."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime

from tracer.model import Clock


def boottime() -> int:
    """Now, in nanoseconds of ``CLOCK_BOOTTIME``."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


_SLACK = 0.1  # seconds: less is the jitter of reading two clocks, or slewing; more means that the clock was set
_boot = 0.0
_MOST = 1024  # times of boot that are remembered: the clock is set now and then, and slewed by so much once in hours
_boots: deque[float] = deque(maxlen=_MOST)


def read() -> Clock:
    """Both clocks, read together. The time of boot stays as it was first found unless the wall clock was set, so that
    a process has the same start time in every answer."""
    global _boot
    now = boottime()
    boot = time.time() - now / 1e9
    if abs(boot - _boot) > _SLACK:
        _boots.append(boot)
        _boot = boot
    return Clock(now, _boot)


def said(text: str, moment: int) -> bool:
    """Whether an RFC 3339 time is what ``moment`` (boot time nanoseconds) was called in any answer since this process
    started, however often the wall clock was set since. Raises ``ValueError`` for what is no such time."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("it has no time zone")
    # As Clock.rfc3339 writes it, whatever the zone and the digits behind the millisecond.
    try:
        at = at.astimezone(UTC)
    except OverflowError:
        return False
    wanted = at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
    read()
    return any(Clock(moment, boot).rfc3339(moment) == wanted for boot in tuple(_boots))
