"""Where this node's containers live, and which cgroups are evidence: every rule, and the attacker it stops.

A name proves nothing: whoever may make a cgroup may call it like a listed pod's container. So a container's cgroup is
believed only by these rules. What they refuse is ``host``, or ``unknown: conflict`` where it uses a listed ID; it is
never ``resolved``.

1. *Ownership.* Every cgroup above the container's own, up to the hierarchy's root, belongs to root, and nobody
   else may write it. Stops an ordinary user with a delegated subtree (systemd's ``user@UID.service``, a rootless
   runtime), at whatever moment: before the daemon, before the node's first container, or after a reboot, while the
   kubelet lists old IDs.
2. *Nesting.* The outermost container of a path counts; a pod segment below a container's ID counts only where that
   container is this node (KIND, minikube): the tracer itself runs in it, or, where nothing is known of where the tracer
   runs, it alone has cgroups of listed containers and no such cgroup ever was outside of containers. Stops root in a
   container of Docker, Podman, LXC or systemd-nspawn, and a container whose own ID no source lists yet. Where two
   containers might be the node, neither is: the operator says which with ``--cgroup-prefix``.
3. *One cgroup for each container.* Of several cgroups that use one ID, that which the runtime itself reports counts,
   then one in the pod that the list names, then one in the kubelet's own place at the top, which is in no container,
   then one below a cgroup called kubepods; where two are alike, it is a conflict. Stops whoever copies a name in a way
   that is not known here.
4. *The operator's word.* Below ``--cgroup-prefix`` cgroups may also belong to the owner of the prefix (a rootless
   node); nothing outside of it is ever a pod's.

Nothing is learnt for good: all of this is asked again whenever cgroups or lists change, so that there may be several
places, and a place may appear or go at any time. Time and shapes serve only for containers that nobody lists.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from tracer.identity.cgroup_path import match_strict
from tracer.identity.cgroups import CgroupTree, Entry
from tracer.model import State


class Standing(Enum):
    """Whether a container's cgroup is evidence. ``AMBIGUOUS``: another might be the node's as well."""

    BELIEVED = "believed"
    UNSURE = "unsure"
    AMBIGUOUS = "ambiguous"
    WRITABLE = "writable"
    NESTED = "nested"
    OUTSIDE = "outside"


REFUSED = {
    Standing.AMBIGUOUS: "cgroups of listed containers are below several containers outside of pods; name this node's"
    " with --cgroup-prefix",
    Standing.WRITABLE: "a cgroup above it can be written by others than root, so that anybody may have named it",
    Standing.NESTED: "it is below another container, which may have named it",
    Standing.OUTSIDE: "it is not below --cgroup-prefix",
}
"""Why a cgroup is no evidence, in words that follow "its cgroup only looks like a pod's: "."""


class Places:
    """What is known of where containers live, from those cgroups that a source confirms. ``confirms`` says whether the
    list or the runtime knows a container of that ID, running, in the pod that its path names."""

    def __init__(self, tree: CgroupTree, confirms: Callable[[Entry], bool]) -> None:
        self._tree = tree
        self._confirms = confirms
        # Whether there are confirmed containers below pods' cgroups and outside of them, both not nested; whether there
        # ever was one; and the nests of the others.
        self.has_pods = False
        self.has_bare = False
        self._is_plain = False
        self._nests: frozenset[str] = frozenset()

    def survey(self) -> None:
        """Looks at all cgroups anew."""
        self.has_pods = self.has_bare = False
        nests = set()
        for entry in self._tree.containers():
            self.add(entry)
            if entry.nest is not None and self._counts(entry):
                nests.add(entry.nest)
        self._nests = frozenset(nests)

    def add(self, entry: Entry) -> bool:
        """Takes one more cgroup into account; whether all are to be looked at again. A nested one shows nothing before
        that, since the node's own may only be about to be read."""
        if not self._counts(entry):
            return False
        if entry.nest is not None:
            return entry.nest not in self._nests
        before = self.has_pods, self.has_bare
        self.has_pods |= entry.root is not None
        self.has_bare |= entry.root is None
        self._is_plain = True
        return before != (self.has_pods, self.has_bare)

    def _counts(self, entry: Entry) -> bool:
        return bool(entry.guarded) and entry.inside and not is_within_resolved(entry) and self._confirms(entry)

    def of(self, entry: Entry) -> Standing:
        """Whether a container's cgroup is evidence."""
        if not entry.inside:
            return Standing.OUTSIDE
        if entry.guarded is None:
            self._tree.read_guard(entry)
        if entry.guarded is None:
            return Standing.UNSURE
        if not entry.guarded:
            return Standing.WRITABLE
        return Standing.BELIEVED if entry.nest is None else self._nested(entry.nest)

    def _nested(self, nest: str) -> Standing:
        if self._tree.prefix is not None:
            return Standing.NESTED  # what is above the prefix was not looked at: this is below a container of the node
        if self._tree.own is not None and _is_in_container(self._tree.own):
            return Standing.BELIEVED if nest == _nest_of(self._tree.own) else Standing.NESTED
        if self._is_plain:
            return Standing.NESTED
        # A container within another one may have been named by that.
        nests = {each for each in self._nests if not any(each.startswith(f"{other}/") for other in self._nests)}
        if nest not in nests:
            return Standing.NESTED if nests else Standing.UNSURE
        return Standing.BELIEVED if len(nests) == 1 else Standing.AMBIGUOUS

    def is_node(self, entry: Entry) -> bool:
        """Whether a container is this node itself: the one that the tracer runs in."""
        own = self._tree.own
        if own is None or entry.root is not None or entry.ref.container_id not in own:
            return False
        return self._tree.path(entry) == _nest_of(own)

    def rivals(self, entry: Entry) -> list[Entry]:
        """Other live cgroups that use the ID of this one, and are evidence too."""
        named = self._tree.named(entry.ref.container_id)
        if len(named) < 2:
            return []
        return [
            other
            for other in named
            if other is not entry
            and other.live
            and not is_within_resolved(other)
            and self.of(other) is Standing.BELIEVED
        ]


