"""Asking the daemon over its socket, in turn with a bare echo server: one after the other, and paced."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from tracer import protocol
from tracer.bench.daemon import Daemon
from tracer.bench.echo import Echo, Line
from tracer.bench.report import Label, Report

GAP = 0.005
METHOD = (
    "Over the socket: the daemon in a process of its own. Client: Client.lookup, the identity decoded; one line: a "
    "request as bytes, its answer not decoded, in turn with an echo server that answers every line with as many bytes.",
)


def ask(
    report: Report,
    daemon: Daemon,
    pids: Sequence[int],
    seconds: float,
    labels: dict[str, Label] | None = None,
    *,
    plotted: bool = False,
) -> None:
    """Adds what a look-up takes over the socket; ``seconds`` in all."""
    labels = labels or {}
    lookup = daemon.client.lookup
    samples: list[float] = []
    try:
        _each(lambda: samples.append(_timed(lambda: lookup(random.choice(pids)))), seconds * 0.25)  # noqa: S311
    finally:
        report.add(
            "over the socket",
            {**labels, "asked": "Client", "pace": "one after the other", "server": "podtracer"},
            samples,
            series="over the socket, Client" if plotted else None,
        )
    lines = [protocol.request(1, "lookup", {"pid": pid}) for pid in pids]
    with Line(daemon.socket) as ours:
        length = len(ours.ask(lines[0]))
        path = f"{daemon.socket}.echo"
        with Echo(path, length) as _, Line(path) as theirs:
            for pace, gap, share in (("one after the other", 0.0, 0.25), (f"every {GAP * 1e3:.0f} ms", GAP, 0.5)):
                _in_turn(
                    report, ours, theirs, lines, seconds * share, gap, {**labels, "asked": "one line", "pace": pace}
                )


def _in_turn(
    report: Report,
    ours: Line,
    theirs: Line,
    lines: Sequence[bytes],
    seconds: float,
    gap: float,
    labels: dict[str, Label],
) -> None:
    took: dict[str, list[float]] = {"podtracer": [], "echo": []}
    servers = (("podtracer", ours), ("echo", theirs))

    def both() -> None:
        line = random.choice(lines)  # noqa: S311
        for name, server in servers:
            if gap:
                time.sleep(gap)
            took[name].append(_timed(partial(server.ask, line)))

    try:
        _each(both, seconds)
    finally:
        summaries = {
            name: report.add("over the socket", {**labels, "server": name}, samples) for name, samples in took.items()
        }
        mine, bare = summaries["podtracer"], summaries["echo"]
        if mine is not None and bare is not None:
            report.add(
                "over the socket, of an echo",
                {key: value for key, value in labels.items() if key != "asked"},
                p50=_ratio(mine.p50, bare.p50),
                p90=_ratio(mine.p90, bare.p90),
                p99=_ratio(mine.p99, bare.p99),
                n=mine.count,
            )


def _ratio(mine: float | None, bare: float | None) -> float | None:
    return round(mine / bare, 2) if mine is not None and bare is not None else None


def _timed(act: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    act()
    return (time.perf_counter_ns() - start) / 1e3


def _each(act: Callable[[], None], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        act()
