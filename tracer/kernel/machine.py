"""What the machine must have before anything is tried, said in one sentence each."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from tracer.errors import MissingError, PermissionMissing

# capability.h; each with what it is for. SYS_ADMIN stands for the first two.
_SYS_ADMIN = 21
_NEEDED = {
    39: ("CAP_BPF", "loads the programs"),
    38: ("CAP_PERFMON", "lets them read the kernel's tasks"),
    2: ("CAP_DAC_READ_SEARCH", "opens cgroups by their id"),
}
_ADMIN_IS_ENOUGH = {39, 38}
SYS_PTRACE = 19
LEAST_KERNEL = (5, 8)
LEAST_FILES = 64


def check_capabilities(status: str) -> None:
    """Raises ``PermissionMissing`` naming each capability that ``/proc/self/status`` (its text) does not have."""
    held = _held(status)
    admin = held >> _SYS_ADMIN & 1
    short = [
        f"{name} ({use})"
        for bit, (name, use) in _NEEDED.items()
        if not held >> bit & 1 and not (admin and bit in _ADMIN_IS_ENOUGH)
    ]
    if short:
        raise PermissionMissing("not allowed to trace", f"missing: {', '.join(short)}", "run it as root")


def holds(status: str, capability: int) -> bool:
    """Whether ``/proc/self/status`` (its text) has the capability of this number."""
    return bool(_held(status) >> capability & 1)


def _held(status: str) -> int:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.M)
    return int(match[1], 16) if match else 0


def check_kernel(release: str) -> None:
    """Raises ``MissingError`` below 5.8, the first with ring buffers, mappable arrays and task iterators."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) < LEAST_KERNEL:
        raise MissingError("the kernel is too old", f"Linux {release}", "podtracer needs Linux 5.8 or newer")


def check_files(limit: int) -> None:
    """Raises ``MissingError`` where so few files may be open that the programs and their maps do not fit in."""
    if limit != resource.RLIM_INFINITY and limit < LEAST_FILES:
        hint = "raise it: ulimit -n 1024, or LimitNOFILE= of the service"
        raise MissingError("too few files may be open", f"{limit}, {LEAST_FILES} are needed", hint)


def check() -> None:
    """Raises the first thing that this machine or this user lacks."""
    check_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    check_kernel(os.uname().release)
    check_capabilities(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
