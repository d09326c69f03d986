"""What ``lookup`` and ``ps`` share: the options that say how identities are written, and the printer they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tracer.cli import output
from tracer.cli.app import App

F = TypeVar("F", bound=Callable[..., Any])


def _format(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    output.check_format(value)
    return value


def format_option(function: F) -> F:
    """The command takes the format of its output."""
    return click.option(
        "-o",
        "--output",
        "format_",
        default="table",
        metavar="FORMAT",
        callback=_format,
        help="table, wide, json, yaml, name, selectors, or jsonpath=TEMPLATE. [table]",
    )(function)


def table_options(function: F) -> F:
    """The command takes what says how a table looks."""
    for flag, text in (
        ("--no-trunc", "Write container IDs in full."),
        ("--no-headers", "Leave out the titles of the columns."),
        ("--plain", "No colour, and nothing cut to the width of the terminal."),
    ):
        function = click.option(flag, is_flag=True, help=text)(function)
    return function


def printer(app: App, given: dict[str, Any]) -> output.Printer:
    """The printer that these options ask for."""
    out = output.Out()
    style = out.style(
        colored=app.is_colored(out.stream),
        plain=given["plain"],
        headers=not given["no_headers"],
        trunc=not given["no_trunc"],
        spiffe=app.value("entries-file") is not None,
    )
    return output.printer(given["format_"], out, style)
