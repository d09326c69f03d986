"""Sources of pod data that do what they should not, on real sockets: each costs one line, and nothing that was known.

Each source is good first, then misbehaves for several tries, then is good again. ``doctor`` is asked while it does.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.pods_api import FakeKubelet
from tests.rpc import RpcServer, pb, raw_server, socket_folder
from tests.runtime import FakeRuntime
from tests.servers import RawServer, answer, pod, pod_list, read_request, unused_port
from tests.tls import make_pki, over_tls, server_context
from tests.unit.index_lab import Lab
from tests.unit.test_podsources import make_sources
from tests.waiting import until
from tracer import doctor
from tracer.doctor import Check
from tracer.settings import Settings
from tracer.sources import cri, pods_api, pods_source
from tracer.sources.cri import CriClient
from tracer.sources.kubelet import KubeletClient
from tracer.sources.pods_api import PodsApiClient

WAIT = 30.0
TRIES = 3
PROTOBUF = b"k8s\0" + pb((1, pb((1, "v1"), (2, "PodList"))), (2, pb((2, "x" * 100))))
Script = Callable[[socket.socket, threading.Event], None]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines and limits that can be waited for; that they hold is what is tested here."""
    # gRPC gives a connection up after a second; as with the deadlines that are real, this comes first.
    for client, timeout in ((KubeletClient, 1.0), (CriClient, 5.0), (PodsApiClient, 5.0)):
        monkeypatch.setitem(client.__init__.__kwdefaults__, "timeout", timeout)  # type: ignore[misc]
    monkeypatch.setitem(KubeletClient.__init__.__kwdefaults__, "max_body", 1 << 20)  # type: ignore[misc]
    monkeypatch.setattr(pods_source, "MAX_FIRST", 1 << 20)
    for module in (pods_api, cri):
        monkeypatch.setattr(module, "_SERVICE", replace(module._SERVICE, max_message=1 << 20))


# --- what a connection may be given


def hang(_conn: socket.socket, closing: threading.Event) -> None:
    """Takes the connection and says nothing."""
    closing.wait()


def reset(conn: socket.socket, _closing: threading.Event) -> None:
    """Reads a little and throws the connection away, with what is unread."""
    conn.recv(1)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def garbage(conn: socket.socket, _closing: threading.Event) -> None:
    """Talks of something else."""
    conn.recv(1)
    conn.sendall(b"\x00\xff\x1b[2Jnoise\r\n\r\n" * 100)


def gigabytes(conn: socket.socket, closing: threading.Event) -> None:
    """Never stops talking."""
    conn.recv(1)
    while not closing.is_set():
        conn.sendall(b"\x00" * 65536)


# --- sources that can be bad


class Source(Protocol):
    """A source on a socket. ``url`` is what its errors name, ``name`` what it is called."""

    name: str
    settings: dict[str, Any]
    url: str

    def good(self) -> AbstractContextManager[object]:
        """Does what it should, with one pod or container."""
        ...

    def check(self, settings: Settings) -> Check:
        """What ``doctor`` says of it."""
        ...

    def knows(self, lab: Lab) -> bool:
        """Whether the index has what this source tells."""
        ...


class Kubelet:
    """The read-only port of a kubelet; one server whose behaviour changes."""

    name = "kubelet"

    def __init__(self, over: Callable[..., Any] | None = None) -> None:
        self._script: Callable[[RawServer, socket.socket], None] = self._serve
        script = lambda server, conn: self._script(server, conn)  # noqa: E731
        self.server = RawServer(over(script) if over else script)
        self._port = self.server.port
        self.settings = {"kubelet_read_only_port": self._port, "cri": "none", "pods_api": "none"}
        self.url = f"http://127.0.0.1:{self._port}/pods"

    def _serve(self, _server: RawServer, conn: socket.socket) -> None:
        while self._script == self._serve and read_request(conn):
            conn.sendall(answer(pod_list(pod())))

    @contextmanager
    def good(self) -> Iterator[None]:
        self._script = self._serve
        yield

    @contextmanager
    def bad(self, script: Script) -> Iterator[None]:
        self._script = lambda server, conn: script(conn, server.closing)
        yield

    @contextmanager
    def saying(self, data: bytes) -> Iterator[None]:
        with self.bad(lambda conn, _closing: conn.sendall(data) if read_request(conn) else None):
            yield

    def check(self, settings: Settings) -> Check:
        return doctor.kubelet(settings, doctor._Found())

    def knows(self, lab: Lab) -> bool:
        table = lab.index.pod_table
        return table is not None and len(table.pods) == 1


class PodsApi:
    """The kubelet's Pods API; behind it is no kubelet that could stand in."""

    name = "pods-api"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "pods.sock"
        self.url = f"unix://{self.path}"
        self.settings = {"kubelet_read_only_port": unused_port(), "cri": "none", "pods_api": self.url}

    @contextmanager
    def good(self) -> Iterator[None]:
        with FakeKubelet(self.path) as kubelet:
            kubelet.change(1, 1)
            yield

    def check(self, settings: Settings) -> Check:
        return doctor.pods_api(settings, doctor._Found())

    knows = Kubelet.knows


