"""Which hierarchy to track: found by looking, and changed while running whenever containers turn up elsewhere.

A hybrid node has v1 hierarchies and a v2 tree that may be empty, or hold the containers too. Nothing is settled by one
sighting. A cgroup counts by ``places``' first rule only: whoever can make cgroups in one hierarchy, as a user with a
delegated v2 subtree can on a node whose containers are on v1, decides nothing.

Births are watched in the hierarchies that are not tracked too. A container's cgroup there that has none of its ID in
the tracked one is a *stray*. While a process is in a stray, its hierarchy may be the right one; that with the most
containers that a source lists is tracked; as long as nothing is listed, any that has a pod's, or else any container's,
where the tracked one has none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tracer.identity.cgroup_path import PathMatch, match_strict
from tracer.kernel.cgroupfs import CgroupNames, Mount, Ownership, guards_path, is_populated
from tracer.model import CgroupEvent, ContainerRef

Listed = Callable[[ContainerRef], bool]
Score = tuple[int, int, int]
"""How many containers with a process in them: listed ones, pods', and all."""

_SURE = 20_000_000  # ns for which a process has to be seen in a stray: a runtime joins one hierarchy after another
_YOUNG = 1_000_000_000  # ns in which a stray without a process may yet get one
_DOUBTED = 30_000_000_000  # ns after which a stray that nobody lists is taken for something else
_AGAIN = 1_000_000_000  # ns between two decisions, and between two looks at old strays
_MOST = 3  # other hierarchies that are looked at: a runtime that uses v1 uses pids, memory and cpu
_ID_LENGTH = 64


def _match(path: str, prefix: str | None) -> PathMatch | None:
    """What a path names, where that is a container, below the prefix if there is one."""
    match = match_strict(path, prefix)
    is_outside = prefix is not None and match.root is None
    return None if match.container is None or is_outside else match


def _containers(mount: Mount, prefix: str | None) -> Iterator[tuple[str, PathMatch]]:
    """(path, match) of each cgroup that is called like a container's own, but for what is below others than root: that
    is no evidence, and there may be any number of it."""
    base = mount.path.rstrip("/")
    for folder, below, _ in os.walk(base):
        path = folder[len(base) :] or "/"
        if below and guards_path(mount, f"{path.rstrip('/')}/{below[0]}", prefix) is False:
            below.clear()
        match = _match(path, prefix)
        if match is None:
            continue
        if match.depth == path.count("/") - 1:
            yield path, match
        if match.below_pod:
            below.clear()


def survey(mount: Mount, listed: Listed = lambda _ref: False, *, prefix: str | None = None) -> dict[str, Score]:
    """What each container counts, by its ID, that has a process in a cgroup of this hierarchy which is evidence."""
    found: dict[str, Score] = {}
    for path, match in _containers(mount, prefix):
        ref = match.container
        if ref is not None and guards_path(mount, path, prefix) and is_populated(mount.path.rstrip("/") + path):
            score = (int(listed(ref)), int(match.below_pod), 1)
            found[ref.container_id] = max(score, found.get(ref.container_id, score))
    return found


def total(found: dict[str, Score]) -> Score:
    """The sum over all containers."""
    listed, pods, every = (sum(score[n] for score in found.values()) for n in range(3))
    return listed, pods, every


def first_choice(mounts: Sequence[Mount], *, prefix: str | None = None) -> Mount:
    """The hierarchy to start with; ``mounts`` come best first. One that holds a pod's container with a process in it,
    else any container's; else the first."""
    if len(mounts) == 1:
        return mounts[0]
    second: Mount | None = None
    for mount in mounts[: _MOST + 1]:
        _, pods, every = total(survey(mount, prefix=prefix))
        if pods:
            return mount
        if every:
            second = second or mount
    return second or mounts[0]


def _is_better(score: Score, than: Score) -> bool:
    """Whether a hierarchy is to be tracked instead: it has more listed containers, or something of a kind of which the
    other has nothing, as long as nothing is listed."""
    if score[0] or than[0]:
        return score[0] > than[0]
    return than[1] == 0 and (score[1] > 0 or (score[2] > 0 and than[2] == 0))


@dataclass(slots=True)
class _Stray:
    """A container's cgroup of another hierarchy. ``since`` is when a process was first seen in it, without a break."""

    ref: ContainerRef
    below_pod: bool
    folder: str
    born: int
    since: int | None = None
    looked: int = 0


@dataclass(frozen=True, slots=True)
class Tracked:
    """What is known of the hierarchy that is tracked: whether it ``has`` a cgroup with a process for a container ID,
    whether it has any container at all (``settled``), and whether a source has ``listed`` a container."""

    has: Callable[[str], bool]
    settled: Callable[[], bool]
    listed: Listed


