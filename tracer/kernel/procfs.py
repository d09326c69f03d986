"""What ``/proc`` tells of one process: for processes whose slot is empty, and where there is no task iterator.

Text of ``/proc`` is a snapshot of a number, not of a process: callers bracket it with a pidfd (``tracer.pidfd``).
"""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    """From ``/proc/<pid>/stat``: ``start`` in boot time nanoseconds, to the tick (10 ms)."""

    comm: bytes
    state: str
    ppid: int
    start: int


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            chunks = []
            while chunk := file.read(1 << 16):
                chunks.append(chunk)
            return b"".join(chunks)
    except OSError:
        return None


def read(procfs: str, pid: int, name: str) -> bytes | None:
    """The file ``/proc/<pid>/<name>`` whole; ``None`` where it cannot be read, as of a process that has ended."""
    return _read(f"{procfs}/{pid}/{name}")


def stat(procfs: str, pid: int) -> Stat | None:
    """``None`` where there is no such process. The name may hold anything, also brackets and spaces."""
    text = _read(f"{procfs}/{pid}/stat")
    if text is None:
        return None
    opening, closing = text.find(b"("), text.rfind(b")")
    fields = text[closing + 2 :].split()
    if opening < 0 or len(fields) < 20:
        return None
    return Stat(text[opening + 1 : closing], fields[0].decode(), int(fields[1]), int(fields[19]) * _TICK)


def process_of(procfs: str, tid: int) -> int | None:
    """The process that a thread ID belongs to; ``None`` where there is none."""
    text = _read(f"{procfs}/{tid}/status")
    for line in (text or b"").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line[5:])
    return None


def unix_selectors(procfs: str, pid: int) -> tuple[str, ...] | None:
    """The selectors that SPIRE's ``unix`` attestor gives the process, but for those of its program's file (``path``,
    ``sha256``); ``None`` where it cannot be told, as of a process that has ended. IDs are the effective ones, as seen
    from our user namespace; names are this machine's, not those in the container."""
    ids: dict[bytes, list[int]] = {}
    for line in (_read(f"{procfs}/{pid}/status") or b"").split(b"\n"):
        name, _, values = line.partition(b":")
        if name in (b"Uid", b"Gid", b"Groups"):
            ids[name] = [int(value) for value in values.split()]
    if len(ids.get(b"Uid", ())) < 2 or len(ids.get(b"Gid", ())) < 2:
        return None
    found: list[tuple[str, int | str | None]] = []
    minute = int(time.monotonic() / 60)
    for kind, named, number in (("uid", "user", ids[b"Uid"][1]), ("gid", "group", ids[b"Gid"][1])):
        found += [(kind, number), (named, _name(kind, number, minute))]
    for number in ids.get(b"Groups", ()):
        found += [("supplementary_gid", number), ("supplementary_group", _name("gid", number, minute))]
    return tuple(sorted({f"unix:{kind}:{value}" for kind, value in found if value is not None}))


@lru_cache(maxsize=1024)
def _name(kind: str, number: int, minute: int) -> str | None:  # noqa: ARG001 - kept for a minute at most
    try:
        return pwd.getpwuid(number).pw_name if kind == "uid" else grp.getgrgid(number).gr_name
    except KeyError:
        return None


def living_thread(procfs: str, pid: int) -> int | None:
    """A thread of the process that has not ended, the leader if it lives; ``None`` for a zombie."""
    try:
        threads = sorted((int(name) for name in os.listdir(f"{procfs}/{pid}/task")), key=lambda tid: tid != pid)
    except (OSError, ValueError):
        return None
    for tid in threads:
        seen = stat(f"{procfs}/{pid}/task", tid)
        if seen and seen.state not in "ZX":
            return tid
    return None


def cgroup_path(procfs: str, pid: int, hierarchy: int) -> str | None:
    """The path in the hierarchy of that number (0: v2) as ``/proc/<pid>/cgroup`` has it, of a living thread."""
    return (cgroup_paths(procfs, pid) or {}).get(hierarchy)


def cgroup_paths(procfs: str, pid: int) -> dict[int, str] | None:
    """The path in each hierarchy, by its number (0: v2), as ``/proc/<pid>/cgroup`` has them, of a living thread;
    ``None`` where there is none, or it cannot be read.

    A dead leader keeps its old cgroup on v2 and reads "/" on v1, while its threads may have moved on.
    """
    thread = living_thread(procfs, pid)
    text = _read(f"{procfs}/{pid}/task/{thread}/cgroup") if thread is not None else None
    if text is None:
        return None
    paths = {}
    for line in text.split(b"\n"):
        number, _, rest = line.partition(b":")
        if number.isdigit():
            paths[int(number)] = rest.partition(b":")[2].decode("utf-8", "surrogateescape")
    return paths


def pids(procfs: str) -> Iterator[int]:
    """All processes that ``/proc`` lists."""
    for name in os.listdir(procfs):
        if name.isdigit():
            yield int(name)
