"""The kubelet's pod list over real sockets, from servers that behave and servers that do not."""

from __future__ import annotations

import json
import logging
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from tests.servers import WAIT, RawServer, always, answer, pod, pod_list, read_request, unused_port
from tracer.clock import boottime
from tracer.errors import SourceError, UsageError
from tracer.sources.kubelet import (
    KubeletClient,
    KubeletEndpoint,
    KubeletSource,
    PodFetch,
    find_read_only,
)
from tracer.sources.replay import ReplayKubelet
from tracer.sources.state import SourceState

Script = Callable[[RawServer, socket.socket], None]

UIDS = [f"00000000-0000-0000-0000-{i:012d}" for i in range(9)]


def client(port: int, timeout: float = 20.0, max_body: int = 1 << 20) -> KubeletClient:
    return KubeletClient(KubeletEndpoint.read_only(port), timeout=timeout, max_body=max_body)


def mute(server: RawServer, conn: socket.socket) -> None:
    """A script that says nothing, for as long as the test lasts."""
    server.closing.wait(WAIT)


def failure(script: Script, *, timeout: float = 20.0, max_body: int = 1 << 20) -> SourceError:
    """The error that one fetch from a server with this script ends with."""
    with (
        RawServer(script) as server,
        client(server.port, timeout, max_body) as kubelet,
        pytest.raises(SourceError) as caught,
    ):
        kubelet.fetch()
    assert caught.value.obj == f"http://127.0.0.1:{server.port}/pods"
    return caught.value


# --- what a good answer may look like


def test_pods() -> None:
    """A pod of the list arrives as a Pod, with a time from before the request."""
    with ReplayKubelet(pod_list(pod(UIDS[1]))) as server, client(server.port) as kubelet:
        before = boottime()
        fetch = kubelet.fetch()
    assert [(p.uid, p.namespace, p.name, p.service_account) for p in fetch.pods.pods] == [
        (UIDS[1], "shop", "cart", "cart")
    ]
    assert before <= fetch.started <= boottime()


def test_started_before_the_answer() -> None:
    """The time of a list is from before its request left, not from when it arrived."""
    arrived: list[int] = []

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        arrived.append(boottime())
        conn.sendall(answer(pod_list()))

    with RawServer(script) as server, client(server.port) as kubelet:
        assert kubelet.fetch().started <= arrived[0]


@pytest.mark.parametrize("body", [pod_list(), b'{"kind":"PodList"}', b'{"kind":"PodList","items":[]}'])
def test_no_pods(body: bytes) -> None:
    """A node without pods, ``"items": null`` as kubelets write it, is an empty list and no failure."""
    with ReplayKubelet(body) as server, client(server.port) as kubelet:
        assert kubelet.fetch().pods.pods == ()


def test_pod_without_uid() -> None:
    """A pod without a UID is left out, one that cannot be read is named too; the others are there."""
    broken = {"metadata": {"name": "broken", "uid": 5}}
    with ReplayKubelet(pod_list(pod(None), broken, pod(UIDS[1]))) as server, client(server.port) as kubelet:
        pods = kubelet.fetch().pods
    assert [p.uid for p in pods.pods] == [UIDS[1]]
    assert len(pods.skipped) == 1


def test_absent_status() -> None:
    """A pod without a status is a pod without containers."""
    bare = pod(UIDS[1])
    del bare["status"]
    with ReplayKubelet(pod_list(bare)) as server, client(server.port) as kubelet:
        (found,) = kubelet.fetch().pods.pods
    assert (found.containers, found.init_containers, found.ephemeral_containers) == ((), (), ())


def test_chunked() -> None:
    """A chunked answer, as Go sends for anything long, is read like any other."""
    body = pod_list(pod(UIDS[1]))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (body[:7], body[7:50], body[50:]))
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    with RawServer(always(data)) as server, client(server.port) as kubelet:
        assert len(kubelet.fetch().pods.pods) == 1