def is_within_resolved(entry: Entry) -> bool:
    """Whether the container above a nested one is a pod's, so that all below it is that one's own making."""
    return entry.outer is not None and entry.outer.workload.state is State.RESOLVED


def _is_in_container(own: str) -> bool:
    match = match_strict(own)
    return match.container is not None or match.outer is not None


def _nest_of(own: str) -> str | None:
    """The path of the container that is the node of a process with this cgroup path; ``None`` where that is in a pod
    of a node which is no container."""
    match = match_strict(own)
    if match.outer is not None and (match.container is None or match.below_pod):
        return match.outer.place
    if match.below_pod or match.depth is None:
        return None
    return "/" + "/".join(own.removeprefix("/").split("/")[: match.depth + 1])


def agreement(path: str, reported: str) -> int:
    """How well a cgroup's path agrees with the one that a runtime reports (the OCI spec's ``linux.cgroupsPath``): 2 for
    the same, 1 where it ends so, as on a node that is a container itself, and 0 where it is another.

    ``reported`` is a path, or ``slice:prefix:name`` of the systemd driver: then the cgroup is ``prefix-name.scope``
    below that slice and those that its name tells (systemd.slice(5)), or called like the whole of it by a runtime that
    does not know systemd.
    """
    folder, colon, rest = reported.partition(":")
    prefix, second, name = rest.partition(":")
    if not colon:
        wanted = [reported] if reported.startswith("/") and len(reported) > 1 else []
    else:
        wanted = [f"/{reported.removeprefix('/')}"]
        if second and name:
            leaf = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
            wanted.append(f"{_slices(folder)}/{leaf}")
    if path in wanted:
        return 2
    return int(any(path.endswith(each) for each in wanted))


def _slices(name: str) -> str:
    """The path of a slice: ``a-b.slice`` is in ``a.slice``."""
    parts = name.removesuffix(".slice").split("-") if name else []
    return "".join(f"/{'-'.join(parts[: depth + 1])}.slice" for depth in range(len(parts)))
