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
# Boot times that are remembered: a new one comes when the clock is set, and every few hours while it is slewed.
_MOST = 1024
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
    """Whether any answer since this process started gave ``moment`` (boot time nanoseconds) as this RFC 3339 time,
    however often the wall clock was set since. Raises ``ValueError`` for a text that is not such a time."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("it has no time zone")
    # As Clock.rfc3339 writes it: in UTC, cut to milliseconds.
    try:
        at = at.astimezone(UTC)
    except OverflowError:
        return False
    wanted = at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
    read()
    return any(Clock(moment, boot).rfc3339(moment) == wanted for boot in tuple(_boots))
