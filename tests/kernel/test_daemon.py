"""The daemon as a process: its start, its end, and what happens when it dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.kernel.lab import Cgroup
from tests.node import FakePod, listing
from tests.podtracer import podtracer
from tests.servers import unused_port
from tests.waiting import SLOW, until
from tracer.errors import DaemonUnreachable, TracerError
from tracer.kernel import cgroupfs
from tracer.model import Identity, State
from tracer.sources.replay import ReplayKubelet

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOW)]
CART = FakePod("cart-1", labels={"app": "cart"})
ALONE = ("--cri", "none", "--pods-api", "none")


@pytest.fixture
def kubelet() -> Iterator[ReplayKubelet]:
    """Lists one pod."""
    with ReplayKubelet(listing(CART)) as kubelet:
        yield kubelet


@pytest.fixture
def cart() -> Iterator[int]:
    """The PID of a process of that pod, in every hierarchy that may be tracked."""
    child = subprocess.Popen(["sleep", "1000"])
    cgroups = [Cgroup(mount, CART.cgroup()) for mount in cgroupfs.find_mounts("/sys/fs/cgroup", "/proc", {}, None)[:1]]
    for cgroup in cgroups:
        cgroup.add(child.pid)
    yield child.pid
    child.kill()
    child.wait()
    for cgroup in cgroups:
        cgroup.remove()


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_commands_ask_the_daemon(tmp_path: Path, kubelet: ReplayKubelet, cart: int) -> None:
    """lookup, ps, watch and explain give the daemon's answers, and with -v say so; health and metrics are served."""
    port = unused_port()
    words = ("--kubelet-read-only-port", kubelet.port, *ALONE, "--http-address", f"127.0.0.1:{port}")
    with Daemon(tmp_path, *words) as daemon:
        until(lambda: _get(port, "/readyz")[0] == 200, 30, "the daemon to be ready")
        at = ("--socket", daemon.socket)
        found = podtracer("lookup", cart, "-v", "-o", "json", *at)
        assert found.returncode == 0, found.stderr
        assert "asking the daemon" in found.stderr
        identity = json.loads(found.stdout)
        assert (identity["pod"], identity["state"], identity["parity"]) == ("cart-1", "resolved", True)
        listed = podtracer("ps", "-l", "app=cart", "--no-headers", *at)
        assert [line.split()[0] for line in listed.stdout.splitlines()] == [str(cart)]
        tree = podtracer("ps", "--tree", "--host", "-p", os.getpid(), *at)
        assert str(os.getpid()) in tree.stdout
        watched = podtracer("watch", "-p", cart, "-o", "json", "--duration", "1s", *at)
        assert [json.loads(line)["event"] for line in watched.stdout.splitlines()] == ["snapshot", "synced"]
        told = podtracer("explain", cart, *at)
        assert told.returncode == 0, told.stderr
        assert "k8s:pod-name:cart-1" in told.stdout
        ignored = podtracer("lookup", cart, "--kubelet", "none", *at)
        assert "--kubelet" in ignored.stderr
        assert _get(port, "/readyz?verbose")[1].startswith("[+]bpf ok\n[+]scan ok\n[+]pods ok\n")
        metrics = _get(port, "/metrics")[1]
        assert 'podtracer_lookups_total{result="resolved"}' in metrics
        assert 'podtracer_kubelet_requests_total{code="200"}' in metrics
        assert daemon.status()["ready"] == {"bpf": True, "scan": True, "pods": True}
        assert daemon.end() == 0
    assert not os.path.exists(daemon.socket)


def test_a_socket_that_was_named_has_to_answer(tmp_path: Path) -> None:
    """Where nobody listens at the socket asked for, the exit code is 69; by default the command goes on alone."""
    nobody = podtracer("lookup", os.getpid(), "--socket", tmp_path / "none.sock")
    assert nobody.returncode == 69
    assert "none.sock" in nobody.stderr


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    """It is told who is there already, with exit code 75, and that one goes on."""
    with Daemon(tmp_path, "--kubelet", "none", *ALONE, "--http-address", "none") as first:
        second = podtracer("daemon", "--socket", first.socket, "--kubelet", "none")
        assert second.returncode == 75
        assert str(first.child.pid) in second.stderr
        assert first.answers()


