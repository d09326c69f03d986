"""The words of the daemon's socket, for those who ask: requests as lines, answers as identities and events.

One JSON object a line each way: ``{"id": 1, "op": "lookup", "pid": 4321}`` is answered by ``{"id": 1, "ok": true,
"result": {…}}`` or ``{"id": 1, "ok": false, "error": {"code", "message", "hint"}}``; a ``watch`` by one
``{"id", "event": {…}}`` after the other. No I/O: both clients send and receive by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tracer.errors import DaemonError
from tracer.model import GONE, Cgroup, Clock, Event, Identity, Process, ProcessKey, Source, State, Workload

DEFAULT_SOCKET = "/run/podtracer/podtracer.sock"
NOBODY = "no daemon listens"
"""What is said where nobody accepts at a socket."""
MAX_LINE = 65536
"""Bytes of a request's line, at most."""
MAX_PIDS = 1000
"""Processes that one ``lookup`` asks for, at most."""

_EVENTS = ("snapshot", "exec", "fork", "move", "exit", "resolved", "synced", "lost")
_LABEL = "k8s:pod-label:"


@dataclass(frozen=True, slots=True)
class Reply:
    """One line of the daemon: to the request ``id`` a ``result``, an ``error``, or one of its events. ``nonce`` is
    what the daemon wants back before it believes who asks (kernels before 6.5)."""

    id: Any
    result: Any = None
    error: DaemonError | None = None
    event: Mapping[str, Any] | None = None
    nonce: str | None = None


def request(number: int, op: str, fields: Mapping[str, Any]) -> bytes:
    """A request's line; fields that are ``None`` are left out."""
    given = {key: value for key, value in fields.items() if value is not None}
    return json.dumps({"id": number, "op": op, **given}, separators=(",", ":")).encode() + b"\n"


def reply(line: bytes) -> Reply:
    """What a line of the daemon says. Raises :class:`DaemonError` where it is none."""
    try:
        said = json.loads(line)
        if "event" in said:
            return Reply(said["id"], event=said["event"])
        if said["ok"]:
            return Reply(said["id"], said["result"])
        error = said["error"]
        told = DaemonError(str(error["code"]), str(error["message"]), None, error.get("hint"))
        told.wants_pidfd = error.get("wants_pidfd") is True
        return Reply(said.get("id"), error=told, nonce=error.get("nonce"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DaemonError("internal", "the daemon sent what is no answer", None, "is it podtracer's socket?") from error


class Lines:
    """Bytes in, whole lines out; no line is looked through twice."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` ends."""
        *ended, rest = data.split(b"\n")
        for line in ended:
            self._parts.append(line)
            whole = b"".join(self._parts)
            self._parts.clear()
            yield whole
        if rest:
            self._parts.append(rest)


def lookup_fields(
    *,
    pidfd_ino: int | None,
    start_time: str | None,
    start_ns: int | None = None,
    mode: str | None,
    wait: float,
    settled_wait: float,
    container_selectors: bool,
    parity: bool,
) -> dict[str, Any]:
    """The optional fields of a ``lookup``; times in seconds here, in milliseconds on the wire."""
    return {
        "pidfd_ino": pidfd_ino,
        "start_time": start_time,
        "start_ns": start_ns,
        "mode": mode,
        "wait_ms": round(wait * 1000) or None,
        "settled_wait_ms": round(settled_wait * 1000) or None,
        "container_selectors": None if container_selectors else False,
        "parity": parity or None,
        "labels": True,
    }


def unknown_here(pid: int) -> Identity:
    """The answer for a PID that no process has in the caller's PID namespace."""
    return Identity(ProcessKey(0, 0), pid, GONE)


def identity(said: Mapping[str, Any], clock: Clock) -> Identity:
    """The identity that a JSON object says, as a look-up in the daemon itself gives it; ages are taken from now. The
    inode of the process's pidfd is not said: its key has the start in its place, to the millisecond. Raises
    :class:`DaemonError` for what is no identity."""
    try:
        return _identity(said, clock)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DaemonError("internal", f"the daemon sent what is no identity: {error}") from error


def _identity(said: Mapping[str, Any], clock: Clock) -> Identity:
    pid = said["pid"] or 0
    process = None
    if said["source"] is not None:
        process = Process(
            said["ppid"], said["comm"], _start(said["start_time"], clock), Source(said["source"]),
            clock.now - round(said["age_ms"] * 1e6), said.get("start_ns"),
        )  # fmt: skip
    selectors = tuple(said["selectors"])
    labels = said.get("labels")
    if labels is None and said["state"] == "resolved":
        pairs = (text[len(_LABEL) :] for text in selectors if text.startswith(_LABEL))
        labels = dict(pair.split(":", 1) for pair in pairs)
    workload = Workload(
        State(said["state"]),
        said["reason"],
        said["reason_text"],
        said["settled"],
        said["pods_from"],
        said["namespace"],
        said["service_account"],
        said["pod"],
        said["pod_uid"],
        said["container"],
        said["container_id"],
        said["image"],
        said["node"],
        selectors,
        labels,
        said.get("kind"),
    )
    ids, age = said["spiffe_ids"], said["pods_age_ms"]
    return Identity(
        ProcessKey(pid, process.start if process is not None else 0),
        said["asked"] or pid,
        workload,
        None if said["cgroup_id"] is None else Cgroup(said["cgroup_id"], said["cgroup"]),
        process,
        None if age is None else clock.now - round(age * 1e6),
        said["mode"],
        said["parity"],
        None if ids is None else tuple(ids),
    )


def _start(text: str | None, clock: Clock) -> int:
    """Boot time nanoseconds of an RFC 3339 time, in the middle of its millisecond, so that it is written the same."""
    if text is None:
        return 0
    return round((datetime.fromisoformat(text).timestamp() - clock.boot) * 1e9) + 500_000


def event(said: Mapping[str, Any], clock: Clock) -> Event:
    """The event of a watch that a JSON object says. Raises :class:`DaemonError` for what is none."""
    try:
        kind, at = said["event"], _start(said["time"], clock)
        if kind not in _EVENTS:
            raise ValueError(f"unknown event {kind!r}")
        own = {key: said[key] for key in ("from", "exit_code", "signal", "count", "elsewhere") if key in said}
        return Event(kind, at, _identity(said, clock) if "pid" in said else None, own)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DaemonError("internal", f"the daemon sent what is no event: {error}") from error
