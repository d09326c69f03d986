"""The kubelet's list of pods over HTTP, and the thread that keeps it fresh.

An endpoint is a request prepared by pure code; the client is all that sends. The source asks when the
schedule of ``refresh`` says so and tells its listener what came. It keeps no pods: when the kubelet fails,
nobody is told anything new, so that what was known stays.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from tracer.clock import boottime
from tracer.errors import InputError, SourceError, UsageError
from tracer.identity.pods import PodList, decode_pod_list
from tracer.sources.credentials import Credentials
from tracer.sources.ownership import RootCheck
from tracer.sources.peer import READ_ONLY, REALLY, Peer
from tracer.sources.refresh import Refresher
from tracer.sources.session import RELOAD_INTERVAL, Session
from tracer.sources.state import SourceState

_log = logging.getLogger("podtracer.kubelet")

READ_ONLY_PORT = 10255
SECURE_PORT = 10250
TIMEOUT = 10.0
MAX_BODY = 64 << 20
_STOP_WAIT = 1.0
_HTTP = b"HTTP/1."
_NODE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,252}|[0-9A-Fa-f:.]{2,45}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KubeletEndpoint:
    """A request for the list of pods, ready to be sent. Each way to reach a kubelet is a constructor.

    ``check`` is for a port that nobody named and that does not prove who it is.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=lambda: {"Accept": "application/json"})
    credentials: Credentials | None = None
    peer: Peer = READ_ONLY
    check: RootCheck | None = None

    @classmethod
    def read_only(cls, port: int = READ_ONLY_PORT) -> KubeletEndpoint:
        """The read-only port on loopback, without a credential. Raises UsageError for what is no port."""
        return cls(f"http://127.0.0.1:{_checked(port, READ_ONLY_PORT)}/pods")

    @classmethod
    def secure(
        cls, port: int = SECURE_PORT, *, credentials: Credentials, node_name: str | None = None
    ) -> KubeletEndpoint:
        """The secure port. With a node name it is asked there, and its certificate has to bear that name; without,
        on loopback, and the chain of its certificate alone is checked.

        Raises UsageError for what is no port or no name.
        """
        _checked(port, SECURE_PORT)
        if node_name is not None and not _NODE_NAME.fullmatch(node_name):
            raise UsageError("not the name of a node", repr(node_name), "kubectl get nodes shows the names")
        host = node_name or "127.0.0.1"
        url = f"https://{f'[{host}]' if ':' in host else host}:{port}/pods"
        return cls(url, credentials=replace(credentials, host_name=node_name), peer=_secure_peer(credentials))


def _checked(port: int, usual: int) -> int:
    if not 0 < port < 65536:
        raise UsageError("not a TCP port", str(port), f"give a number from 1 to 65535, usually {usual}")
    return port


def _secure_peer(credentials: Credentials) -> Peer:
    if credentials.certificate_path:
        unknown = f"its clientCAFile must hold the authority that signed {credentials.certificate_path}"
    elif credentials.token_path:
        unknown = (
            f"it does not know {credentials.in_words}: is it of this cluster, and not expired?"
            " The kubelet's authentication.webhook has to be enabled"
        )
    else:
        unknown = "it takes no anonymous requests (authentication.anonymous): give a token or a client certificate"
    allow = (
        "bind a ClusterRole to this user with the rule apiGroups [''], resources ['nodes/pods'], verbs ['get'];"
        " before Kubernetes 1.33 that is 'nodes/proxy', which also allows to run commands in pods"
    )
    return Peer(
        refused="nothing listens there; is the kubelet running, and this its port?",
        wrong=f"{REALLY} The secure one is usually {SECURE_PORT}",
        trust=f"{credentials.ca_path} must hold the authority that signed it, or the certificate itself if that is"
        " self-signed; --kubelet-ca-path names another file",
        host_name="the node name has to be one that resolves and that the certificate bears; without a node name"
        " 127.0.0.1 is asked and only the chain checked",
        statuses={401: unknown, 403: allow},
    )


@dataclass(frozen=True, slots=True)
class PodFetch:
    """A complete list of pods, no older than ``started``, boot time nanoseconds before the request left. ``connected``
    is when the connection was made on which it came, where that is known: a server that began again since is on
    another one."""

    pods: PodList
    started: int
    connected: int | None = None


