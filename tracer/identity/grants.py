"""What a container is granted by the kind of status that lists it: never more than SPIRE's own attestor grants.

SPIRE's ``k8s`` workload attestor (``pkg/agent/plugin/workloadattestor/k8s/k8s.go``, ``getPodImageIdentifiers`` and
``lookUpContainerInPod``) looks for the ID among ``containerStatuses``, then ``initContainerStatuses``, and nowhere
else: not among ``ephemeralContainerStatuses``, not in ``lastState``. With ``disable_container_selectors`` the pod that
the path names by its UID is enough. ``docs/kinds.md`` has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracer.identity.parity import uid_for_spire
from tracer.identity.pods import PodTable
from tracer.identity.selectors import selectors
from tracer.model import Container, ContainerRef, Pod

_EPHEMERAL = "SPIRE does not attest ephemeral containers; --ephemeral-containers gives them selectors"
_FORMER = "its pod has a newer instance of this container: SPIRE gives the former one no selectors"


@dataclass(frozen=True, slots=True)
class Grant:
    """Selectors, or a sentence that says why there are none."""

    selectors: tuple[str, ...] = ()
    why_not: str | None = None


def grant(
    ref: ContainerRef,
    pod: Pod,
    container: Container | None,
    *,
    disable_container_selectors: bool = False,
    ephemeral_containers: bool = False,
    namespace_labels: Mapping[str, str] | None = None,
) -> Grant:
    """What a process in ``container`` of ``pod`` is granted, where ``ref`` is what its cgroup path names.

    ``pod`` has the statuses that SPIRE would read: the list's, or those that the kubelet is about to write.
    ``container`` is ``None`` if only the pod is known, else the container with this ID, which may be from an earlier
    list. With ``ephemeral_containers`` the operator lets ephemeral containers have the pod's selectors and their own.
    """
    alone = disable_container_selectors
    listed = _listed(ref, pod)
    if listed is None and container is not None and _may_look(ref, pod):
        was_listed = container.role != "ephemeral" and not _is_former(ref, pod, container)
        if was_listed or (container.role == "ephemeral" and ephemeral_containers):
            listed = container
    if listed is None and not (alone and is_pod_enough(ref, pod)):
        return Grant((), _EPHEMERAL if container is not None and container.role == "ephemeral" else _FORMER)
    return Grant(selectors(pod, listed, disable_container_selectors=alone, namespace_labels=namespace_labels))


def is_pod_enough(ref: ContainerRef, pod: Pod) -> bool:
    """Whether SPIRE, with ``disable_container_selectors``, knows the pod by the path alone: its UID has to be one that
    SPIRE finds in paths. The UID of a static pod, 32 digits without dashes, is not."""
    return ref.pod_uid is not None and uid_for_spire(ref.pod_uid) == pod.uid


def is_ambiguous(ref: ContainerRef, table: PodTable) -> bool:
    """Whether SPIRE finds the container in two pods, which is an error to it: without a UID in the path it looks at
    all pods."""
    if ref.pod_uid is not None and uid_for_spire(ref.pod_uid) is not None:
        return False
    return len({pod.uid for pod, each in table.find(ref.container_id) if each.role != "ephemeral"}) > 1


def _listed(ref: ContainerRef, pod: Pod) -> Container | None:
    """The status that SPIRE finds."""
    statuses = (*pod.containers, *pod.init_containers) if _may_look(ref, pod) else ()
    return next((each for each in statuses if each.container_id == ref.container_id), None)


def _may_look(ref: ContainerRef, pod: Pod) -> bool:
    """Whether SPIRE looks at this pod: if it finds a UID in the path, it looks at that pod only."""
    return ref.pod_uid is None or uid_for_spire(ref.pod_uid) in (None, pod.uid)


def _is_former(ref: ContainerRef, pod: Pod, container: Container) -> bool:
    """Whether the pod shows another instance in the place of this one. A list that merely lacks it may lag behind."""
    return any(
        each.former_id == ref.container_id
        or ((each.role, each.name) == (container.role, container.name) and each.restarts > container.restarts)
        for each in (*pod.containers, *pod.init_containers)
    )