def test_nobody_else_can_lock_the_lock(tmp_path: Path) -> None:
    """Who can read the file could hold the lock, and keep later daemons from starting; an old file is closed too."""
    path = tmp_path / "podtracer.sock.lock"
    path.touch(mode=0o644)
    with Daemon(tmp_path, "--kubelet", "none", *ALONE, "--http-address", "none"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """After SIGKILL the next one starts at the same place, and a client that was connected goes on."""
    words = ("--kubelet", "none", *ALONE, "--http-address", "none")
    with Daemon(tmp_path, *words) as first, first.client(timeout=60 * SLOW) as client:
        assert client.lookup(os.getpid()).key.pid == os.getpid()
        first.end(signal.SIGKILL)
        with Daemon(tmp_path, *words):
            assert client.lookup(os.getpid()).key.pid == os.getpid()


def test_clients_recover_from_a_kill_under_load(tmp_path: Path, kubelet: ReplayKubelet, cart: int) -> None:
    """While four clients ask without pause the daemon is killed and started anew: no answer is wrong, none is missing
    in the end, and each client is answered by the new one."""
    words = ("--kubelet-read-only-port", kubelet.port, *ALONE, "--http-address", "none")
    answers: list[Identity | TracerError] = []
    stop, again = threading.Event(), threading.Event()
    after = [0] * 4

    def ask(number: int) -> None:
        with first.client(timeout=60 * SLOW) as client:
            while not stop.is_set():
                try:
                    answers.append(client.lookup(cart))
                    after[number] += again.is_set()
                except TracerError as error:
                    answers.append(error)

    with Daemon(tmp_path, *words) as first:
        until(lambda: first.status()["ready"]["pods"], 30, "the first list")
        threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(4)]
        try:
            for thread in threads:
                thread.start()
            until(lambda: len(answers) > 500, 60, "answers of the first")
            first.end(signal.SIGKILL)
            with Daemon(tmp_path, *words) as second:
                until(lambda: second.status()["ready"]["pods"], 30, "the first list")
                again.set()
                until(lambda: min(after) > 50, 60, "answers of the second to each client")
                stop.set()
                for thread in threads:
                    thread.join(30)
        finally:
            stop.set()
    assert not [answer for answer in answers if isinstance(answer, TracerError)]
    said = {(answer.state, answer.workload.pod) for answer in answers if isinstance(answer, Identity)}
    pending = {(State.PENDING, None)}  # before the second has its first list
    assert said - pending == {(State.RESOLVED, "cart-1")}


def test_a_source_that_fails_is_no_reason_not_to_start(tmp_path: Path) -> None:
    """Without a kubelet the socket answers and readiness says what is missing; systemd is told that it runs."""
    port, dead = unused_port(), unused_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60 * SLOW)
        words = ("--kubelet-read-only-port", dead, *ALONE, "--http-address", f"127.0.0.1:{port}")
        with Daemon(tmp_path, *words, environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as daemon:
            said = b""
            while b"READY=1" not in said:
                said = systemd.recv(4096)
            assert _get(port, "/readyz") == (503, "[+]bpf ok\n[+]scan ok\n[-]pods not yet\nreadyz check failed\n")
            assert _get(port, "/livez") == (200, "ok")
            with daemon.client() as client:
                assert client.lookup(os.getpid()).state is State.HOST
            assert daemon.end() == 0
        while said != b"STOPPING=1":
            said = systemd.recv(4096)


def test_sighup_reads_the_configuration_again(tmp_path: Path, kubelet: ReplayKubelet, cart: int) -> None:
    """Another kubelet is asked, the socket's rules change, what is known stays; a file that is wrong changes nothing
    and is logged, and so is what cannot be changed."""
    config = tmp_path / "config.yaml"
    config.write_text(f"kubelet-read-only-port: {unused_port()}\nhttp-address: none\ncri: none\npods-api: none\n")
    with Daemon(tmp_path, "--config", config) as daemon, daemon.client() as client:
        assert client.lookup(cart).state is State.PENDING
        config.write_text(f"kubelet-read-only-port: {kubelet.port}\nhttp-address: none\ncri: none\npods-api: none\n")
        daemon.child.send_signal(signal.SIGHUP)
        until(lambda: client.lookup(cart).workload.pod == "cart-1", 30, "the pod to be known")
        config.write_text("kubelet-read-only-port: none\n")
        daemon.child.send_signal(signal.SIGHUP)
        until(lambda: "stays as it was" in daemon.text, 30, "the error")
        assert client.lookup(cart).workload.pod == "cart-1"
        config.write_text(
            f"kubelet-read-only-port: {kubelet.port}\nmode: parity\nhttp-address: 127.0.0.1:1\ncri: none\n"
        )
        daemon.child.send_signal(signal.SIGHUP)
        until(lambda: "started anew" in daemon.text, 30, "the warning")
        assert client.lookup(cart).mode == "strict"


def test_it_ends_while_everything_hangs(tmp_path: Path) -> None:
    """SIGTERM ends it with code 0 though its kubelet never answers and clients wait."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = ("--kubelet-read-only-port", silent.getsockname()[1], *ALONE, "--http-address", "none")
        with Daemon(tmp_path, *words) as daemon:
            waiting = socket.socket(socket.AF_UNIX)
            waiting.connect(daemon.socket)
            waiting.sendall(b'{"id":1,"op":"lookup","container_id":"x","wait_ms":600000}\n')
            until(lambda: daemon.status()["socket"]["waiting"] == 1, 10, "the wait")
            assert daemon.end() == 0
            waiting.close()


def test_it_sheds_what_it_cannot_hold(tmp_path: Path) -> None:
    """With few descriptors allowed, many connections leave it alive: once they have gone it answers again."""
    words = ["--kubelet", "none", *ALONE, "--http-address", "none"]
    with Daemon(tmp_path, *words) as daemon:
        subprocess.run(["prlimit", "--pid", str(daemon.child.pid), "--nofile=64:64"], check=True)
        crowd = []
        for _ in range(100):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(daemon.socket)
            crowd.append(sock)
        with pytest.raises(DaemonUnreachable), daemon.client(timeout=1.0) as client:
            client.version()
        for sock in crowd:
            sock.close()
        with daemon.client(timeout=60 * SLOW) as client:
            assert client.lookup(os.getpid()).key.pid == os.getpid()
