"""Becomes another program, which ends with who started it.

``python -m tracer.bench.launch PARENT FOLDER PROGRAM ARGUMENT…``: enters the cgroup of FOLDER unless that is ``-``,
prints the time of ``CLOCK_MONOTONIC`` in nanoseconds, and executes.
"""

from __future__ import annotations

import os
import sys
import time

from tracer.bench.children import end_with
from tracer.bench.holder import enter


def main() -> None:
    """Becomes it."""
    end_with(int(sys.argv[1]))
    if sys.argv[2] != "-":
        enter(sys.argv[2])
    print(time.monotonic_ns(), flush=True)
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606, there is no shell in it


if __name__ == "__main__":
    main()
