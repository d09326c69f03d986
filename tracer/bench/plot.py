"""Pictures of reports: latencies as cumulative curves over a logarithmic axis, counts as bars."""

from __future__ import annotations

import math
import os
from io import BytesIO
from typing import Any

from tracer.bench.report import Report
from tracer.bench.statistics import curve, quantile
from tracer.errors import MissingError, TracerError, UsageError

_FORMATS = (".svg", ".png")
_LINES = ("-", "--", ":", "-.")


def check(path: str) -> None:
    """Raises what would keep the picture from being written, before anything is measured: ``UsageError`` for a path
    that cannot be one, ``MissingError`` without the library."""
    if os.path.splitext(path)[1].lower() not in _FORMATS:
        raise UsageError("neither .svg nor .png", path, "give the picture one of these endings")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UsageError("no such folder", os.path.dirname(path), "make it first")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingError(
            "the plotting library is not there", f"python module {error.name}", "pip install 'podtracer[plot]'"
        ) from None


def write(report: Report, path: str) -> None:
    """Draws the report. Raises ``TracerError`` where the file cannot be written; nothing is left of it then."""
    picture = draw(report, os.path.splitext(path)[1][1:].lower())
    try:
        with open(path, "wb") as file:
            file.write(picture)
    except OSError as error:
        if os.path.isfile(path):
            os.unlink(path)
        raise TracerError(
            f"the plot cannot be written: {error.strerror}", path, "make room, or write elsewhere"
        ) from error


def draw(report: Report, kind: str) -> bytes:
    """The picture as ``svg`` or ``png``."""
    import matplotlib
    from matplotlib.figure import Figure

    # Readable as text, and the same each time it is drawn of the same samples.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "podtracer", "font.size": 11}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        if report.series:
            _curves(axes, report)
        else:
            _bars(axes, report)
        axes.set_title(f"podtracer bench {report.benchmark}: {_machine(report)}", fontsize=11)
        out = BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


def _curves(axes: Any, report: Report) -> None:
    for at, (name, samples) in enumerate(report.series.items()):
        values, shares = curve(samples)
        label = f"{name}: p50 {_short(quantile(values, 0.5) if len(values) == len(samples) else _p50(samples))}"
        axes.step(
            values, [100 * share for share in shares], where="post", label=f"{label} {report.plot_unit}",
            linestyle=_LINES[at % len(_LINES)],
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel(f"{report.plot_label} ({report.plot_unit}, logarithmic)")
    axes.set_ylabel("share of them, %")
    axes.set_ylim(0, 101)
    axes.grid(True, which="major", alpha=0.4)
    # Whole decades, so that the axis has figures on it however narrow the curves are; beside them is no room to read.
    least = min(value for samples in report.series.values() for value in samples)
    most = max(value for samples in report.series.values() for value in samples)
    axes.set_xlim(10 ** math.floor(math.log10(max(least, 1e-3))), 10 ** math.ceil(math.log10(max(most, 1e-2))))
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize=9)


def _bars(axes: Any, report: Report) -> None:
    names = list(report.bars)
    values = [report.bars[name] for name in names]
    places = range(len(names))
    axes.barh(places, values, color="tab:blue")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, max([10, *values]) * 8)
    for place, value in zip(places, values, strict=True):
        axes.annotate(f"{value:,}", (value, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_xlabel("how many (logarithmic)")


def _p50(samples: list[float]) -> float:
    return quantile(sorted(samples), 0.5)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _machine(report: Report) -> str:
    machine = report.machine
    return f"{machine.get('kernel')}, {machine.get('cpus')} CPUs"
