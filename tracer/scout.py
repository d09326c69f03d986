"""Which hierarchy to track: data, found by looking, and changed while running when containers turn up elsewhere.

A hybrid node has v1 hierarchies and a v2 tree that may be empty, or hold the containers too. Until a cgroup of a
container's shape with a process in it was seen, births are watched on all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tracer.identity.cgroup_path import match_strict
from tracer.kernel.cgroupfs import CgroupNames, Mount

_SURE = 20_000_000  # ns for which a process has to be seen elsewhere: a runtime joins one hierarchy after another


def _populated(folder: str) -> bool:
    """Whether a process is in the cgroup or in one right below it (crun's ``container``)."""
    try:
        if Path(folder, "cgroup.procs").read_bytes().strip():
            return True
        with os.scandir(folder) as inside:
            return any(
                entry.is_dir(follow_symlinks=False) and Path(entry.path, "cgroup.procs").read_bytes().strip()
                for entry in inside
            )
    except OSError:
        return False


def _containers(mount: Mount) -> Iterator[tuple[str, bool]]:
    """(folder, whether it is a pod's) of each cgroup of a container's shape."""
    base = mount.path.rstrip("/")
    for folder, below, _ in os.walk(base):
        match = match_strict(folder[len(base) :] or "/")
        if match.container is not None:
            yield folder, match.below_pod
            below.clear()


def first_choice(mounts: list[Mount]) -> tuple[Mount, bool]:
    """(the hierarchy to start with, whether that is certain). ``mounts`` come best first.

    The only one there is; else one that holds a pod's container with a process in it, else any container's; else the
    first.
    """
    if len(mounts) == 1:
        return mounts[0], True
    second: Mount | None = None
    for mount in mounts:
        for folder, of_pod in _containers(mount):
            if not _populated(folder):
                continue
            if of_pod:
                return mount, True
            second = second or mount
    return (second, False) if second else (mounts[0], False)


class Scout:
    """Watches births on the hierarchies that are not tracked, until it is certain which one holds the containers."""

    def __init__(self, mounts: list[Mount], tracked: Mount) -> None:
        self._mounts = {mount.info.hierarchy: mount for mount in mounts}
        self._tracked = tracked
        self._names: dict[int, CgroupNames] = {}
        # (hierarchy, folder) of a container's shape → since when a process was seen in it.
        self._elsewhere: dict[tuple[int, str], int | None] = {}

    def born(self, hierarchy: int, cgroup: int) -> bool:
        """A cgroup was made on another hierarchy: whether it has a pod's container's shape."""
        mount = self._mounts.get(hierarchy)
        if mount is None or hierarchy == self._tracked.info.hierarchy:
            return False
        if hierarchy not in self._names:
            self._names[hierarchy] = CgroupNames(mount)
        chain = self._names[hierarchy].chain(cgroup)
        if chain is None:
            return False
        path = "/" + "/".join(name for _, name in chain)
        if not match_strict(path).below_pod:
            return False
        self._elsewhere[hierarchy, mount.path.rstrip("/") + path] = None
        return True

    def __bool__(self) -> bool:
        """Whether there is a candidate elsewhere, so that nobody can be said to be on the host."""
        return bool(self._elsewhere)

    def look(self, homes: Callable[[], Iterator[str]], now: int) -> Mount | None:
        """The hierarchy that is certain now, ``None`` while it is not. ``homes`` gives the paths of the containers in
        the tracked one, which is preferred."""
        base = self._tracked.path.rstrip("/")
        if any(_populated(base + path) for path in homes()):
            return self._tracked
        for (hierarchy, folder), since in list(self._elsewhere.items()):
            if not os.path.isdir(folder):
                del self._elsewhere[hierarchy, folder]
            elif not _populated(folder):
                self._elsewhere[hierarchy, folder] = None
            elif since is None:
                self._elsewhere[hierarchy, folder] = now
        sure = {h for (h, _), since in self._elsewhere.items() if since is not None and now - since >= _SURE}
        return next((mount for h, mount in self._mounts.items() if h in sure), None)

    def close(self) -> None:
        """Closes the hierarchies that were opened to read names."""
        for names in self._names.values():
            names.close()
        self._names.clear()
