"""Why an entry matches a workload or does not: the answer to "no identity issued"."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from tracer.identity.entries import Entry, is_told_by_status

NEAR = 10
"""How many entries that nearly match are listed: further ones miss as much or more, and are counted only."""

# Values that begin with a key of their own: two labels are two things, not two values of one.
_KEYED = frozenset(("k8s:pod-label", "k8s:ns-label"))


@dataclass(frozen=True, slots=True)
class Missing:
    """A selector that the entry wants, beside those that the workload has of the same key."""

    want: str
    have: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """An entry that matches; one that is expired earns nothing all the same."""

    entry: Entry
    expired: bool

    def to_dict(self) -> dict[str, Any]:
        """As it is written as JSON."""
        entry = self.entry
        return {
            "id": entry.id,
            "spiffe_id": entry.spiffe_id,
            "parent_id": entry.parent_id,
            "expired": self.expired,
        }


@dataclass(frozen=True, slots=True)
class NearMiss:
    """An entry that does not match, and what is missing."""

    entry: Entry
    expired: bool
    missing: tuple[Missing, ...]

    def to_dict(self) -> dict[str, Any]:
        """As it is written as JSON."""
        missing = [{"want": missing.want, "have": list(missing.have)} for missing in self.missing]
        return {**Match(self.entry, self.expired).to_dict(), "missing": missing}


@dataclass(frozen=True, slots=True)
class Undecided:
    """An entry of which everything matches that can be told here; ``unknown`` are the selectors that cannot."""

    entry: Entry
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As it is written as JSON."""
        return {"id": self.entry.id, "spiffe_id": self.entry.spiffe_id, "unknown": list(self.unknown)}


@dataclass(frozen=True, slots=True)
class Report:
    """What all entries say to one set of selectors; ``agent`` is ``None`` for any.

    ``near`` has the fewest missing selectors first, ``NEAR`` entries at most; ``near_left_out`` counts the others.
    """

    agent: str | None
    matched: tuple[Match, ...]
    near: tuple[NearMiss, ...]
    undecided: tuple[Undecided, ...]
    near_left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As it is written as JSON; ``near_left_out`` only where something was."""
        written: dict[str, Any] = {
            "agent": self.agent or "any",
            "matched": [match.to_dict() for match in self.matched],
            "near": [near.to_dict() for near in self.near],
            "undecided": [undecided.to_dict() for undecided in self.undecided],
        }
        if self.near_left_out:
            written["near_left_out"] = self.near_left_out
        return written


def key_of(selector: str) -> str:
    """What a selector is about: ``k8s:ns`` of ``k8s:ns:shop``, ``k8s:pod-label:app`` of ``k8s:pod-label:app:cart``.

    Owners share one key whatever their kind: whoever wants the Deployment is to see that it is a ReplicaSet.
    """
    parts = selector.split(":", 3)
    key = ":".join(parts[:2])
    return ":".join(parts[:3]) if key in _KEYED else key


def report(
    entries: Iterable[Entry],
    selectors: Iterable[str],
    unix: Collection[str] | None,
    agent_id: str | None,
    now: float,
) -> Report:
    """The report on these entries, which are those of the agent, if one is given.

    Sorted, whatever the order of the list. A selector of another attestor, of ``unix`` where ``unix`` is ``None``, or
    one that ``/proc/<pid>/status`` does not tell (``unix:path``, ``unix:sha256``) is unknown: an entry that lacks
    nothing else is undecided.
    """
    have = frozenset(selectors) | frozenset(unix or ())
    can_be_told = _telling(unix is not None)
    by_key = defaultdict(list)
    for selector in sorted(have):
        by_key[key_of(selector)].append(selector)
    matched, undecided, near = [], [], []
    for entry in entries:
        unmet = tuple(selector for selector in entry.selectors if selector not in have)
        if not entry.selectors:
            continue
        if not unmet:
            matched.append(Match(entry, entry.expired(now)))
        elif any(map(can_be_told, unmet)):
            near.append((len(unmet), len(unmet) - len(entry.selectors), entry.id, entry.spiffe_id, entry, unmet))
        else:
            undecided.append(Undecided(entry, unmet))
    nearest = nsmallest(NEAR, near, key=lambda miss: miss[:4])
    return Report(
        agent=agent_id,
        matched=tuple(sorted(matched, key=lambda match: (match.expired, match.entry.spiffe_id, match.entry.id))),
        near=tuple(
            NearMiss(
                entry,
                entry.expired(now),
                tuple(Missing(selector, tuple(by_key.get(key_of(selector), ()))) for selector in unmet),
            )
            for *_, entry, unmet in nearest
        ),
        undecided=tuple(sorted(undecided, key=lambda found: (found.entry.spiffe_id, found.entry.id))),
        near_left_out=len(near) - len(nearest),
    )


def _telling(with_unix: bool) -> Callable[[str], bool]:
    return lambda selector: selector.startswith("k8s:") or (with_unix and is_told_by_status(selector))
