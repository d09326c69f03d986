"""An index as it is often made: a table by PID, filled by what is told of forks, execs, moves and exits.

What accuracy is compared with: where this one is never wrong, the run had nothing in it that tells a good index from a
bad one.
"""

from __future__ import annotations

from tracer.identity.index import gone
from tracer.model import Identity
from tracer.watching import Watch


class ByPid:
    """Identities by the bare PID, from a watch on all that happens."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._known: dict[int, Identity] = {}

    def lookup(self, pid: int) -> Identity:
        """Who has this PID, as far as one was told until now."""
        while (event := self._watch.next(0)) is not None:
            identity = event.identity
            if identity is None:
                continue
            if event.event == "exit":
                self._known.pop(identity.key.pid, None)
            else:
                self._known[identity.key.pid] = identity
        return self._known.get(pid) or gone(pid)
