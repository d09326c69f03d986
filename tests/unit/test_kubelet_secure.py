"""The kubelet's secure port: who we are, whom we trust, and what is read anew."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.pki import Pki
from tests.servers import WAIT, RawServer, always, answer, pod, pod_list, read_request, unused_port
from tests.tls import NODE, SecureServer, make_pki, over_tls, server_context
from tracer.clock import boottime
from tracer.errors import SourceError, UsageError
from tracer.settings import Settings
from tracer.sources.credentials import Credentials, readable
from tracer.sources.finding import choose, credentials
from tracer.sources.kubelet import KubeletClient, KubeletEndpoint, KubeletSource
from tracer.sources.ownership import RootCheck
from tracer.sources.state import SourceState

LISTED = pod_list(pod())
DISTRUST = "the kubelet's certificate is "


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority and certificates that no test changes."""
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A file with the token ``first``, and white space around it."""
    path = tmp_path / "token"
    path.write_text(" first\n\n")
    return path


@pytest.fixture
def server(pki: Pki) -> Iterator[SecureServer]:
    """A kubelet that knows the token ``first`` and the authority's client certificates."""
    with SecureServer(server_context(pki, clients=pki.ca), tokens=("first",), body=LISTED) as running:
        yield running


def client(
    port: int, shown: Credentials, node_name: str | None = None, timeout: float = 20.0, reload_interval: float = 60.0
) -> KubeletClient:
    endpoint = KubeletEndpoint.secure(port, credentials=shown, node_name=node_name)
    return KubeletClient(endpoint, timeout=timeout, reload_interval=reload_interval)


def failure(port: int, shown: Credentials, node_name: str | None = None, timeout: float = 20.0) -> SourceError:
    """The error that one fetch ends with."""
    with client(port, shown, node_name, timeout) as kubelet, pytest.raises(SourceError) as caught:
        kubelet.fetch()
    assert str(caught.value).isprintable()
    return caught.value


def with_token(pki: Pki, token: Path) -> Credentials:
    return Credentials(str(pki.ca), token_path=str(token))


# --- who we are


def test_token(pki: Pki, token: Path, server: SecureServer) -> None:
    """The token is sent without the white space around it, and gets the list."""
    with client(server.port, with_token(pki, token)) as kubelet:
        assert len(kubelet.fetch().pods.pods) == 1
    assert b"\r\nAuthorization: Bearer first\r\n" in server.requests[0]
    assert server.requests[0].startswith(b"GET /pods HTTP/1.1\r\n")


def test_one_connection(pki: Pki, token: Path, server: SecureServer) -> None:
    """Fetches share one connection, also when the files were read anew and had not changed."""
    with client(server.port, with_token(pki, token), reload_interval=0) as kubelet:
        for _ in range(3):
            kubelet.fetch()
    assert server.connections == 1


