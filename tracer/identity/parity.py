"""What SPIRE's ``k8s`` workload attestor makes of a process, to the last string.

``locate`` is its default locator (SPIRE's ``pkg/common/containerinfo``): ``/proc/<pid>/cgroup`` and, where that names
no container, ``/proc/<pid>/mountinfo``. ``attest`` is what it answers with one pod list. Nothing here is made safer
than SPIRE makes it: of several names on a path the innermost counts, whoever gave it, and a mountinfo is made by the
container itself.

Files are bytes, as SPIRE's rules are about bytes: a boundary (``\\b``) is ASCII's, and a name may be no UTF-8. All of
it is linear in the size of its input, and raises ``ParityError`` only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tracer.errors import ParityError
from tracer.identity.pods import PodTable, resolved
from tracer.identity.selectors import selectors
from tracer.model import Container, Pod, State, Workload

File = Literal["cgroup", "mountinfo"]
Taken = Literal["taken", "same", "overrides", "ignored", "nothing", "skipped", "conflict"]

CONFLICT = "FailedPrecondition"
INTERNAL = "Internal"
TIMEOUT = "DeadlineExceeded"
TWO_PODS = "two pods found with same container Id"
NOT_FOUND = "no selectors found after max poll attempts"

# bufio.Scanner's buffer, which has to hold a line and the line feed that ends it.
_LINE_LIMIT = 1 << 16
_ID = re.compile(rb"\b[0-9A-Fa-f]{64}\b")
_UID = re.compile(rb"\bpod([0-9A-Fa-f]{8}(?:[-_][0-9A-Fa-f]{4}){3}[-_][0-9A-Fa-f]{12})\b")
_GO_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was looked at: ``number`` counts from 1, ``path`` is the part of it that was searched.

    ``container_id`` and ``pod_uid`` are what it names, ``None`` for nothing. ``taken`` is what became of that:
    ``taken`` (the first to say anything), ``same`` (says what is known), ``overrides`` (the first with a pod's UID),
    ``ignored`` (without one, behind one with it), ``nothing``, ``skipped`` (a mount of a whole hierarchy) or
    ``conflict``.
    """

    file: File
    number: int
    path: str
    container_id: str | None
    pod_uid: str | None
    taken: Taken


@dataclass(frozen=True, slots=True)
class Located:
    """The container that SPIRE's rules give; both ``None`` where there is none.

    ``taken`` has every line of the cgroup file and, where that named no container, every cgroup mount of the
    mountinfo. ``from_file`` is the file that named the container.
    """

    pod_uid: str | None
    container_id: str | None
    taken: tuple[Line, ...] = ()
    from_file: File | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """SPIRE's answer: selectors (none is an answer too), or an error with the name of its gRPC status."""

    selectors: tuple[str, ...] = ()
    error: str | None = None
    code: str = "OK"
    pod: Pod | None = None
    container: Container | None = None


# ---- the container ----


def locate(cgroup: bytes | None, mountinfo: bytes | None, *, pod_uids: bool = True) -> Located:
    """The container of a process, from its files as they are read; ``None`` for one that is not there.

    Without ``pod_uids`` no pod UID is looked for, as SPIRE's other attestors do. Raises ``ParityError``, whose ``what``
    is SPIRE's message: a line that is malformed or too long, or lines that contradict each other.
    """
    located = Located(None, None)
    if cgroup is not None:
        located = _merge("cgroup", list(_cgroup_paths(cgroup)), (), pod_uids)
    if located.container_id is None and mountinfo is not None:
        located = _merge("mountinfo", list(_cgroup_mounts(mountinfo)), located.taken, pod_uids)
    return located


