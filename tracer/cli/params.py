"""Types of parameters; each takes what was typed, and what a configuration file may hold instead."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any

import click

from tracer.settings import MAX_SECONDS

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # older clicks have no subscript

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_PID = re.compile(r"[0-9]{1,10}")
_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def span(seconds: float) -> str:
    """A time as :class:`Duration` takes it."""
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:g}m"
    return f"{seconds:g}s"


class Duration(ParamType):
    """Seconds as a float, from ``500ms``, ``2s``, ``1m``, ``1h`` or a bare number; never negative."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds that ``value`` says."""
        text = str(value).strip() if not isinstance(value, bool) else ""
        if text.startswith("-"):
            self.fail(f"{value!r} is negative", param, ctx)
        match = _DURATION.fullmatch(text)
        if not match or not isinstance(value, str | int | float):
            self.fail(f"{value!r} is no duration: say 500ms, 2s, 1m or a number of seconds", param, ctx)
        seconds = float(match[1]) * _SECONDS[match[2]]
        if not math.isfinite(seconds) or seconds > MAX_SECONDS:
            self.fail(f"{value!r} is longer than ten years", param, ctx)
        return seconds


class Whole(ParamType):
    """A whole number from ``least`` to ``most``."""

    name = "number"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number that ``value`` says."""
        text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
        if not _PID.fullmatch(text) or not self.least <= int(text) <= self.most:
            self.fail(f"{value!r} is no whole number from {self.least} to {self.most}", param, ctx)
        return int(text)


class Pid(Whole):
    """A process ID; one that is too high for this kernel is still one, whose process is gone."""

    name = "pid"

    def __init__(self) -> None:
        super().__init__(1, 2**31 - 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number that ``value`` says."""
        if not isinstance(value, str | int) or not _PID.fullmatch(str(value)) or not 1 <= int(value) <= self.most:
            self.fail(f"{value!r} is no process ID", param, ctx)
        return int(value)


class PidOrSelf(Pid):
    """A process ID, or ``self`` for podtracer's own process."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number that ``value`` says."""
        return os.getpid() if value == "self" else super().convert(value, param, ctx)


class Text(ParamType):
    """A text that is not empty."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """``value``, which is a text."""
        if not isinstance(value, str) or not value:
            self.fail(f"{value!r} is no text" if value != "" else "the text is empty", param, ctx)
        return value


class OneOf(ParamType):
    """One of a few fixed words."""

    name = "word"

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """The words, as help shows them."""
        return "|".join(self.words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """``value``, which is one of the words."""
        if not isinstance(value, str) or value not in self.words:
            self.fail(f"{value!r} is not one of {', '.join(self.words)}", param, ctx)
        return value


class Truth(ParamType):
    """True or false, as an environment variable or a file says it."""

    name = "boolean"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        """The truth that ``value`` says."""
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.lower() not in _WORDS:
            self.fail(f"{value!r} is neither true nor false", param, ctx)
        return _WORDS[value.lower()]


class Names(ParamType):
    """One or more names parted by commas, as a tuple."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names in ``value``."""
        if isinstance(value, tuple):  # converted already: click converts defaults once more
            return value
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            self.fail(f"{value!r} is no list of names", param, ctx)
        names = tuple(part.strip() for part in parts)
        if not all(names):
            self.fail("a name is empty", param, ctx)
        return names


class SelectorSets(Names):
    """Sets of selectors: those of one set parted by commas, the sets by spaces or as a list; as a tuple of texts."""

    name = "selectors"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The sets in ``value``."""
        if isinstance(value, tuple):
            return value
        sets = value.split() if isinstance(value, str) else value
        if not isinstance(sets, list) or not sets or not all(isinstance(each, str) for each in sets):
            self.fail(f"{value!r} is no set of selectors", param, ctx)
        for selector in (selector for each in sets for selector in each.split(",")):
            kind, colon, rest = selector.partition(":")
            if not kind or not colon or not rest:
                self.fail(f"{selector!r} is no selector: say k8s:ns:NAME,k8s:sa:NAME", param, ctx)
        return tuple(sets)
