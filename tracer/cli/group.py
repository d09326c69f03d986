"""The commands by name, each loaded when it is called and not before."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import click

from tracer import __version__
from tracer.cli import options
from tracer.cli.app import App
from tracer.cli.output import Out
from tracer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command is (a module with a click command called ``command``), and its line in the help."""

    module: str
    help: str


COMMANDS = {
    "watch": Lazy("tracer.cli.watch", "Show live which processes start, move and end, each with its workload."),
    "lookup": Lazy("tracer.cli.lookup", "Say which workload a process is."),
    "ps": Lazy("tracer.cli.ps", "List every pod's processes."),
    "explain": Lazy("tracer.cli.explain", "Tell the whole way to an answer, step by step, and why not."),
    "selectors": Lazy("tracer.cli.selectors", "Print the selectors of one container of a pod list."),
    "daemon": Lazy("tracer.cli.daemon", "Keep the table of all processes, and serve it to others."),
    "doctor": Lazy("tracer.cli.doctor", "Check what this machine has, and which way was taken."),
    "bench": Lazy(
        "tracer.cli.bench", "Measure speed and correctness on this machine, beside the way that is replaced."
    ),
    "demo": Lazy("tracer.cli.demo", "Watch a node made up on this machine, which needs no Kubernetes."),
    "spire-plugin": Lazy("tracer.cli.spire_plugin", "Attest workloads for SPIRE's agent, which starts this."),
    "config": Lazy("tracer.cli.config", "Show each value and where it came from."),
    "version": Lazy("tracer.cli.version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of this name, its module now loaded."""
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        command: click.Command = importlib.import_module(lazy.module).command
        command.context_settings = {**self.context_settings, **command.context_settings}
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments; raises :class:`UsageError`, which names the nearest command."""
        name = args[0]
        if name not in COMMANDS:
            import difflib  # for a wrong word alone

            close = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean podtracer {close[0]}?" if close else "see podtracer --help"
            raise UsageError("no such command", name, hint)
        ctx.ensure_object(App).command = name
        return name, self.get_command(ctx, name), args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The help lists the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        Out().write(f"podtracer {__version__}\n")
        ctx.exit()


@click.group(
    "podtracer",
    cls=LazyGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="podtracer COMMAND --help shows a command's flags and examples.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version.",
)
@options.global_options
def cli() -> None:
    """Which Kubernetes workload is this process? Answered before anyone asks."""
