"""Labels of namespaces: asked for at an API server on loopback, kept, refreshed and withdrawn."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.pki import Pki
from tests.servers import WAIT, RawServer, answer, read_request, unused_port
from tests.tls import NODE, SecureServer, make_pki, over_tls, server_context
from tests.unit.index_lab import Lab, cid, container, pod, uid
from tests.waiting import until
from tracer.errors import SourceError
from tracer.identity.index import Rules
from tracer.model import State
from tracer.sources.namespaces import Labels, NamespaceClient, NamespaceSource


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority and certificates that no test changes."""
    return make_pki(tmp_path_factory.mktemp("pki"))


class ApiServer(SecureServer):
    """An API server that has namespaces: name → labels, or the status line of a refusal."""

    def __init__(self, pki: Pki) -> None:
        self.namespaces: dict[str, dict[str, str] | str | None] = {}
        super().__init__(server_context(pki), tokens=("first",), body=b"")

    def _answer(self, head: bytes, tls: Any) -> bytes:
        refused = super()._answer(head, tls)
        if b" 401 " in refused.split(b"\r\n")[0]:
            return refused
        name = head.split(b" ")[1].decode().removeprefix("/api/v1/namespaces/")
        found = self.namespaces.get(name, "404 Not Found")
        if isinstance(found, str):
            return answer(b"{}", found)
        metadata = {"name": name, "uid": "x", "labels": found}
        return answer(json.dumps({"kind": "Namespace", "apiVersion": "v1", "metadata": metadata}).encode())

    def asked_for(self, name: str) -> int:
        """How often a namespace was asked for."""
        return sum(head.startswith(f"GET /api/v1/namespaces/{name} ".encode()) for head in self.requests)


@pytest.fixture
def server(pki: Pki) -> Iterator[ApiServer]:
    """An API server without namespaces."""
    with ApiServer(pki) as running:
        yield running


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The service account's token."""
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def client(pki: Pki, token: Path, port: int, timeout: float = 20.0) -> NamespaceClient:
    environ = {"KUBERNETES_SERVICE_HOST": NODE, "KUBERNETES_SERVICE_PORT": str(port)}
    return NamespaceClient(environ, ca_path=str(pki.ca), token_path=str(token), timeout=timeout)


class Listener:
    """Collects what a source tells."""

    def __init__(self) -> None:
        self.labels: queue.Queue[Labels] = queue.Queue()
        self.failures: queue.Queue[SourceError | None] = queue.Queue()


@pytest.fixture
def listener() -> Listener:
    """What the source told."""
    return Listener()


@pytest.fixture
def source(pki: Pki, token: Path, server: ApiServer, listener: Listener) -> Iterator[Callable[..., NamespaceSource]]:
    """Makes and starts sources, and stops them in the end."""
    made: list[NamespaceSource] = []

    def make(**more: float) -> NamespaceSource:
        new = NamespaceSource(
            client(pki, token, server.port),
            on_labels=listener.labels.put,
            on_failure=listener.failures.put,
            **{"interval_s": 600, **more},
        )
        new.start()
        made.append(new)
        return new

    yield make
    for each in made:
        each.stop()


# --- one request


def test_labels(pki: Pki, token: Path, server: ApiServer) -> None:
    """A namespace's labels come as they are, none at all included."""
    server.namespaces = {"shop": {"team": "cart", "empty": ""}, "bare": None}
    api = client(pki, token, server.port)
    assert api.labels("shop") == {"team": "cart", "empty": ""}
    assert api.labels("bare") == {}
    assert b"Authorization: Bearer first" in server.requests[0]
    api.close()


def test_rotated_token(pki: Pki, token: Path, server: ApiServer) -> None:
    """A token that is refused is read anew within the same request."""
    server.namespaces = {"shop": {"team": "cart"}}
    api = client(pki, token, server.port)
    api.labels("shop")
    token.write_text("second")
    server.tokens = ("second",)
    assert api.labels("shop") == {"team": "cart"}
    api.close()


@pytest.mark.parametrize(("status", "hint"), [("403 Forbidden", "'namespaces'"), ("401 Unauthorized", "token")])
def test_refused(pki: Pki, token: Path, server: ApiServer, status: str, hint: str) -> None:
    """401 and 403 say what to do about them, and name the API server."""
    server.namespaces = {"shop": status}
    api = client(pki, token, server.port)
    with pytest.raises(SourceError) as caught:
        api.labels("shop")
    assert caught.value.status == int(status[:3])
    assert caught.value.what.startswith("the API server answered ")
    assert hint in (caught.value.hint or "")
    api.close()


