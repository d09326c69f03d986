"""Spans of time, written for people."""

from __future__ import annotations

NOTHING = "-"
"""What stands for something that is not known."""


def age(milliseconds: float | None) -> str:
    """A time span for people: two units at most."""
    if milliseconds is None:
        return NOTHING
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{int(seconds * 10) / 10:.1f}s"
    whole = int(seconds)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit}{f'{rest}{small}' if rest else ''}"
    return NOTHING
