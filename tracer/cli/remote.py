"""The daemon in place of a tracer: the same questions, asked over its socket."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from tracer import pidfd
from tracer.cli import configuration
from tracer.cli.app import say, warn
from tracer.cli.configuration import Value
from tracer.client import Client, ClientWatch
from tracer.model import Event, Identity, ProcessKey
from tracer.settings import Settings

if TYPE_CHECKING:
    from tracer.issuing import Issuing
    from tracer.sources.entries_file import EntriesFile

_FOREVER = 3600.0  # seconds: the longest wait that the daemon grants
# Settings of pod data that a question carries along, or that are about the answer.
_ASKED_ALONG = ("mode", "disable-container-selectors", "entries-file", "agent-id")
_ABOUT_WAITING = ("max-poll-attempts", "poll-retry-interval")


def connect(values: Mapping[str, Value], settings: Settings, *, say_it_asks: bool) -> RemoteTracer:
    """The daemon that the values name. Raises :class:`DaemonUnreachable` where none accepts."""
    path = values["socket"].value
    client = Client(path)
    version = client.version()
    if say_it_asks:
        say(f"podtracer: asking the daemon at {path}, version {version}")
    unused = [
        f"--{option.key}"
        for option in configuration.POD_DATA
        if values[option.key].origin == "flag" and option.key not in (*_ASKED_ALONG, *_ABOUT_WAITING)
    ]
    if unused:
        warn(f"the daemon has its own {', '.join(unused)}; add --standalone to use yours")
    mode = settings.mode if values["mode"].origin != "default" else None
    return RemoteTracer(client, settings, mode=mode)


class RemoteTracer:
    """Asks a daemon. ``mode`` is asked for where it is not ``None``; registration entries of the settings are compared
    here, where those who ask can read them."""

    def __init__(self, client: Client, settings: Settings, *, mode: str | None) -> None:
        self._client = client
        self._settings = settings
        self._how: dict[str, Any] = {
            "mode": mode,
            "container_selectors": not settings.disable_container_selectors,
        }
        self._issuing: Issuing | None = None
        self._entries_file: EntriesFile | None = None
        # Our PID of the process that was asked about last; only if the daemon is in another PID namespace.
        self._numbers: dict[ProcessKey, int] | None = None

    def __enter__(self) -> Self:
        if self._settings.entries_file is not None:
            from tracer.issuing import Issuing
            from tracer.sources.entries_file import EntriesFile

            self._numbers = None if self._client.counts_alike() else {}
            issuing = Issuing(self._settings.agent_id, self._unix_selectors)
            self._issuing = issuing
            self._entries_file = EntriesFile(
                self._settings.entries_file, on_entries=lambda entries: _ignore(issuing.take(entries)), warn=warn
            )
            self._entries_file.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        if self._entries_file is not None:
            self._entries_file.stop()

    def wait_synced(self, timeout: float) -> bool:  # noqa: ARG002
        """The daemon is what it is: nothing is waited for."""
        return True

    def wait_known(self, pids: Sequence[int], timeout: float | None) -> None:
        """Waits until none of these processes is ``pending``, for ``timeout`` seconds at most."""
        end = time.monotonic() + min(_FOREVER, _FOREVER if timeout is None else timeout)
        for pid in pids:
            self._client.lookup(pid, wait=max(0.0, end - time.monotonic()), **self._how)

    def lookup(self, pid: int, *, verify: bool = False, parity: bool = False) -> Identity:  # noqa: ARG002
        """The identity of a process."""
        identity = self._client.lookup(pid, parity=parity, **self._how)
        if self._numbers is not None:
            self._numbers = {identity.key: pid}
        return self._issued(identity)

    def ps(self, *, parity: bool = False) -> list[Identity]:
        """The identities of all processes."""
        found = self._client.request("ps", parity=parity or None, labels=True, **self._how)
        return [self._issued(identity) for identity in self._client.identities(found)]

    def explain_record(self, pid: int) -> dict[str, Any]:
        """How the answer for a process came to be."""
        return self._client.explain(pid)

    def watch(self, *, snapshot: bool = True, parity: bool = False) -> RemoteWatch:
        """A stream of events."""
        wants_parity = parity or self._how["mode"] == "parity"
        return RemoteWatch(self._client.watch(snapshot=snapshot, parity=wants_parity), self)

    def issued(self, event: Event) -> Event:
        """The event, its identity with SPIFFE IDs."""
        if self._issuing is None or event.identity is None:
            return event
        return replace(event, identity=self._issuing.identity(event.identity))

    def _unix_selectors(self, key: ProcessKey) -> tuple[str, ...] | None:
        """The unix selectors of a process, by its PID here; ``None`` if its PID here is not known."""
        from tracer.kernel import procfs

        number = key.pid if self._numbers is None else self._numbers.get(key)
        if self._numbers is not None and not pidfd.proc_counts_alike():
            return None
        return None if number is None else procfs.unix_selectors(self._settings.procfs, number)

    def _issued(self, identity: Identity) -> Identity:
        return identity if self._issuing is None else self._issuing.identity(identity)


def _ignore(_of_agent: bool) -> None:
    """Whether entries are the agent's is not told: whoever asks sees that none matches."""


class RemoteWatch:
    """A stream of events of a daemon."""

    def __init__(self, watch: ClientWatch, tracer: RemoteTracer) -> None:
        self._watch = watch
        self._tracer = tracer

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; ``None`` when none came within ``timeout`` seconds."""
        event = self._watch.next(timeout)
        return None if event is None else self._tracer.issued(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._watch.close()
        return False
