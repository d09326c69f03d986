"""``podtracer ps``: every pod's processes, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import click

from tracer import clock
from tracer.cli import identities, options
from tracer.cli.app import App, pass_app
from tracer.cli.filters import matches
from tracer.errors import UsageError
from tracer.model import Identity

_SYNC_TIMEOUT = 10.0  # seconds for the first pod list; a kubelet known to fail ends the wait earlier

EXAMPLES = """\b
Examples:
  podtracer ps                             all processes of all pods
  podtracer ps -n shop --tree              one namespace, children below their parents
  podtracer ps -l app=cart -o name
  podtracer ps --host -o json
"""


@click.command("ps", cls=options.Command, epilog=EXAMPLES)
@options.filter_options
@identities.format_option
@click.option("--tree", is_flag=True, help="Show children below their parents, container by container.")
@identities.table_options
@options.pod_data_options
@options.global_options
@pass_app
def command(app: App, /, **given: Any) -> int:
    """List the processes of every pod, by namespace, pod and container.

    Processes of no pod are left out, unless asked for with --host or by their number.
    """
    wanted = options.filters(app, given)
    if given["tree"] and given["format_"] not in ("table", "wide"):
        raise UsageError("a tree is for people", "--tree", "leave it out, or say -o table or wide")
    printer = identities.printer(app, given)
    with app.open_tracer() as tracer:
        tracer.wait_synced(_SYNC_TIMEOUT)
        found = [identity for identity in tracer.ps(parity=True) if matches(identity, wanted)]
    found.sort(key=_place)
    printer.batch(list(_tree(found)) if given["tree"] else found, clock.read())
    return 0


def _place(identity: Identity) -> tuple[bool, str, str, str, int]:
    w = identity.workload
    return w.namespace is None, w.namespace or "", w.pod or "", w.container or "", identity.key.pid


def _tree(found: Sequence[Identity]) -> Iterator[Identity]:
    """The identities with children below their parents, drawn before their names; each container's on its own."""
    groups: dict[tuple[object, ...], list[Identity]] = {}
    for identity in found:
        groups.setdefault(_place(identity)[:-1], []).append(identity)
    for group in groups.values():
        members = {identity.key.pid for identity in group}
        children: dict[int, list[Identity]] = {}
        for identity in group:
            parent = identity.process.ppid if identity.process else 0
            children.setdefault(parent if parent in members and parent != identity.key.pid else 0, []).append(identity)
        left = [(identity, "") for identity in reversed(children.get(0, []))]
        while left:
            identity, indent = left.pop()
            branch = f"{indent}└─ " if indent or identity not in children.get(0, ()) else ""
            yield _named(identity, branch)
            below = indent + "   " if branch else " "
            left += [(child, below) for child in reversed(children.get(identity.key.pid, []))]


def _named(identity: Identity, branch: str) -> Identity:
    process = identity.process
    if process is None or not branch:
        return identity
    return identity._replace(process=replace(process, comm=branch + process.comm))
