"""The steps of ``explain`` as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracer.ages import NOTHING
from tracer.cli import color
from tracer.cli.quote import quote
from tracer.explanation import Step


def name(record: Mapping[str, Any]) -> str:
    """``NAMESPACE/POD/CONTAINER`` of an identity as JSON."""
    return "/".join(record[key] or NOTHING for key in ("namespace", "pod", "container"))


def render(head: str, steps: Sequence[Step], *, colored: bool) -> str:
    """The steps as text, numbered, all of it quoted."""
    bold, red = (color.BOLD, color.RED) if colored else (None, None)
    parts = [color.paint(quote(head), bold) + "\n"]
    for number, step in enumerate(steps, 1):
        mark = color.paint("  <- it ends here", red) if step.failed else ""
        parts.append(f"\n{color.paint(f'{number}. {quote(step.title)}', bold)}{mark}\n")
        parts += [f"   {quote(line)}\n" for line in step.lines]
        if step.hint:
            parts.append(f"   hint: {quote(step.hint)}\n")
    return "".join(parts)
