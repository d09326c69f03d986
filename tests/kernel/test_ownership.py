"""A port that nobody named is believed only where its listener is root's of this host: real listeners of every kind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import machine
from tests.servers import pod, pod_list, unused_port
from tests.waiting import SLOW
from tracer.settings import Settings
from tracer.sources.credentials import Credentials
from tracer.sources.finding import choose
from tracer.sources.kubelet import KubeletClient, KubeletEndpoint, find_read_only
from tracer.sources.ownership import NotRoots, RootCheck

pytestmark = pytest.mark.root

PYTHON = os.path.realpath(sys.executable)  # what any user may run
USER = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
CHECK = RootCheck("--kubelet-read-only-port 10255")

# A listener that answers every request with the list, and says on standard output what it was sent. By its mode a
# user's child answers on what root accepted ("hands"), or holds the listener ("shares").
SERVER = """
import os, socket, sys, threading, time
host, port, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
body = sys.argv[4].encode()
listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if ":" in host:
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, mode == "v6")
listener.bind((host, port))
listener.listen(1 if mode == "deaf" else 16)
def become_a_user():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
def answer(conn):
    while data := conn.recv(65536):
        print(data, flush=True)
        head = b"HTTP/1.0 200 OK\\r\\n" if mode == "closes" else b"HTTP/1.1 200 OK\\r\\n"
        conn.sendall(head + b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
        if mode == "closes":
            conn.close()
            return
if mode == "shares" and not os.fork():
    become_a_user()
    print("ready", flush=True)
    time.sleep(1000)
if mode != "shares":
    print("ready", flush=True)
if mode == "deaf":
    time.sleep(1000)
if mode == "slow":
    import select
    select.select([listener], [], [])
    time.sleep(0.3)
while True:
    conn, _ = listener.accept()
    if mode == "hands" and not os.fork():
        become_a_user()
        answer(conn)
        os._exit(0)
    if mode != "hands":
        threading.Thread(target=answer, args=[conn], daemon=True).start()
"""


class Server:
    """A running listener."""

    def __init__(self, child: subprocess.Popen[bytes], port: int) -> None:
        self.child = child
        self.port = port
        self._told: bytes | None = None

    def client(self) -> KubeletClient:
        """A client of the port, as of one that nobody named."""
        return KubeletClient(replace(KubeletEndpoint.read_only(self.port), check=CHECK), timeout=20 * SLOW)

    def end(self) -> bytes:
        """Ends it, and all that it started; what it was sent."""
        if self._told is None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self._told, _ = self.child.communicate()
        return self._told


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts listeners; ``prefix`` is the command in front that makes them somebody else's."""
    servers: list[Server] = []

    def start(*prefix: str, host: str = "127.0.0.1", mode: str = "keeps", port: int | None = None) -> Server:
        port = port or unused_port()
        command = [*prefix, PYTHON, "-I", "-c", SERVER, host, str(port), mode, pod_list(pod()).decode()]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        servers.append(Server(child, port))
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A name below the root of every hierarchy, gone at the end."""
    path = f"/podtracer-test-{secrets.token_hex(4)}"
    yield path
    machine.remove_cgroup(path)


def _pods(client: KubeletClient) -> int:
    with client:
        return len(client.fetch().pods.pods)


def _refusal(server: Server) -> str:
    """The reason why the port was refused; nothing was sent to it."""
    with server.client() as client, pytest.raises(NotRoots) as caught:
        client.fetch()
    assert server.end() == b""
    assert caught.value.hint is not None
    assert "--kubelet-read-only-port 10255" in caught.value.hint
    what, _, why = caught.value.what.partition(": ")
    assert what == f"port {server.port} is not proved to be the kubelet's"
    return why


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("mode", ["keeps", "closes", "slow"])
def test_roots_listener_is_believed(serve: Serve, host: str, mode: str) -> None:
    """A listener of the host's root is believed at whatever address it listens, however soon it accepts and closes."""
    server = serve(host=host, mode=mode)
    assert _pods(server.client()) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_a_users_listener_is_not(serve: Serve, host: str) -> None:
    """Nothing is sent to an ordinary user's listener, and nothing believed, nor is it taken for a kubelet's."""
    server = serve(*USER, host=host)
    with pytest.raises(NotRoots, match="uid 65534"):
        find_read_only(server.port, check=CHECK)
    assert _refusal(server) == "it belongs to uid 65534"


def test_a_users_listener_that_never_accepts_is_not_waited_for(serve: Serve) -> None:
    """A connection that an ordinary user has not accepted yet is refused as one that was."""
    assert _refusal(serve(*USER, mode="deaf")) == "it belongs to uid 65534"


def test_a_listener_that_never_accepts_costs_a_bounded_time(serve: Serve) -> None:
    """A connection that nobody accepts is given up long before the request would be."""
    assert _refusal(serve(mode="deaf")) == "no process of this machine has accepted the connection"


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        pytest.param(("unshare", "--user", "--map-root-user"), "is in another user namespace", id="user"),
        pytest.param(("unshare", "--pid", "--fork"), "is in another PID namespace", id="pid"),
        pytest.param(("setpriv", "--ruid", "65534"), "is not root's", id="real-uid"),
        pytest.param((*USER, "unshare", "--user", "--map-root-user"), "it belongs to uid 65534", id="own-namespace"),
    ],
)
def test_root_of_somewhere_else_is_not_roots(serve: Serve, prefix: tuple[str, ...], why: str) -> None:
    """Root of another user or PID namespace, and who became root for a while, is not root of the host."""
    assert why in _refusal(serve(*prefix))


