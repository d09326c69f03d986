"""Tables that are written row by row: columns grow with what they hold, and never shrink."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracer.cli.color import BOLD, paint
from tracer.cli.quote import cut, quote, width

_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, the width it starts with, and the width up to which it grows.

    A cell that is wider than ``most`` moves the rest of its own row, and no other.
    """

    title: str
    least: int = 0
    most: int = 40


@dataclass(frozen=True, slots=True)
class Cell:
    """A text to be quoted, and its colour."""

    text: str
    color: str | None = None


class Table:
    """Lays rows out; ``limit`` is the width of the terminal, ``None`` for no cutting."""

    def __init__(self, columns: Sequence[Column], *, color: bool = False, limit: int | None = None) -> None:
        self._columns = columns
        self._widths = [max(column.least, len(column.title)) for column in columns]
        self._color = color
        self.limit = limit

    def fit(self, rows: Iterable[Sequence[Cell]]) -> None:
        """The columns are wide enough for all of ``rows``, to be written later."""
        for row in rows:
            self._grow([quote(cell.text) for cell in row])

    def _grow(self, texts: Sequence[str]) -> None:
        for index, text in enumerate(texts):
            most = self._columns[index].most
            self._widths[index] = max(self._widths[index], min(width(text), most))

    def header(self) -> str:
        """The line of titles."""
        return self.row([Cell(column.title, BOLD) for column in self._columns])

    def row(self, cells: Sequence[Cell]) -> str:
        """One line, its end included; the colours never change where the columns stand."""
        texts = [quote(cell.text) for cell in cells]
        self._grow(texts)
        left = self.limit
        parts: list[str] = []
        for index, (text, cell) in enumerate(zip(texts, cells, strict=True)):
            if index:
                parts.append(_GAP)
                left = None if left is None else left - len(_GAP)
            if left is not None:
                text = cut(text, left)
            if left is not None and left <= 0:
                parts.pop()
                break
            last = index == len(cells) - 1
            padding = 0 if last else max(0, self._widths[index] - width(text))
            parts.append(paint(text, cell.color if self._color and text else None))
            if left is not None:
                padding = min(padding, max(0, left - width(text)))
                left -= width(text) + padding
            parts.append(" " * padding)
        return "".join(parts).rstrip(" ") + "\n"