def test_name_is_quoted(pki: Pki, token: Path, server: ApiServer) -> None:
    """What a list calls a namespace cannot become another path."""
    api = client(pki, token, server.port)
    with pytest.raises(SourceError):
        api.labels("../../secrets?x")
    assert server.requests[0].startswith(b"GET /api/v1/namespaces/..%2F..%2Fsecrets%3Fx ")
    api.close()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"metadata":{"name":"other","labels":{}}}', b'{"metadata":{"name":"shop","labels":{"a":1}}}'],
)
def test_no_namespace(pki: Pki, token: Path, body: bytes) -> None:
    """An answer that is no namespace, or another one, is a failure."""

    def script(server: RawServer, conn: Any) -> None:
        read_request(conn)
        conn.sendall(answer(body))

    with RawServer(over_tls(server_context(pki), script)) as raw:
        api = client(pki, token, raw.port)
        with pytest.raises(SourceError, match="the answer is"):
            api.labels("shop")
        api.close()


def test_name_of_the_server(pki: Pki, token: Path, server: ApiServer) -> None:
    """An API server whose certificate bears another name than the one asked gets no token."""
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
    api = NamespaceClient(environ, ca_path=str(pki.ca), token_path=str(token))
    with pytest.raises(SourceError, match="the API server's certificate is for another name"):
        api.labels("shop")
    assert server.requests == []
    api.close()


@pytest.mark.parametrize("environ", [{}, {"KUBERNETES_SERVICE_HOST": "x"}, {"KUBERNETES_SERVICE_PORT": "1"}])
def test_outside_a_pod(environ: dict[str, str]) -> None:
    """Where no pod's environment names an API server, that is what is said."""
    with pytest.raises(SourceError, match="KUBERNETES_SERVICE_HOST"):
        NamespaceClient(environ).labels("shop")


# --- the thread


def test_asked_for_at_once(server: ApiServer, listener: Listener, source: Callable[..., NamespaceSource]) -> None:
    """A namespace is asked for when it is first wanted, and once per interval."""
    server.namespaces = {"shop": {"team": "cart"}, "bank": {}}
    keeper = source()
    keeper.want({"shop"})
    assert listener.labels.get(timeout=WAIT) == {"shop": {"team": "cart"}}
    keeper.want({"shop", "bank", ""})
    assert listener.labels.get(timeout=WAIT) == {"shop": {"team": "cart"}, "bank": {}}
    assert (server.asked_for("shop"), server.asked_for("bank")) == (1, 1)
    assert listener.failures.empty()


def test_refreshed(server: ApiServer, listener: Listener, source: Callable[..., NamespaceSource]) -> None:
    """An edit is seen within an interval; while nothing changes nothing is told."""
    server.namespaces = {"shop": {"team": "cart"}}
    source(interval_s=0.05).want({"shop"})
    assert listener.labels.get(timeout=WAIT) == {"shop": {"team": "cart"}}
    until(lambda: server.asked_for("shop") >= 3, WAIT, "the namespace to be asked for again")
    server.namespaces = {"shop": {"team": "web"}}
    assert listener.labels.get(timeout=WAIT) == {"shop": {"team": "web"}}


def test_forgotten(server: ApiServer, listener: Listener, source: Callable[..., NamespaceSource]) -> None:
    """Labels of a namespace that has no pods any more are withdrawn, and asked for anew when it has."""
    server.namespaces = {"shop": {"team": "cart"}}
    keeper = source()
    keeper.want({"shop"})
    assert listener.labels.get(timeout=WAIT) == {"shop": {"team": "cart"}}
    keeper.want(set())
    assert listener.labels.get(timeout=WAIT) == {}
    server.namespaces = {"shop": {"team": "web"}}
    keeper.want({"shop"})
    assert listener.labels.get(timeout=WAIT) == {"shop": {"team": "web"}}


def test_one_refused(server: ApiServer, listener: Listener, source: Callable[..., NamespaceSource]) -> None:
    """One namespace that is refused keeps no other from being known; it is told once, and when it is over."""
    server.namespaces = {"a": "403 Forbidden", "b": {"x": "y"}}
    source(interval_s=0.05).want({"a", "b"})
    assert listener.labels.get(timeout=WAIT) == {"b": {"x": "y"}}
    failure = listener.failures.get(timeout=WAIT)
    assert failure is not None
    assert failure.status == 403
    until(lambda: server.asked_for("a") >= 3, WAIT, "further tries")
    assert listener.failures.empty()
    server.namespaces["a"] = {}
    assert listener.labels.get(timeout=WAIT) == {"a": {}, "b": {"x": "y"}}
    assert listener.failures.get(timeout=WAIT) is None


def test_deleted(server: ApiServer, listener: Listener, source: Callable[..., NamespaceSource]) -> None:
    """The labels of a namespace that is no more are withdrawn at once."""
    server.namespaces = {"shop": {"team": "cart"}}
    source(interval_s=0.05).want({"shop"})
    assert listener.labels.get(timeout=WAIT) == {"shop": {"team": "cart"}}
    server.namespaces = {}
    assert listener.labels.get(timeout=WAIT) == {}


