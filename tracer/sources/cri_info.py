"""What a runtime says of a container at length: the JSON in ``info`` of a verbose ``ContainerStatusResponse``.

CRI leaves its form open. containerd (``internal/cri/server/container_status.go``) and CRI-O
(``server/container_status.go``) put an object with the OCI spec in ``runtimeSpec`` there; cri-dockerd puts nothing. So
whatever is missing or of another form is not known, and never an error.
"""

from __future__ import annotations

from typing import Final

import msgspec

_MOST: Final = 4 << 20  # a spec has some ten thousand bytes; its environment and mounts may make it larger
_LONGEST_PATH: Final = 4096


class _Linux(msgspec.Struct):
    path: str | None = msgspec.field(default=None, name="cgroupsPath")


class _Spec(msgspec.Struct):
    linux: _Linux | None = None


class _Info(msgspec.Struct):
    spec: _Spec | None = msgspec.field(default=None, name="runtimeSpec")


_decoder = msgspec.json.Decoder(_Info)


def cgroups_path(info: bytes) -> str | None:
    """``runtimeSpec.linux.cgroupsPath`` of this JSON, as it is written there; ``None`` where there is none."""
    if len(info) > _MOST:
        return None
    try:
        found = _decoder.decode(info)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    path = found.spec and found.spec.linux and found.spec.linux.path
    return path if path and len(path) <= _LONGEST_PATH and "\0" not in path else None
