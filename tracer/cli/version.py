"""``podtracer version``."""

from __future__ import annotations

import click

from tracer import __version__
from tracer.cli import options
from tracer.cli.output import Out

EXAMPLES = """\b
Examples:
  podtracer version
"""


@click.command("version", cls=options.Command, epilog=EXAMPLES)
@options.global_options
def command() -> int:
    """Print the version."""
    Out().write(f"podtracer {__version__}\n")
    return 0