def _lines(file: File, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines as Go's bufio.Scanner gives them: by line feeds, less one carriage return."""
    start, number = 0, 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        if end - start >= _LINE_LIMIT:
            raise ParityError("bufio.Scanner: token too long", INTERNAL, file, number)
        yield number, data[start:end].removesuffix(b"\r")
        start = end + 1


def _cgroup_paths(data: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in _lines("cgroup", data):
        fields = line.split(b":", 2)
        if len(fields) < 3:
            what = (
                f"invalid cgroup entry, contains {len(fields)} colon separated fields"
                f" but expected at least 3: {_go_quote(line)}"
            )
            raise ParityError(what, INTERNAL, "cgroup", number)
        yield number, fields[2]


def _cgroup_mounts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The root of each mount of a cgroup hierarchy, as it is written: escapes of spaces stay."""
    for number, line in _lines("mountinfo", data):
        if not line:
            continue
        fields = line.split(b" ")
        try:
            separator = fields.index(b"-")
        except ValueError:
            raise _malformed_mount("missing separator", number, line) from None
        if separator < 6:
            raise _malformed_mount("expected at least 6 fields before separator", number, line)
        kind = fields[separator + 1] if separator + 1 < len(fields) else b""
        if not kind:
            raise _malformed_mount("missing filesystem type", number, line)
        if kind in (b"cgroup", b"cgroup2"):
            yield number, fields[3]


def _malformed_mount(what: str, number: int, line: bytes) -> ParityError:
    return ParityError(f"{what} in mountinfo line: {_text(line)}", INTERNAL, "mountinfo", number)


def _merge(file: File, paths: list[tuple[int, bytes]], before: tuple[Line, ...], pod_uids: bool) -> Located:
    uid = container = ""
    lines = list(before)
    for number, path in paths:
        if file == "mountinfo" and path == b"/":
            lines.append(Line(file, number, "/", None, None, "skipped"))
            continue
        new_uid, new = _extract(path, pod_uids)
        line = Line(file, number, _text(path), new or None, new_uid or None, "nothing")
        what = None
        if uid and not new_uid:
            line = replace(line, taken="ignored") if new else line
        elif new_uid and not uid:
            line = replace(line, taken="overrides" if container else "taken")
            uid, container = new_uid, new
        elif new_uid != uid:
            what = f'multiple pod UIDs found ("{uid}", "{new_uid}")'
        elif container and new != container:
            what = f'multiple container IDs found ("{container}", "{new}")'
        elif new:
            line = replace(line, taken="same" if container else "taken")
            container = new
        if what is not None:
            lines.append(replace(line, taken="conflict"))
            raise ParityError(what, CONFLICT, file, number, tuple(lines))
        lines.append(line)
    return Located(uid or None, container or None, tuple(lines), file if container else None)


def _extract(path: bytes, pod_uids: bool) -> tuple[str, str]:
    """(pod UID, container ID) that one path names, "" for none; an empty segment ends either search."""
    segments = path.split(b"/")
    for at in range(len(segments) - 1, -1, -1):
        if not segments[at]:
            break
        found = _ID.search(segments[at])
        if found is not None:
            uid = _pod_uid(segments, at, segments[at][: found.start()]) if pod_uids else ""
            return uid, found[0].decode("ascii")
    return "", ""


def _pod_uid(segments: list[bytes], at: int, before: bytes) -> str:
    # What stands before the ID in its own segment comes first; where nothing does, the segment is used up.
    for segment in (*((before,) if before else ()), *reversed(segments[:at])):
        if not segment:
            break
        found = _UID.search(segment)
        if found is not None:
            return found[1].replace(b"_", b"-").decode("ascii")
    return ""


def uid_for_spire(uid: str) -> str | None:
    """The UID that SPIRE finds where a path names the pod with this UID; ``None`` for a UID that it does not see."""
    found = _UID.search(b"pod" + uid.encode("utf-8", "surrogateescape"))
    return found[1].replace(b"_", b"-").decode("ascii") if found is not None else None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _go_quote(data: bytes) -> str:
    """Go's ``%q`` of a string."""
    quoted = []
    for char in data.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
            quoted.append(f"\\x{code - 0xDC00:02x}")
        elif code in _GO_ESCAPES:
            quoted.append(_GO_ESCAPES[code])
        elif char.isprintable():
            quoted.append(char)
        elif code < 0x20 or code == 0x7F:
            quoted.append(f"\\x{code:02x}")
        else:
            quoted.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return f'"{"".join(quoted)}"'


# ---- the answer ----


def attest(
    located: Located,
    table: PodTable,
    *,
    disable_container_selectors: bool = False,
    namespace_labels: Mapping[str, Mapping[str, str]] | None = None,
) -> Outcome:
    """What SPIRE answers for this container when its last attempt meets this pod list.

    No container is an answer without selectors. With a pod UID only that pod is examined, verbatim, otherwise all are;
    a container is looked for among app and init containers, never among ephemeral ones. With
    ``disable_container_selectors`` and a pod UID the pod is enough. ``namespace_labels`` are those of each namespace,
    where they are asked for.
    """
    wanted, uid = located.container_id, located.pod_uid
    if wanted is None:
        return Outcome()
    found: dict[str, tuple[Pod, Container | None]] = {}
    for pod, container in table.find(wanted):
        if container.role != "ephemeral" and (uid is None or pod.uid == uid):
            found.setdefault(pod.uid, (pod, container))
    if uid is not None and disable_container_selectors and uid in table.by_uid:
        found.setdefault(uid, (table.by_uid[uid], None))
    if len(found) > 1:
        return Outcome(error=TWO_PODS, code=INTERNAL)
    for pod, listed in found.values():
        given = selectors(
            pod,
            listed,
            disable_container_selectors=disable_container_selectors,
            namespace_labels=(namespace_labels or {}).get(pod.namespace),
        )
        return Outcome(given, pod=pod, container=listed)
    return Outcome(error=NOT_FOUND, code=TIMEOUT)


def is_same(workload: Workload, answer: Located | ParityError) -> bool | None:
    """Whether SPIRE's rules give the container that ``workload``, the strict answer, speaks of.

    None is the same as none; an error is the same as nothing. ``None`` where the strict answer does not know which
    container it is about.
    """
    if workload.container_id is None and workload.state is not State.HOST:
        return None
    if isinstance(answer, ParityError) or answer.container_id != workload.container_id:
        return False
    return answer.pod_uid is None or answer.pod_uid == workload.pod_uid


def workload(
    answer: Located | ParityError, outcome: Outcome | None, *, source: str | None = None, given_up: bool = False
) -> Workload:
    """SPIRE's answer in our words: ``outcome`` is that of the newest list, ``None`` before the first.

    What SPIRE would ask for again is pending, and unknown once ``given_up``; its errors are unknown, with its message.
    """
    if isinstance(answer, ParityError):
        if answer.code == CONFLICT:
            return Workload(State.UNKNOWN, "conflict", answer.what)
        return Workload(State.UNKNOWN, "unreadable", answer.what)
    if answer.container_id is None:
        return Workload(State.HOST, "no_container", "SPIRE's rules find no container")
    known = Workload(
        State.PENDING,
        "not_listed_yet",
        "no source lists this container yet",
        pods_from=source,
        pod_uid=answer.pod_uid,
        container_id=answer.container_id,
    )
    if outcome is None:
        return known
    pod, container = outcome.pod, outcome.container
    if pod is None and outcome.error != NOT_FOUND:
        return replace(known, state=State.UNKNOWN, reason="conflict", reason_text=outcome.error)
    if pod is None:
        if not given_up:
            return known
        return replace(known, state=State.UNKNOWN, reason="not_listed", reason_text=outcome.error)
    return resolved(pod, container, answer.container_id, outcome.selectors, source=source, settled=True)
