"""The two clocks: boot time, in which the kernel stamps records, and the wall clock, which people read."""

from __future__ import annotations

import time

from tracer.model import Clock


def boottime() -> int:
    """Now, in nanoseconds of ``CLOCK_BOOTTIME``."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def read() -> Clock:
    """Both clocks, read together; taken anew for each use, since the wall clock may be set."""
    now = boottime()
    return Clock(now, time.time() - now / 1e9)
