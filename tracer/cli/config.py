"""``podtracer config``: each value, and where it came from."""

from __future__ import annotations

from typing import Any

import click

from tracer.ages import NOTHING
from tracer.cli import configuration, options
from tracer.cli.app import App, pass_app
from tracer.cli.output import Out, to_json
from tracer.cli.params import OneOf, span
from tracer.cli.table import Cell, Column, Table

EXAMPLES = """\b
Examples:
  podtracer config
  PODTRACER_REFRESH_INTERVAL=5s podtracer config -o json
\b
Flag before environment before file before default. The keys of the file are the flags without dashes in
front; the variables are the keys in upper case behind PODTRACER_, with underscores.
"""


@click.command("config", cls=options.Command, epilog=EXAMPLES)
@click.option("-o", "--output", "format_", type=OneOf("table", "json"), default="table", help="table or json. [table]")
@click.option("--no-headers", is_flag=True, help="Leave out the titles of the columns.")
@options.configurable(*configuration.FILTER)
@options.pod_data_options
@options.daemon_options
@options.global_options
@pass_app
def command(app: App, format_: str, no_headers: bool) -> int:
    """Show each value and where it came from."""
    values = app.values
    configuration.settings(values)  # a value that cannot be used is an error here as well
    out = Out()
    if format_ == "json":
        record = {key: {"value": value.value, "from": value.origin} for key, value in values.items()}
        out.write(to_json(record))
        return 0
    rows = [[Cell(key), Cell(_text(value.value)), Cell(value.origin)] for key, value in values.items()]
    table = Table((Column("KEY"), Column("VALUE", 5, 60), Column("FROM")), color=app.is_colored(out.stream))
    table.fit(rows)
    out.write(("" if no_headers else table.header()) + "".join(table.row(row) for row in rows))
    return 0


def _text(value: Any) -> str:
    if value is None or value == ():
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return span(value)  # every float is a time
    return ",".join(value) if isinstance(value, tuple) else str(value)
