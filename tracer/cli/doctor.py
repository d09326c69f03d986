"""``podtracer doctor``: what this machine has, which way was taken, and what to do about what is missing."""

from __future__ import annotations

from collections.abc import Iterable

import click

from tracer.cli import color, configuration, options
from tracer.cli.app import App, pass_app
from tracer.cli.output import Out, to_json
from tracer.cli.params import OneOf
from tracer.cli.table import Cell, Column, Table
from tracer.doctor import Check, examine, is_ok

_COLORS = {"ok": color.GREEN, "warn": color.YELLOW, "fail": color.BOLD + color.RED}
_NAME = 16  # the width of most names; lines are written as they come
_LONGEST = 1 << 16  # what a check found is never cut

EXAMPLES = """\b
Examples:
  podtracer doctor
  podtracer doctor --kubelet-read-only-port 10255 --cri unix:///run/containerd/containerd.sock
  podtracer doctor -o json
\b
Exit code: 0 nothing is missing that is needed, 1 something is. What only warns is done without, or in another way
that gives the same answers.
"""


@click.command("doctor", cls=options.Command, epilog=EXAMPLES)
@click.option("-o", "--output", "format_", type=OneOf("text", "json"), default="text", help="text or json. [text]")
@options.pod_data_options
@options.global_options
@pass_app
def command(app: App, format_: str) -> int:
    """Check what this machine has: kernel, cgroups, kubelet, runtime; and trace a process of its own."""
    settings = configuration.settings(app.values)
    daemon = app.values["socket"]
    named = daemon.value if daemon.origin != "default" and not app.value("standalone") else None
    checks = examine(settings, daemon_socket=named)
    out = Out()
    if format_ == "json":
        return write_json(checks, out)
    return write_text(checks, out, colored=app.is_colored(out.stream))


def write_json(checks: Iterable[Check], out: Out) -> int:
    """The checks as one object; the exit code."""
    made = tuple(checks)
    out.write(to_json({"checks": [check.to_json() for check in made], "ok": is_ok(made)}))
    return 0 if is_ok(made) else 1


def write_text(checks: Iterable[Check], out: Out, *, colored: bool) -> int:
    """A line for each check as it is made, and one for its hint; the exit code."""
    table = Table((Column("", len("[warn]")), Column("", _NAME), Column("", 0, _LONGEST)), color=colored)
    made = []
    for check in checks:
        made.append(check)
        rows = [[Cell(f"[{check.state}]", _COLORS[check.state]), Cell(check.name), Cell(check.found)]]
        if check.hint is not None:
            rows.append([Cell(""), Cell(""), Cell(f"hint: {check.hint}", color.CYAN)])
        out.write("".join(table.row(row) for row in rows))
    out.write(summary(made) + "\n")
    return 0 if is_ok(made) else 1


def summary(checks: Iterable[Check]) -> str:
    """The last line, for people."""
    states = [check.state for check in checks]
    failed, warned = states.count("fail"), states.count("warn")
    if failed:
        return f"{failed} of {len(states)} checks failed: podtracer cannot work here as asked"
    if warned:
        return f"nothing is missing that is needed; {warned} of {len(states)} checks warn"
    return f"all {len(states)} checks are well"