@pytest.mark.parametrize(
    "name",
    [
        f"kubepods/burstable/pod11111111-2222-3333-4444-555555555555/{'a' * 64}",
        f"kubepods.slice/kubepods-pod11111111_2222_3333_4444_555555555555.slice/cri-containerd-{'a' * 64}.scope",
        f"kubepods/podmy-static-01/{'a' * 64}",
        "kubepods/besteffort",
        f"docker/{'a' * 64}",
        f"system.slice/docker-{'a' * 64}.scope",
        "lxc/web",
    ],
)
def test_root_of_a_container_in_the_hosts_network_is_not_roots(serve: Serve, cgroup: str, name: str) -> None:
    """A listener of uid 0 in a container's cgroup is not believed, in whichever hierarchy that is."""
    path = f"{cgroup}/{name}"
    machine.make_cgroup(cgroup)
    root = next(root for root, kind in machine.hierarchies().items() if _takes_processes(root, kind))
    (root / path.lstrip("/")).mkdir(parents=True)
    server = serve()
    (root / path.lstrip("/") / "cgroup.procs").write_text(str(server.child.pid))
    assert _refusal(server) == f"process {server.child.pid} is in a container"


def _takes_processes(root: Path, kind: str) -> bool:
    return kind == "cgroup2" or not (root / "cpuset.cpus").exists()


def test_what_root_accepted_and_handed_on_is_not_roots(serve: Serve) -> None:
    """An answer that a user's process gave on a connection that root accepted is not believed."""
    server = serve(mode="hands")
    with server.client() as client, pytest.raises(NotRoots, match="is not root's"):
        client.fetch()


def test_a_listener_that_a_user_holds_too_is_not_roots(serve: Serve) -> None:
    """Where a user's process holds root's listener, it could have accepted: nothing is believed."""
    assert "is not root's" in _refusal(serve(mode="shares"))


def test_a_user_beside_root_takes_nothing_away(serve: Serve) -> None:
    """A user that listens on the same port for IPv6 alone does not keep root's listener from being believed."""
    server = serve()
    theirs = serve(*USER, host="::", mode="v6", port=server.port)
    assert _pods(server.client()) == 1
    assert theirs.end() == b""


def test_each_connection_is_looked_at(serve: Serve) -> None:
    """A user that takes the port over when the kubelet ends is not believed, and the kubelet is once it is back."""
    kubelet = serve()
    with kubelet.client() as client:
        assert len(client.fetch().pods.pods) == 1
        kubelet.end()
        user = serve(*USER, port=kubelet.port)
        for _ in range(3):
            with pytest.raises(NotRoots, match="uid 65534"):
                client.fetch()
        assert user.end() == b""
        serve(port=kubelet.port)
        assert len(client.fetch().pods.pods) == 1


