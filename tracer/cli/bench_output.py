"""How a bench's report is written for people."""

from __future__ import annotations

from collections.abc import Iterator

from tracer.bench.report import Report, Row, Table
from tracer.bench.statistics import Summary
from tracer.cli import table
from tracer.cli.color import BOLD, GREEN, RED
from tracer.cli.table import Cell, Column

_SUMMARY = ("p50", "p90", "p99", "p99.9", "min", "max")
_WIDEST = 60


def number(value: object) -> str:
    """A figure with as many digits as it is worth."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def titles(rows: list[Row]) -> list[str]:
    """The columns that these rows need."""
    labels = dict.fromkeys(key for row in rows for key in row.labels)
    figures = dict.fromkeys(key for row in rows for key in row.figures)
    return [*labels, *((*_SUMMARY, "unit", "n") if any(row.summary for row in rows) else ()), *figures]


def cells(row: Row, columns: list[str]) -> list[str]:
    """The row's texts by column."""
    values: dict[str, object] = {**row.labels, **row.figures}
    if isinstance(row.summary, Summary):
        values |= row.summary.to_dict() | {"n": row.summary.count}
    return [number(values.get(column)) for column in columns]


def text(report: Report, *, colored: bool) -> Iterator[str]:
    """The report in lines, ends included."""
    for each in report.tables:
        yield from _table(each, colored)
    yield "\n"
    for sentence in report.method:
        yield f"  {sentence}\n"
    machine = report.machine
    yield (
        f"  {machine['kernel']}, {machine['cpus']} CPUs ({machine['cpu']}), Python {machine['python']}, "
        f"podtracer {machine['podtracer']}; load {machine['load'][0]} before\n\n"
    )
    out = table.Table((Column("", 0, 1 << 16),), color=colored)
    if report.interrupted:
        yield out.row([Cell(f"interrupted after {report.seconds:.1f} s: what was measured until then", BOLD + RED)])
    elif report.failures:
        for failure in report.failures:
            yield out.row([Cell(f"not shown: {failure}", BOLD + RED)])
    else:
        yield out.row([Cell(f"done in {report.seconds:.1f} s", GREEN)])


def _table(each: Table, colored: bool) -> Iterator[str]:
    columns = titles(each.rows)
    out = table.Table([Column(column, 0, _WIDEST) for column in columns], color=colored)
    rows = [[Cell(text) for text in cells(row, columns)] for row in each.rows]
    out.fit(rows)
    yield f"\n{each.title}\n"
    yield out.header()
    for row in rows:
        yield out.row(row)
