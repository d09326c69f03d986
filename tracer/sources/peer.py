"""What is said of a server when it does not answer as it should: its name, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

REALLY = "is this really the kubelet's port?"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, for people: ``name`` in the middle of a sentence, and hints for what may go wrong.

    ``statuses`` has hints by HTTP status; ``trust`` is for a certificate that is not trusted, ``host_name`` for one
    that bears another name than the one we asked for.
    """

    name: str = "the kubelet"
    refused: str = "nothing listens there; is the kubelet running, with readOnlyPort set to this port?"
    wrong: str = REALLY
    trust: str = ""
    host_name: str = ""
    statuses: Mapping[int, str] = field(
        default_factory=lambda: dict.fromkeys(
            (401, 403), "this port wants a credential; the kubelet's read-only port, usually 10255, does not"
        )
    )


READ_ONLY = Peer()
