"""``podtracer bench``: what podtracer takes and how right it is, measured here, beside the way that it replaces."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tracer.cli import configuration, options
from tracer.cli.app import App, pass_app, say, warn
from tracer.cli.output import Out, to_json
from tracer.cli.params import Duration, OneOf, Text, Whole
from tracer.cli.stop import Stop, Stopper
from tracer.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
Measure = Callable[..., None]
"""Fills the report it is given; also takes ``progress`` and ``warn``."""

EXAMPLES = """\b
Examples:
  podtracer bench lookup                       what a look-up takes, beside SPIRE's way
  podtracer bench storm --duration 60s         the cost of tracing while everything forks
  podtracer bench accuracy                     whether any answer is ever wrong
  podtracer bench lookup -o json --plot lookup.svg
\b
Exit code: 0 done, 1 what is to be shown was not, 130 interrupted; then what was measured until then is printed.
"""


class _Numbers(Whole):
    """Whole numbers parted by commas, as a tuple."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        convert = super().convert
        return tuple(sorted({convert(part.strip(), param, ctx) for part in str(value).split(",")}))


@click.group("bench", no_args_is_help=False, epilog=EXAMPLES)
def command() -> None:
    """Measure speed and correctness on this machine, beside the way that is replaced.

    Processes, cgroups and pods are made up for it, and removed at the end, unless --here asks for this node's own. Runs
    as root. Progress goes to stderr.
    """


def _shared(function: F) -> F:
    for decorate in reversed((
        click.option("-o", "--output", "format_", type=OneOf("text", "json"), default="text",
                     help="text, or json: one object. [text]"),
        click.option("--plot", type=Text(), metavar="F", help="Draw it, as .svg or .png."),
        options.global_options,
        pass_app,
    )):  # fmt: skip
        function = decorate(function)
    return function


def _run(app: App, name: str, format_: str, plot: str | None, measure: Measure) -> int:
    """Runs one benchmark until it ends or is interrupted, and writes what it found; the exit code."""
    from tracer.bench import plot as drawing
    from tracer.bench.facts import facts
    from tracer.bench.report import Report

    if plot is not None:
        drawing.check(plot)
    out = Out()
    report = Report(name, machine=facts())
    with Stopper() as stopper:
        try:
            with stopper.interruptible():
                measure(report, progress=lambda text: say(f"bench {name}: {text}"), warn=warn)
        except Stop:
            report.interrupted = True
        finally:
            stopper.shield()
        report.end()
        if format_ == "json":
            out.write(to_json(report.to_dict()))
        else:
            from tracer.cli import bench_output

            out.write("".join(bench_output.text(report, colored=app.is_colored(out.stream))))
        if plot is not None and (report.series or report.bars):
            drawing.write(report, plot)
            say(f"bench {name}: drawn to {plot}")
    return report.exit_code


@command.command("lookup", cls=options.Command)
@click.option("--pods", type=_Numbers(1, 1000), default=(3, 110, 250), metavar="N,…", help="Pods. [3,110,250]")
@click.option("--kilobytes", type=_Numbers(1, 100), default=(2, 8, 10), metavar="N,…",
              help="Size of each pod in the kubelet's list. [2,8,10]")  # fmt: skip
@click.option("--processes", type=_Numbers(1, 50_000), default=(100, 1000, 10_000), metavar="N,…",
              help="Processes. [100,1000,10000]")  # fmt: skip
@click.option("--rounds", type=Whole(1, 10_000), default=20, metavar="N", help="Rounds of each. [20]")
@click.option("--here", is_flag=True, help="This node's own pods and processes, found as watch finds them.")
@options.pod_data_options
@_shared
def lookup(app: App, format_: str, plot: str | None, here: bool, rounds: int, **given: Any) -> int:
    """What one look-up takes: ours, and SPIRE's way for the same processes and pods.

    Every list with the middle number of processes, every number of processes with the middle list.
    """
    from tracer.bench import lookup as bench

    settings = configuration.settings(app.values)
    if here:
        from tracer.sources.finding import choose

        if settings.kubelet == "none":
            raise UsageError("SPIRE's way asks the kubelet", "kubelet", "leave out --kubelet none, or --here")
        choice = choose(settings)
        return _run(app, "lookup", format_, plot, lambda report, **more: bench.run_here(
            report, settings, choice.endpoint, rounds=rounds, **more))  # fmt: skip
    return _run(
        app, "lookup", format_, plot, lambda report, **more: bench.run(report, settings, rounds=rounds, **given, **more)
    )


@command.command("storm", cls=options.Command)
@click.option("--duration", type=Duration(), default=24.0, metavar="D", help="All storms together. [24s]")
@_shared
def storm(app: App, format_: str, plot: str | None, duration: float) -> int:
    """Fork and exec as fast as the machine can, with podtracer and without.

    Rates of both, interleaved; lost records and how long their repair took, time in the kernel for each event, the
    tracer's processor time, and look-ups meanwhile.
    """
    from tracer.bench import storm as bench

    _check(duration, 1.0)
    settings = configuration.settings(app.values)
    return _run(
        app, "storm", format_, plot, lambda report, **more: bench.run(report, settings, duration=duration, **more)
    )


