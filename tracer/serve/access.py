"""Who may ask about whom: decided for each peer and each request, by who the peer is. Pure.

Anyone about itself. About others a process of the host that is root's or in the group of the socket, and a pod whose
selectors were named. Root in a container is not root of the host, whichever runtime made the container: a process
that is not known to be of the host counts as a pod. This module decides by the cgroup; ``standing`` has the other
rules.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tracer.model import Identity, State

_OF_HOST = "no_container"
"""The only reason for ``host`` that means that the process is in no container at all."""
# Of the host by their state, but within a pod, or within what looks like one.
_IN_PODS = ("sandbox", "pod_cgroup", "outside_root")


@dataclass(frozen=True, slots=True)
class Access:
    """``gid`` is the group of the socket, where there is one; each of ``allowed`` is a set of selectors, all of which a
    pod has to have."""

    gid: int | None = None
    allowed: Sequence[frozenset[str]] = ()

    def may_ask_about_others(self, peer: Identity, uid: int, gids: Collection[int]) -> bool:
        """Whether a peer with this identity and these credentials may ask about others, by what the index knows of
        it."""
        workload = peer.workload
        if workload.state is State.HOST:
            return workload.reason == _OF_HOST and (uid == 0 or (self.gid is not None and self.gid in gids))
        if workload.state is State.RESOLVED:
            return any(wanted.issubset(workload.selectors) for wanted in self.allowed)
        return False


def why_not(peer: Identity, *, would_be: bool = False) -> tuple[str, str]:
    """(message, hint) for a peer that asks about others and may not; ``would_be`` is true if only its
    namespaces, or its cgroup in another hierarchy, are against it."""
    state = peer.workload.state
    if state is State.GONE:
        return "the process that connected has ended", "connect anew"
    if state in (State.PENDING, State.UNKNOWN):
        return f"who asks is {state.value}, and may ask about itself only", "ask again once it is resolved"
    if state is State.RESOLVED:
        return "a pod may ask about itself only", "name its selectors with podtracer daemon --socket-allow"
    if peer.workload.reason in _IN_PODS:
        return "a pod may ask about itself only", "ask from the host"
    if peer.workload.reason != _OF_HOST:
        return "a process in a container may ask about itself only", "ask from the host, outside all containers"
    if would_be:
        what = "a process with namespaces of its own, or in a container's cgroup, may ask about itself only"
        return what, "ask from the host, outside all containers"
    return "an ordinary user may ask about itself only", "ask as root, or join the group of --socket-group"