def test_ended_by_close() -> None:
    """An answer without a length that ends with the connection is read to there."""
    data = b"HTTP/1.0 200 OK\r\n\r\n" + pod_list(pod(UIDS[1]))
    with RawServer(always(data)) as server, client(server.port) as kubelet:
        assert len(kubelet.fetch().pods.pods) == 1


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is a plain GET of /pods: no proxy whatever the environment says, no compression."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("no_proxy", "")
    heads: list[bytes] = []

    def script(server: RawServer, conn: socket.socket) -> None:
        heads.append(read_request(conn))
        conn.sendall(answer(pod_list()))

    with RawServer(script) as server, client(server.port) as kubelet:
        kubelet.fetch()
    assert heads[0].startswith(b"GET /pods HTTP/1.1\r\n")
    assert b"accept-encoding: identity\r\n" in heads[0].lower()
    assert b"authorization" not in heads[0].lower()


def test_keep_alive() -> None:
    """Fetches share one connection; one that the server closed meanwhile is replaced without a failure."""
    last = threading.Event()

    def script(server: RawServer, conn: socket.socket) -> None:
        for _ in range(3):
            if read_request(conn):
                conn.sendall(answer(pod_list()))
        last.set()

    with RawServer(script) as server, client(server.port) as kubelet:
        for _ in range(3):
            kubelet.fetch()
        assert server.connections == 1
        assert last.wait(WAIT)
        server.wait_closed(1)
        kubelet.fetch()
        assert server.connections == 2


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_no_port(port: int) -> None:
    """A number that is no TCP port is a usage error before anything is sent."""
    with pytest.raises(UsageError):
        KubeletEndpoint.read_only(port)


# --- what goes wrong


def test_refused() -> None:
    """A port on which nothing listens is a SourceError that says so and what to look at."""
    with client(unused_port()) as kubelet, pytest.raises(SourceError) as caught:
        kubelet.fetch()
    assert caught.value.what == "connection refused"
    assert "readOnlyPort" in (caught.value.hint or "")


@pytest.mark.parametrize("status", ["404 Not Found", "401 Unauthorized", "500 Oops", "503 Busy", "204 None"])
def test_status(status: str) -> None:
    """Every status but 200 is a failure that carries its number."""
    error = failure(always(answer(b"", status)))
    assert error.status == int(status[:3])
    assert error.what == f"the kubelet answered {status[:3]}"


def test_body_of_an_error_is_quoted() -> None:
    """At most 200 characters of an error's body are shown, with nothing in them that a terminal obeys."""
    error = failure(always(answer(b"\x1b[2J\nno\xff " + b"x" * 5000, "503 Busy")))
    assert error.what.startswith("the kubelet answered 503: ")
    assert len(error.what) < 300
    assert error.what.isprintable()
    assert "no" in error.what


def test_secure_port_hint() -> None:
    """What a TLS port answers to plain HTTP becomes a hint at the wrong port."""
    error = failure(always(answer(b"Client sent an HTTP request to an HTTPS server.\n", "400 Bad Request")))
    assert "secure port" in (error.hint or "")


