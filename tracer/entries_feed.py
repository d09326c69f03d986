"""Registration entries carried to whoever gives identities their SPIFFE IDs: read from a file, and again when it
changes or another one is named."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from tracer.identity.index import Index
from tracer.lookups import Lookups
from tracer.settings import Settings

if TYPE_CHECKING:
    from tracer.identity.entries import Entries
    from tracer.issuing import Issuing
    from tracer.sources.entries_file import EntriesFile


class EntriesFeed:
    """Sets ``lookups.issuing``, and ``None`` there where the settings name no file. ``lock`` guards the index."""

    def __init__(self, lookups: Lookups, index: Index, *, lock: threading.RLock, warn: Callable[[str], None]) -> None:
        self._lookups = lookups
        self._index = index
        self._lock = lock
        self._warn = warn
        self._file: EntriesFile | None = None

    def use(self, settings: Settings) -> None:
        """From now on the entries that these settings name count. Raises ``InputError`` for a file that cannot be used;
        nothing has changed then."""
        before, issuing, file = self._file, None, None
        if settings.entries_file is not None:
            from tracer.issuing import Issuing
            from tracer.sources.entries_file import EntriesFile

            issuing = made = Issuing(settings.agent_id, self._lookups.unix_selectors)

            def take(entries: Entries) -> None:
                self._take(made, entries, settings.agent_id)

            file = EntriesFile(settings.entries_file, on_entries=take, warn=self._warn)
            file.start()
        self._lookups.issuing, self._file = issuing, file
        if before is not None:
            before.stop()

    def _take(self, issuing: Issuing, entries: Entries, agent_id: str | None) -> None:
        if not issuing.take(entries):
            self._warn(f"no registration entry has a chain of parents that reaches {agent_id}")
        with self._lock:
            self._prepare(issuing)

    def prepare(self) -> None:
        """Has computed what the workloads of the index decide. With the lock held."""
        if self._lookups.issuing is not None:
            self._prepare(self._lookups.issuing)

    def _prepare(self, issuing: Issuing) -> None:
        issuing.prepare(entry.workload for entry in self._index.cgroups.containers())

    def stop(self) -> None:
        """Ends the watching of the file; may be called twice."""
        file, self._file = self._file, None
        if file is not None:
            file.stop()
