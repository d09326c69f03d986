"""``podtracer watch``: who starts, moves and ends, and as which workload."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import click

from tracer import clock
from tracer.cli import events, options
from tracer.cli.app import App, Tracer, Watch, pass_app, say
from tracer.cli.filters import Filters, matches
from tracer.cli.output import Out
from tracer.cli.params import Duration, OneOf, Whole
from tracer.cli.stop import Stop, Stopper
from tracer.model import Event

_BATCH = 256  # events written at once when that many wait
_FIRST_LIST = 1.0  # seconds that the snapshot waits for the first pod list, rather than call everything pending
_PULSE = 1.0  # seconds after which an idle watch looks whether its reader is still there

F = TypeVar("F", bound=Callable[..., Any])
Prepare = Callable[[ExitStack], tuple[Tracer, Callable[[], None]]]
"""Makes a tracer that is not started yet, and what to call once it is watched; both may be cleared away in the stack's
end. It is not interrupted."""

EXAMPLES = """\b
Examples:
  podtracer watch                          everything, live
  podtracer watch -n shop -l app=cart      one application
  podtracer watch -p 4321 -o json          one process, for a program
  podtracer watch --host --duration 10s    also processes of no pod, for ten seconds
"""


def stream_options(function: F) -> F:
    """The command takes the filters and what says how events are shown, to be given to :func:`run`."""
    for decorate in reversed((
        options.filter_options,
        click.option(
            "-o",
            "--output",
            "format_",
            type=OneOf("table", "wide", "json"),
            default="table",
            help="table, wide, or json: one object a line. [table]",
        ),
        click.option("--duration", type=Duration(), metavar="D", help="End after this time."),
        click.option(
            "--count", type=Whole(1, 10**9), metavar="N", help="End after this many events behind the snapshot."
        ),
        click.option("--no-snapshot", is_flag=True, help="Leave out what runs already."),
        click.option("--plain", is_flag=True, help="No colour, and nothing cut to the width of the terminal."),
        click.option("-t", "--timestamps", is_flag=True, help="Times in RFC 3339, UTC."),
        click.option("--no-headers", is_flag=True, help="Leave out the titles of the columns."),
        click.option("--no-trunc", is_flag=True, help="Write container IDs in full."),
    )):  # fmt: skip
        function = decorate(function)
    return function


@click.command("watch", cls=options.Command, epilog=EXAMPLES)
@stream_options
@options.pod_data_options
@options.global_options
@pass_app
def command(app: App, /, **given: Any) -> int:
    """Show live which processes start, move and end, each with its workload.

    What runs already comes first. Ends cleanly on Ctrl-C, SIGTERM, and when the reader of its output goes.
    """
    return run(app, given, lambda _opened: (app.open_tracer(), lambda: None))


def run(app: App, given: dict[str, Any], prepare: Prepare) -> int:
    """Watches what ``prepare`` makes until a limit, a signal or the reader ends it; the exit code."""
    wanted = options.filters(app, given)
    out = Out()
    style = out.style(
        colored=app.is_colored(out.stream),
        plain=given["plain"],
        headers=not given["no_headers"],
        trunc=not given["no_trunc"],
        timestamps=given["timestamps"],
        spiffe=app.value("entries-file") is not None,
    )
    printer = events.printer(given["format_"], out, style)
    snapshot = not given["no_snapshot"]
    with Stopper() as stopper, suppress(Stop), ExitStack() as opened:
        try:
            prepared, begin = prepare(opened)
            with stopper.interruptible():
                tracer = opened.enter_context(prepared)
                if snapshot:
                    tracer.wait_synced(_FIRST_LIST)
                watch = opened.enter_context(tracer.watch(snapshot=snapshot, parity=given["format_"] == "wide"))
            printer.begin()
            begin()
            _follow(watch, printer, out, stopper, wanted, given["duration"], given["count"], snapshot)
        finally:
            stopper.shield()  # whatever was opened is closed, however often somebody presses Ctrl-C
    if app.verbose:
        say("podtracer: watch ended")
    return 0


def _follow(
    watch: Watch,
    printer: events.EventPrinter,
    out: Out,
    stopper: Stopper,
    wanted: Filters,
    duration: float | None,
    count: int | None,
    snapshot: bool,
) -> None:
    ends = None if duration is None else time.monotonic() + duration
    left = count
    is_counting = not snapshot
    while left is None or left > 0:
        pulse = _PULSE if ends is None else min(_PULSE, ends - time.monotonic())
        if pulse <= 0:
            return
        with stopper.interruptible():
            event = watch.next(pulse)
        if event is None:
            if not out.is_read():
                return
            continue
        batch: list[Event] = []
        seen = 0
        while event is not None:
            seen += 1
            is_counting = is_counting or event.event == "synced"
            if event.identity is None or matches(event.identity, wanted):
                batch.append(event)
                if is_counting and left is not None and event.identity is not None:
                    left -= 1
                    if left == 0:
                        break
            # Only what is written may be taken from the queue.
            event = watch.next(0) if seen < _BATCH else None
        printer.batch(batch, clock.read())