def test_redirect() -> None:
    """A redirect is a failure, not followed, and its endless body is not read."""
    followed = threading.Event()

    def script(server: RawServer, conn: socket.socket) -> None:
        if b"GET /pods " not in read_request(conn):
            followed.set()
        head = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{server.port}/other\r\n\r\n"
        conn.sendall(head.encode())
        while not server.closing.is_set():
            conn.sendall(b"x" * 65536)

    error = failure(script)
    assert error.status == 302
    assert not followed.is_set()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(answer(pod_list(pod()), length=10_000), id="shorter than Content-Length"),
        pytest.param(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"ite', id="inside a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", id="between two chunks"),
    ],
)
def test_truncated(data: bytes) -> None:
    """An answer that ends before its own framing says so is cut short, whatever it holds."""
    assert failure(always(data)).what == "the answer was cut short"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(answer(pod_list(pod()), length=20), id="longer than Content-Length"),
        pytest.param(answer(b"hello"), id="text"),
        pytest.param(answer(b""), id="empty"),
        pytest.param(answer(b"\xff\xfe\x00"), id="binary"),
        pytest.param(answer(pod_list(pod())[:-9]), id="half of it"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + pod_list(pod())[:-9], id="half of it, then closed"),
        pytest.param(answer(b"[]"), id="a list"),
        pytest.param(answer(b'{"items": 5}'), id="items a number"),
        pytest.param(answer(b"[" * 100_000), id="nested"),
        pytest.param(answer(b'{"items":[{"metadata":{"a":' + b"[" * 100_000), id="nested inside"),
    ],
)
def test_no_pod_list(data: bytes) -> None:
    """A body that is no pod list is a SourceError that says so."""
    assert failure(always(data)).what.startswith("the answer is no list of pods: ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}",
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 301 Moved\r\nLocation: http://[::1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_garbage(data: bytes) -> None:
    """Bytes that are no answer to our request end in a printable SourceError and in nothing else."""
    error = failure(always(data))
    assert str(error).isprintable()
    assert len(error.what) <= 300


def test_every_prefix() -> None:
    """An answer that ends anywhere before its end raises SourceError and nothing else."""
    data = answer(pod_list(pod()))
    for end in range(0, len(data) - 1, 17):
        failure(always(data[:end]))


def test_reset() -> None:
    """A connection that is reset in the middle of an answer is a lost or cut-off one."""

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(answer(b"x" * 10, length=1000))
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    assert failure(script).what.startswith(("connection lost", "the answer was cut short"))


def test_hang() -> None:
    """A server that accepts and says nothing costs the deadline and no more."""
    begin = boottime()
    error = failure(mute, timeout=0.3)
    assert error.what == "no complete answer within 0.3 s"
    assert 0.3e9 <= boottime() - begin < 10e9


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Slow: ", id="header"),
        pytest.param(answer(b"", length=1_000_000), id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="body without length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", id="chunk"),
        pytest.param(b"HTTP/1.1 500 Oops\r\n\r\n", id="body of an error"),
    ],
)
def test_drip(begin: bytes) -> None:
    """A byte every few milliseconds, wherever in the answer, does not outlive the deadline."""

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(begin)
        while not server.closing.wait(0.02):
            conn.sendall(b"1")

    started = boottime()
    assert failure(script, timeout=0.4).what == "no complete answer within 0.4 s"
    assert boottime() - started < 10e9


def test_fetch_after_a_failure() -> None:
    """A failed fetch leaves nothing behind: the next one, on a new connection, succeeds."""

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        if server.connections > 1:
            conn.sendall(answer(pod_list()))
        else:
            server.closing.wait(WAIT)

    with RawServer(script) as server, client(server.port, timeout=1.0) as kubelet:
        with pytest.raises(SourceError):
            kubelet.fetch()
        assert kubelet.fetch().pods.pods == ()


@pytest.mark.parametrize("lies", [True, False])
def test_too_long(lies: bool) -> None:
    """A body over the limit ends the fetch, announced or not."""

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(answer(b"", length=1 << 40) if lies else b"HTTP/1.1 200 OK\r\n\r\n")
        while not server.closing.is_set():
            conn.sendall(b" " * 65536)

    assert failure(script, max_body=1 << 20).what == "the answer is longer than 1048576 bytes"


def test_close_ends_a_fetch() -> None:
    """Closing the client ends a hanging fetch in another thread, and refuses later ones."""
    asked = threading.Event()
    errors: queue.Queue[SourceError] = queue.Queue()

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        asked.set()
        server.closing.wait(WAIT)

    def fetch() -> None:
        with pytest.raises(SourceError) as caught:
            kubelet.fetch()
        errors.put(caught.value)

    with RawServer(script) as server:
        kubelet = client(server.port, timeout=WAIT)
        thread = threading.Thread(target=fetch)
        thread.start()
        assert asked.wait(WAIT)
        kubelet.close()
        assert errors.get(timeout=WAIT).what == "the client was closed"
        thread.join(WAIT)
        fetch()
        assert errors.get(timeout=WAIT).what == "the client was closed"


