"""Which SPIFFE IDs the processes of this node would get: entries, joined with the workloads of the index.

What a workload decides is computed once and kept for as long as workload and entries are the same objects; only where
an entry wants ``unix`` selectors beside is the process itself looked at, each time, since it may change its user.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from tracer.identity.entries import Entries, Matches
from tracer.model import Event, Identity, ProcessKey, State, Workload

_WORKLOADS = 2048  # kept with what they decide, those of the past included: more than a node runs
_PROCESSES = 4096  # whose unix selectors are remembered
_SAID = (State.RESOLVED, State.HOST)

# A workload (kept, so that no other object gets its id()); the matches that it decides; and if these are all, the IDs
# and from when to when by the wall clock they hold: not before they were computed, since entries that had expired hold
# again if somebody sets the clock back.
_Known = tuple[Workload, Matches, tuple[str, ...] | None, float, float]


class Issuing:
    """Gives identities their ``spiffe_ids``: those of the entries that match, ``()`` for none.

    A resolved process has its container's selectors and its ``unix`` ones, a host process the latter only. Where those
    would be needed and cannot be read, since the process has ended, the container's alone count. ``None`` where nothing
    can be said: then if nothing matches, and for whoever is pending, unknown or gone.

    May be asked from any thread, also while entries are replaced.
    """

    def __init__(
        self,
        agent_id: str | None,
        unix: Callable[[ProcessKey], tuple[str, ...] | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._agent_id = agent_id
        self._unix = unix
        self._clock = clock
        self._all: Entries | None = None
        # Replaced as one: what was computed belongs to the entries beside it.
        self._state: tuple[Entries, dict[int, _Known]] = (Entries(()), {})
        # Of processes that were asked about before, for their last event: they are gone by then.
        self._before: dict[ProcessKey, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def take(self, entries: Entries) -> bool:
        """From now on these entries count; false when there are some, but none of the agent's."""
        self._all = entries
        of_agent = entries.of_agent(self._agent_id)
        self._state = (of_agent, {})
        return bool(of_agent.entries) or not entries.entries

    @property
    def entries(self) -> Entries | None:
        """All entries that were taken last, also those of other agents; ``None`` before the first."""
        return self._all

    def prepare(self, workloads: Iterable[Workload]) -> None:
        """Computes what these workloads decide, before anyone asks."""
        for workload in workloads:
            if workload.state in _SAID:
                self._decide(workload)

    def identity(self, identity: Identity) -> Identity:
        """The identity with its SPIFFE IDs."""
        if identity.workload.state not in _SAID:
            return identity
        return Identity(*identity[:-1], self._ids(identity.key, identity.workload))

    def events(self, events: Iterable[Event]) -> list[Event]:
        """The events, their identities with SPIFFE IDs."""
        return [
            event if event.identity is None else replace(event, identity=self.identity(event.identity))
            for event in events
        ]

    def _ids(self, key: ProcessKey, workload: Workload) -> tuple[str, ...] | None:
        known = self._state[1].get(id(workload))
        if known is None or known[0] is not workload or not known[4] <= self._clock() < known[3]:
            known = self._decide(workload)
        if known[2] is not None:
            return known[2]
        unix = self._unix(key)
        if unix is None:
            unix = self._before.get(key)
        else:
            with self._lock:
                self._before[key] = unix
                if len(self._before) > _PROCESSES:
                    self._before.pop(next(iter(self._before)))
        found = known[1].spiffe_ids(unix, self._clock())
        return None if unix is None and not found else found

    def _decide(self, workload: Workload) -> _Known:
        entries, computed = self._state
        known = computed.get(id(workload))
        now = self._clock()
        if known is not None and known[0] is workload and known[4] <= now < known[3]:
            return known
        matches = entries.match(workload.selectors)
        if matches.asks_unix:
            known = (workload, matches, None, math.inf, -math.inf)
        else:
            ends = [entry.expires_at for entry in matches.sure if entry.expires_at and not entry.expired(now)]
            known = (workload, matches, matches.spiffe_ids(None, now), min(ends, default=math.inf), now)
        if len(computed) >= _WORKLOADS:
            computed.clear()
        computed[id(workload)] = known
        return known
