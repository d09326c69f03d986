"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from tracer import __version__

_LIBRARIES = ("msgspec", "requests", "grpcio")


def facts() -> dict[str, Any]:
    """Kernel, processors, memory, load and versions; what cannot be told is ``None``."""
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "distribution": _distribution(),
        "cpus": os.cpu_count(),
        "cpu": _find("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"),
        "memory_mb": _kilobytes("/proc/meminfo", "MemTotal"),
        "load": [round(load, 2) for load in os.getloadavg()],
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "pid_max": int(Path("/proc/sys/kernel/pid_max").read_text()),
        "podtracer": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
    }


def resident(pid: int) -> float:
    """Resident memory of a process in MB (2^20 bytes)."""
    found = _kilobytes(f"/proc/{pid}/status", "VmRSS")
    return found if found is not None else 0.0


def _kilobytes(path: str, name: str) -> float | None:
    found = _find(path, rf"^{name}:\s*(\d+) kB")
    return round(int(found) / 1024, 1) if found is not None else None


def _find(path: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"), re.M)
    except OSError:
        return None
    return found[1].strip() if found else None


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
