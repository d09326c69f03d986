"""How identities are written: JSON, YAML, names, selectors, jsonpath and tables; and where to."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from tracer.ages import NOTHING, age
from tracer.cli import color
from tracer.cli.jsonpath import Template
from tracer.cli.quote import quote
from tracer.cli.table import Cell, Column, Table
from tracer.errors import TracerError, UsageError
from tracer.model import GONE, Clock, Identity, ProcessKey, State

SHORT_ID = 12
LISTS = ("selectors", "spiffe_ids")
FORMATS = ("table", "wide", "json", "yaml", "name", "selectors", "jsonpath=…")


@dataclass(frozen=True, slots=True)
class Style:
    """How a human view looks."""

    color: bool = False
    limit: int | None = None
    headers: bool = True
    trunc: bool = True
    timestamps: bool = False
    spiffe: bool = False


class ReaderGone(Exception):  # noqa: N818, it is none
    """Whoever read our output has closed it: the end, and no error."""


def _write_all(fd: int, data: bytes) -> None:
    # Without buffers in between, since Python's lose the rest of a write that a signal cut short when they are
    # switched off (PYTHONUNBUFFERED), and hold it back for the interpreter's end when they are not.
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # whoever shares the file with us made it so
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


class Out:
    """Where data goes: each text is there as soon as :meth:`write` returns."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream: IO[str] = stream or sys.stdout
        self._encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            self._fd: int | None = self.stream.fileno()
        except (OSError, ValueError):
            self._fd = None  # no file at all, such as a buffer

    def write(self, text: str) -> None:
        """``text`` is written whole; raises :class:`ReaderGone` when nobody can read it any more."""
        try:
            self.stream.flush()  # what others wrote comes first
            if self._fd is None:
                self.stream.write(text)
                self.stream.flush()
            else:
                _write_all(self._fd, text.encode(self._encoding, "backslashreplace"))
        except BrokenPipeError as error:
            raise ReaderGone from error
        except OSError as error:
            hint = "make room, or write elsewhere"
            raise TracerError(f"the output cannot be written: {error.strerror}", "stdout", hint) from error

    def is_read(self) -> bool:
        """Whether somebody may still read: false once the reading end of a pipe is closed."""
        if self._fd is None:
            return True
        poll = select.poll()
        poll.register(self._fd, 0)
        return not any(events & (select.POLLERR | select.POLLNVAL) for _fd, events in poll.poll(0))

    def style(self, *, colored: bool, plain: bool, **more: bool) -> Style:
        """The style for this stream: rows are cut only to a terminal's width, and not when plain."""
        limit = None if plain or not color.is_terminal(self.stream) else color.terminal_width(self.stream)
        return Style(color=colored and not plain, limit=limit, **more)


def to_json(record: dict[str, Any]) -> str:
    """One object on one line, all ASCII, so that nothing in it can change a terminal."""
    return json.dumps(record, ensure_ascii=True) + "\n"


def name(identity: Identity) -> str:
    """``NAMESPACE/POD/CONTAINER``, with ``-`` for what is not known."""
    w = identity.workload
    return quote("/".join(part or NOTHING for part in (w.namespace, w.pod, w.container)))


def short(container_id: str | None, style: Style) -> str:
    """A container ID, cut unless asked otherwise."""
    return (container_id[:SHORT_ID] if style.trunc else container_id) if container_id else NOTHING


def agrees(parity: bool | None) -> str:
    """Whether SPIRE's rules give the same container."""
    return NOTHING if parity is None else "same" if parity else "differs"


_COLUMNS = (
    Column("PID", 7),
    Column("STATE", 8),
    Column("NAMESPACE", 9, 24),
    Column("POD", 3, 48),
    Column("CONTAINER", 9, 24),
    Column("SOURCE", 6),
    Column("AGE", 5),
    Column("COMM", 4, 16),
)
_WIDE = (
    Column("PPID", 7),
    Column("SERVICE-ACCOUNT", 15, 24),
    Column("CONTAINER-ID", 12, 64),
    Column("CGROUP-ID", 9),
    Column("PARITY", 7),
    Column("IMAGE", 5, 48),
    Column("SELECTORS", 9, 0),
)
_REASON = Column("REASON", 6, 80)
SPIFFE = Column("SPIFFE-ID", 9, 64)


def spiffe_ids(identity: Identity) -> Cell:
    """The SPIFFE IDs that a process would get; ``none`` for a pod's that is known and gets none."""
    if identity.spiffe_ids:
        return Cell(",".join(identity.spiffe_ids))
    return Cell("none" if identity.spiffe_ids is not None and identity.state is State.RESOLVED else NOTHING)


