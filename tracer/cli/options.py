"""The options that commands share, as decorators, each in its section of the help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tracer.cli import configuration
from tracer.cli.app import App
from tracer.cli.filters import Filters
from tracer.cli.labels import parse
from tracer.cli.params import Names, Pid, Text, Truth, span

F = TypeVar("F", bound=Callable[..., Any])


class SectionOption(click.Option):
    """An option that knows its section of the help."""

    def __init__(self, *args: Any, section: str = "Options", **more: Any) -> None:
        super().__init__(*args, **more)
        self.section = section


class Command(click.Command):
    """A command whose help has a section for each kind of option, and whose options may go without value.

    An option named in ``bare`` takes its value only behind an equals sign, and has the given one without.
    """

    def __init__(self, *args: Any, bare: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.bare = bare or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments are parsed, bare options first given their value."""
        end = args.index("--") if "--" in args else len(args)
        head = [f"{arg}={self.bare[arg]}" if arg in self.bare else arg for arg in args[:end]]
        return super().parse_args(ctx, head + args[end:])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help shows the command's own options first, then the shared ones."""
        sections: dict[str, list[tuple[str, str]]] = {
            "Options": [],
            "Filters": [],
            "Pod data": [],
            "Daemon": [],
            "Global": [],
        }
        for param in self.get_params(ctx):
            record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
            if record is not None:
                section = param.section if isinstance(param, SectionOption) else "Options"
                sections.setdefault("Global" if param.name == "help" else section, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _store(option: configuration.Option) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if param.name and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE:
            if isinstance(option.type, Names):
                value = tuple(name for names in value for name in names)
            ctx.ensure_object(App).flags[option.key] = value

    return store


def configurable(*options: configuration.Option) -> Callable[[F], F]:
    """The command takes ``options`` and leaves what was typed in :attr:`App.flags`."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            names = [f"--{option.key}", *([option.short] if option.short else [])]
            more: dict[str, Any] = {"type": option.type, "metavar": option.metavar}
            if isinstance(option.type, Truth):
                more = {"is_flag": True, "default": False}
            elif isinstance(option.type, Names):
                more |= {"multiple": True}
            function = click.option(
                *names, cls=SectionOption, section=option.section, expose_value=False,
                callback=_store(option), help=_with_default(option), **more,
            )(function)  # fmt: skip
        return function

    return decorate


def _with_default(option: configuration.Option) -> str:
    if option.default is None or option.default is False or option.default == ():
        return option.help
    default = span(option.default) if isinstance(option.default, float) else option.default
    return f"{option.help} [{default}]"


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def set_(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(App), name, value)

    return set_


def global_options(function: F) -> F:
    """The command takes the flags that every command takes, before and after its name."""
    shared: dict[str, Any] = {
        "cls": SectionOption,
        "section": "Global",
        "expose_value": False,
        "is_eager": True,
    }
    function = configurable(*configuration.GLOBAL)(function)
    mine: tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...] = (
        (("--debug",), "debug", {"is_flag": True, "help": "Show a traceback with an error."}),
        (("-v", "--verbose"), "verbose", {"count": True, "help": "Say more on stderr."}),
        (
            ("--config",),
            "config",
            {"type": Text(), "metavar": "F", "help": f"Configuration file. [{configuration.DEFAULT_FILE}]"},
        ),
    )
    for names, name, more in mine:
        function = click.option(*names, callback=_set(name), **shared, **more)(function)
    return function


pod_data_options = configurable(*configuration.POD_DATA)
daemon_options = configurable(*configuration.DAEMON)


def _selector(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    return parse(value) if value is not None else ()


def filter_options(function: F) -> F:
    """The command takes the filters, to be read by :func:`filters`."""
    shared: dict[str, Any] = {"cls": SectionOption, "section": "Filters"}
    names: dict[str, Any] = {"type": Names(), "multiple": True}
    for flags, more in reversed((
        (("-A", "--all-namespaces"), {"is_flag": True, "help": "All namespaces, whatever was configured."}),
        (
            ("-l", "--selector", "labels"),
            {"callback": _selector, "metavar": "SELECTOR", "help": "Only pods with these labels."},
        ),
        (("--pod", "pods"), names | {"metavar": "POD", "help": "Only these pods."}),
        (
            ("-c", "--container", "containers"),
            names | {"metavar": "NAME", "help": "Only these containers."},
        ),
        (
            ("-p", "--pid", "pids"),
            {"type": Pid(), "multiple": True, "metavar": "PID", "help": "Only this process; may recur."},
        ),
        (("--host",), {"is_flag": True, "help": "Also processes that belong to no pod."}),
    )):  # fmt: skip
        function = click.option(*flags, **shared, **more)(function)
    return configurable(*configuration.FILTER)(function)


def filters(app: App, options: dict[str, Any]) -> Filters:
    """The filters among a command's ``options``, which are taken out."""
    everywhere = options.pop("all_namespaces")
    return Filters(
        namespaces=() if everywhere else app.value("namespace"),
        pods=tuple(name for names in options.pop("pods") for name in names),
        containers=tuple(name for names in options.pop("containers") for name in names),
        labels=options.pop("labels"),
        pids=frozenset(options.pop("pids")),
        host=options.pop("host"),
    )
