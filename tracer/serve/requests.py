"""Reading requests: a line in, a :class:`Request` or a :class:`Refused` out. No I/O."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

import msgspec

from tracer.protocol import MAX_LINE, MAX_PIDS
from tracer.serve.answers import line

Code = Literal["bad_request", "too_large", "unknown_op", "permission_denied", "not_ready", "internal"]
Id = int | str | float | None

OPERATIONS = ("lookup", "cancel", "ps", "watch", "explain", "status", "version")
_MOST_WAIT = 3_600_000.0  # milliseconds that a request may wait
_MOST_ID = 1024  # characters of a request's id


class Refused(Exception):  # noqa: N818 - it reads as what it says
    """A request that gets an error for an answer; after one that ``is_last`` the connection is closed. ``nonce`` is
    what has to be sent back first, ``wants_pidfd`` says that the caller has to send a pidfd in place of a PID."""

    def __init__(
        self,
        code: Code,
        message: str,
        hint: str | None = None,
        *,
        id_: Id = None,
        is_last: bool = False,
        nonce: str | None = None,
        wants_pidfd: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.id = id_
        self.is_last = is_last
        self.nonce = nonce
        self.wants_pidfd = wants_pidfd


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """One request. Times are milliseconds; ``of`` is the id of the request that a ``cancel`` ends. ``itself`` is an
    ``explain`` of the process that connected."""

    op: str
    id: Id = None
    nonce: str | None = None
    pid: int | None = None
    pids: list[int] | None = None
    itself: bool = False
    container_id: str | None = None
    pod_uid: str | None = None
    start_time: str | None = None
    start_ns: int | None = None
    pidfd_ino: int | None = None
    mode: Literal["strict", "parity"] | None = None
    wait_ms: float = 0.0
    settled_wait_ms: float = 0.0
    container_selectors: bool = True
    parity: bool = False
    labels: bool = False
    snapshot: bool = True
    of: Id = None


_requests = msgspec.json.Decoder(Request)


def parse(text: bytes) -> Request:
    """The request that a line says. Raises :class:`Refused`."""
    if len(text) > MAX_LINE:
        raise too_long()
    try:
        request = _requests.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _no_request(text, error) from error
    if isinstance(request.id, str) and len(request.id) > _MOST_ID:
        raise Refused("bad_request", f"an id of more than {_MOST_ID} characters")
    problem = _problem(request)
    if problem is not None:
        raise Refused("bad_request", problem, id_=request.id)
    if request.op not in OPERATIONS:
        raise Refused("unknown_op", f"unknown op {request.op!r}", f"say {', '.join(OPERATIONS)}", id_=request.id)
    if request.pids is not None and len(request.pids) > MAX_PIDS:
        raise Refused("too_large", f"more than {MAX_PIDS} pids", "send several requests", id_=request.id)
    return request


def too_long() -> Refused:
    """What a line gets that is longer than any request."""
    return Refused("too_large", f"a line of more than {MAX_LINE} bytes", "send several requests", is_last=True)


def _no_request(text: bytes, error: Exception) -> Refused:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as why:
        return Refused("bad_request", f"the line is no JSON: {why}", "send one JSON object a line", is_last=True)
    id_ = said.get("id") if isinstance(said, dict) else None
    is_id = isinstance(id_, int | str | float) and len(str(id_)) <= _MOST_ID
    return Refused("bad_request", str(error), "see the operations in the manual", id_=id_ if is_id else None)


def _problem(request: Request) -> str | None:
    named = [key for key in ("pid", "pids", "container_id") if getattr(request, key) is not None]
    if len(named) > 1:
        return f"{named[0]} and {named[1]} are both given"
    if request.pid is not None and request.pid < 1:
        return f"{request.pid} is no process ID"
    if request.pids is not None and any(pid < 1 for pid in request.pids):
        return "one of the pids is no process ID"
    for key in ("wait_ms", "settled_wait_ms"):
        value = getattr(request, key)
        if not 0 <= value <= _MOST_WAIT:
            return f"{key} is not between 0 and {_MOST_WAIT:.0f}"
    if request.start_time is not None and not _is_time(request.start_time):
        return f"start_time {request.start_time[:64]!r} is not a time of RFC 3339 (use start_time of an identity)"
    if request.itself and (named or request.op != "explain"):
        return f"itself and {named[0]} are both given" if named else "itself is a field of explain"
    return None


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def internal(error: Exception, id_: Id, *, is_trusted: bool = True) -> Refused:
    """The answer to a request that failed by a bug. A caller that may ask about itself only does not get the text of
    the exception, which may be about others."""
    what = f"{type(error).__name__}: {error}" if is_trusted else type(error).__name__
    return Refused("internal", what, "see the daemon's log", id_=id_)


def refusal(refused: Refused) -> bytes:
    """The line that answers a refused request."""
    error: dict[str, Any] = {"code": refused.code, "message": refused.message, "hint": refused.hint}
    if refused.wants_pidfd:
        error["wants_pidfd"] = True
    if refused.nonce is not None:
        error["nonce"] = refused.nonce
    return line({"id": refused.id, "ok": False, "error": error})