def test_threads_take_turns() -> None:
    """Fetches of several threads never overlap at the server."""

    def script(server: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            with server.counted():
                server.closing.wait(0.02)
            conn.sendall(answer(pod_list()))

    with RawServer(script) as server, client(server.port) as kubelet:
        threads = [threading.Thread(target=kubelet.fetch) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert server.most_at_once == 1


# --- what it costs


def big_list(size: int) -> bytes:
    """A pod list of about ``size`` bytes, its pods like real ones: most of it is nothing that we keep."""
    filler = [{"name": f"VAR_{i}", "value": "x" * 60} for i in range(200)]
    one = pod()
    one["spec"]["containers"][0]["env"] = filler
    pods = []
    for i in range(size // len(json.dumps(one))):
        this = json.loads(json.dumps(one))
        this["metadata"]["uid"] = f"00000000-0000-0000-0000-{i:012d}"
        pods.append(this)
    return pod_list(*pods)


def test_ten_megabytes() -> None:
    """A list of 10 MB costs less than three times its size while it is fetched and read."""
    measure = r"""
import re, sys
from tracer.sources.kubelet import KubeletClient, KubeletEndpoint
def peak():  # not getrusage: its maximum outlives exec, and so would be the test runner's
    return int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) * 1024
small, big = (KubeletClient(KubeletEndpoint.read_only(int(port))) for port in sys.argv[1:])
small.fetch()
before = peak()
pods = big.fetch().pods.pods
print(len(pods), peak() - before)
"""
    body = big_list(10_000_000)
    with ReplayKubelet(pod_list(pod())) as small, ReplayKubelet(body) as big:
        ports = [str(small.port), str(big.port)]
        command = [sys.executable, "-c", measure, *ports]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100, cwd=root)
    count, grown = map(int, done.stdout.split())
    assert count > 300
    print(f"{len(body)} bytes, {count} pods: the peak of memory grew by {grown}, {grown / len(body):.2f} times")
    assert 0 < grown / len(body) <= 3


def test_import_is_light() -> None:
    """Importing the module, and making a client and a source, loads neither requests nor urllib3."""
    check = """
import sys
from tracer.sources.kubelet import KubeletClient, KubeletEndpoint, KubeletSource
KubeletSource(KubeletClient(KubeletEndpoint.read_only()), on_pods=print, on_state=print)
sys.exit(bool({"requests", "urllib3", "http.server"} & set(sys.modules)))
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", check], timeout=60, cwd=root).returncode == 0


# --- is there one?


def test_find() -> None:
    """A kubelet that answers is found, whatever its health."""
    with ReplayKubelet(pod_list()) as server:
        assert find_read_only(server.port)
    with RawServer(always(answer(b"sick", "500 Oops"))) as raw:
        assert find_read_only(raw.port)


def test_find_nothing() -> None:
    """Nothing, something mute, and something that speaks no HTTP are no kubelet."""
    assert not find_read_only(unused_port())
    with RawServer(mute) as silent:
        assert not find_read_only(silent.port, timeout=0.1)
    for data in (b"SSH-2.0\r\n", b"HT", b""):
        with RawServer(always(data)) as other:
            assert not find_read_only(other.port)


# --- the thread


class Listener:
    """Collects what a source tells."""

    def __init__(self) -> None:
        self.pods: queue.Queue[PodFetch] = queue.Queue()
        self.states: queue.Queue[SourceState] = queue.Queue()

    def next_pods(self) -> PodFetch:
        return self.pods.get(timeout=WAIT)

    def next_state(self) -> SourceState:
        return self.states.get(timeout=WAIT)


def assert_no_threads_left() -> None:
    """The threads of sources and of their deadlines end by themselves, long before any deadline of the tests."""
    for thread in threading.enumerate():
        if thread.name.startswith("podtracer-"):
            thread.join(WAIT / 3)
            assert not thread.is_alive(), thread.name


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def source_at(listener: Listener) -> Iterator[Callable[..., KubeletSource]]:
    """Makes and starts a source for a port; stopped at the end, with no thread left."""
    with ExitStack() as stack:

        def make(port: int, *, interval_s: float = 3600.0, timeout: float = WAIT) -> KubeletSource:
            source = KubeletSource(
                client(port, timeout),
                interval_s=interval_s,
                on_pods=listener.pods.put,
                on_state=listener.states.put,
            )
            stack.callback(source.stop)
            source.start()
            return source

        yield make
    assert_no_threads_left()


def test_source_fetches_at_once(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """A started source fetches at once, tells the pods, and says once that it is well."""
    with ReplayKubelet(pod_list(pod(UIDS[1]), {"metadata": {"uid": 5}})) as server:
        source = source_at(server.port)
        fetch = listener.next_pods()
        state = listener.next_state()
    assert [p.uid for p in fetch.pods.pods] == [UIDS[1]]
    assert state.ok is True
    assert state.last_success == fetch.started
    assert (state.fetches, state.failures, state.error) == (1, 0, None)
    assert len(state.skipped) == 1
    assert source.state == state


def test_source_refreshes(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """Lists come every interval, each the newest, and nothing is said of a state that stays."""
    with ReplayKubelet(pod_list(pod(UIDS[1])), pod_list(pod(UIDS[2])), pod_list()) as server:
        source = source_at(server.port, interval_s=0.1)
        fetches = [listener.next_pods() for _ in range(4)]
        source.stop()
    uids = [[p.uid for p in fetch.pods.pods] for fetch in fetches]
    assert uids == [[UIDS[1]], [UIDS[2]], [], []]
    assert all(b.started - a.started >= 100e6 for a, b in pairwise(fetches))
    assert listener.states.qsize() == 1


def test_source_fetches_for_the_unknown(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """A wanted container is fetched for at once and again until it is settled."""
    with ReplayKubelet(pod_list()) as server:
        source = source_at(server.port)
        listener.next_pods()
        source.want("a")
        starts = [listener.next_pods().started for _ in range(3)]
        source.settle("a")
        # One more may have been on its way when it was settled.
        source.stop()
        assert 4 <= server.requests <= 5
    assert starts[1] - starts[0] >= 100e6
    assert starts[2] - starts[1] >= 100e6


def test_source_want_from_a_listener(listener: Listener) -> None:
    """Listeners may want, settle, read the state and stop."""
    done = threading.Event()
    fetches: list[PodFetch] = []

    def on_pods(fetch: PodFetch) -> None:
        fetches.append(fetch)
        assert source.state.ok
        if len(fetches) == 1:
            source.want("a")
        else:
            source.settle("a")
            source.stop()
            done.set()

    with ReplayKubelet(pod_list()) as server:
        source = KubeletSource(client(server.port), interval_s=3600, on_pods=on_pods, on_state=print)
        source.start()
        assert done.wait(WAIT)
        source.stop()


def test_kubelet_comes_and_goes(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """When the kubelet goes no list is told, the state says so once, and once more when it is back."""
    broken = threading.Event()
    asked_when_broken = threading.Semaphore(0)

    def script(server: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            if broken.is_set():
                asked_when_broken.release()
                conn.sendall(answer(b"down", "503 Busy"))
            else:
                conn.sendall(answer(pod_list(pod(UIDS[1]))))

    with RawServer(script) as server:
        source = source_at(server.port, interval_s=0.1)
        listener.next_pods()
        well = listener.next_state()
        assert well.ok is True
        broken.set()
        failing = listener.next_state()
        assert failing.ok is False
        assert failing.error is not None
        assert failing.error.status == 503
        assert failing.last_success is not None
        assert failing.since > well.since
        while not listener.pods.empty():
            listener.pods.get()
        for _ in range(3):
            assert asked_when_broken.acquire(timeout=WAIT)
        assert listener.pods.empty()
        assert listener.states.empty()
        broken.clear()
        again = listener.next_state()
        assert again.ok is True
        assert again.error is None
        assert again.failures >= 2
        assert [p.uid for p in listener.next_pods().pods.pods] == [UIDS[1]]
        source.stop()


def test_kubelet_starts_late(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """A kubelet that is not there yet is one failing state, and is found when it comes."""
    port = unused_port()
    source_at(port, interval_s=0.1)
    failing = listener.next_state()
    assert failing.ok is False
    assert failing.last_success is None
    assert failing.error is not None
    assert failing.error.what == "connection refused"
    with RawServer(always(answer(pod_list(pod(UIDS[1])))), port):
        assert listener.next_state().ok is True
        listener.next_pods()


def test_another_kind_of_failure(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """Another kind of failure is told, other words in the same kind are not."""

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        number = server.connections
        conn.sendall(answer(f"try {number}".encode(), "503 Busy" if number < 4 else "500 Oops"))

    with RawServer(script) as server:
        source_at(server.port, interval_s=0.1)
        states = [listener.next_state(), listener.next_state()]
        assert [state.error and state.error.status for state in states] == [503, 500]
        assert [state.fetches for state in states] == [1, 4]


def test_no_busy_loop(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """A kubelet that fails is asked after 0.5 s, then after 1 s, however many containers are wanted."""
    times: queue.Queue[int] = queue.Queue()

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        times.put(boottime())
        conn.sendall(answer(b"", "503 Busy"))

    with RawServer(script) as server:
        source = source_at(server.port)
        listener.next_state()
        for i in range(1000):
            source.want(f"c{i}")
        first, second, third = (times.get(timeout=WAIT) for _ in range(3))
        source.stop()
    # The pauses begin when the answer arrived, a little after the server saw the request.
    assert second - first >= 0.5e9
    assert third - second >= 1.0e9


def test_one_in_flight(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """However many containers are wanted meanwhile, the server never sees two requests at once."""
    slow = threading.Semaphore(0)
    asked = threading.Semaphore(0)

    def script(server: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            with server.counted():
                asked.release()
                slow.acquire(timeout=WAIT)
            conn.sendall(answer(pod_list()))

    with RawServer(script) as server:
        source = source_at(server.port, interval_s=0.1)
        for i in range(4):
            assert asked.acquire(timeout=WAIT)
            for j in range(50):
                source.want(f"c{i}-{j}")
            slow.release()
            listener.next_pods()
        source.stop()
        slow.release(10)
        assert server.most_at_once == 1


def test_stop_while_hanging(listener: Listener, source_at: Callable[..., KubeletSource]) -> None:
    """Stopping takes no longer than a moment while a request hangs, and tells nothing any more."""
    asked = threading.Event()

    def script(server: RawServer, conn: socket.socket) -> None:
        read_request(conn)
        asked.set()
        server.closing.wait(WAIT)

    with RawServer(script) as server:
        source = source_at(server.port)
        assert asked.wait(WAIT)
        began = boottime()
        source.stop()
        assert boottime() - began < 3e9
        assert_no_threads_left()
        assert listener.states.empty()
        assert listener.pods.empty()


def test_stop_at_any_time() -> None:
    """Stopping before the start, and twice, does no harm."""
    source = KubeletSource(client(unused_port()), on_pods=print, on_state=print)
    source.stop()
    source.start()
    source.stop()
    source.stop()


def test_listener_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """What a listener raises is logged, and the next list comes all the same."""
    calls = threading.Semaphore(0)

    def bad(what: object) -> None:
        calls.release()
        raise KeyError("mistake")

    with ReplayKubelet(pod_list()) as server, caplog.at_level(logging.ERROR, "podtracer.kubelet"):
        source = KubeletSource(client(server.port), interval_s=0.1, on_pods=bad, on_state=bad)
        source.start()
        for _ in range(4):
            assert calls.acquire(timeout=WAIT)
        source.stop()
    assert "a listener of the kubelet source failed" in caplog.text


def test_bug_in_the_client(monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    """An error that nobody thought of is logged and counted as a failure; the thread lives on."""
    kubelet = client(unused_port())

    def fetch() -> PodFetch:
        raise ZeroDivisionError

    monkeypatch.setattr(kubelet, "fetch", fetch)
    source = KubeletSource(kubelet, on_pods=listener.pods.put, on_state=listener.states.put)
    source.start()
    state = listener.next_state()
    source.stop()
    assert state.ok is False
    assert "ZeroDivisionError" in str(state.error)


# --- the replay itself


def test_replay_in_order(tmp_path: Path) -> None:
    """Bodies, from memory or files, are served in order, the last again and again, until one is set."""
    recorded = tmp_path / "pods.json"
    recorded.write_bytes(pod_list(pod(UIDS[2])))
    with ReplayKubelet(pod_list(pod(UIDS[1])), recorded) as server, client(server.port) as kubelet:
        seen = [kubelet.fetch().pods.pods[0].uid for _ in range(3)]
        server.set_body(pod_list())
        assert kubelet.fetch().pods.pods == ()
        assert server.requests == 4
    assert seen == [UIDS[1], UIDS[2], UIDS[2]]


def test_replay_other_paths() -> None:
    """Other paths are not found and not counted."""
    with ReplayKubelet(pod_list()) as server:
        endpoint = KubeletEndpoint(f"http://127.0.0.1:{server.port}/other")
        with KubeletClient(endpoint) as kubelet, pytest.raises(SourceError) as caught:
            kubelet.fetch()
    assert caught.value.status == 404
    assert server.requests == 0


def test_replay_needs_a_body() -> None:
    """A replay of nothing is a mistake of whoever asks for it."""
    with pytest.raises(ValueError, match="at least one"):
        ReplayKubelet()


def test_replay_ends_with_clients_connected() -> None:
    """A replay ends while a client keeps its connection, which then finds nobody."""
    with ReplayKubelet(pod_list()) as server:
        kubelet = client(server.port)
        kubelet.fetch()
    with kubelet, pytest.raises(SourceError):
        kubelet.fetch()
