"""Forks and execs as fast as it can, from one cgroup after the other.

``python -m tracer.bench.stormer PARENT FOLDER…``: a line ``seconds`` is answered, when they are over, with
``{"execs", "moves", "seconds"}``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from tracer.bench.children import end_with
from tracer.bench.helper import Helper
from tracer.bench.holder import enter

_EXECS = 20  # between two moves


class Blown(NamedTuple):
    """What one storm of all stormers was: executions and moves of each second, by the stormers' own clocks."""

    execs: float
    moves: float
    seconds: float

    @property
    def events(self) -> float:
        """Events of each second: each execution is a fork, an exec and an exit."""
        return 3 * self.execs + self.moves


class Stormers:
    """One stormer for each processor; a context manager."""

    def __init__(self, folders: Sequence[str], count: int | None = None) -> None:
        size = count or os.cpu_count() or 1
        self._helpers = [Helper("tracer.bench.stormer", *folders[at::size]) for at in range(size)]

    def start(self, seconds: float) -> None:
        """Begins a storm."""
        for helper in self._helpers:
            helper.send(seconds)

    def result(self) -> Blown:
        """What it was, once it is over."""
        found = [helper.receive() for helper in self._helpers]
        return Blown(
            sum(each["execs"] / each["seconds"] for each in found),
            sum(each["moves"] / each["seconds"] for each in found),
            max(each["seconds"] for each in found),
        )

    def blow(self, seconds: float) -> Blown:
        """A whole storm."""
        self.start(seconds)
        return self.result()

    def __enter__(self) -> Stormers:
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self._helpers:
            helper.end()


def main() -> None:
    """Storms when told to."""
    end_with(int(sys.argv[1]))
    folders = sys.argv[2:]
    program = os.path.realpath(shutil.which("true") or "/bin/true")
    at = 0
    while line := sys.stdin.buffer.readline():
        begun = now = time.monotonic()
        end = begun + json.loads(line)
        execs = moves = 0
        while now < end:
            enter(folders[at % len(folders)])
            at += 1
            moves += 1
            for _ in range(_EXECS):
                os.waitpid(os.posix_spawn(program, ["true"], {}), 0)
            execs += _EXECS
            now = time.monotonic()
        print(json.dumps({"execs": execs, "moves": moves, "seconds": now - begun}), flush=True)


if __name__ == "__main__":
    main()
