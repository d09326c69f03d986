"""The two clocks: boot time, in which the kernel stamps records, and the wall clock, which people read."""

from __future__ import annotations

import time

from tracer.model import Clock


def boottime() -> int:
    """Now, in nanoseconds of ``CLOCK_BOOTTIME``."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


_SLACK = 0.1  # seconds: less is the jitter of reading two clocks, or slewing; more means that the clock was set
_boot = 0.0


def read() -> Clock:
    """Both clocks, read together. The time of boot stays as it was first found unless the wall clock was set, so that
    a process has the same start time in every answer."""
    global _boot
    now = boottime()
    boot = time.time() - now / 1e9
    if abs(boot - _boot) > _SLACK:
        _boot = boot
    return Clock(now, _boot)
