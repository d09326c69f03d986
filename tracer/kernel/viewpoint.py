"""Whole cgroup paths from those that ``/proc`` shows: in a private cgroup namespace they begin at its root.

From there a cgroup outside reads ``/../../other/one``, see cgroup_namespaces(7). Joined to the mount of a hierarchy
such a path would name another cgroup than the process's.
"""

from __future__ import annotations


def whole(shown: str, own: str, at: str) -> str | None:
    """The path from the hierarchy's root of the cgroup that ``/proc`` shows us as ``shown``, while it shows our own
    cgroup as ``own`` and that one is ``at`` from the root. ``None`` if these do not determine it.

    If we are below the namespace's root, the root is the part of our path above us. If we were moved out of it, only
    the part that the path shares with ours is known.
    """
    ours_up, ours_down = _steps(own)
    up, down = _steps(shown)
    place = [name for name in at.split("/") if name]
    above = len(place) - len(ours_down)
    if above < 0 or place[above:] != ours_down or up < ours_up:
        return None
    kept = above - (up - ours_up)
    if kept < 0:
        return None
    return "/" + "/".join([*place[:kept], *down])


def _steps(path: str) -> tuple[int, list[str]]:
    """How many steps a path goes up from the namespace's root, and the names down from there."""
    names = [name for name in path.split("/") if name]
    up = next((at for at, name in enumerate(names) if name != ".."), len(names))
    return up, names[up:]
