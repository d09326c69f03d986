"""When an unlisted container in a pod's cgroup is the pod's sandbox (pause): it can be no other of its containers."""

from __future__ import annotations

from collections.abc import Callable

from tracer.identity.cgroups import Entry
from tracer.model import Pod

STATUS_LAG = 5_000_000_000
"""In nanoseconds. The kubelet's status lags behind a restart by up to a second, and until then names the container that
ended. After this long a container counts as running if a list says so, though no cgroup of it was ever seen."""


def is_sandbox(pod: Pod, entry: Entry, read_at: int, claims: Callable[[str], list[Entry]]) -> bool:
    """Whether every container of the pod is listed with an ID, and none of those can be out of date, so that one
    that is not among them is no container of the pod. A list that lags behind a restart names the container that
    ended; believing it would call the new one a sandbox. ``read_at`` is when the pod was read; ``claims`` answers the
    cgroups that may be those of the container with an ID."""
    statuses = (*pod.containers, *pod.init_containers, *pod.ephemeral_containers)
    named = {status.name for status in statuses if status.container_id}
    if read_at < entry.born or not pod.containers or not named.issuperset(pod.spec_names):
        return False
    if any(status.former_id or status.restarts for status in statuses):
        return False  # a former instance may still have processes, and its ID is in lastState or nowhere
    late = read_at >= entry.born + STATUS_LAG
    running: list[Entry] = []
    for status in statuses:
        if not status.container_id or status.state == "waiting":
            return False
        if status.state == "terminated":
            if status.role == "app":
                return False
            continue
        own = claims(status.container_id)
        if not any(other.live for other in own) and (own or not late):
            return False
        running += own
    if any(status.role == "init" and status.state == "terminated" for status in statuses):
        # It is done, or a sidecar that is being started again: then this is not the first of its pod's cgroups.
        if entry.seen and any(other.born < entry.born for other in running):
            return False
        return late or (entry.seen and all(other.seen for other in running))
    return True
