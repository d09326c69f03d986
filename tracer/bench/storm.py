"""Fork and exec as fast as the machine can, and what that costs with a tracer and without.

The two are interleaved, round by round, and nothing is asked meanwhile; look-ups, the kernel's own clock and losses
each have a storm of their own, since they would change what the others measure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from tracer.bench import asking
from tracer.bench.daemon import Daemon
from tracer.bench.holder import Holder
from tracer.bench.host import Host
from tracer.bench.pods import make_pods
from tracer.bench.report import Report
from tracer.bench.site import Site
from tracer.bench.stormer import Stormers
from tracer.settings import Settings

PAIRS = 8
PODS, CGROUPS, PROCESSES = 110, 64, 200
GAP = 0.005
_TINY = 1  # page
_CALM = 0.5  # seconds behind a storm in which the last losses are repaired
_SHARES = {"pair": 0.5, "stats": 0.1, "closed": 0.1, "paced": 0.1, "socket": 0.1, "losses": 0.1}
METHOD = (
    "Each processor has one process that spawns and waits for /bin/true, 20 times from each cgroup before it moves on.",
    "With and without podtracer in turn, which of them first changing from pair to pair; the first storm warms up "
    "and is not counted.",
    "With: podtracer daemon, which has 110 pods; nothing is asked of it.",
    "Time in the kernel is the kernel's own count (bpf_stats) in a storm of its own; look-ups and losses likewise.",
    *asking.METHOD,
    "repair: from before a record was lost to the end of the first scan that began after it.",
)


def run(
    report: Report,
    settings: Settings,
    *,
    duration: float = 24.0,
    progress: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Fills the report; ``duration`` is that of all storms together."""
    cpus = os.cpu_count() or 1
    report.settings = {
        "duration_s": duration, "pairs": PAIRS, "stormers": cpus, "cgroups": CGROUPS, "pods": PODS,
        "held_processes": PROCESSES, "paced_gap_ms": GAP * 1e3,
    }  # fmt: skip
    report.method = METHOD
    with ExitStack() as stack:
        site = stack.enter_context(Site(settings, warn=warn))
        pods = make_pods(PODS)
        site.publish(pods, 2048)
        folders = [site.folder(pod, pod.containers[0]) for pod in pods]
        holder = stack.enter_context(Holder())
        holder.spread(folders, PROCESSES)
        stormers = stack.enter_context(Stormers(folders[:CGROUPS]))
        stormers.blow(0.5)
        storm = _Storm(report, site, stormers, holder.pids, duration, progress)
        storm.compare()
        storm.count()
        storm.look()
        storm.ask()
        storm.lose()


class _Storm:
    def __init__(
        self,
        report: Report,
        site: Site,
        stormers: Stormers,
        pids: list[int],
        duration: float,
        progress: Callable[[str], None],
    ) -> None:
        self._report = report
        self._site = site
        self._stormers = stormers
        self._pids = pids
        self._duration = duration
        self._progress = progress

    def compare(self) -> None:
        """The slow-down of the storm by the tracer, and what the tracer takes."""
        seconds = self._duration * _SHARES["pair"] / PAIRS / 2
        rates: dict[str, list[float]] = {"without": [], "with": []}
        events, cores, lost = [], [], 0
        try:
            for pair in range(PAIRS):
                self._progress(f"pair {pair + 1} of {PAIRS}")
                for name in ("without", "with") if pair % 2 else ("with", "without"):
                    if name == "without":
                        rates[name].append(self._stormers.blow(seconds).execs)
                        continue
                    with Daemon(self._site.settings) as daemon:
                        before = daemon.cpu()
                        blown = self._stormers.blow(seconds)
                        cores.append((daemon.cpu() - before) / blown.seconds)
                        lost += daemon.client.status()["counters"]["lost_process"]
                    rates[name].append(blown.execs)
                    events.append(blown.events)
        finally:
            self._add_rates(rates, events, cores, lost)

    def _add_rates(self, rates: dict[str, list[float]], events: list[float], cores: list[float], lost: int) -> None:
        add = self._report.add
        for name, samples in rates.items():
            add("fork+exec", {"podtracer": name}, samples, "/s")
        shares = [100 * a / b for a, b in zip(rates["with"], rates["without"], strict=False)]
        add("rate with podtracer, of that without", {"what": "each pair"}, shares, "%")
        add("events", {"what": "events, with podtracer"}, events, "/s")
        add("consumer", {"what": "processor of the daemon"}, [100 * share for share in cores], "% of a core")
        add("records", {"what": "lost, ring of the usual size"}, count=lost)

    def count(self) -> None:
        """Nanoseconds in the kernel for each event, and the share of a fork+exec."""
        self._progress("time in the kernel")
        seconds = self._duration * _SHARES["stats"]
        with Host(self._site.settings) as host:
            before = host.ask("stats")
            blown = self._stormers.blow(seconds)
            after = host.ask("stats")
        spent = 0
        for name, counts in after.items():
            runs = counts.get("run_cnt", 0) - before[name].get("run_cnt", 0)
            took = counts.get("run_time_ns", 0) - before[name].get("run_time_ns", 0)
            if name in ("fork", "exec", "exit", "attach") and runs:
                self._report.add("in the kernel", {"program": name}, ns_each=round(took / runs), runs=runs)
            spent += took
        execs = blown.execs * blown.seconds
        share = 100 * spent / (blown.seconds * 1e9 * (os.cpu_count() or 1))
        self._report.add(
            "in the kernel",
            {"program": "all"},
            ns_each=round(spent / execs),
            runs=round(execs),
            percent_of_cpu=round(share, 3),
        )

    def look(self) -> None:
        """Look-ups by the process that holds the table, in a storm and, for comparison, in none."""
        for name, gap in (("closed", 0.0), ("paced", GAP)):
            seconds = self._duration * _SHARES[name]
            self._progress(f"look-ups meanwhile, {name}")
            with Host(self._site.settings) as host:
                for weather in ("quiet", "storm"):
                    if weather == "storm":
                        self._stormers.start(seconds)
                    host.start_looking(self._pids, seconds if weather == "storm" else min(seconds, 1.0), gap)
                    samples = host.looked()
                    labels = {"asked": "in process", "pace": name, "weather": weather}
                    rate = round(self._stormers.result().execs) if weather == "storm" else 0
                    self._report.add("look-up", labels, samples, series=f"{name}, {weather}", execs_per_s=rate)

    def ask(self) -> None:
        """Look-ups over the daemon's socket, in a storm and in none, in turn with an echo server."""
        seconds = self._duration * _SHARES["socket"]
        self._progress("look-ups meanwhile, over the socket")
        with Daemon(self._site.settings) as daemon:
            asking.ask(self._report, daemon, self._pids, seconds, {"weather": "quiet"})
            self._stormers.start(seconds)
            asking.ask(self._report, daemon, self._pids, seconds, {"weather": "storm"})
            self._stormers.result()

    def lose(self) -> None:
        """Losses by a ring of one page, and how long until all of them were repaired."""
        self._progress("losses and their repair")
        seconds = self._duration * _SHARES["losses"]
        with Host(self._site.settings, ring_pages=_TINY) as host:
            before = host.ask("counters")["lost_process"]
            host.ask("repairs")
            self._stormers.blow(seconds)
            time.sleep(_CALM)
            found = host.ask("repaired")
            lost = host.ask("counters")["lost_process"] - before
        self._report.add(
            "repair", {"what": "ring of one page"}, found["took"], "ms", lost_records=lost, unrepaired=found["open"]
        )
