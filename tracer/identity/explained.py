"""All that is known of one process and how it came to be known, for whoever asks why."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.errors import ParityError
from tracer.identity.parity import Located, Outcome
from tracer.model import Identity, Workload


@dataclass(frozen=True, slots=True)
class Explained:
    """``identity`` is what a look-up answers, ``strict`` the strict answer, also where the mode is parity.

    ``answer`` is what SPIRE's rules make of the process's files, ``None`` where they were not read, and ``outcome``
    what follows from the newest pod list. ``hierarchy`` is the tracked one, ``root`` the prefix, if the
    operator gave one. ``unix`` are the process's own selectors. ``pods`` counts the pods of the list,
    ``None`` before the first, which was fetched at ``pods_at`` from ``pods_from``.
    """

    identity: Identity
    strict: Workload
    answer: Located | ParityError | None
    outcome: Outcome | None
    hierarchy: str
    root: str | None
    unix: tuple[str, ...] | None
    pods: int | None
    pods_at: int | None
    pods_from: str | None
