"""What the commands share: the global flags, the outside world they may touch, and how a tracer is made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Protocol, Self

import click

from tracer.cli import configuration
from tracer.cli.quote import quote
from tracer.errors import DaemonUnreachable
from tracer.model import Event, Identity
from tracer.protocol import NOBODY
from tracer.settings import Settings


class Watch(Protocol):
    """A stream of events."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...
    def next(self, timeout: float | None) -> Event | None: ...


class Tracer(Protocol):
    """What commands need of ``tracer.node.Tracer``."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...
    def wait_synced(self, timeout: float) -> bool: ...
    def lookup(self, pid: int, *, verify: bool = False, parity: bool = False) -> Identity: ...
    def ps(self, *, parity: bool = False) -> list[Identity]: ...
    def explain_record(self, pid: int) -> dict[str, Any]: ...
    def watch(self, *, snapshot: bool = True, parity: bool = False) -> Watch: ...
    def wait_known(self, pids: Sequence[int], timeout: float | None) -> None: ...


class TracerFactory(Protocol):
    """How a tracer is made."""

    def __call__(self, settings: Settings, *, warn: Callable[[str], None]) -> Tracer: ...


def node_tracer(settings: Settings, *, warn: Callable[[str], None]) -> Tracer:
    """The tracer of this node, whose parts are loaded only now."""
    from tracer.node import Tracer

    return Tracer(settings, warn=warn, note=lambda text: say(f"podtracer: {text}"))


@dataclass(slots=True)
class App:
    """One run of the command line; ``flags`` holds the options that were typed, converted."""

    tracer: TracerFactory = node_tracer
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    flags: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    verbose: int = 0
    debug: bool = False
    command: str | None = None
    _values: dict[str, configuration.Value] | None = None

    @property
    def values(self) -> dict[str, configuration.Value]:
        """Each configurable value with its origin; computed when first asked for, after parsing."""
        if self._values is None:
            self._values = configuration.resolve(self.flags, self.environ, self.config)
        return self._values

    def value(self, key: str) -> Any:
        """The value of one configurable option."""
        return self.values[key].value

    def open_tracer(self) -> Tracer:
        """The daemon where one accepts, else a tracer, not started yet; that it stands in for a daemon nobody named is
        said on stderr."""
        settings = configuration.settings(self.values)
        socket = self.values["socket"]
        if not self.value("standalone"):
            from tracer.cli import remote

            try:
                return remote.connect(self.values, settings, say_it_asks=bool(self.verbose))
            except DaemonUnreachable as error:
                if socket.origin != "default":
                    hint = "start the daemon there, or add --standalone to do without one"
                    raise DaemonUnreachable(error.what, error.obj, hint) from error
                why = "no daemon" if error.what == NOBODY else error.what
                say(f"podtracer: {why} at {socket.value}, working standalone")
        return self.tracer(settings, warn=warn)

    def is_colored(self, stream: IO[str]) -> bool:
        """Whether ``stream`` gets colour."""
        from tracer.cli import color

        return color.is_wanted(self.value("color"), self.environ, stream)


def say(line: str) -> None:
    """``line``, quoted, is on stderr, unless nobody listens there."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(quote(line) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody left to tell


def warn(text: str) -> None:
    """``text`` is on stderr as a warning."""
    say(f"warning: {text}")


pass_app = click.make_pass_decorator(App, ensure=True)
