"""Files that a user gives: read to a limit, and refused in one sentence that names the file and the place in it."""

from __future__ import annotations

from tracer.errors import InputError
from tracer.identity.pods import PodList, decode_pod_list

MOST_PODS = 64 << 20
"""A longer pod list is refused; that of 110 pods takes about a megabyte."""

MOST_PROC = 16 << 20
"""A longer copy of a file of ``/proc`` is refused: 100,000 mounts, the kernel's limit, take about as much."""

_PODS_HINT = "give what the kubelet answers at /pods, or `kubectl get pods -A -o json` prints"
_PROC_HINT = "give a copy of /proc/PID/{}"


def read_pods(path: str) -> PodList:
    """The pods of a file, as the kubelet lists them. Raises ``InputError``."""
    body = _read(path, "the pod list", MOST_PODS, _PODS_HINT)
    if not body.strip():
        raise InputError("the pod list is empty", path, _PODS_HINT)
    try:
        return decode_pod_list(body)
    except InputError as error:
        raise InputError(error.what, path, error.hint) from None


def read_proc(path: str, name: str) -> bytes:
    """A copy of ``/proc/<pid>/<name>``: text of lines, though names in it need not be UTF-8. Raises ``InputError``."""
    hint = _PROC_HINT.format(name)
    body = _read(path, f"the {name} file", MOST_PROC, hint)
    at = body.find(b"\0")
    if at >= 0:
        line = body.count(b"\n", 0, at) + 1
        raise InputError(f"this is binary, no {name} file (line {line}, byte {at})", path, hint)
    return body


def _read(path: str, what: str, most: int, hint: str) -> bytes:
    try:
        with open(path, "rb") as file:
            body = file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{what} cannot be read: {reason}", path, hint) from None
    if len(body) > most:
        raise InputError(f"{what} is larger than {most >> 20} MiB", path, hint)
    return body
