"""Which container a cgroup path names, by the strict rule.

A user who may write a cgroup subtree chooses the names in it. A container may nest a cgroup named after another pod,
and below it one named after that pod's container: the innermost names of that path are the victim's. But it cannot
change the names above its own cgroup. So a path is read from the top, and the first name that says anything decides:

1. The first *pod segment*: ``pod<uid>`` (the kubelet's cgroupfs driver) or ``…-pod<uid>.slice`` (its systemd driver).
   A UID is a UUID or 32 hexadecimal digits; below a segment called ``kubepods`` it is any text, since a static pod's
   manifest may name its own.
2. The container's ID, 64 hexadecimal digits, in the segment directly below, or behind the last colon of the pod segment
   itself (a kubelet with the systemd driver, a runtime with cgroupfs). Old releases of CRI-O put the container's cgroup
   below that of its monitor, which has the same ID: the container is the one below.
3. Without a pod segment, the outermost container's ID.

A pod segment below a container's ID, as in a node of KIND, is *nested*: the container above may have named it. The
match says below which, and ``places`` decides whether that container is this node. Containers of LXC and of
systemd-machined have names instead of IDs: whatever is below one of those is nested as well.

A path alone proves nothing. ``places`` and ``verdict`` look at who may have made these names, and whether a source
lists them. A name may be any text: all functions here are linear in the length of the path, and none raises.
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
# The kubelet names a pod's slice after all slices above it.
_NAMED_SLICE = re.compile(r"(?:.*-)?kubepods(?:-burstable|-besteffort)?-pod(.+)", re.DOTALL)
_CLASSES = ("burstable", "besteffort")
# Containers that are called by a name: LXC's (``lxc/box``, ``lxc.payload.box``) and systemd-machined's, whose unit may
# be in another slice than machine.slice.
_ABOVE_MACHINES = ("lxc", "lxc.payload", "machine", "machine.slice")
_MACHINE = re.compile(r"lxc\.payload\..+|systemd-nspawn@.+\.service|machine-.+\.scope", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Outer:
    """The containers above a pod's: the outermost one's ID or name and the index of its segment, and the path down to
    the innermost one."""

    name: str
    depth: int
    place: str


@dataclass(frozen=True, slots=True)
class PathMatch:
    """What a cgroup path says.

    ``depth`` is the index of the segment that names the container, 0 for the first one below ``/``: the cgroup of that
    depth is the container's own, those below it are the container's too. ``below_pod`` tells whether the ID stands
    below a pod segment; without it, only a source that lists the ID makes it a pod's container. ``root`` is the place
    where this pod is: the path above the pod's segment and its QoS class, or the prefix that was given. ``pod_uid`` is
    that of the outermost pod segment, also when no container was found. ``outer`` are the containers above that;
    without a pod segment those that are called by a name.

    ``why`` is set when ``container`` is ``None``: ``no_container`` (no name says anything), ``conmon``
    (CRI-O's or Podman's monitor, which carries the ID but is not the workload), ``pod_cgroup`` (in a pod's
    cgroup but in no container's) or ``outside_root`` (a pod segment that is not below the prefix).
    """

    container: ContainerRef | None
    depth: int | None
    below_pod: bool
    root: str | None
    pod_uid: str | None
    why: Why | None
    outer: Outer | None = None


def match_strict(path: str, prefix: str | None = None) -> PathMatch:
    """The container that ``path`` belongs to: the outermost one, whatever is nested below it.

    ``path`` is a cgroup's path as the kernel gives it (``/kubepods/burstable/pod…/…``). ``prefix`` is the operator's
    word on where pods are (``--cgroup-prefix``), compared segment by segment: what is above it is not looked at, and
    pod segments elsewhere do not count. Raises nothing.
    """
    segments = path.removeprefix("/").split("/")
    start = 0
    if prefix is not None:
        wanted = [segment for segment in prefix.split("/") if segment]
        if segments[: len(wanted)] != wanted:
            if any(_pod_uid(segments, depth, None) is not None for depth in range(len(segments))):
                return _none("outside_root")
            return _without_pod(segments, 0, None)
        start = len(wanted)
    given = None if prefix is None else "/" + "/".join(segments[:start])
    above: list[tuple[str, int]] = []
    for depth in range(start, len(segments)):
        uid = _pod_uid(segments, depth, None if prefix is None else start)
        if uid is not None:
            return _in_pod(segments, depth, uid, given, above)
        found = _ID.search(segments[depth])
        if _is_machine(segments, depth, start):
            above.append((segments[depth], depth))
        elif found is not None and not _is_conmon(found):
            above.append((found[0], depth))
    return _without_pod(segments, start, given)


def _is_machine(segments: list[str], depth: int, start: int) -> bool:
    """Whether the segment is a container's that is called by a name."""
    name = segments[depth]
    if _MACHINE.fullmatch(name) is None and (depth == start or segments[depth - 1] not in _ABOVE_MACHINES):
        return False
    return _ID.search(name) is None  # Podman's containers are in machine.slice too


def _outer(segments: list[str], above: list[tuple[str, int]]) -> Outer | None:
    return Outer(*above[0], "/" + "/".join(segments[: above[-1][1] + 1])) if above else None


def _is_kubepods(segment: str) -> bool:
    """Whether the kubelet calls the cgroup of all pods so; with ``--cgroup-root`` a slice's name has that in front."""
    return segment in ("kubepods", "kubepods.slice") or segment.endswith("-kubepods.slice")


def _pod_uid(segments: list[str], depth: int, start: int | None) -> str | None:
    """The pod's UID if the segment is a pod's, with dashes (or none at all for static pods). ``start`` is the number of
    segments of the prefix, where one was given."""
    name = segments[depth].partition(":")[0]
    if name.endswith(".slice"):
        stem = name[: -len(".slice")]
        before, found, uid = stem.rpartition("pod")
        if found and (not before or before.endswith("-")) and _UID.fullmatch(uid):
            return uid.replace("_", "-")
        named = _NAMED_SLICE.fullmatch(stem)
        return named[1].replace("_", "-") if named else None
    uid = name[len("pod") :]
    if not uid or not name.startswith("pod"):
        return None
    if _UID.fullmatch(uid):
        return uid.replace("_", "-")
    if _ID.search(segments[depth], segments[depth].rfind(":") + 1) is None:
        uid = segments[depth][len("pod") :]  # a static pod's may have colons too
    above = depth - 1 if depth > 0 and segments[depth - 1] in _CLASSES else depth
    in_pods = above == start or (above > 0 and _is_kubepods(segments[above - 1]))
    return uid if in_pods else None


def _place(segments: list[str], depth: int) -> str:
    """The path above a pod's segment, without the QoS class."""
    if depth > 0:
        above = segments[depth - 1].removesuffix(".slice")
        if above in _CLASSES or above.endswith(("kubepods-burstable", "kubepods-besteffort")):
            depth -= 1
    return "/" + "/".join(segments[:depth])


def _in_pod(segments: list[str], depth: int, uid: str, given: str | None, above: list[tuple[str, int]]) -> PathMatch:
    """The match for a path whose outermost pod segment stands at ``depth``, below the containers ``above``."""
    root = given if given is not None else _place(segments, depth)
    outer = _outer(segments, above)
    found = None
    if ":" in segments[depth]:
        found = _ID.search(segments[depth], segments[depth].rfind(":") + 1)
    if found is None and depth + 1 < len(segments):
        depth += 1
        found = _ID.search(segments[depth])
    if found is None:
        return PathMatch(None, None, False, root, uid, "pod_cgroup", outer)
    if _is_conmon(found):
        if not _is_of_monitor(segments, depth, found[0]):
            return PathMatch(None, None, False, root, uid, "conmon", outer)
        depth += 1
    return PathMatch(ContainerRef(found[0], uid), depth, True, root, uid, None, outer)


def _without_pod(segments: list[str], start: int, root: str | None) -> PathMatch:
    """The match for a path in which no pod segment counts: its outermost container ID."""
    above: list[tuple[str, int]] = []
    for depth in range(start, len(segments)):
        if _is_machine(segments, depth, start):
            above.append((segments[depth], depth))
            continue
        found = _ID.search(segments[depth])
        if found is not None:
            if _is_conmon(found):
                if not _is_of_monitor(segments, depth, found[0]):
                    return _none("conmon", root)
                depth += 1
            return PathMatch(ContainerRef(found[0], None), depth, False, root, None, None, _outer(segments, above))
    return PathMatch(None, None, False, root, None, "no_container", _outer(segments, above))


def _is_conmon(found: re.Match[str]) -> bool:
    """Whether the name before the ID is that of a monitor: ``crio-conmon-<id>``, ``libpod-conmon-<id>``."""
    return found.string[: found.start()].rstrip("-_.:").endswith("conmon")


def _is_of_monitor(segments: list[str], depth: int, container_id: str) -> bool:
    """Whether the segment below a monitor's is that of the container which it watches."""
    below = _ID.search(segments[depth + 1]) if depth + 1 < len(segments) else None
    return below is not None and below[0] == container_id and not _is_conmon(below)


def _none(why: Why, root: str | None = None) -> PathMatch:
    return PathMatch(None, None, False, root, None, why)
