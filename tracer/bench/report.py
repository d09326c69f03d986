"""What a benchmark found, filled in while it runs: whoever interrupts it has what was measured until then."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracer.bench.statistics import Summary, summarize

Label = str | int | float


@dataclass(slots=True)
class Row:
    """One measurement: ``labels`` say of what. Either a ``summary`` of samples, or ``figures`` counted or taken
    once."""

    labels: Mapping[str, Label]
    summary: Summary | None = None
    figures: Mapping[str, Label | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return {**self.labels, **(self.summary.to_dict() if self.summary else {}), **self.figures}


@dataclass(slots=True)
class Table:
    """Rows of one kind under a title."""

    title: str
    rows: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The result of one benchmark.

    ``settings`` say what was run, ``method`` how, in sentences. ``failures`` are the reasons why the run has not shown
    what it is to show; ``series`` are the samples by name, for a plot, in ``plot_unit``;
    ``bars`` are plotted where there are none.
    """

    benchmark: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: Sequence[str] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    bars: dict[str, int] = field(default_factory=dict)
    plot_unit: str = "µs"
    plot_label: str = "time of a look-up"
    interrupted: bool = False
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def table(self, title: str) -> Table:
        """The table of this title, new at the end where there is none."""
        for table in self.tables:
            if table.title == title:
                return table
        self.tables.append(Table(title))
        return self.tables[-1]

    def add(
        self,
        title: str,
        labels: Mapping[str, Label],
        samples: Sequence[float] = (),
        unit: str = "µs",
        *,
        series: str | None = None,
        **figures: Label | None,
    ) -> Summary | None:
        """Adds a row; its samples are plotted under the name ``series``. The summary of the samples."""
        summary = summarize(samples, unit)
        self.table(title).rows.append(Row(labels, summary, figures))
        if series is not None and samples:
            self.series[series] = list(samples)
        return summary

    def end(self) -> None:
        """It is over, or was interrupted."""
        self.seconds = time.monotonic() - self.started

    @property
    def exit_code(self) -> int:
        """Of a command that ran it."""
        return 130 if self.interrupted else 1 if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "benchmark": self.benchmark,
            "ok": not self.failures and not self.interrupted,
            "failures": self.failures,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 1),
            "settings": dict(self.settings),
            "method": list(self.method),
            "machine": dict(self.machine),
            "tables": [{"title": table.title, "rows": [row.to_dict() for row in table.rows]} for table in self.tables],
        }
