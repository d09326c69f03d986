"""How long until the daemon is ready on a node that is busy already, and what it takes then, also while nothing
happens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from tracer.bench.daemon import Daemon
from tracer.bench.holder import Holder
from tracer.bench.pods import make_pods
from tracer.bench.report import Label, Report
from tracer.bench.site import Site, memory_cgroup
from tracer.settings import Settings

PROCESSES = (100, 1000, 10_000)
PODS, KILOBYTES, RUNS = 250, 10, 5
IDLE = 3.0  # seconds, in the last run with each number of processes
METHOD = (
    "ready: from before podtracer daemon is executed until its socket says that programs are attached, all processes "
    "scanned and the first pod list is taken in; Python's own start is part of it.",
    "resident: VmRSS of the daemon then. charged: what a memory cgroup of its own is charged with, the kernel's maps "
    "and the compiler that has ended by then among it.",
    "idle: its processor time while the bench does nothing; what else this machine does is in it.",
)


def run(
    report: Report,
    settings: Settings,
    *,
    processes: Sequence[int] = PROCESSES,
    runs: int = RUNS,
    progress: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Fills the report."""
    report.settings = {"processes": list(processes), "pods": PODS, "kilobytes": KILOBYTES, "runs": runs, "idle_s": IDLE}
    report.method = METHOD
    report.plot_unit, report.plot_label = "ms", "time until ready"
    with ExitStack() as stack:
        site = stack.enter_context(Site(settings, warn=warn))
        memory = stack.enter_context(memory_cgroup(settings, site.name))
        pods = make_pods(PODS)
        site.publish(pods, KILOBYTES * 1000)
        folders = [site.folder(pod, pod.containers[0]) for pod in pods]
        holder = stack.enter_context(Holder())
        for count in sorted(processes):
            progress(f"{count:,} processes")
            holder.spread(folders, count)
            _start(report, site, memory, count, runs)


def _start(report: Report, site: Site, memory: str | None, count: int, runs: int) -> None:
    """Some starts with so many processes held."""
    ready: list[float] = []
    resident: list[float] = []
    charged: list[float] = []
    idle: float | None = None
    try:
        for number in range(runs):
            with Daemon(site.settings, memory=memory) as daemon:
                ready.append(daemon.ready * 1e3)
                resident.append(daemon.resident())
                if (size := daemon.charged()) is not None:
                    charged.append(size)
                if number == runs - 1:
                    before = daemon.cpu()
                    time.sleep(IDLE)
                    idle = round(100 * (daemon.cpu() - before) / IDLE, 2)
    finally:
        there = sum(name.isdigit() for name in os.listdir("/proc"))
        labels: dict[str, Label] = {"processes": count, "of all": there}
        report.add("ready", labels, ready, "ms", series=f"{count:,} processes")
        report.add("resident", labels, resident, "MB")
        if charged:
            report.add("charged", labels, charged, "MB")
        report.add("idle", labels, percent_of_a_core=idle)