def test_no_environment(pki: Pki, token: Path, server: SecureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither proxies nor bundles of authorities in the environment change whom we talk to and trust."""
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    with client(server.port, with_token(pki, token), NODE) as kubelet:
        kubelet.fetch()


def test_rotated_token_refused(pki: Pki, token: Path, server: SecureServer) -> None:
    """A token that is refused is read anew, and the new one shown, within the same fetch."""
    with client(server.port, with_token(pki, token)) as kubelet:
        kubelet.fetch()
        token.write_text("second")
        server.tokens = ("second",)
        kubelet.fetch()
    assert [b"Bearer second" in head for head in server.requests] == [False, False, True]


def test_rotated_token_in_time(pki: Pki, token: Path, server: SecureServer) -> None:
    """After the reload interval a new token is shown before the old one is refused."""
    server.tokens = ("first", "second")
    with client(server.port, with_token(pki, token), reload_interval=0) as kubelet:
        kubelet.fetch()
        token.write_text("second")
        kubelet.fetch()
    assert [b"Bearer second" in head for head in server.requests] == [False, True]


def test_refused_token_is_not_repeated(pki: Pki, token: Path, server: SecureServer) -> None:
    """A token that is refused and has not changed is not tried again in the same fetch."""
    server.tokens = ()
    assert failure(server.port, with_token(pki, token)).status == 401
    assert len(server.requests) == 1


def test_client_certificate(pki: Pki, server: SecureServer) -> None:
    """A client certificate is shown, and no token."""
    shown = Credentials(
        str(pki.ca), certificate_path=str(pki.certificate("client")), private_key_path=str(pki.key("client"))
    )
    with client(server.port, shown) as kubelet:
        kubelet.fetch()
    assert b"authorization" not in server.requests[0].lower()


@pytest.fixture
def rotating(tmp_path: Path, pki: Pki) -> tuple[Pki, Credentials, Callable[[str], None]]:
    """Client credentials that another authority has signed, and a function that puts those of a name in their place."""
    other = make_pki(tmp_path / "other")
    folder = tmp_path / "current"
    folder.mkdir()
    shown = Credentials(str(pki.ca), certificate_path=str(folder / "tls.crt"), private_key_path=str(folder / "tls.key"))

    def put(whose: str) -> None:
        source = {"pki": pki, "other": other}[whose]
        shutil.copy(source.certificate("client"), folder / "tls.crt")
        shutil.copy(source.key("client"), folder / "tls.key")

    put("other")
    return other, shown, put


def test_rotated_certificate_refused(
    pki: Pki, server: SecureServer, rotating: tuple[Pki, Credentials, Callable[[str], None]]
) -> None:
    """When the server accepts only a new certificate it is read and shown within the same fetch."""
    other, shown, put = rotating
    server.context = server_context(pki, clients=other.ca)
    with client(server.port, shown) as kubelet:
        kubelet.fetch()
        put("pki")
        server.context = server_context(pki, clients=pki.ca)
        server.hang_up()
        kubelet.fetch()


def test_certificate_refused(pki: Pki, server: SecureServer, rotating: tuple[Pki, Credentials, Any]) -> None:
    """A certificate that the server refuses in the handshake is a failure of TLS that says so."""
    server.context.verify_mode = ssl.CERT_REQUIRED
    error = failure(server.port, rotating[1])
    assert error.what.startswith(("TLS failed: ", "connection lost"))


def test_rotated_certificate_in_time(
    pki: Pki, server: SecureServer, rotating: tuple[Pki, Credentials, Callable[[str], None]]
) -> None:
    """After the reload interval a new certificate is shown on a new connection."""
    _, shown, put = rotating
    put("pki")
    with client(server.port, shown, reload_interval=0) as kubelet:
        kubelet.fetch()
        pki.sign("client", "/O=test/CN=renewed")
        put("pki")
        kubelet.fetch()
    assert server.connections == 2


def test_half_rotated_certificate(
    tmp_path: Path, pki: Pki, server: SecureServer, rotating: tuple[Pki, Credentials, Callable[[str], None]]
) -> None:
    """A certificate that is new while its key is still old is a failure that the next fetch heals."""
    other, shown, put = rotating
    put("pki")
    assert shown.private_key_path
    with client(server.port, shown, reload_interval=0) as kubelet:
        kubelet.fetch()
        shutil.copy(other.key("client"), shown.private_key_path)
        with pytest.raises(SourceError, match="the client certificate cannot be used"):
            kubelet.fetch()
        put("pki")
        kubelet.fetch()


def test_anonymous(pki: Pki, server: SecureServer) -> None:
    """Without a credential nothing is shown: refused as long as the kubelet takes no anonymous requests."""
    error = failure(server.port, Credentials(str(pki.ca)))
    assert error.status == 401
    assert "anonymous" in (error.hint or "")
    server.anonymous = True
    with client(server.port, Credentials(str(pki.ca))) as kubelet:
        kubelet.fetch()
    assert all(b"authorization" not in head.lower() for head in server.requests)


# --- whom we trust


def test_wrong_authority(tmp_path: Path, token: Path, server: SecureServer) -> None:
    """A kubelet whose certificate another authority signed gets no request, and no token."""
    stranger = make_pki(tmp_path / "stranger")
    error = failure(server.port, with_token(stranger, token))
    assert error.what.startswith("the kubelet's certificate is not trusted: ")
    assert str(stranger.ca) in (error.hint or "")
    assert server.requests == []


def test_rotated_authority(tmp_path: Path, pki: Pki, token: Path, server: SecureServer) -> None:
    """When the kubelet's new certificate is not trusted the authorities are read anew within the same fetch."""
    trusted, new = tmp_path / "ca.crt", make_pki(tmp_path / "new")
    shutil.copy(pki.ca, trusted)
    with client(server.port, Credentials(str(trusted), token_path=str(token))) as kubelet:
        kubelet.fetch()
        server.context = server_context(new)
        server.hang_up()
        shutil.copy(new.ca, trusted)
        kubelet.fetch()


def test_authority_file_with_text(tmp_path: Path, pki: Pki, token: Path, server: SecureServer) -> None:
    """A file of several authorities with remarks between them, in any language, is read."""
    trusted, other = tmp_path / "ca.crt", make_pki(tmp_path / "other")
    trusted.write_bytes("Größe\n".encode() + other.ca.read_bytes() + b"\n# ours\n" + pki.ca.read_bytes())
    with client(server.port, Credentials(str(trusted), token_path=str(token))) as kubelet:
        kubelet.fetch()


def test_trusted_itself(pki: Pki, token: Path, server: SecureServer) -> None:
    """A certificate that stands in the file of authorities itself is trusted, though it is none."""
    shown = Credentials(str(pki.certificate("node")), token_path=str(token))
    with client(server.port, shown) as kubelet:
        kubelet.fetch()


def test_any_certificate(tmp_path: Path, token: Path, server: SecureServer) -> None:
    """With verification skipped any certificate will do, of any name, and no file of authorities is read."""
    with client(server.port, Credentials(None, token_path=str(token)), "127.0.0.1") as kubelet:
        kubelet.fetch()


def test_name_of_the_node(pki: Pki, token: Path, server: SecureServer) -> None:
    """With a node name the kubelet is asked by it, and its certificate bears it."""
    endpoint = KubeletEndpoint.secure(server.port, credentials=with_token(pki, token), node_name=NODE)
    assert endpoint.url == f"https://{NODE}:{server.port}/pods"
    with KubeletClient(endpoint) as kubelet:
        kubelet.fetch()
    assert f"Host: {NODE}:{server.port}".encode() in server.requests[0]


@pytest.mark.parametrize("node_name", [NODE, "127.0.0.1"])
def test_name_of_another_node(pki: Pki, token: Path, node_name: str) -> None:
    """A certificate of the right authority that bears another name is refused where a node name was given."""
    with SecureServer(server_context(pki, "other"), tokens=("first",)) as server:
        error = failure(server.port, with_token(pki, token), node_name)
        assert error.what.startswith("the kubelet's certificate is for another name: ")
        assert "without a node name" in (error.hint or "")
        assert server.requests == []


def test_name_in_the_subject_only(tmp_path: Path, pki: Pki, token: Path) -> None:
    """A name that only the subject bears is none, as for Go."""
    pki.sign("subject", f"/CN={NODE}", "basicConstraints=CA:FALSE")
    with SecureServer(server_context(pki, "subject"), tokens=("first",)) as server:
        assert failure(server.port, with_token(pki, token), NODE).what.startswith(DISTRUST)


def test_chain_only(pki: Pki, token: Path) -> None:
    """Without a node name a certificate of the right authority is accepted whatever name it bears, and no other."""
    with SecureServer(server_context(pki, "other"), tokens=("first",), body=LISTED) as server:
        with client(server.port, with_token(pki, token)) as kubelet:
            assert len(kubelet.fetch().pods.pods) == 1
        stranger = Credentials(str(pki.certificate("client")), token_path=str(token))
        assert failure(server.port, stranger).what.startswith(DISTRUST)


def test_a_client_is_no_server(pki: Pki, token: Path) -> None:
    """A certificate of the right authority that is for clients only does not make a kubelet."""
    with SecureServer(server_context(pki, "client"), tokens=("first",)) as server:
        assert failure(server.port, with_token(pki, token)).what.startswith(DISTRUST)


def test_unknown_host(pki: Pki, token: Path) -> None:
    """A node name that does not resolve is said to be one, within the deadline."""
    begin = boottime()
    error = failure(10250, with_token(pki, token), "no-such-node.invalid", timeout=2.0)
    assert error.what.startswith(("the host name cannot be resolved: ", "no complete answer within 2 s"))
    assert boottime() - begin < 10e9


@pytest.mark.parametrize("name", ["", "a/b", "user@host", "a b", "-a", "a" * 300, "host:80", "é"])
def test_no_node_name(name: str) -> None:
    """What cannot be a node's name is a usage error before anything is sent."""
    with pytest.raises(UsageError):
        KubeletEndpoint.secure(credentials=Credentials(), node_name=name)


def test_url_of_an_address() -> None:
    """An IPv6 address as node name stands in brackets in the URL."""
    endpoint = KubeletEndpoint.secure(credentials=Credentials(), node_name="fd00::1")
    assert endpoint.url == "https://[fd00::1]:10250/pods"


# --- files that are not what they should be


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "the token cannot be read: "),
        (b"", "the token is empty"),
        (b" \n", "the token is empty"),
        (b"a b", "the file holds no token"),
        (b"a\r\nX-Evil: 1", "the file holds no token"),
        (b"\xff\xfe", "the file holds no token"),
        (b"x" * (1 << 20) + b"y", "the token is larger than 1 MiB"),
    ],
)
def test_no_token(tmp_path: Path, pki: Pki, server: SecureServer, content: bytes | None, what: str) -> None:
    """A token file that is absent or holds no token is a failure that names the file, not what it holds."""
    path = tmp_path / "t"
    if content is not None:
        path.write_bytes(content)
    error = failure(server.port, with_token(pki, path))
    assert error.what.startswith(what)
    assert error.obj == str(path)
    assert server.requests == []