class Scout:
    """Watches the hierarchies that are not tracked. ``mounts`` come best first.

    ``uncertain`` is whether nobody can be said to be on the host, ``doubtful`` whether that is to be verified of each
    process (:meth:`may_be_elsewhere`)."""

    def __init__(self, mounts: Sequence[Mount], tracked: Mount, known: Tracked, *, prefix: str | None) -> None:
        self._mounts = list(mounts)
        self._known = known
        self._prefix = prefix
        self._names: dict[int, CgroupNames] = {}
        self._strays: dict[tuple[int, int], _Stray] = {}
        self._decided: int | None = None
        self.uncertain = self.doubtful = False
        self.track(tracked)

    def track(self, tracked: Mount) -> None:
        """From now on this hierarchy is tracked, and the others are watched."""
        self._tracked = tracked
        others = [mount for mount in self._mounts if mount is not tracked][:_MOST]
        self._others = {mount.info.hierarchy: mount for mount in others}
        self._strays.clear()
        self.uncertain = self.doubtful = False

    def look_through(self, now: int) -> None:
        """Takes in what is in the other hierarchies already."""
        for hierarchy, mount in self._others.items():
            for path, match in _containers(mount, self._prefix):
                try:
                    number = os.stat(mount.path.rstrip("/") + path).st_ino
                except OSError:
                    continue
                self._take(hierarchy, number, path, match, now - _YOUNG)

    def born(self, event: CgroupEvent) -> None:
        """A cgroup was made in another hierarchy."""
        hierarchy, cgroup, now = event.hierarchy, event.id, event.time
        mount = self._others.get(hierarchy)
        if mount is None or len(event.name) < _ID_LENGTH:
            return
        if hierarchy not in self._names:
            self._names[hierarchy] = CgroupNames(mount)
        if Ownership(self._names[hierarchy], self._prefix).is_writable(event.parent):
            return  # and so no evidence: there may be any number of them
        chain = self._names[hierarchy].chain(cgroup)
        if chain is not None:
            path = "/" + "/".join(name for _, name in chain)
            match = _match(path, self._prefix)
            if match is not None and match.depth == len(chain) - 1:
                self._take(hierarchy, cgroup, path, match, now)

    def _take(self, hierarchy: int, cgroup: int, path: str, match: PathMatch, born: int) -> None:
        mount, ref = self._others[hierarchy], match.container
        if ref is None or not guards_path(mount, path, self._prefix) or self._known.has(ref.container_id):
            return
        self._strays[hierarchy, cgroup] = _Stray(ref, match.below_pod, mount.path.rstrip("/") + path, born)
        self.doubtful = True
        self.uncertain |= match.below_pod and not self._known.settled()

    def may_be_elsewhere(self, paths: Mapping[int, str]) -> bool:
        """Whether a process with these paths, by the number of the hierarchy, is in a container's cgroup of one that is
        not tracked, where that is evidence or may be."""
        for hierarchy, path in paths.items():
            mount = self._others.get(hierarchy)
            relative = path.startswith("/..")  # in a private cgroup namespace: by its name alone
            match = _match(path, None if relative else self._prefix)
            if mount is None or match is None or match.depth is None:
                continue
            if relative:
                return True
            home = "/".join(path.split("/")[: match.depth + 2])
            if guards_path(mount, home, self._prefix) is not False:
                return True
        return False

    def look(self, now: int) -> Mount | None:
        """The hierarchy to track from now on; ``None`` where it is the tracked one, or that is not certain yet."""
        if not self._strays:
            self.uncertain = self.doubtful = False
            return None
        is_settled, uncertain, doubtful = self._known.settled(), False, False
        ripe = set()
        for key, stray in tuple(self._strays.items()):
            is_listed = self._known.listed(stray.ref)
            is_old = now - stray.born > _DOUBTED and not is_listed
            if is_old and now - stray.looked < _AGAIN:
                continue
            stray.looked = now
            if not os.path.isdir(stray.folder) or self._known.has(stray.ref.container_id):
                del self._strays[key]
                continue
            counts = stray.below_pod or is_listed
            if not is_populated(stray.folder):
                stray.since = None
                is_young = now - stray.born < _YOUNG
                doubtful |= is_young
                uncertain |= is_young and counts and not is_settled
                continue
            if stray.since is None:
                stray.since = now
            is_ripe = now - stray.since >= _SURE
            if is_ripe and (counts or not is_settled):
                ripe.add(key[0])
            doubtful |= not is_old
            uncertain |= counts and not is_old and (is_ripe or not is_settled)
        self.uncertain, self.doubtful = uncertain, doubtful or uncertain
        if not ripe or (self._decided is not None and now - self._decided < _AGAIN):
            return None
        self._decided = now
        return self._better(ripe)

    def _better(self, ripe: Collection[int]) -> Mount | None:
        """Which of these hierarchies has more of what counts than the tracked one."""
        best, most = self._tracked, total(survey(self._tracked, self._known.listed, prefix=self._prefix))
        for mount in self._mounts:
            if mount.info.hierarchy in ripe and mount is not self._tracked:
                score = total(survey(mount, self._known.listed, prefix=self._prefix))
                if _is_better(score, most):
                    best, most = mount, score
        return None if best is self._tracked else best

    def close(self) -> None:
        """Closes the hierarchies that were opened to read names."""
        for names in self._names.values():
            names.close()
        self._names.clear()