class KubeletClient:
    """Fetches from one endpoint, over one connection that is kept.

    ``timeout`` (seconds) bounds the whole of a request, ``max_body`` (bytes) its answer. The endpoint's keys are read
    anew every ``reload_interval`` seconds, and at once when they are refused.
    """

    def __init__(
        self,
        endpoint: KubeletEndpoint,
        *,
        timeout: float = TIMEOUT,
        max_body: int = MAX_BODY,
        reload_interval: float = RELOAD_INTERVAL,
    ) -> None:
        self.endpoint = endpoint
        self._session = Session(
            endpoint.peer,
            endpoint.credentials,
            timeout=timeout,
            max_body=max_body,
            reload_interval=reload_interval,
            check=endpoint.check,
        )
        self._fetching = threading.Lock()

    def __enter__(self) -> KubeletClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fetch(self) -> PodFetch:
        """The list of pods now. Callers in several threads take turns.

        Raises SourceError, whatever went wrong. Its ``what`` begins with fixed words; what varies from try to
        try stands behind ``": "``.
        """
        with self._fetching:
            endpoint = self.endpoint
            started = boottime()
            body = self._session.get(endpoint.url, endpoint.headers)
            connected = self._session.connected
        try:
            return PodFetch(decode_pod_list(body), started, connected)
        except (InputError, RecursionError) as error:
            what = error.what if isinstance(error, InputError) else "nested too deeply"
            raise SourceError(f"the answer is no list of pods: {what}", endpoint.url, endpoint.peer.wrong) from error

    def close(self) -> None:
        """End the fetch in flight, with SourceError in the thread that waits for it; later ones fail too."""
        self._session.close()


class KubeletSource:
    """A daemon thread that fetches every ``interval_s`` seconds, at once for a container nobody knows, and soon after
    something happened to a pod whose status is not complete.

    ``on_pods`` gets every list; ``on_state`` the state when it changes: the first answer or failure, from
    one to the other, or another kind of failure. Both are called in the source's thread, never at the same
    time, and may call every method. What they raise is logged.
    """

    def __init__(
        self,
        client: KubeletClient,
        *,
        interval_s: float = 10.0,
        on_pods: Callable[[PodFetch], None],
        on_state: Callable[[SourceState], None],
    ) -> None:
        self._client = client
        self._on_pods = on_pods
        self._on_state = on_state
        self._refresher = Refresher(round(interval_s * 1e9))
        self._changed = threading.Condition()
        self._stopped = False
        # HTTP statuses of its answers, "error" where there was none, and how often each was.
        self.codes: Counter[str] = Counter()
        self._state = SourceState(None, boottime())
        self._thread = threading.Thread(target=self._run, name="podtracer-kubelet", daemon=True)

    @property
    def state(self) -> SourceState:
        """The state now."""
        with self._changed:
            return self._state

    def start(self) -> None:
        """Begin; the first fetch leaves at once. Raises RuntimeError the second time."""
        self._thread.start()

    def want(self, container_id: str) -> None:
        """Fetch for a container that nobody knows, until it is settled. Never blocks on the kubelet."""
        with self._changed:
            self._refresher.want(container_id, boottime())
            self._changed.notify()

    def settle(self, container_id: str) -> None:
        """The container became known or is gone."""
        # The thread may wake up for it in vain, once; that is cheaper than waking it up now.
        with self._changed:
            self._refresher.settle(container_id)

    def stir(self) -> None:
        """Something happened to a pod whose status is not complete: fetch within half a second."""
        with self._changed:
            self._refresher.stir(boottime())
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
        while self._wait_until_due():
            self._fetch_once()

    def _wait_until_due(self) -> bool:
        """Sleep until a GET is due and mark it started; False when it is time to end."""
        with self._changed:
            while not self._stopped:
                now = boottime()
                due = self._refresher.next_fetch(now)
                if due is not None and due <= now:
                    self._refresher.started(now)
                    return True
                self._changed.wait(None if due is None else (due - now) / 1e9)
            return False

    def _fetch_once(self) -> None:
        fetch: PodFetch | None = None
        error: SourceError | None = None
        try:
            fetch = self._client.fetch()
        except SourceError as failure:
            error = failure
        except Exception as bug:  # The thread is the only one there is: it outlives what nobody thought of.
            _log.exception("fetching pods failed in a way nobody thought of")
            error = SourceError(f"internal error: {bug!r}", self._client.endpoint.url)
        code = "200" if error is None else str(error.status or "error")
        with self._changed:
            if self._stopped:
                return
            self.codes[code] += 1
            now = boottime()
            self._refresher.finished(now, error is None)
            before = self._state
            if fetch is not None:
                after = before.good(fetch.started, now, fetch.pods.skipped)
            else:
                after = before.bad(error or SourceError("no answer"), now)
            self._state = after
        if fetch is not None:
            self._tell(partial(self._on_pods, fetch))
        if after.kind != before.kind:
            self._tell(partial(self._on_state, after))

    def _tell(self, listener: Callable[[], None]) -> None:
        try:
            listener()
        except Exception:
            _log.exception("a listener of the kubelet source failed")


def find_read_only(port: int = READ_ONLY_PORT, timeout: float = 0.5, check: RootCheck | None = None) -> bool:
    """Whether something on loopback's ``port`` answers in HTTP within ``timeout`` seconds.

    Any status will do: a kubelet that calls itself unhealthy lists its pods all the same. With a ``check`` raises
    NotRoots where it is seen at once that it is not passed; whether it is, each connection shows.
    """
    head = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as sock:
            if check is not None:
                check.is_likely(sock, time.monotonic() + timeout)
            deadline = time.monotonic() + timeout
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            while len(head) < len(_HTTP) and (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                more = sock.recv(len(_HTTP) - len(head))
                if not more:
                    break
                head += more
    except (OSError, OverflowError):
        return False
    return head == _HTTP