def test_unreadable_token(tmp_path: Path, pki: Pki, server: SecureServer) -> None:
    """A folder, or a pipe on which nobody writes, is no token file, and nobody waits for it."""
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe):
        assert "the token" in failure(server.port, with_token(pki, path)).what
        assert not readable(str(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x82\x01\x01"],
)
def test_no_authority(tmp_path: Path, token: Path, server: SecureServer, content: bytes) -> None:
    """A file of authorities without a certificate in PEM is a failure that names it."""
    path = tmp_path / "ca"
    path.write_bytes(content)
    error = failure(server.port, Credentials(str(path), token_path=str(token)))
    assert error.what.startswith("no certificate can be read here")
    assert error.obj == str(path)


def test_key_as_authority(pki: Pki, token: Path, server: SecureServer) -> None:
    """A private key is no authority, and nothing of it is shown."""
    error = failure(server.port, Credentials(str(pki.key("client")), token_path=str(token)))
    assert error.what.startswith("no certificate can be read here")


def test_encrypted_key(tmp_path: Path, pki: Pki, server: SecureServer) -> None:
    """An encrypted private key is a failure; nobody is asked for its password."""
    key = tmp_path / "key"
    command = ["openssl", "pkey", "-aes256", "-passout", "pass:secret", "-in", pki.key("client"), "-out", key]
    subprocess.run(command, check=True)
    shown = Credentials(str(pki.ca), certificate_path=str(pki.certificate("client")), private_key_path=str(key))
    error = failure(server.port, shown)
    assert error.what.startswith("the client certificate cannot be used: ")
    assert "not encrypted" in (error.hint or "")


def test_key_of_another(pki: Pki, server: SecureServer) -> None:
    """A private key that does not belong to its certificate is a failure that names both."""
    shown = Credentials(
        str(pki.ca), certificate_path=str(pki.certificate("client")), private_key_path=str(pki.key("node"))
    )
    error = failure(server.port, shown)
    assert error.what.startswith("the client certificate cannot be used: ")
    assert error.obj == f"{shown.certificate_path}, {shown.private_key_path}"


def test_secrets_are_not_shown(pki: Pki, token: Path) -> None:
    """Neither the keys' representation nor an error's text has the token in it."""
    token.write_text("very-secret")
    keys = with_token(pki, token).load()
    assert "very-secret" not in repr(keys)


# --- what the kubelet answers


@pytest.mark.parametrize(
    ("status", "hints"),
    [("401 Unauthorized", ("token", "webhook")), ("403 Forbidden", ("nodes/pods", "nodes/proxy"))],
)
def test_refused(pki: Pki, token: Path, status: str, hints: tuple[str, str]) -> None:
    """401 says who is not known, 403 which rule is to be added."""
    script = over_tls(server_context(pki), always(answer(b"Forbidden (user=system:anonymous)", status)))
    with RawServer(script) as server:
        error = failure(server.port, with_token(pki, token))
    assert error.status == int(status[:3])
    assert all(hint in (error.hint or "") for hint in hints)
    assert error.what.startswith(f"the kubelet answered {status[:3]}: ")


def test_hint_of_a_certificate(pki: Pki, server: SecureServer, rotating: tuple[Pki, Credentials, Any]) -> None:
    """A certificate that the kubelet does not know is told by its path and the kubelet's setting."""
    _, shown, _ = rotating
    script = over_tls(server_context(pki), always(answer(b"", "401 Unauthorized")))
    with RawServer(script) as raw:
        hint = failure(raw.port, shown).hint or ""
    assert "clientCAFile" in hint
    assert str(shown.certificate_path) in hint


def test_no_tls(pki: Pki, token: Path) -> None:
    """A port that does not speak TLS is told from a kubelet that is not trusted."""

    def script(server: RawServer, conn: socket.socket) -> None:
        conn.recv(1)
        conn.sendall(answer(b"", "400 Bad Request"))

    with RawServer(script) as server:
        error = failure(server.port, with_token(pki, token))
    assert error.what == "this port does not speak TLS"


def test_nobody_there(pki: Pki, token: Path) -> None:
    """A port on which nothing listens is said to be one, also by name, which may be two addresses."""
    port = unused_port()
    for node_name in (None, NODE):
        assert failure(port, with_token(pki, token), node_name).what == "connection refused"


def mute(server: RawServer, conn: socket.socket) -> None:
    server.closing.wait(WAIT)


def drip(server: RawServer, conn: socket.socket) -> None:
    """A script that begins a handshake record and never ends it."""
    conn.sendall(b"\x16\x03\x03\x10\x00")
    while not server.closing.wait(0.02):
        conn.sendall(b"\x02")


def silent_after_handshake(server: RawServer, conn: ssl.SSLSocket) -> None:
    read_request(conn)
    server.closing.wait(WAIT)


def dripping_body(server: RawServer, conn: ssl.SSLSocket) -> None:
    read_request(conn)
    conn.sendall(answer(b"", length=1_000_000))
    while not server.closing.wait(0.02):
        conn.sendall(b"1")


@pytest.mark.parametrize("stage", ["mute", "handshake", "answer", "body"])
def test_hang(pki: Pki, token: Path, stage: str) -> None:
    """A server that hangs, or sends a byte now and then, costs the deadline and no more, wherever it does so."""
    context = server_context(pki)
    scripts = {
        "mute": mute,
        "handshake": drip,
        "answer": over_tls(context, silent_after_handshake),
        "body": over_tls(context, dripping_body),
    }
    begin = boottime()
    with RawServer(scripts[stage]) as server:
        error = failure(server.port, with_token(pki, token), timeout=0.5)
    assert error.what == "no complete answer within 0.5 s"
    assert 0.5e9 <= boottime() - begin < 10e9


def test_close_ends_a_handshake(pki: Pki, token: Path) -> None:
    """Closing the client ends a handshake that hangs, in the thread that waits for it."""
    errors: list[SourceError] = []
    began = threading.Event()

    def script(server: RawServer, conn: socket.socket) -> None:
        conn.recv(1)
        began.set()
        server.closing.wait(WAIT)

    def fetch() -> None:
        with pytest.raises(SourceError) as caught:
            kubelet.fetch()
        errors.append(caught.value)

    with RawServer(script) as server:
        kubelet = client(server.port, with_token(pki, token), timeout=WAIT)
        thread = threading.Thread(target=fetch)
        thread.start()
        assert began.wait(WAIT)
        kubelet.close()
        thread.join(WAIT)
    assert [error.what for error in errors] == ["the client was closed"]


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x03\x00\x05abcde", b"SSH-2.0-x\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
def test_garbage(pki: Pki, token: Path, data: bytes) -> None:
    """What is no handshake ends in a printable SourceError and in nothing else."""

    def script(server: RawServer, conn: socket.socket) -> None:
        conn.recv(1)
        conn.sendall(data)

    with RawServer(script) as server:
        assert len(failure(server.port, with_token(pki, token)).what) <= 300


def test_endless(pki: Pki, token: Path) -> None:
    """An answer without an end costs its limit and no more."""

    def script(server: RawServer, conn: ssl.SSLSocket) -> None:
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not server.closing.is_set():
            conn.sendall(b" " * 65536)

    endpoint = KubeletEndpoint.secure(1, credentials=with_token(pki, token))
    with RawServer(over_tls(server_context(pki), script)) as server:
        endpoint = KubeletEndpoint.secure(server.port, credentials=with_token(pki, token))
        with KubeletClient(endpoint, max_body=1 << 20) as kubelet, pytest.raises(SourceError, match="longer than"):
            kubelet.fetch()


def test_ten_megabytes(pki: Pki, token: Path) -> None:
    """A list of 10 MB costs less than three times its size over TLS as well."""
    measure = r"""
import re, sys
from tracer.sources.credentials import Credentials
from tracer.sources.kubelet import KubeletClient, KubeletEndpoint
def peak():
    return int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) * 1024
ca, token, *ports = sys.argv[1:]
shown = Credentials(ca, token_path=token)
small, big = (KubeletClient(KubeletEndpoint.secure(int(port), credentials=shown)) for port in ports)
small.fetch()
before = peak()
print(len(big.fetch().pods.pods), peak() - before)
"""
    filler = pod()
    filler["spec"]["containers"][0]["env"] = [{"name": f"VAR_{i}", "value": "x" * 60} for i in range(200)]
    one = json.dumps(filler)
    many = [json.loads(one) for _ in range(10_000_000 // len(one))]
    for number, each in enumerate(many):
        each["metadata"]["uid"] = f"00000000-0000-0000-0000-{number:012d}"
    body = pod_list(*many)
    context = server_context(pki)
    with SecureServer(context, tokens=("first",), body=body) as big, SecureServer(context, tokens=("first",)) as small:
        command = [sys.executable, "-c", measure, str(pki.ca), str(token), str(small.port), str(big.port)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100, cwd=root)
    count, grown = map(int, done.stdout.split())
    assert count == len(many)
    assert 0 < grown / len(body) <= 3


# --- the thread


def test_one_line_per_change(pki: Pki, token: Path, server: SecureServer) -> None:
    """A token that is refused for many tries is told once, and once more when it is good again; none is restarted."""
    told: list[SourceState] = []
    news = threading.Semaphore(0)

    def on_state(state: SourceState) -> None:
        told.append(state)
        news.release()

    server.tokens = ()
    endpoint = KubeletEndpoint.secure(server.port, credentials=with_token(pki, token))
    source = KubeletSource(KubeletClient(endpoint), interval_s=0.1, on_pods=lambda _fetch: None, on_state=on_state)
    source.start()
    try:
        assert news.acquire(timeout=WAIT)
        while len(server.requests) < 4:
            assert source.state.ok is False
            threading.Event().wait(0.01)
        token.write_text("second")
        server.tokens = ("second",)
        assert news.acquire(timeout=WAIT)
    finally:
        source.stop()
    assert [(state.ok, state.error.status if state.error else None) for state in told] == [(False, 401), (True, None)]


# --- settings, and which port is asked


@pytest.mark.parametrize(
    ("given", "obj"),
    [
        ({"kubelet_read_only_port": 1, "kubelet_secure_port": 2}, "kubelet-read-only-port, kubelet-secure-port"),
        ({"certificate_path": "/c"}, "certificate-path"),
        ({"private_key_path": "/k"}, "private-key-path"),
        ({"kubelet_secure_port": 0}, "kubelet-secure-port"),
        ({"reload_interval": 0.0}, "reload-interval"),
    ],
)
def test_settings_that_cannot_be_used(given: dict[str, Any], obj: str) -> None:
    """Both ports, or one of certificate and key alone, are usage errors that name the settings."""
    with pytest.raises(UsageError) as caught:
        Settings(**given)
    assert caught.value.obj == obj


def test_lone_certificate_of_the_anonymous() -> None:
    """Who is anonymous shows no certificate, so one without its key does no harm, as in SPIRE."""
    shown = credentials(Settings(use_anonymous_authentication=True, certificate_path="/c"))
    assert shown.own_paths == ()


def test_certificate_before_token() -> None:
    """A client certificate replaces the token; skipped verification reads no authorities."""
    settings = Settings(certificate_path="/c", private_key_path="/k", skip_kubelet_verification=True)
    assert credentials(settings) == Credentials(None, certificate_path="/c", private_key_path="/k")


def never(_what: object) -> bool:
    raise AssertionError("nobody was to be asked")


def test_a_port_that_was_given() -> None:
    """A port that was given is asked, with nothing tried and nothing said."""
    secure = choose(Settings(kubelet_secure_port=10251, node_name="n1"), can_read=never, answers=never)
    assert secure.endpoint.url == "https://n1:10251/pods"
    read_only = choose(Settings(kubelet_read_only_port=10256, node_name="n1"), can_read=never, answers=never)
    assert read_only.endpoint.url == "http://127.0.0.1:10256/pods"
    assert secure.note is read_only.note is None
    unverified = Settings(kubelet_secure_port=10250, skip_kubelet_verification=True)
    named = (secure, read_only, choose(unverified, can_read=never, answers=never))
    assert {choice.endpoint.check for choice in named} == {None}


def test_a_port_that_is_chosen() -> None:
    """Without a port a readable credential means the secure one, else an answer the read-only one, each with a note."""
    settings = Settings(token_path="/t")
    secure = choose(settings, can_read=lambda path: path == "/t", answers=never)
    assert secure.endpoint.url == "https://127.0.0.1:10250/pods"
    assert secure.note == "asking the kubelet at https://127.0.0.1:10250/pods, with the token in /t"
    read_only = choose(settings, can_read=lambda _path: False, answers=lambda port: port == 10255)
    assert read_only.endpoint.url == "http://127.0.0.1:10255/pods"
    assert read_only.note is not None
    assert "the token in /t cannot be read" in read_only.note
    nothing = choose(settings, can_read=lambda _path: False, answers=lambda _port: False)
    assert (nothing.found, nothing.note) == (False, None)
    assert nothing.endpoint.url == "http://127.0.0.1:10255/pods"
    assert "/t" in nothing.endpoint.peer.refused


def test_a_port_that_is_chosen_proves_whose_it_is() -> None:
    """A chosen port that shows no checked certificate has to be root's, in the procfs of the settings, and its refusal
    names the flag; a certificate that is checked is proof enough."""
    verified = choose(Settings(token_path="/t"), can_read=lambda _path: True, answers=never)
    assert verified.endpoint.check is None
    for more in ({"token_path": "/t"}, {"use_anonymous_authentication": True}):
        settings = Settings(skip_kubelet_verification=True, procfs="/p", **more)
        unverified = choose(settings, can_read=lambda _path: True, answers=never)
        assert unverified.endpoint.check == RootCheck("--kubelet-secure-port 10250", "/p")
    for answers in (True, False):
        found = choose(Settings(procfs="/p"), can_read=lambda _path: False, answers=lambda _port, is_=answers: is_)
        assert found.endpoint.check == RootCheck("--kubelet-read-only-port 10255", "/p")


def test_half_a_credential_is_none() -> None:
    """A certificate whose key cannot be read is no credential; who is anonymous needs none."""
    settings = Settings(certificate_path="/c", private_key_path="/k")
    assert choose(settings, can_read=lambda path: path == "/c", answers=lambda _port: True).endpoint.credentials is None
    anonymous = choose(Settings(use_anonymous_authentication=True), can_read=never, answers=never)
    assert anonymous.endpoint.url == "https://127.0.0.1:10250/pods"


def test_import_is_light() -> None:
    """Making a client of the secure port loads neither requests nor urllib3."""
    check = """
import sys
from tracer.settings import Settings
from tracer.sources.finding import choose
from tracer.sources.kubelet import KubeletClient
KubeletClient(choose(Settings(kubelet_secure_port=10250)).endpoint)
sys.exit(bool({"requests", "urllib3"} & set(sys.modules)))
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", check], timeout=60, cwd=root).returncode == 0


def test_hints_have_no_line_breaks() -> None:
    """A hint is one line, whatever the paths in it are called."""
    endpoint = KubeletEndpoint.secure(credentials=Credentials("/ca", token_path="/t"))
    assert not any(re.search(r"[\r\n]", hint) for hint in endpoint.peer.statuses.values())
