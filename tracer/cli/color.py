"""Colour: a handful of ANSI codes, and the rule that says whether they are written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO

RESET = "\x1b[0m"
RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN = (f"\x1b[3{n}m" for n in range(1, 7))
BOLD, DIM = "\x1b[1m", "\x1b[2m"

OF_EVENT = {
    "snapshot": DIM,
    "exec": GREEN,
    "fork": BLUE,
    "move": MAGENTA,
    "exit": RED,
    "resolved": CYAN,
    "synced": DIM,
    "lost": BOLD + RED,
}
OF_STATE = {"resolved": GREEN, "pending": YELLOW, "host": DIM, "unknown": MAGENTA, "gone": RED}


def paint(text: str, code: str | None) -> str:
    """``text`` in the colour ``code``, or as it is without one."""
    return f"{code}{text}{RESET}" if code else text


def is_wanted(choice: str, environ: Mapping[str, str], stream: IO[str] | None) -> bool:
    """Whether ``stream`` gets colour: choice, then NO_COLOR, FORCE_COLOR, and whether it is a terminal."""
    if choice != "auto":
        return choice == "always"
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return environ["FORCE_COLOR"] not in ("0", "false")
    return is_terminal(stream) and environ.get("TERM") != "dumb"


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person may be looking at ``stream``."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def terminal_width(stream: IO[str]) -> int | None:
    """The columns of the terminal behind ``stream``, ``None`` where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None