@pytest.mark.parametrize(("max_stale_s", "kept"), [(600.0, True), (0.3, False)])
def test_server_fails(
    server: ApiServer, listener: Listener, source: Callable[..., NamespaceSource], max_stale_s: float, kept: bool
) -> None:
    """When the API server fails, what it told stays as long as it may, and is withdrawn then."""
    server.namespaces = {"shop": {"team": "cart"}}
    source(interval_s=0.05, max_stale_s=max_stale_s).want({"shop"})
    assert listener.labels.get(timeout=WAIT) == {"shop": {"team": "cart"}}
    server.namespaces = {"shop": "500 Oops"}
    failure = listener.failures.get(timeout=WAIT)
    assert failure is not None
    assert failure.status == 500
    if kept:
        before = server.asked_for("shop")
        until(lambda: server.asked_for("shop") >= before + 3, WAIT, "further tries")
        assert listener.labels.empty()
    else:
        assert listener.labels.get(timeout=WAIT) == {}


def test_nobody_there(pki: Pki, token: Path, listener: Listener) -> None:
    """Of many namespaces one is tried where nobody answers, and one failure told."""
    source = NamespaceSource(
        client(pki, token, unused_port()),
        interval_s=0.05,
        on_labels=listener.labels.put,
        on_failure=listener.failures.put,
    )
    source.start()
    source.want({f"ns-{number}" for number in range(30)})
    failure = listener.failures.get(timeout=WAIT)
    assert failure is not None
    assert failure.what == "connection refused"
    source.stop()
    assert listener.labels.empty()
    assert listener.failures.empty()


def test_stop_while_hanging(pki: Pki, token: Path, listener: Listener) -> None:
    """Stopping ends a request that hangs."""
    asked: queue.Queue[bool] = queue.Queue()

    def script(server: RawServer, conn: Any) -> None:
        read_request(conn)
        asked.put(True)
        server.closing.wait(WAIT)

    with RawServer(over_tls(server_context(pki), script)) as raw:
        source = NamespaceSource(
            client(pki, token, raw.port, WAIT), on_labels=listener.labels.put, on_failure=listener.failures.put
        )
        source.start()
        source.want({"shop"})
        assert asked.get(timeout=WAIT)
        source.stop()
        assert not source._thread.is_alive()


# --- what becomes of them


def test_selectors_wait_for_the_labels() -> None:
    """With namespace labels a container is pending, all but its selectors known, until its namespace's labels are;
    an edit changes its selectors, and what is withdrawn makes it pending again."""
    lab = Lab(Rules(namespace_labels=True))
    cgroup = lab.mkdir(f"/kubepods/pod{uid('a')}/{cid('1')}")
    lab.fork(7, cgroup)
    lab.pods(pod("a", container("1")))
    waiting = lab.who(cgroup)
    assert (waiting.state, waiting.workload.reason) == (State.PENDING, "namespace_labels")
    assert (waiting.workload.pod, waiting.workload.container, waiting.workload.selectors) == ("cart-a", "app", ())
    assert lab.index.pod_namespaces == {"shop"}
    assert lab.index.take_wants() == ([], [])
    assert lab.index.namespaces({"bank": {}}, lab.now) == []
    assert lab.who(cgroup).state is State.PENDING
    (event,) = lab.index.namespaces({"shop": {"team": "cart"}}, lab.now)
    assert event.event == "resolved"
    resolved = lab.who(cgroup)
    assert "k8s:ns-label:team:cart" in resolved.workload.selectors
    lab.pods(pod("a", container("1")))
    assert lab.who(cgroup).workload is resolved.workload
    lab.index.namespaces({"shop": {"team": "web"}}, lab.now)
    assert "k8s:ns-label:team:web" in lab.who(cgroup).workload.selectors
    assert "k8s:ns-label:team:cart" not in lab.who(cgroup).workload.selectors
    lab.index.namespaces({"shop": {}}, lab.now)
    assert not any("ns-label" in selector for selector in lab.who(cgroup).workload.selectors)
    assert lab.who(cgroup).state is State.RESOLVED
    lab.index.namespaces({}, lab.now)
    assert lab.who(cgroup).state is State.PENDING


def test_labels_that_nobody_asked_for() -> None:
    """Without the rule nobody waits, and labels change no selector."""
    lab = Lab()
    cgroup = lab.mkdir(f"/kubepods/pod{uid('a')}/{cid('1')}")
    lab.fork(7, cgroup)
    lab.pods(pod("a", container("1")))
    before = lab.who(cgroup)
    lab.index.namespaces({"shop": {"team": "cart"}}, lab.now)
    assert before.state is State.RESOLVED
    assert lab.who(cgroup).workload is before.workload
