"""``podtracer lookup``: the identity of processes now."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from tracer import clock
from tracer.cli import identities, options
from tracer.cli.app import App, Tracer, pass_app
from tracer.cli.params import Duration, PidOrSelf
from tracer.errors import UsageError
from tracer.model import Identity, State

_SYNC_TIMEOUT = 10.0  # seconds for the first pod list; a kubelet known to fail ends the wait earlier
_ALL_ATTEMPTS = "all"
_EXIT = {State.RESOLVED: 0, State.HOST: 1, State.GONE: 1, State.PENDING: 75, State.UNKNOWN: 75}

EXAMPLES = """\b
Examples:
  podtracer lookup 4321                    one process
  podtracer lookup 4321 4322 -o json       two, one object a line
  pgrep nginx | podtracer lookup - -o name
  podtracer lookup self                    podtracer's own process; in a pod, that pod
  podtracer lookup 4321 --wait=5s -o selectors
  podtracer lookup 4321 -o jsonpath='{.pod}{" "}{.selectors[*]}'
\b
Exit code: 0 all resolved, 1 a host process or gone, 75 not known yet; the highest of several.
"""


class _Wait(Duration):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == _ALL_ATTEMPTS else super().convert(value, param, ctx)


@click.command("lookup", cls=options.Command, epilog=EXAMPLES, bare={"--wait": _ALL_ATTEMPTS})
@click.argument("pids", metavar="PID… | -", nargs=-1, required=True)
@identities.format_option
@click.option(
    "--wait",
    type=_Wait(),
    metavar="[=D]",
    help="Wait while the answer is pending: for D, or without it for all attempts.",
)
@identities.table_options
@options.pod_data_options
@options.global_options
@pass_app
def command(app: App, /, pids: tuple[str, ...], **given: Any) -> int:
    """Say which workload each process is; - reads process IDs from stdin, one a line.

    A thread's ID stands for its process, self for podtracer's own process. Answers come in the order asked.
    """
    asked = [text if text == "-" else _pid(text, "PID") for text in pids]
    printer = identities.printer(app, given)
    wait = given["wait"]
    with app.open_tracer() as tracer:
        if wait == _ALL_ATTEMPTS:
            wait = app.value("max-poll-attempts") * app.value("poll-retry-interval")
        tracer.wait_synced(_SYNC_TIMEOUT)
        worst = 0
        for batch in _batches(asked):
            found = _look(tracer, batch, wait)
            printer.batch(found, clock.read())
            worst = max([worst, *(_EXIT[identity.state] for identity in found)])
    return worst


def _look(tracer: Tracer, pids: list[int], wait: float | None) -> list[Identity]:
    if wait is not None:
        tracer.wait_known(pids, wait)
    return [tracer.lookup(pid, verify=True, parity=True) for pid in pids]


def _batches(asked: list[Any]) -> Iterator[list[int]]:
    # Those of the command line together; those of stdin as they come, for a program that asks and waits.
    batch: list[int] = []
    for item in asked:
        if item != "-":
            batch.append(item)
            continue
        if batch:
            yield batch
            batch = []
        yield from ([pid] for pid in _from_stdin())
    if batch:
        yield batch


def _from_stdin() -> Iterator[int]:
    for number, line in enumerate(sys.stdin or (), 1):
        if text := line.strip():
            yield _pid(text, f"stdin, line {number}")


def _pid(text: str, obj: str) -> int:
    try:
        return PidOrSelf().convert(text, None, None)
    except click.BadParameter as error:
        raise UsageError(
            error.message, obj, "give process IDs, self for podtracer itself, or - to read them from stdin"
        ) from None
