"""Strict answers without a node: from the text of files instead of from the kernel.

The index decides, fed with one process, its cgroup and one pod list. On a live node it also looks whether a container
still runs, and where the node's pods are. Files cannot show that, so it is not checked here: the user who gives the
files says that they are of this container.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tracer.errors import InputError
from tracer.identity.cgroup_path import PathMatch, match_strict
from tracer.identity.grants import grant, is_ambiguous, is_pod_enough
from tracer.identity.index import Index, Rules
from tracer.identity.pods import PodTable, pod_has_uid
from tracer.identity.selectors import selectors
from tracer.model import Container, ContainerRef, Pod, ProcessKey, State, Workload

# Asked in this order where nothing else decides, as for a node's hierarchies.
_PREFERENCE = ("pids", "memory", "cpu")
_NO_LIST = "no pod list was given"


@dataclass(frozen=True, slots=True)
class Group:
    """A line of ``/proc/<pid>/cgroup``: ``number`` counts from 1, ``hierarchy`` is ``v2`` or the controllers."""

    number: int
    hierarchy: str
    path: str
    match: PathMatch


def parse(cgroup: bytes, file: str, root: str | None = None) -> tuple[Group, ...]:
    """The lines of a cgroup file, each with what the strict rule makes of its path.

    Raises ``InputError``, which names ``file`` and the line, where it is no cgroup file. An empty one is: a process has
    no line where no hierarchy is mounted.
    """
    groups = []
    for number, line in enumerate(cgroup.removesuffix(b"\n").split(b"\n") if cgroup else (), 1):
        fields = line.removesuffix(b"\r").split(b":", 2)
        if len(fields) < 3 or not fields[0].isdigit() or not fields[2].startswith(b"/"):
            shown = line[:80].decode("utf-8", "backslashreplace")
            what = f"line {number} is no line of a cgroup file: {shown!r}"
            raise InputError(what, file, "give a copy of /proc/PID/cgroup: NUMBER:CONTROLLERS:/PATH lines")
        controllers, path = (field.decode("utf-8", "backslashreplace") for field in fields[1:])
        groups.append(Group(number, controllers or "v2", path, match_strict(path, root)))
    return tuple(groups)


def choose(groups: Iterable[Group]) -> Group | None:
    """The line that counts: the hierarchy in which a pod's container is, else any container, else the first; of several
    v2, then that of pids, memory, cpu, then the others."""

    def rank(group: Group) -> tuple[bool, bool, int]:
        names = group.hierarchy.split(",")
        places = [_PREFERENCE.index(name) + 1 for name in names if name in _PREFERENCE]
        place = 0 if group.hierarchy == "v2" else min(places, default=len(_PREFERENCE) + 1)
        return not group.match.below_pod, group.match.container is None, place

    return min(groups, key=rank, default=None)


def answer(path: str, pods: Iterable[Pod] | None, *, rules: Rules) -> Workload:
    """What the index says of a process in this cgroup once it has this pod list, and no other will come.

    Containers count whatever their state, and the root that the path itself shows where the rules give none. Without a
    list whatever is below a pod is pending.
    """
    match = match_strict(path)
    if rules.prefix is None and match.below_pod:
        rules = replace(rules, prefix=match.root)
    index = Index(rules)
    index.hierarchy = 1
    index.cgroups.track(1)
    names = [name for name in path.split("/") if name]
    index.cgroups.learn([(number, name) for number, name in enumerate(names, 2)], 0)
    key, cgroup = ProcessKey(1, 1), len(names) + 1
    index.identify(key, 1, 1, cgroup, None)
    if pods is not None:
        late = rules.give_up + 1
        index.pods(map(_timeless, pods), late, complete=True, source="file", now=late)
    workload = index.identify(key, 1, 1, cgroup, None).workload
    if pods is None and workload.state is State.PENDING:
        return replace(workload, reason="no_list", reason_text=_NO_LIST)
    return workload


def _timeless(pod: Pod) -> Pod:
    """The pod without the states of its containers."""

    def without_state(containers: Iterable[Container]) -> tuple[Container, ...]:
        return tuple(replace(container, state=None) for container in containers)

    return replace(
        pod,
        containers=without_state(pod.containers),
        init_containers=without_state(pod.init_containers),
        ephemeral_containers=without_state(pod.ephemeral_containers),
    )


def of_container(
    table: PodTable,
    container_id: str,
    pod_uid: str | None,
    *,
    disable_container_selectors: bool = False,
    ephemeral_containers: bool = False,
) -> tuple[tuple[str, ...], str | None]:
    """(selectors, why there are none) of the container with this ID, in the pod with this UID if one is given. An
    ephemeral container has some with ``ephemeral_containers``. The pod is enough with
    ``disable_container_selectors``."""
    ref = ContainerRef(container_id, pod_uid)
    listed = table.find(container_id)
    found = [(pod, container) for pod, container in listed if pod_uid is None or pod_has_uid(pod, pod_uid)]
    if len({pod.uid for pod, _ in found}) > 1 or (found and is_ambiguous(ref, table)):
        return (), "two pods are listed with this container ID"
    for pod, container in found:
        given = grant(
            ref,
            pod,
            container,
            disable_container_selectors=disable_container_selectors,
            ephemeral_containers=ephemeral_containers,
        )
        return given.selectors, given.why_not
    if listed:
        return (), "it is listed in another pod than the one that was given"
    pod_alone = table.by_uid.get(pod_uid or "")
    if pod_alone is not None and disable_container_selectors and is_pod_enough(ref, pod_alone):
        return selectors(pod_alone, None), None
    return (), "no pod of the list has this container"
