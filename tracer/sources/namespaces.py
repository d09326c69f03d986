"""Labels of namespaces, from the API server, kept fresh for the namespaces that have pods here.

A namespace is asked for at once when its first pod appears, then every interval, and no longer once its last pod
has left. When the API server fails, what it told stays for a while, and is withdrawn after that: whoever waits for
labels waits on. A namespace that it does not know (404) has none to give, at once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import msgspec

from tracer.clock import boottime
from tracer.errors import SourceError
from tracer.identity.core_v1 import Metadata
from tracer.sources.credentials import CA_PATH, TOKEN_PATH, Credentials
from tracer.sources.peer import Peer
from tracer.sources.session import RELOAD_INTERVAL, Session
from tracer.sources.state import SourceState

Labels = Mapping[str, Mapping[str, str]]
"""Namespace → its labels."""

_log = logging.getLogger("podtracer.namespaces")
_TIMEOUT = 10.0
_MAX_BODY = 4 << 20
_FIRST_PAUSE = 500_000_000
_STOP_WAIT = 1.0
_PEER = Peer(
    name="the API server",
    refused="nothing listens there; is the API server up?",
    wrong="is this really the API server's address?",
    trust=f"{CA_PATH} must hold the authority that signed it",
    host_name="KUBERNETES_SERVICE_HOST has to be a name or address that the certificate bears",
    statuses={
        401: f"it does not know the token in {TOKEN_PATH}: is it of this cluster, and not expired?",
        403: "bind a ClusterRole to this service account with the rule apiGroups [''], resources ['namespaces'],"
        " verbs ['get']",
    },
)


class _Namespace(msgspec.Struct):
    kind: str | None = None
    metadata: Metadata | None = None


class NamespaceClient:
    """Reads one namespace at a time from the API server that a pod is told of: by ``KUBERNETES_SERVICE_HOST`` and
    ``_PORT``, with the token and the authority of its service account."""

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        ca_path: str = CA_PATH,
        token_path: str = TOKEN_PATH,
        reload_interval: float = RELOAD_INTERVAL,
        timeout: float = _TIMEOUT,
    ) -> None:
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
        self._server = f"https://{f'[{host}]' if ':' in host else host}:{port}" if host and port else None
        self._session = Session(
            _PEER,
            Credentials(ca_path, host_name=host, token_path=token_path),
            timeout=timeout,
            max_body=_MAX_BODY,
            reload_interval=reload_interval,
        )

    def labels(self, namespace: str) -> Mapping[str, str]:
        """The labels that a namespace has now. Raises SourceError, with status 404 where it does not exist."""
        if self._server is None:
            hint = "namespace labels are for a podtracer that runs in a pod; leave --enable-namespace-labels out"
            raise SourceError("there is no API server: KUBERNETES_SERVICE_HOST or _PORT is not set", None, hint)
        url = f"{self._server}/api/v1/namespaces/{quote(namespace, safe='')}"
        return _decode(self._session.get(url, {"Accept": "application/json"}), namespace, url)

    def close(self) -> None:
        """End the request in flight; later ones fail."""
        self._session.close()


def _decode(body: bytes, namespace: str, url: str) -> Mapping[str, str]:
    try:
        found = msgspec.json.decode(body, type=_Namespace)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"the answer is no namespace: {error}"[:300], url, _PEER.wrong) from error
    if found.metadata is None or found.metadata.name != namespace:
        raise SourceError("the answer is another namespace than the one asked for", url, _PEER.wrong)
    return {key: value or "" for key, value in (found.metadata.labels or {}).items()}


@dataclass(slots=True)
class _Known:
    """One namespace: what was told at ``at``, and when to ask again. ``failure`` is the kind of the last one."""

    due: int
    labels: Mapping[str, str] | None = None
    at: int = 0
    failures: int = 0
    failure: SourceError | None = None


class NamespaceSource:
    """A daemon thread that keeps the labels of wanted namespaces, each ``interval_s`` seconds old at most while the
    API server answers, and withdraws them ``max_stale_s`` seconds after it last did.

    ``on_labels`` gets all that is known whenever it changes; ``on_failure`` an error when it is of another kind than
    the last one, and ``None`` when all is well again. Both are called in the source's thread; what they raise is
    logged.
    """

    def __init__(
        self,
        client: NamespaceClient,
        *,
        interval_s: float = 10.0,
        max_stale_s: float = 600.0,
        on_labels: Callable[[Labels], None],
        on_failure: Callable[[SourceError | None], None],
    ) -> None:
        self._client = client
        self._interval = round(interval_s * 1e9)
        self._max_stale = round(max_stale_s * 1e9)
        self._on_labels = on_labels
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._known: dict[str, _Known] = {}
        self._told: Labels = {}
        self._failing: frozenset[tuple[str, int | None]] = frozenset()
        self._forgot = False
        self._stopped = False
        self._state = SourceState(None, boottime())
        self._thread = threading.Thread(target=self._run, name="podtracer-namespaces", daemon=True)

    @property
    def state(self) -> SourceState:
        """The state now: failing while any namespace cannot be asked for."""
        with self._changed:
            return self._state

    def start(self) -> None:
        """Begin. Raises RuntimeError the second time."""
        self._thread.start()

    def want(self, namespaces: Iterable[str]) -> None:
        """Which namespaces have pods here: new ones are asked for at once, others forgotten. Never blocks."""
        wanted = {name for name in namespaces if name}
        with self._changed:
            if wanted == self._known.keys():
                return
            now = boottime()
            # What is forgotten has to be withdrawn: it would be out of date when the namespace comes back.
            self._forgot |= not wanted >= self._known.keys()
            self._known = {name: self._known.get(name) or _Known(now) for name in wanted}
            self._changed.notify()

    def stop(self) -> None:
        """End the thread and close the client, also while a request hangs; back within about a second."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._client.close()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_STOP_WAIT)

    def _run(self) -> None:
        while (due := self._wait_until_due()) is not None:
            for name in due:
                if not self._ask(name):
                    break
            self._tell()

    def _wait_until_due(self) -> list[str] | None:
        """Sleep until namespaces are to be asked for or withdrawn; ``None`` when it is time to end."""
        with self._changed:
            while not self._stopped:
                now = boottime()
                due = [name for name, known in self._known.items() if known.due <= now]
                if due or self._forgot:
                    self._forgot = False
                    return due
                soonest = min((known.due for known in self._known.values()), default=None)
                self._changed.wait(None if soonest is None else (soonest - now) / 1e9)
            return None

    def _ask(self, name: str) -> bool:
        """Ask for one namespace; whether there is a point in asking for the next."""
        labels: Mapping[str, str] | None = None
        failure: SourceError | None = None
        started = boottime()
        try:
            labels = self._client.labels(name)
        except SourceError as error:
            failure = error
        except Exception as bug:  # the thread is the only one there is
            _log.exception("asking for a namespace failed in a way nobody thought of")
            failure = SourceError(f"internal error: {bug!r}")
        with self._changed:
            if self._stopped:
                return False
            now = boottime()
            known = self._known.get(name)
            if known is not None:
                self._note(known, labels, failure, started, now)
            if failure is None or failure.status is not None:
                return True
            # Nobody answers: the others would wait for the same in vain.
            pause = known.due if known is not None else now + _FIRST_PAUSE
            for other in self._known.values():
                other.due = max(other.due, pause)
            return False

    def _note(
        self,
        known: _Known,
        labels: Mapping[str, str] | None,
        failure: SourceError | None,
        started: int,
        now: int,
    ) -> None:
        known.failure = failure
        if failure is None:
            known.labels, known.at, known.failures = labels, started, 0
            known.due = started + self._interval
            return
        known.failures += 1
        known.due = now + min(self._interval, _FIRST_PAUSE << min(known.failures - 1, 32))
        if failure.status == 404:
            known.labels = None

    def _tell(self) -> None:
        with self._changed:
            if self._stopped:
                return
            now = boottime()
            for known in self._known.values():
                if known.labels is not None and now - known.at > self._max_stale:
                    known.labels = None
            labels = {name: known.labels for name, known in self._known.items() if known.labels is not None}
            failures = [known.failure for known in self._known.values() if known.failure is not None]
            if failures:
                self._state = self._state.bad(failures[0], now)
            else:
                self._state = self._state.good(max((known.at for known in self._known.values()), default=now), now)
            kinds = frozenset((error.what.partition(": ")[0], error.status) for error in failures)
            is_news, self._failing = kinds != self._failing, kinds
            changed = labels != self._told
        if changed:
            self._told = labels
            self._call(lambda: self._on_labels(labels))
        if is_news:
            self._call(lambda: self._on_failure(failures[0] if failures else None))

    def _call(self, listener: Callable[[], None]) -> None:
        try:
            listener()
        except Exception:
            _log.exception("a listener of the namespace source failed")
