"""Which processes are shown: the filters of ``watch`` and ``ps``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tracer.cli.labels import Requirement
from tracer.model import Identity, State


@dataclass(frozen=True, slots=True)
class Filters:
    """What is asked for: an empty filter asks for nothing in particular, several must all be met.

    The names of one filter are alternatives. ``host`` shows processes of no pod, and so does naming one in
    ``pids``.
    """

    namespaces: Sequence[str] = ()
    pods: Sequence[str] = ()
    containers: Sequence[str] = ()
    labels: Sequence[Requirement] = ()
    pids: Collection[int] = ()
    host: bool = False


def matches(identity: Identity, filters: Filters) -> bool:
    """Whether a process is shown.

    What is not known (``None``) meets no filter, not even a negative one: the process is shown once it is.
    """
    workload = identity.workload
    named = identity.key.pid in filters.pids or identity.asked in filters.pids
    if filters.pids and not named:
        return False
    if workload.state is State.HOST and not (filters.host or named):
        return False
    for wanted, name in (
        (filters.namespaces, workload.namespace),
        (filters.pods, workload.pod),
        (filters.containers, workload.container),
    ):
        if wanted and name not in wanted:
            return False
    if not filters.labels:
        return True
    labels = workload.labels
    return labels is not None and all(requirement.matches(labels) for requirement in filters.labels)