def test_a_connection_that_is_kept_is_looked_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests on a connection that was believed cost no further search."""
    server = serve()
    searched: list[str] = []
    held = RootCheck._held
    monkeypatch.setattr(RootCheck, "_held", lambda *args: searched.append(args[1]) or held(*args))
    with server.client() as client:
        client.fetch()
        before = len(searched)
        for _ in range(3):
            client.fetch()
    assert before > 0
    assert len(searched) == before


def test_what_cannot_be_looked_at_is_not_believed(serve: Serve) -> None:
    """Without the right to see which process holds a socket even root's listener is refused, and the error says so."""
    server = serve()
    ask = f"""
from dataclasses import replace
from tracer.sources.kubelet import KubeletClient, KubeletEndpoint
from tracer.sources.ownership import RootCheck
KubeletClient(replace(KubeletEndpoint.read_only({server.port}), check=RootCheck("--flag"))).fetch()
"""
    root = Path(__file__).parents[2]
    without = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace")
    done = subprocess.run([*without, sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, cwd=root)
    assert "without CAP_SYS_PTRACE" in done.stderr
    assert server.end() == b""


@pytest.mark.parametrize("node_name", [None, "localhost"])
def test_no_token_goes_to_a_users_secure_port(serve: Serve, tmp_path: Path, node_name: str | None) -> None:
    """With --skip-kubelet-verification a secure port that nobody named is root's too, or gets nothing at all."""
    token = tmp_path / "token"
    token.write_text("secret")
    chosen = choose(Settings(skip_kubelet_verification=True, token_path=str(token))).endpoint
    assert chosen.check is not None
    server = serve(*USER)
    endpoint = KubeletEndpoint.secure(
        server.port, credentials=Credentials(None, token_path=str(token)), node_name=node_name
    )
    with KubeletClient(replace(endpoint, check=chosen.check)) as client, pytest.raises(NotRoots, match="uid 65534"):
        client.fetch()
    assert server.end() == b""


# What asks as a program does whose settings name nothing, in a network of its own, where 10255 is free.
ASK = """
import sys
from tracer import doctor
from tracer.errors import SourceError
from tracer.settings import Settings
from tracer.sources.finding import choose
from tracer.sources.kubelet import KubeletClient
settings = Settings(token_path="/nothing")
choice = choose(settings)
print(choice.endpoint.url, choice.found, choice.note, flush=True)
client = KubeletClient(choice.endpoint)
for line in sys.stdin:
    if line == "doctor\\n":
        check = doctor.kubelet(settings, doctor._Found())
        print(check.state, check.found, flush=True)
        continue
    try:
        print(len(client.fetch().pods.pods), flush=True)
    except SourceError as error:
        print(error, flush=True)
"""


@pytest.fixture
def network() -> Iterator[tuple[str, ...]]:
    """A network namespace with a loopback: the command in front that enters it."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 1000"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        try:
            yield ("nsenter", f"--net=/proc/{keeper.pid}/ns/net")
        finally:
            keeper.kill()


class Asker:
    """The program, running."""

    def __init__(self, *prefix: str) -> None:
        self.child = subprocess.Popen(
            [*prefix, sys.executable, "-c", ASK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.chosen = self._line()

    def ask(self, what: str = "") -> str:
        """The number of pods, or the error; what ``doctor`` says of the kubelet."""
        assert self.child.stdin is not None
        self.child.stdin.write(f"{what}\n")
        self.child.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()


def test_the_port_that_nobody_named(serve: Serve, network: tuple[str, ...]) -> None:
    """Where nothing is named, root's 10255 is asked and told of, a user's neither before nor after the start, and
    root's again when it comes back."""
    kubelet = serve(*network, port=10255)
    asker = Asker(*network)
    try:
        assert asker.chosen.startswith("http://127.0.0.1:10255/pods True asking the kubelet")
        assert asker.ask() == "1"
        assert asker.ask("doctor").startswith(
            "ok asking the kubelet at http://127.0.0.1:10255/pods, since the token in"
        )
        kubelet.end()
        assert "connection refused" in asker.ask()
        user = serve(*network, *USER, port=10255)
        assert "port 10255 is not proved to be the kubelet's: it belongs to uid 65534" in asker.ask()
        late = Asker(*network)
        try:
            assert late.chosen == "http://127.0.0.1:10255/pods False None"
            assert "it belongs to uid 65534" in late.ask()
            doctor = late.ask("doctor")
            assert doctor.startswith("warn port 10255 is not proved to be the kubelet's: it belongs to uid 65534")
            assert user.end() == b""
            serve(*network, port=10255)
            assert (asker.ask(), late.ask()) == ("1", "1")
        finally:
            late.child.communicate()
    finally:
        asker.child.communicate()
