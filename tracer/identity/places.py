"""Where this node's containers live, and which cgroups are evidence: every rule, and the attacker it stops.

A name proves nothing: a user who may make a cgroup may name it after a listed pod's container. So a container's cgroup
is evidence only by these rules. A cgroup that they refuse is ``host``, or ``unknown: conflict`` if it uses a listed ID;
it is never ``resolved``.

1. *Ownership.* Every cgroup above the container's own, up to the hierarchy's root, belongs to root, and only
   root may write it. Stops an ordinary user with a delegated subtree (systemd's ``user@UID.service``, a rootless
   runtime), at whatever moment: before the daemon, before the node's first container, or after a reboot, while the
   kubelet lists old IDs.
2. *Nesting.* The outermost container of a path counts; a pod segment below a container's ID counts only where that
   container is this node (KIND, minikube). It is the node if the tracer itself runs in it. If no container is known to
   hold the tracer, it is the node if it alone has listed containers below it, and none ever was outside of containers.
   Stops root in a container of Docker, Podman, LXC or systemd-nspawn, and a container whose own ID no source lists yet.
   If two containers might be the node, neither is: the operator names one with ``--cgroup-prefix``.
3. *One cgroup for each container.* If several cgroups use one ID, the one with the path that the runtime reports
   counts, then one below a pod's cgroup, then one in the kubelet's own place at the top, which is in no container, then
   one below a cgroup called kubepods. If two are equal in this, it is a conflict. Stops an attacker who copies a name
   in a way that these rules do not foresee.
4. *The operator's word.* Below ``--cgroup-prefix`` cgroups may also belong to the owner of the prefix (a rootless
   node); no cgroup outside of it is ever a pod's.

The index learns nothing for good. It applies these rules again whenever cgroups or lists change, so a node may have
several places, and a place may appear or go at any time. Time and shapes serve only for containers that no source
lists.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from tracer.identity.cgroup_path import match_strict
from tracer.identity.cgroups import CgroupTree, Entry
from tracer.model import State


class Standing(Enum):
    """Whether a container's cgroup is evidence. ``AMBIGUOUS``: it is below one of several containers that might be the
    node."""

    BELIEVED = "believed"
    UNSURE = "unsure"
    AMBIGUOUS = "ambiguous"
    WRITABLE = "writable"
    NESTED = "nested"
    OUTSIDE = "outside"


REFUSED = {
    Standing.AMBIGUOUS: "listed containers are below several containers that might be this node; name the node's with"
    " --cgroup-prefix",
    Standing.WRITABLE: "a user other than root can write a cgroup above it, and may have named it",
    Standing.NESTED: "it is below another container, which may have named it",
    Standing.OUTSIDE: "it is not below --cgroup-prefix",
}
"""Why a cgroup is no evidence, in words that follow "its cgroup only looks like a pod's: "."""


class Places:
    """Where containers live, by the cgroups that a source confirms. ``confirms`` says whether the list or the runtime
    has a container of that ID, running, in the pod that its path names."""

    def __init__(self, tree: CgroupTree, confirms: Callable[[Entry], bool]) -> None:
        self._tree = tree
        self._confirms = confirms
        # Confirmed containers that are not nested: whether there are some below pods' cgroups, and outside of them, and
        # whether there ever was one. And the nests of the nested ones.
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
        """Takes one more cgroup into account. Returns whether the caller has to consider all of them again. A nested
        one counts only from then on, since the index may be about to read the node's own."""
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
            return Standing.NESTED  # nothing above the prefix counts, so this is below a container of the node
        if self._tree.own is not None and _is_in_container(self._tree.own):
            return Standing.BELIEVED if nest == _nest_of(self._tree.own) else Standing.NESTED
        if self._is_plain:
            return Standing.NESTED
        # The outer one of two nested containers may have named the inner one.
        nests = {each for each in self._nests if not any(each.startswith(f"{other}/") for other in self._nests)}
        if nest not in nests:
            return Standing.NESTED if nests else Standing.UNSURE
        return Standing.BELIEVED if len(nests) == 1 else Standing.AMBIGUOUS

    def is_node(self, entry: Entry) -> bool:
        """Whether a container is this node itself, in which the tracer runs."""
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
    """Whether the container above a nested one is resolved as a pod's: all cgroups below it are its own."""
    return entry.outer is not None and entry.outer.workload.state is State.RESOLVED


def _is_in_container(own: str) -> bool:
    match = match_strict(own)
    return match.container is not None or match.outer is not None


def _nest_of(own: str) -> str | None:
    """The path of the container that is the node of a process with this cgroup path; ``None`` if the node is not a
    container."""
    match = match_strict(own)
    if match.outer is not None and (match.container is None or match.below_pod):
        return match.outer.place
    if match.below_pod or match.depth is None:
        return None
    return "/" + "/".join(own.removeprefix("/").split("/")[: match.depth + 1])


def agreement(path: str, reported: str) -> int:
    """How well a cgroup's path agrees with the one that a runtime reports (the OCI spec's ``linux.cgroupsPath``): 2 if
    it is the same, 1 if it ends with it, as on a node that is a container itself, and else 0.

    ``reported`` is a path, or ``slice:prefix:name`` of the systemd driver: then the cgroup is ``prefix-name.scope``
    below that slice and the slices that its name implies (systemd.slice(5)). A runtime without the systemd driver takes
    the whole text as the cgroup's path.
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