class Cri:
    """The container runtime."""

    name = "cri"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cri.sock"
        self.url = f"unix://{self.path}"
        self.settings = {"kubelet": "none", "cri": self.url}

    @contextmanager
    def good(self) -> Iterator[None]:
        with FakeRuntime(self.path) as runtime:
            self.container = runtime.add(1)
            yield

    def check(self, settings: Settings) -> Check:
        return doctor.runtime(settings)

    def knows(self, lab: Lab) -> bool:
        return lab.index._verdicts.runtime.get(self.container) is not None


# --- what is always true


def misbehave(source: Source, bad: Callable[[], AbstractContextManager[object]], *words: str) -> None:
    """Good, then bad for several tries, then good: one line each time, in these words, which ``doctor`` says too; and
    what was known stays."""
    settings = Settings(refresh_interval=0.1, **source.settings)
    lab, lines = Lab(), []
    sources = make_sources(lab.index, settings, lines)

    def state() -> Any:
        return sources.states.get(source.name)

    def own_lines() -> list[str]:
        return [line for line in lines if source.url in line or line.startswith(f"{source.name} ")]

    with source.good():
        sources.start()
        try:
            until(lambda: source.knows(lab) and state().ok, WAIT, "the source to be known as good")
            lines.clear()  # a machine that is busy may have been too slow for the first request
            yield_to_bad = bad()
        except BaseException:
            sources.stop()
            raise
    try:
        with yield_to_bad:
            # Its end and what comes then may be two states; what is counted is what several tries of one kind cost.
            until(lambda: state().ok is False and any(w in str(state().error) for w in words), WAIT, f"{words}")
            before, failures = len(own_lines()), state().failures
            assert any(word in own_lines()[-1] for word in words), lines
            until(lambda: state().failures >= failures + TRIES, WAIT, "more tries")
            assert len(own_lines()) == before, own_lines()
            assert before <= 2, own_lines()
            assert own_lines()[-1].isprintable()
            assert source.knows(lab)
            check = source.check(settings)
            assert check.state == "fail"
            assert any(word in check.found for word in words), check
            assert check.hint
        with source.good():
            until(lambda: state().ok, WAIT, "the source to be good again")
            until(lambda: own_lines()[-1].startswith(f"{source.name} answers again"), WAIT, "a line that says so")
            assert len(own_lines()) <= before + 2, own_lines()
            assert source.knows(lab)
    finally:
        sources.stop()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (hang, ["no complete answer within"]),
        (reset, ["connection lost", "cut short"]),
        (garbage, ["no valid HTTP answer", "connection lost"]),
        (gigabytes, ["no valid HTTP answer", "no complete answer"]),
    ],
)
def test_a_bad_kubelet(script: Script, words: list[str]) -> None:
    """A kubelet that hangs, resets, talks of something else or without end is told once and keeps what it told."""
    kubelet = Kubelet()
    with kubelet.server:
        misbehave(kubelet, lambda: kubelet.bad(script), *words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (answer(PROTOBUF, "200 OK", "Content-Type: application/vnd.kubernetes.protobuf"), "no list of pods"),
        (answer(b'{"kind": "PodTable", "apiVersion": "v9", "rows": []}'), "no list of pods"),
        (answer(pod_list(pod())[:-9]), "no list of pods"),
        (answer(b" " * (2 << 20)), "longer than 1048576 bytes"),
        (answer(b"", "401 Unauthorized"), "401"),
        (answer(b"", "403 Forbidden"), "403"),
    ],
    ids=["protobuf", "another kind", "half a list", "too much", "401", "403"],
)
def test_a_kubelet_that_says_something_else(data: bytes, words: str) -> None:
    """Protobuf, another kind of object, half a list, more than is taken, and refusals are each told once."""
    kubelet = Kubelet()
    with kubelet.server:
        misbehave(kubelet, lambda: kubelet.saying(data), words)


@pytest.mark.parametrize("script", [hang, reset, garbage, gigabytes])
@pytest.mark.parametrize("kind", [PodsApi, Cri])
def test_a_bad_socket(kind: type[PodsApi | Cri], script: Script) -> None:
    """A socket that hangs, resets, talks of something else or without end is told once and keeps what it told."""
    with socket_folder() as folder:
        source = kind(folder)

        @contextmanager
        def bad() -> Iterator[None]:
            with suppress(FileNotFoundError):
                source.path.unlink()
            with raw_server(source.path, script):
                yield
            source.path.unlink()

        misbehave(source, bad, "no connection", "no complete answer", "not all pods within", "UNKNOWN")


