"""Holds processes that do nothing, in the cgroups they are wanted in.

``python -m tracer.bench.holder PARENT``: each line ``[[folder, count], …]`` makes that many there, and is answered with
their PIDs. All of them end with the input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence

from tracer.bench.children import clone, end_with
from tracer.bench.helper import Helper


class Holder:
    """Processes held until the end; a context manager."""

    def __init__(self) -> None:
        self._helper = Helper("tracer.bench.holder")
        self.pids: list[int] = []

    def hold(self, wanted: Sequence[tuple[str, int]]) -> list[int]:
        """So many more processes in each of these cgroups; their PIDs."""
        made: list[int] = self._helper.ask(wanted)
        self.pids += made
        return made

    def spread(self, folders: Sequence[str], total: int) -> None:
        """As many more as it takes to have ``total``, spread evenly."""
        missing = total - len(self.pids)
        each, rest = divmod(max(0, missing), len(folders))
        self.hold([(folder, each + (at < rest)) for at, folder in enumerate(folders) if each + (at < rest)])

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self._helper.end()


def enter(folder: str) -> None:
    """This process moves to a cgroup."""
    fd = os.open(f"{folder}/cgroup.procs", os.O_WRONLY)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def main() -> None:
    """Holds until the end of the input."""
    end_with(int(sys.argv[1]))
    parent = os.getpid()
    made: list[int] = []
    while line := sys.stdin.buffer.readline():
        new = []
        for folder, count in json.loads(line):
            enter(folder)  # born where they belong: one move for all of them
            for _ in range(count):
                pid = clone()
                if pid == 0:
                    try:
                        end_with(parent)
                        signal.pause()
                    finally:
                        os._exit(1)
                new.append(pid)
        made += new
        print(json.dumps(new), flush=True)
    for pid in made:
        os.kill(pid, signal.SIGKILL)
    for pid in made:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
