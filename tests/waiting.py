"""Waiting for what has to become true. No test sleeps for luck."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# How many times longer things may take than on a machine of one's own: in a virtual machine by software emulation.
SLOW = float(os.environ.get("PODTRACER_TEST_SLOW") or 1)


def until(predicate: Callable[[], T], timeout: float, what: str, *, interval: float = 0.01) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    ``what`` finishes the sentence "waited … s for", which is what a failure says; ``timeout`` and
    ``interval`` are seconds, the first of them on a machine that is not ``SLOW``. An ``AssertionError`` from
    the predicate counts as "not yet", and becomes the cause of the failure. Raises ``TimeoutError``.
    """
    timeout *= SLOW
    deadline = time.monotonic() + timeout
    while True:
        cause = None
        try:
            if value := predicate():
                return value
        except AssertionError as not_yet:
            cause = not_yet
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}") from cause
        time.sleep(interval)