def test_a_kubelet_with_a_wrong_certificate(tmp_path: Path) -> None:
    """A kubelet whose certificate nobody trusts any more is told once and keeps what it told."""
    pki, stranger, token = make_pki(tmp_path / "own"), make_pki(tmp_path / "stranger"), tmp_path / "token"
    token.write_text("secret")
    context = [server_context(pki)]

    def over(script: Any) -> Callable[[RawServer, socket.socket], None]:
        return lambda server, conn: over_tls(context[0], script)(server, conn)

    kubelet = Kubelet(over)
    kubelet.settings = {
        "kubelet_secure_port": kubelet.server.port,
        "kubelet_ca_path": str(pki.ca),
        "token_path": str(token),
        "cri": "none",
        "pods_api": "none",
    }
    kubelet.url = kubelet.url.replace("http", "https")

    @contextmanager
    def bad() -> Iterator[None]:
        context[0] = server_context(stranger)
        with kubelet.bad(lambda _conn, _closing: None):
            yield
        context[0] = server_context(pki)

    with kubelet.server:
        misbehave(kubelet, bad, "certificate is not trusted")


def _other_version(service: str) -> Callable[[Path], RpcServer]:
    return lambda path: RpcServer(path, service, {})


def _shapeless(service: str, *methods: str) -> Callable[[Path], RpcServer]:
    """The service of this name whose messages are of another version: none of them can be decoded."""
    junk = b"\x0a\xff\xff\xff\x7f"

    def stream(_request: bytes, _context: Any) -> Iterator[bytes]:
        yield junk

    unary = {method: lambda _request, _context: junk for method in methods}
    return lambda path: RpcServer(path, service, unary, {"WatchPods": stream})


def _too_much(service: str, *methods: str, size: int = 2 << 20) -> Callable[[Path], RpcServer]:
    """The service whose answers, of ``size`` bytes, are larger than what is taken."""
    body = pb((1, b"\0" * size))

    def stream(_request: bytes, context: Any) -> Iterator[bytes]:
        while context.is_active():
            yield pb((1, 1), (2, pb((1, pb((5, os.urandom(8).hex()))), (2, b"\0" * 60_000))))

    unary = {method: lambda _request, _context: body for method in methods}
    return lambda path: RpcServer(path, service, unary, {"WatchPods": stream})


_RUNTIME = ("runtime.v1.RuntimeService", "Version", "ContainerStatus", "ListContainers", "ListPodSandbox")
_PODS = ("v1alpha1.Pods", "ListPods")


@pytest.mark.parametrize(
    ("kind", "server", "words"),
    [
        (Cri, _other_version("runtime.v1alpha2.RuntimeService"), ["not there"]),
        (Cri, _shapeless(*_RUNTIME), ["cannot be decoded"]),
        (Cri, _too_much(*_RUNTIME), ["more than the other end or we take"]),
        (PodsApi, _other_version("v1beta1.Pods"), ["not there"]),
        (PodsApi, _shapeless(*_PODS), ["cannot be decoded"]),
        (PodsApi, _too_much(*_PODS), ["bytes of pods", "more than the other end or we take"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else getattr(value, "name", ""),
)
def test_a_service_of_another_kind(
    kind: type[PodsApi | Cri], server: Callable[[Path], RpcServer], words: list[str]
) -> None:
    """A service of another version, with messages of another one, or with more than is taken, is told once."""
    with socket_folder() as folder:
        source = kind(folder)
        misbehave(source, lambda: server(source.path), *words)


_GREEDY = r"""
import json, re, sys, time
from tests.unit.index_lab import Lab
from tests.unit.test_podsources import make_sources
from tracer.settings import Settings
import grpc, google.protobuf, requests
from tracer.sources import cri, pods_api
cri._messages(), pods_api._messages()
used = lambda: int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) // 1024
before = used()
sources = make_sources(Lab().index, Settings(refresh_interval=0.1, **json.loads(sys.argv[1])))
sources.start()
end = time.monotonic() + 60
while time.monotonic() < end:
    if all(name in sources.states and sources.states[name].failures >= 2 for name in ("kubelet", "pods-api", "cri")):
        break
    time.sleep(0.01)
print(json.dumps({name: [state.failures, str(state.error)] for name, state in sources.states.items()}))
sources.stop()
print(used() - before)
"""


def test_gigabytes_cost_megabytes() -> None:
    """All three sources at once, each of which never stops sending, cost a process no more than their limits."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"

    def endless(server: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            conn.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not server.closing.is_set():
                conn.sendall(chunk)

    with socket_folder() as folder, RawServer(endless) as kubelet:
        runtime, pods = folder / "cri.sock", folder / "pods.sock"
        with _too_much(*_RUNTIME, size=70 << 20)(runtime), _too_much(*_PODS)(pods):
            settings = {
                "kubelet_read_only_port": kubelet.port,
                "cri": f"unix://{runtime}",
                "pods_api": f"unix://{pods}",
            }
            command = [sys.executable, "-c", _GREEDY, json.dumps(settings)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    states, grown = map(json.loads, done.stdout.splitlines())
    assert {name for name, (failures, _) in states.items() if failures >= 2} == {"kubelet", "pods-api", "cri"}, states
    assert int(grown) < 256, states
