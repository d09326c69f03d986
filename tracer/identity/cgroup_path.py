"""Which container a cgroup path belongs to, by the strict rule.

Whoever may write a cgroup subtree may name what is in it: a container that nests a cgroup called like another
pod, and below it one called like that pod's container, has made a path whose innermost names are the
victim's. It cannot touch the names above its own cgroup, though. So a path is read from the top, and the
first name on the way down that says anything decides; what stands below is never looked at:

1. The *root*: where the kubelet of this node keeps its pods. It is given, or else the first segment called
   ``kubepods``, ``kubepods.slice`` or ``…-kubepods.slice``.
2. Below the root, the first *pod segment*: ``pod<uid>`` (cgroupfs) or ``…-pod<uid>.slice`` (systemd).
3. The container's ID, 64 hexadecimal digits, in the segment directly below, or behind the last colon of the
   pod segment itself (a kubelet with the systemd driver, a runtime with cgroupfs).

A path without any pod segment names a container by its outermost ID, which a source may or may not know. Pod
segments outside the root, below a Docker container for instance, are no pods of this node.

Names are text of any kind: everything here is linear in the length of the path, and nothing raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tracer.model import ContainerRef

Why = Literal["no_container", "conmon", "pod_cgroup", "outside_root"]

_ID = re.compile(r"\b[0-9A-Fa-f]{64}\b", re.ASCII)
# With dashes, with underscores where systemd forbids dashes, or a static pod's digest without either.
_UID = re.compile(r"[0-9A-Fa-f]{8}(?:[-_][0-9A-Fa-f]{4}){3}[-_][0-9A-Fa-f]{12}|[0-9A-Fa-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PathMatch:
    """What a cgroup path says.

    ``depth`` is the index of the segment that names the container, 0 for the first one below ``/``: the
    cgroup of that depth is the container's own, those below it are the container's too. ``below_pod`` tells
    whether the ID stands below a pod segment under the root; without it, only a source that lists the ID
    makes it a pod's container. ``root`` is the path of the root that was used, ``None`` where the path lies
    below none. ``pod_uid`` is that of the outermost pod segment under the root, also when no container was
    found.

    ``why`` is set when ``container`` is ``None``: ``no_container`` (no name says anything), ``conmon``
    (CRI-O's or Podman's monitor, which carries the ID but is not the workload), ``pod_cgroup`` (in a pod's
    cgroup but in no container's) or ``outside_root`` (a pod segment that is not below the root).
    """

    container: ContainerRef | None
    depth: int | None
    below_pod: bool
    root: str | None
    pod_uid: str | None
    why: Why | None


def match_strict(path: str, root: str | None = None) -> PathMatch:
    """The container that ``path`` belongs to: the outermost one, whatever is nested below it.

    ``path`` is a cgroup's path as the kernel gives it (``/kubepods/burstable/pod…/…``). ``root`` is the
    learnt or configured path of the kubepods root, compared segment by segment; ``None`` lets the path's own
    segments tell. Raises nothing.

    A root that is learnt from the ``root`` of a match whose container a source lists makes the rule tighter:
    from then on no other root counts.
    """
    segments = path.removeprefix("/").split("/")
    size = _guess_root(segments) if root is None else _given_root(segments, root)
    if size is None:
        if any(_pod_uid(segment) is not None for segment in segments):
            return _none("outside_root")
        return _without_pod(segments, 0, None)
    used = "/" + "/".join(segments[:size])
    for depth in range(size, len(segments)):
        uid = _pod_uid(segments[depth])
        if uid is not None:
            return _in_pod(segments, depth, uid, used)
        if _ID.search(segments[depth]):
            # A container above all pod segments may have named everything below it.
            break
    return _without_pod(segments, size, used)


def _given_root(segments: list[str], root: str) -> int | None:
    """How many segments belong to the given root, ``None`` if the path is not below it."""
    wanted = [segment for segment in root.split("/") if segment]
    return len(wanted) if segments[: len(wanted)] == wanted else None


def _guess_root(segments: list[str]) -> int | None:
    """How many segments belong to the root that the names suggest, ``None`` without one."""
    inside_container = False
    for depth, segment in enumerate(segments):
        if segment in ("kubepods", "kubepods.slice") or segment.endswith("-kubepods.slice"):
            return depth + 1
        if _pod_uid(segment) is not None:
            # A runtime that does not know systemd's slices makes one cgroup called
            # kubepods-…-pod….slice:…:<id> wherever it stands itself, with no kubepods segment above. The name
            # says kubepods all the same.
            own = not inside_container and _ID.search(segment, segment.rfind(":") + 1)
            named = segment.startswith("kubepods-") or "-kubepods-" in segment.partition(":")[0]
            return depth if ":" in segment and own and named else None
        inside_container = inside_container or _ID.search(segment) is not None
    return None


def _pod_uid(segment: str) -> str | None:
    """The pod's UID if the segment is a pod's, with dashes (or none at all for static pods)."""
    name = segment.partition(":")[0]
    if name.endswith(".slice"):
        before, found, uid = name[: -len(".slice")].rpartition("pod")
        if not found or (before and not before.endswith("-")):
            return None
    elif name.startswith("pod"):
        uid = name[len("pod") :]
    else:
        return None
    return uid.replace("_", "-") if _UID.fullmatch(uid) else None


def _in_pod(segments: list[str], depth: int, uid: str, root: str) -> PathMatch:
    """The match for a path whose outermost pod segment under the root stands at ``depth``."""
    found = None
    if ":" in segments[depth]:
        found = _ID.search(segments[depth], segments[depth].rfind(":") + 1)
    if found is None and depth + 1 < len(segments):
        depth += 1
        found = _ID.search(segments[depth])
    if found is None:
        return _none("pod_cgroup", root, uid)
    if _is_conmon(found):
        return _none("conmon", root, uid)
    return PathMatch(ContainerRef(found[0], uid), depth, True, root, uid, None)


def _without_pod(segments: list[str], start: int, root: str | None) -> PathMatch:
    """The match for a path in which no pod segment counts: its outermost container ID."""
    for depth in range(start, len(segments)):
        found = _ID.search(segments[depth])
        if found is not None:
            if _is_conmon(found):
                return _none("conmon", root)
            return PathMatch(ContainerRef(found[0], None), depth, False, root, None, None)
    return _none("no_container", root)


def _is_conmon(found: re.Match[str]) -> bool:
    """Whether the name before the ID is that of a monitor: ``crio-conmon-<id>``, ``libpod-conmon-<id>``."""
    return found.string[: found.start()].rstrip("-_.:").endswith("conmon")


def _none(why: Why, root: str | None = None, uid: str | None = None) -> PathMatch:
    return PathMatch(None, None, False, root, uid, why)
