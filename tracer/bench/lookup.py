"""What one look-up takes: ours, and SPIRE's way for the same processes and the same pod list in the same run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tracer.bench import asking, plugin
from tracer.bench.asking import ask
from tracer.bench.daemon import Daemon
from tracer.bench.holder import Holder
from tracer.bench.pods import make_pods
from tracer.bench.report import Report
from tracer.bench.site import Site
from tracer.bench.spire_way import SpireWay
from tracer.errors import MissingError, TracerError
from tracer.model import State
from tracer.node import Tracer
from tracer.settings import Settings
from tracer.sources.kubelet import KubeletEndpoint

PODS, SIZES, PROCESSES = (3, 110, 250), (2, 8, 10), (100, 1000, 10_000)
USUAL_PODS, USUAL_SIZE, USUAL_PROCESSES = 110, 8, 1000
ROUNDS = 20
OURS, CACHED = 1000, 50  # look-ups a round; and one with a fetch
SOCKET = 0.4  # seconds for each round of asking over the socket
PLUGIN = 0.2  # likewise, through the plugin
_EACH = 300_000  # bytes of memory that a held process takes, about
METHOD = (
    "The ways take turns, round by round, each asking for processes chosen by chance; a round warms up and is not "
    "counted.",
    "podtracer: Tracer.lookup, each timed alone; reading the clock is part of it.",
    "SPIRE's way: read /proc/PID/cgroup, take the pod list (cached: fetched within 500 ms; fetch: GET of the whole "
    "list over HTTP on loopback and a parse), walk all pods; in Python with our own parser (msgspec).",
    "Every answer is checked: both ways name the same selectors.",
    *asking.METHOD,
    *plugin.METHOD,
)


@dataclass(frozen=True, slots=True)
class Size:
    """One size of a node: pods, kilobytes of each in the list, processes."""

    pods: int
    kilobytes: int
    processes: int

    def labels(self) -> dict[str, str | int | float]:
        """As a row has it."""
        return {"pods": self.pods, "kB each": self.kilobytes, "processes": self.processes}


def sizes(pods: Sequence[int], kilobytes: Sequence[int], processes: Sequence[int]) -> list[Size]:
    """What is measured, by growing numbers of pods and processes: every list with the middle number of processes, and
    every number of processes with the middle list."""
    middle = (_middle(pods), _middle(kilobytes), _middle(processes))
    found = {Size(pod, size, middle[2]) for pod in pods for size in kilobytes}
    found |= {Size(middle[0], middle[1], count) for count in processes}
    return sorted(found, key=lambda size: (size.pods, size.processes, size.kilobytes))


def _middle(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


def run(
    report: Report,
    settings: Settings,
    *,
    pods: Sequence[int] = PODS,
    kilobytes: Sequence[int] = SIZES,
    processes: Sequence[int] = PROCESSES,
    rounds: int = ROUNDS,
    progress: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Fills the report, on nodes made up for it."""
    wanted = sizes(pods, kilobytes, processes)
    report.settings = {"pods": list(pods), "kilobytes": list(kilobytes), "processes": list(processes), "rounds": rounds,
                       "lookups_a_round": OURS, "cached_a_round": CACHED}  # fmt: skip
    report.method = METHOD
    for count in dict.fromkeys(size.pods for size in wanted):
        with ExitStack() as stack:
            site = stack.enter_context(Site(settings, warn=warn))
            made = make_pods(count)
            site.publish(made)
            folders = [site.folder(pod, pod.containers[0]) for pod in made]
            holder = stack.enter_context(Holder())
            holder.spread(folders, 1)  # so that a tracer finds at once which hierarchy holds the containers
            tracer = stack.enter_context(Tracer(site.settings, warn=warn, note=lambda _: None))
            tracer.wait_synced(30)
            spire = stack.enter_context(SpireWay(KubeletEndpoint.read_only(site.port), settings.procfs))
            for size in (each for each in wanted if each.pods == count):
                progress(f"{size.pods} pods of {size.kilobytes} kB, {size.processes:,} processes")
                holder.spread(folders, size.processes)
                site.publish(made, size.kilobytes * 1000)
                usual = size == Size(_middle(pods), _middle(kilobytes), _middle(processes))
                measure(report, tracer, spire, holder.pids, size.labels(), rounds, plotted=usual)
                if usual:
                    progress("over the socket")
                    with Daemon(site.settings) as daemon:
                        ask(report, daemon, holder.pids, rounds * SOCKET, plotted=True)
                        plugin.ask(report, daemon.socket, holder.pids, rounds * PLUGIN, asking.GAP)