@command.command("accuracy", cls=options.Command)
@click.option("--duration", type=Duration(), default=20.0, metavar="D", help="At least so long. [20s]")
@click.option("--least", type=Whole(1, 10**9), default=1000, metavar="N",
              help="How many reuses, moves, lost records, and names and moves by the user. [1000]")  # fmt: skip
@click.option("--seed", type=Whole(0, 2**32 - 1), metavar="N", help="Of chance; another one each time without.")
@_shared
def accuracy(app: App, format_: str, plot: str | None, **given: Any) -> int:
    """Compare every answer with the truth, while processes do what makes answers wrong.

    PIDs are reused, processes move, containers die and come back, records are lost, and cgroups are named after others'
    pods. A user who owns a delegated subtree names cgroups after listed containers all the time. Exit code 1 unless no
    answer is wrong, 99.9 % of those that are due are resolved, and an index by the bare PID is found wrong in the same
    run.
    """
    from tracer.bench import accuracy as bench

    _check(given["duration"], 2.0)
    settings = configuration.settings(app.values)
    return _run(app, "accuracy", format_, plot, lambda report, **more: bench.run(report, settings, **given, **more))


@command.command("start", cls=options.Command)
@click.option("--processes", type=_Numbers(1, 50_000), default=(100, 1000, 10_000), metavar="N,…",
              help="Processes in pods. [100,1000,10000]")  # fmt: skip
@click.option("--runs", type=Whole(1, 1000), default=5, metavar="N", help="Starts with each. [5]")
@_shared
def start(app: App, format_: str, plot: str | None, **given: Any) -> int:
    """Time until ready, and memory, on a node that is busy already."""
    from tracer.bench import start as bench

    settings = configuration.settings(app.values)
    return _run(app, "start", format_, plot, lambda report, **more: bench.run(report, settings, **given, **more))


@command.command("ready", cls=options.Command)
@click.option("--kubectl", type=Text(), default="kubectl", metavar="CMD", help="How kubectl is called. [kubectl]")
@click.option("--kubeconfig", type=Text(), metavar="F", help="The cluster, unless it is kubectl's own choice.")
@click.option(
    "--image", type=Text(), default="busybox", metavar="IMAGE", help="Of the pods; has sh and sleep. [busybox]"
)
@click.option("--pods", type=_Numbers(1, 1000), default=(3, 100), metavar="N,…",
              help="Pods on the node meanwhile. [3,100]")  # fmt: skip
@click.option("--starts", type=Whole(1, 10_000), default=20, metavar="N", help="Starts with each. [20]")
@click.option("--hooked", type=Whole(0, 10_000), default=5, metavar="N",
              help="Starts with each behind a postStart hook of 3 s. [5]")  # fmt: skip
@options.pod_data_options
@_shared
def ready(app: App, format_: str, plot: str | None, kubectl: str, kubeconfig: str | None, **given: Any) -> int:
    """Whether an identity is complete when a container asks as its first act, and else how much later.

    On a node of a real cluster, whose pods and kubelet it asks for with the options of watch; makes pods in a namespace
    of its own, which share the node's PID namespace and mount a folder of the node.
    """
    from tracer.bench import ready as bench
    from tracer.bench.kubectl import Kubectl
    from tracer.sources.finding import choose

    settings = configuration.settings(app.values)
    cluster = Kubectl(shlex.split(kubectl) or ["kubectl"], kubeconfig)
    cluster.check()
    endpoint = choose(settings).endpoint
    return _run(
        app,
        "ready",
        format_,
        plot,
        lambda report, **more: bench.run(report, settings, endpoint, cluster, **given, **more),
    )


@command.command("attest", cls=options.Command)
@click.option("--workload-api", type=Text(), metavar="SOCKET",
              help="Socket of a SPIFFE Workload API: unix:///PATH. [SPIFFE_ENDPOINT_SOCKET]")  # fmt: skip
@click.option("--calls", type=Whole(1, 10**6), default=40, metavar="N", help="Calls of each kind. [40]")
@click.option("--gap", type=Duration(), default=0.6, metavar="D", help="Between two calls. [600ms]")
@click.option("--new-connection", is_flag=True, help="Connect anew for each call.")
@click.option("--audience", type=Text(), default="podtracer-bench", help="Of the JWT-SVIDs. [podtracer-bench]")
@_shared
def attest(app: App, format_: str, plot: str | None, workload_api: str | None, **given: Any) -> int:
    """Time calls to a SPIRE agent, or any SPIFFE Workload API, as a workload makes them.

    FetchJWTSVID and FetchX509SVID; run it as, or in, a workload that has a registration entry. Needs no root.
    """
    from tracer.bench import attest as bench

    path = bench.endpoint(workload_api, app.environ)
    return _run(app, "attest", format_, plot, lambda report, **more: bench.run(report, path, **given, **more))


def _check(duration: float, least: float) -> None:
    if duration < least:
        raise UsageError(f"{duration:g}s is too short to measure anything", "duration", f"say {least:g}s or more")
