"""How long until a tracer is ready on a node that is busy already, and what memory it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from tracer.bench.holder import Holder
from tracer.bench.host import Host
from tracer.bench.pods import make_pods
from tracer.bench.report import Report
from tracer.bench.site import Site
from tracer.settings import Settings

PROCESSES = (100, 1000, 10_000)
PODS, KILOBYTES, RUNS = 250, 10, 5
METHOD = (
    "ready: from before the process is made until programs are attached, all processes scanned and the first pod "
    "list is taken in; Python's own start is part of it.",
    "resident: VmRSS of the process then.",
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
    report.settings = {"processes": list(processes), "pods": PODS, "kilobytes": KILOBYTES, "runs": runs}
    report.method = METHOD
    report.plot_unit, report.plot_label = "ms", "time until ready"
    with ExitStack() as stack:
        site = stack.enter_context(Site(settings, warn=warn))
        pods = make_pods(PODS)
        site.publish(pods, KILOBYTES * 1000)
        folders = [site.folder(pod, pod.containers[0]) for pod in pods]
        holder = stack.enter_context(Holder())
        for count in sorted(processes):
            progress(f"{count:,} processes")
            holder.spread(folders, count)
            ready: list[float] = []
            memory: list[float] = []
            try:
                for _ in range(runs):
                    with Host(site.settings) as host:
                        ready.append(host.ready * 1e3)
                        memory.append(host.ask("resident"))
            finally:
                all_of_them = sum(name.isdigit() for name in os.listdir(settings.procfs))
                labels: dict[str, str | int | float] = {"processes": count, "of all": all_of_them}
                report.add("ready", labels, ready, "ms", series=f"{count:,} processes")
                report.add("resident", labels, memory, "MB")