def run_here(
    report: Report,
    settings: Settings,
    endpoint: KubeletEndpoint,
    *,
    rounds: int = ROUNDS,
    progress: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Fills the report, on this node as it is. Raises ``MissingError`` where no pod runs here."""
    report.settings = {"node": "this one", "rounds": rounds, "lookups_a_round": OURS, "cached_a_round": CACHED}
    report.method = METHOD
    progress("this node's own pods")
    with Tracer(settings, warn=warn, note=lambda _: None) as tracer, SpireWay(endpoint, settings.procfs) as spire:
        tracer.wait_synced(30)
        with tracer.watch() as watch:
            found = []
            while (event := watch.next(1)) is not None and event.event != "synced":
                if event.identity is not None and event.identity.state is State.RESOLVED:
                    found.append(event.identity)
        if not found:
            raise MissingError("no process of a pod runs here", "this node", "ask a kubelet that lists pods")
        labels: dict[str, str | int | float] = {
            "pods": len({identity.workload.pod_uid for identity in found}),
            "processes": len(found),
        }
        measure(report, tracer, spire, [identity.key.pid for identity in found], labels, rounds, plotted=True)


def measure(
    report: Report,
    tracer: Tracer,
    spire: SpireWay,
    pids: Sequence[int],
    labels: dict[str, str | int | float],
    rounds: int,
    *,
    plotted: bool,
) -> None:
    """The three ways in turn."""
    ours: list[float] = []
    cached: list[float] = []
    fetched: list[float] = []
    check(tracer, spire, pids)
    try:
        for turn in range(rounds + 1):
            mine = _time(tracer.lookup, pids, OURS)
            spire.forget()
            with_fetch = _time(spire.lookup, pids, 1)
            with_cache = []
            for _ in range(CACHED):
                spire.keep()
                with_cache += _time(spire.lookup, pids, 1)
            if turn:
                ours += mine
                fetched += with_fetch
                cached += with_cache
    finally:
        _conclude(report, labels, ours, cached, fetched, plotted=plotted)


def _time(ask: Callable[[int], object], pids: Sequence[int], count: int) -> list[float]:
    """Microseconds of so many look-ups."""
    clock, samples = time.perf_counter_ns, []
    for pid in random.choices(pids, k=count):  # noqa: S311
        start = clock()
        ask(pid)
        samples.append((clock() - start) / 1e3)
    return samples


def check(tracer: Tracer, spire: SpireWay, pids: Sequence[int]) -> None:
    """Raises ``TracerError`` unless both ways say the same of some of the processes."""
    tracer.wait_known(pids, 10)
    spire.forget()
    for pid in random.sample(list(pids), min(50, len(pids))):
        mine, theirs = tracer.lookup(pid).workload, spire.lookup(pid)
        if mine.selectors != theirs:
            raise TracerError(
                f"the two ways differ: {mine.state.value} {mine.selectors} and {theirs}",
                f"process {pid}",
                "this is a bug, or the node's pods change while they are looked at",
            )


def _conclude(
    report: Report,
    labels: dict[str, str | int | float],
    ours: list[float],
    cached: list[float],
    fetched: list[float],
    *,
    plotted: bool,
) -> None:
    base = None
    for way, samples in (("podtracer", ours), ("SPIRE's way, cached", cached), ("SPIRE's way, fetch", fetched)):
        p50 = sorted(samples)[len(samples) // 2] if samples else None
        base = base or p50
        times = round(p50 / base, 1) if p50 and base else None
        report.add("look-up", {**labels, "way": way}, samples, series=way if plotted else None, times=times)
