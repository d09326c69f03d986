"""How the events of ``watch`` are written: one JSON object a line, or a table that grows downwards."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence

from tracer.ages import NOTHING, age
from tracer.cli import color
from tracer.cli.output import SPIFFE, Out, Style, agrees, short, spiffe_ids, to_json
from tracer.cli.table import Cell, Column, Table
from tracer.model import Clock, Event

_COLUMNS = (
    Column("TIME", 12),
    Column("EVENT", 8, 13),
    Column("NAMESPACE", 12, 24),
    Column("POD", 24, 48),
    Column("CONTAINER", 12, 24),
    Column("PID", 7),
    Column("PPID", 7),
    Column("COMM", 15, 16),
)
_WIDE = (
    Column("SERVICE-ACCOUNT", 15, 24),
    Column("CONTAINER-ID", 12, 64),
    Column("CGROUP-ID", 9),
    Column("PARITY", 7),
    Column("STATE", 8),
    Column("AGE", 6),
    Column("SELECTORS", 9, 0),
)


def _columns(style: Style, *, wide: bool) -> tuple[Column, ...]:
    return (*_COLUMNS, *([SPIFFE] if style.spiffe else []), *(_WIDE if wide else ()))


def _time(event: Event, clock: Clock, style: Style) -> str:
    if style.timestamps:
        return clock.rfc3339(event.time)
    at = clock.boot + event.time / 1e9
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"


def _kind(event: Event) -> str:
    # One word without spaces, so that columns can still be cut out: exit, exit(1), exit(SIGKILL).
    if event.event != "exit":
        return event.event
    ended_by, code = event.extra.get("signal"), event.extra.get("exit_code")
    if ended_by:
        try:
            ended_by = signal.Signals(ended_by).name
        except ValueError:
            ended_by = str(ended_by)
        return f"exit({ended_by})"
    return f"exit({code})" if code else "exit"


def _row(event: Event, clock: Clock, style: Style, *, wide: bool) -> list[Cell]:
    head = [Cell(_time(event, clock, style)), Cell(_kind(event), color.OF_EVENT[event.event])]
    identity = event.identity
    if identity is None:
        count = event.extra.get("count")
        rest = [f"{count} records" if count is not None else ""]
        return head + [Cell(text) for text in rest + [""] * (len(_columns(style, wide=wide)) - 3)]
    w, p, c = identity.workload, identity.process, identity.cgroup
    tint = color.OF_STATE[w.state.value] if w.state.value != "resolved" else None
    row = [
        *head,
        Cell(w.namespace or NOTHING, tint),
        Cell(w.pod or NOTHING, tint),
        Cell(w.container or NOTHING, tint),
        Cell(str(identity.key.pid)),
        Cell(str(p.ppid) if p else NOTHING),
        Cell(p.comm if p and p.comm else NOTHING),
    ]
    if style.spiffe:
        row.append(spiffe_ids(identity))
    if not wide:
        return row
    return [
        *row,
        Cell(w.service_account or NOTHING),
        Cell(short(w.container_id, style)),
        Cell(str(c.id) if c else NOTHING),
        Cell(agrees(identity.parity)),
        Cell(w.state.value, color.OF_STATE[w.state.value]),
        Cell(age(max(0.0, (clock.now - p.since) / 1e6) if p else None)),
        Cell(",".join(w.selectors) or NOTHING),
    ]


class EventPrinter:
    """Writes events in one format: ``begin`` once, then ``batch`` for those that came together."""

    def __init__(
        self, out: Out, head: Callable[[], str], line: Callable[[Event, Clock], str]
    ) -> None:  # fmt: skip
        self._out = out
        self._head = head
        self._line = line

    def begin(self) -> None:
        """The header is written, where there is one."""
        if head := self._head():
            self._out.write(head)

    def batch(self, events: Sequence[Event], clock: Clock) -> None:
        """``events`` are written and flushed."""
        if events:
            self._out.write("".join(self._line(event, clock) for event in events))


def printer(format_: str, out: Out, style: Style) -> EventPrinter:
    """The printer for ``json``, ``table`` or ``wide``."""
    if format_ == "json":
        return EventPrinter(out, lambda: "", lambda event, clock: to_json(event.to_dict(clock)))
    wide = format_ == "wide"
    columns = _columns(style, wide=wide)
    if style.timestamps:
        columns = (Column("TIME", 24), *columns[1:])
    table = Table(columns, color=style.color, limit=style.limit)

    def line(event: Event, clock: Clock) -> str:
        if table.limit is not None:
            table.limit = color.terminal_width(out.stream) or table.limit  # the window may have been resized
        return table.row(_row(event, clock, style, wide=wide))

    return EventPrinter(out, lambda: table.header() if style.headers else "", line)