def _row(identity: Identity, clock: Clock, style: Style, *, wide: bool) -> list[Cell]:
    w, p, c = identity.workload, identity.process, identity.cgroup
    since = (clock.now - p.since) / 1e6 if p else None
    pid = str(identity.asked)
    if identity.asked != identity.key.pid:
        pid += f"→{identity.key.pid}"
    cells = [
        Cell(pid),
        Cell(w.state.value, color.OF_STATE[w.state.value]),
        Cell(w.namespace or NOTHING),
        Cell(w.pod or NOTHING),
        Cell(w.container or NOTHING),
        Cell(p.source.value if p else NOTHING),
        Cell(age(max(0.0, since) if since is not None else None)),
        Cell(p.comm if p and p.comm else NOTHING),
    ]
    if style.spiffe:
        cells.append(spiffe_ids(identity))
    cells.append(Cell(w.reason_text or w.reason or NOTHING))
    if not wide:
        return cells
    return [
        *cells,
        Cell(str(p.ppid) if p else NOTHING),
        Cell(w.service_account or NOTHING),
        Cell(short(w.container_id, style)),
        Cell(str(c.id) if c else NOTHING),
        Cell(agrees(identity.parity)),
        Cell(w.image or NOTHING),
        Cell(",".join(w.selectors) or NOTHING),
    ]


class Printer:
    """Writes identities in one format; ``batch`` writes several at once, so that a table fits them all."""

    def __init__(self, out: Out, text: Callable[[Sequence[Identity], Clock], str]) -> None:
        self._out = out
        self._text = text

    def batch(self, identities: Sequence[Identity], clock: Clock) -> None:
        """``identities`` are written, in this order."""
        self._out.write(self._text(identities, clock))


def _table(style: Style, *, wide: bool) -> Callable[[Sequence[Identity], Clock], str]:
    columns = (*_COLUMNS, *([SPIFFE] if style.spiffe else []), _REASON, *(_WIDE if wide else ()))
    table = Table(columns, color=style.color, limit=style.limit)
    has_header = not style.headers

    def text(identities: Sequence[Identity], clock: Clock) -> str:
        nonlocal has_header
        rows = [_row(identity, clock, style, wide=wide) for identity in identities]
        table.fit(rows)
        head = "" if has_header else table.header()
        has_header = True
        return head + "".join(table.row(row) for row in rows)

    return text


def _yaml() -> Callable[[Sequence[Identity], Clock], str]:
    import yaml  # only those who want YAML pay for it

    begun = False

    def text(identities: Sequence[Identity], clock: Clock) -> str:
        nonlocal begun
        parts = []
        for identity in identities:
            parts.append("---\n" if begun else "")
            # allow_unicode is off: everything beyond ASCII is escaped, controls too.
            parts.append(yaml.safe_dump(identity.to_dict(clock), sort_keys=False, width=1 << 20))
            begun = True
        return "".join(parts)

    return text


def _each(line: Callable[[Identity, Clock], str]) -> Callable[[Sequence[Identity], Clock], str]:
    return lambda identities, clock: "".join(line(identity, clock) for identity in identities)


def _jsonpath(template: str) -> Callable[[Sequence[Identity], Clock], str]:
    keys = Identity(ProcessKey(0, 0), 0, GONE).to_dict(Clock(0, 0.0))
    parsed = Template(template, tuple(keys), LISTS)

    def line(identity: Identity, clock: Clock) -> str:
        text = parsed.render(identity.to_dict(clock))
        return text if text.endswith("\n") else text + "\n"

    return _each(line)


def check_format(text: str) -> None:
    """``text`` is a format for identities; raises :class:`UsageError` where it is not."""
    kind, equals, template = text.partition("=")
    if equals and kind == "jsonpath":
        _jsonpath(template)
    elif text not in FORMATS[:-1]:
        raise UsageError("unknown output format", quote(text), f"say -o {'|'.join(FORMATS)}")


def printer(text: str, out: Out, style: Style) -> Printer:
    """The printer for a format that :func:`check_format` accepts."""
    kind, _, template = text.partition("=")
    match kind:
        case "json":
            return Printer(out, _each(lambda identity, clock: to_json(identity.to_dict(clock))))
        case "yaml":
            return Printer(out, _yaml())
        case "name":
            return Printer(out, _each(lambda identity, _clock: name(identity) + "\n"))
        case "selectors":
            return Printer(
                out,
                _each(lambda i, _clock: "".join(f"{quote(selector)}\n" for selector in i.workload.selectors)),
            )
        case "jsonpath":
            return Printer(out, _jsonpath(template))
    return Printer(out, _table(style, wide=kind == "wide"))


def detach(stream: IO[str] | None) -> None:
    """Whatever ``stream`` still holds goes nowhere, at the interpreter's end too."""
    try:
        if stream is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    except (OSError, ValueError):
        pass
