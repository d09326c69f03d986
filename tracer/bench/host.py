"""A tracer in a process of its own, as a daemon is one; asked from inside, since what is measured is itself.

``python -m tracer.bench.host PARENT``. First line: ``{"settings": {…}, "ring_pages": n|null}``, answered when it is
ready. Then ``{"op": …}``, each answered with one line.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from tracer.bench.children import end_with
from tracer.bench.facts import resident
from tracer.bench.helper import Helper
from tracer.settings import Settings

_SAMPLE = 0.001  # seconds between two looks at what was lost and repaired


class Host:
    """The other end: a tracer that was started and is ready; a context manager. ``ready`` is how long that took, in
    seconds from before its process was made."""

    def __init__(self, settings: Settings, *, ring_pages: int | None = None) -> None:
        begun = time.monotonic()
        self.helper = Helper("tracer.bench.host", site=True)
        try:
            self.helper.send({"settings": asdict(settings), "ring_pages": ring_pages})
            self.helper.receive(120)
        except BaseException:
            self.helper.end()
            raise
        self.ready = time.monotonic() - begun

    def ask(self, op: str, **more: Any) -> Any:
        """One operation."""
        return self.helper.ask({"op": op, **more})

    def start_looking(self, pids: Sequence[int], seconds: float, gap: float) -> None:
        """Look-ups for so long, one every ``gap`` seconds, one after the other where that is 0; see ``looked``."""
        self.helper.send({"op": "look", "pids": list(pids), "seconds": seconds, "gap": gap})

    def looked(self) -> list[float]:
        """Microseconds of each look-up."""
        samples: list[float] = self.helper.receive()
        return samples

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.helper.end()


class Repairs:
    """Watches how long each loss took to be repaired: from before it happened to the end of the first scan that began
    after it, in milliseconds."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.took: list[float] = []
        self.open = 0
        self._thread.start()

    def _run(self) -> None:
        clock = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
        lost = self._tracer.programs.lost()[:2]
        before, waiting = clock(), []
        while not self._stop.wait(_SAMPLE):
            now, there = clock(), self._tracer.programs.lost()[:2]
            if there != lost:
                waiting.append((before, now))
            lost, before = there, now
            began, ended = self._tracer.last_scan
            self.took += [(ended - first) / 1e6 for first, last in waiting if last <= began]
            waiting = [each for each in waiting if each[1] > began]
        self.open = len(waiting)

    def end(self) -> None:
        """Ends it."""
        self._stop.set()
        self._thread.join()


def look(tracer: Any, pids: Sequence[int], seconds: float, gap: float) -> list[float]:
    """Microseconds of look-ups of processes chosen by chance."""
    clock, lookup, choose = time.perf_counter_ns, tracer.lookup, random.choice
    samples = []
    end = time.monotonic() + seconds
    due = time.monotonic()
    while (now := time.monotonic()) < end:
        if gap:
            due += gap
            if due > now:
                time.sleep(due - now)
        pid = choose(pids)
        start = clock()
        lookup(pid)
        samples.append((clock() - start) / 1e3)
    return samples


def main() -> None:
    """Serves until the end of the input."""
    end_with(int(sys.argv[1]))
    from tracer.kernel import bpf
    from tracer.kernel.loader import Programs
    from tracer.node import Tracer

    told = json.loads(sys.stdin.buffer.readline())
    pages = told["ring_pages"]
    load = partial(Programs, process_ring_pages=pages) if pages else Programs
    stats = -1
    repairs: Repairs | None = None
    with Tracer(Settings(**told["settings"]), warn=lambda _: None, note=lambda _: None, load=load) as tracer:
        tracer.wait_synced(30)
        print(json.dumps({"hierarchy": tracer.hierarchy}), flush=True)
        while line := sys.stdin.buffer.readline():
            asked = json.loads(line)
            answer: Any = None
            match asked["op"]:
                case "look":
                    answer = look(tracer, asked["pids"], asked["seconds"], asked["gap"])
                case "counters":
                    answer = tracer.counters()
                case "resident":
                    answer = resident(os.getpid())
                case "stats":  # the kernel's own clock, from now on
                    stats = bpf.enable_stats() if stats < 0 else stats
                    answer = tracer.programs.stats()
                case "repairs":
                    repairs = Repairs(tracer)
                case "repaired":
                    assert repairs is not None
                    repairs.end()
                    answer = {"took": repairs.took, "open": repairs.open}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
