"""The plugin under a real go-plugin host, which drives it as SPIRE's agent does; behind it is only the kubelet."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node import FakePod
from tests.plugin.conftest import Node
from tests.plugin.host import ATTESTOR, CONFIG, INIT, PLUGIN, Host
from tests.waiting import SLOW, until
from tracer.kernel import procfs

pytestmark = pytest.mark.plugin
OVER = ("deadlineexceeded context deadline exceeded", "deadlineexceeded deadline exceeded")  # gRPC's own words
COOKIE = {"WorkloadAttestor": "WorkloadAttestor", "PLUGIN_PROTOCOL_VERSIONS": "1"}
NO_DAEMON = 'socket_path = "/nonexistent/podtracer.sock"'


def descriptors(pid: int) -> int:
    """How many descriptors the process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def sockets(folder: Path) -> list[str]:
    """The folders of sockets of plugins that are here; the host has some of its own."""
    return [name for name in os.listdir(folder) if name.startswith("podtracer-")]


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or only waits for somebody to take note of its end."""
    found = procfs.stat("/proc", pid)
    return found is None or found.state == "Z"


def said(host: Host, message: str) -> list[dict[str, Any]]:
    """What the plugin logged in these words."""
    return [line for line in host.log if line["@message"] == message]


# ---- the life of a plugin ----


def test_the_agents_whole_course(host: Host, node: Node, tmp_path: Path) -> None:
    """Dispense, Init, Configure, 1,000 Attests of 16 goroutines, Deinit, kill."""
    pod = FakePod("cart-1")
    pid = node.run(pod)
    node.publish()
    assert host.init().answer == {"pluginServiceNames": [ATTESTOR, CONFIG]}
    assert host.call("grpc.health.v1.Health", "Check", {"service": "plugin"}).answer == {"status": 1}
    assert host.configure(f"{NO_DAEMON}\nkubelet_read_only_port = {node.kubelet.port}").answer == {}
    many = host.attest(pid, count=1000, workers=16)
    assert many.selectors >= {"ns:shop", "sa:cart", "pod-name:cart-1", f"pod-uid:{pod.uid}", "container-name:app"}
    assert host.attest(os.getpid()).answer == {}
    assert host.call(INIT, "Deinit").answer == {}
    assert host.attest(pid).end == "FailedPrecondition not configured"
    plugin = host.plugin_pid
    host.kill()
    assert not Path(f"/proc/{plugin}").exists()
    assert sockets(tmp_path) == []
    # go-plugin kills what does not end by itself, and says so.
    assert not [line for line in host.log if "killing" in line["@message"] or "panic" in json.dumps(line)]
    until(lambda: said(host, "attested"), 10, "the plugin's last line")
    assert said(host, "attested")[0]["by_fallback"] == "1001"


def test_the_log_is_go_plugins_and_has_nothing_else(host: Host) -> None:
    host.configure(NO_DAEMON + " fallback = false")
    assert host.attest(1).end.startswith("Unavailable ")
    words = "the daemon cannot be asked, and there is no fallback: nothing is attested"
    until(lambda: said(host, words), 10, "the plugin to say so")
    # A line of the plugin's that is no JSON is passed on raw, and one with a value that is no string ends the host.
    assert {line["@level"] for line in host.log} <= {"trace", "debug", "info", "warn"}


def test_sigint_is_the_agents(host: Host) -> None:
    os.kill(host.plugin_pid, signal.SIGINT)
    assert host.attest(host.pid).end == "FailedPrecondition not configured"


def test_the_plugin_ends_with_its_agent(tmp_path: Path) -> None:
    with Host(environ={"TMPDIR": str(tmp_path)}) as host:
        os.kill(host.pid, signal.SIGKILL)
        until(lambda: has_ended(host.plugin_pid), 10, "the plugin to end")
        until(lambda: sockets(tmp_path) == [], 10, "its socket to be gone")


def test_a_plugin_that_is_killed_leaves_the_agent_an_error(host: Host) -> None:
    host.configure(NO_DAEMON)
    os.kill(host.plugin_pid, signal.SIGKILL)
    until(lambda: has_ended(host.plugin_pid), 10, "the plugin to end")
    assert host.attest(1, timeout_ms=5000).end.startswith("Unavailable ")


# ---- who starts it ----


def test_without_the_cookie_it_says_what_it_is() -> None:
    child = subprocess.run(PLUGIN, capture_output=True, text=True, check=False, timeout=60 * SLOW)
    assert child.returncode == 2
    assert child.stdout == ""
    assert child.stderr.startswith("error: this is a plugin: SPIRE's agent starts it (podtracer spire-plugin)\nhint: ")


def test_a_host_that_is_gone_before_the_handshake_is_no_crash(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environ = {**os.environ, **COOKIE, "TMPDIR": str(tmp_path)}
    child = subprocess.run(PLUGIN, stdout=writer, stderr=subprocess.PIPE, env=environ, check=False, timeout=60 * SLOW)
    os.close(writer)
    assert b"Traceback" not in child.stderr
    assert sockets(tmp_path) == []


class Alone:
    """A plugin that the test itself starts, with the cookie, in place of a host."""

    def __init__(self, folder: Path) -> None:
        self.child = subprocess.Popen(
            PLUGIN,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **COOKIE, "TMPDIR": str(folder)},
            text=True,
        )
        assert self.child.stdout is not None
        self.handshake = self.child.stdout.readline()
        self.path = self.handshake.split("|")[3]

    def end(self) -> int:
        """SIGTERM, and the exit status."""
        self.child.terminate()
        self.child.communicate(timeout=20 * SLOW)
        return self.child.returncode


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    plugin = Alone(tmp_path)
    yield plugin
    if plugin.child.poll() is None:
        plugin.child.kill()
        plugin.child.communicate()


def test_the_handshake_names_a_socket_that_nobody_else_can_reach(alone: Alone, tmp_path: Path) -> None:
    assert alone.handshake == f"1|1|unix|{alone.path}|grpc\n"
    assert Path(alone.path).parent.parent == tmp_path
    assert Path(alone.path).parent.stat().st_mode & 0o777 == 0o700
    assert alone.end() == 0
    assert sockets(tmp_path) == []


def test_half_a_handshake_leaves_nothing_open(alone: Alone) -> None:
    """Who connects and says nothing, or no HTTP/2, or half of its preface, costs a descriptor while it is there."""

    def connect(data: bytes) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(alone.path)
        peer.sendall(data)
        return peer

    before = descriptors(alone.child.pid)
    peers = [
        connect(data)
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n", b"\0" * 4096)
        for _ in range(25)
    ]
    for peer in peers:
        peer.close()
    until(lambda: descriptors(alone.child.pid) <= before, 30, "the plugin to close them")
    assert alone.child.poll() is None


# ---- what it is asked ----


def test_a_service_that_it_does_not_have_is_unimplemented(host: Host) -> None:
    for service, method in (("spire.plugin.agent.nodeattestor.v1.NodeAttestor", "AidAttestation"), (ATTESTOR, "Other")):
        assert host.call(service, method).end.startswith("Unimplemented")


def test_configure_is_refused_by_the_key_and_changes_nothing(host: Host, node: Node) -> None:
    pid = node.run(FakePod("cart-1"))
    node.publish()
    good = f"{NO_DAEMON}\nkubelet_read_only_port = {node.kubelet.port}"
    assert host.configure(good).answer == {}
    for text, end in (
        (
            "sigstore {\n  allowed_identities { }\n}",
            "InvalidArgument sigstore is not supported; use the built-in attestor",
        ),
        ("bogus = 1", "InvalidArgument bogus is no key of this plugin"),
        ('fallback = "true"', "InvalidArgument fallback: 'true' is no true or false (without quotes)"),
        ("a = ", "InvalidArgument the configuration is not HCL: line 1, column 5: the end stands where a value"),
        ('node_name = "a/b"', "InvalidArgument node_name: 'a/b' is not the name of a node"),
    ):
        assert host.configure(text).end.startswith(end)
        valid = host.call(CONFIG, "Validate", {"hclConfiguration": text}).answer
        if "node_name" not in text:
            assert "valid" not in valid
            assert end.removeprefix("InvalidArgument ") in valid["notes"][0]
    assert "pod-name:cart-1" in host.attest(pid).selectors
    assert host.call(CONFIG, "Validate", {"hclConfiguration": good}).answer == {"valid": True}


def test_a_reference_is_attested_where_it_is_a_pid(host: Host) -> None:
    host.configure(f"{NO_DAEMON} kubelet_read_only_port = 1")
    prefix = "type.googleapis.com/spiffe.broker"
    assert host.attest_reference(f"{prefix}.WorkloadPIDReference", b"\x08\x01").answer == {}
    assert host.attest_reference(f"{prefix}.KubernetesObjectReference", b"").end.startswith("Unimplemented ")
    assert host.attest_reference(f"{prefix}.Other", b"").end.startswith("InvalidArgument ")
    assert host.attest_reference(f"{prefix}.WorkloadPIDReference", b"\x08").end.startswith("InvalidArgument ")
    caller = {"spire-agent-broker-caller-id": "spiffe://example.org/caller"}
    end = host.attest_reference(f"{prefix}.WorkloadPIDReference", b"\x08\x01", metadata=caller).end
    assert end == "Internal broker configuration missing"


def test_the_agents_own_process_is_answered_while_nothing_works(host: Host) -> None:
    host.configure(f"{NO_DAEMON} fallback = false")
    assert host.attest(host.pid, count=100, workers=4).answer == {}


def test_who_asks_no_more_is_not_waited_for(host: Host, node: Node) -> None:
    """An Attest whose deadline is over is dropped, and leaves nothing behind."""
    here, pid = node.run(FakePod("cart-1")), node.run(FakePod("late-1", listed=False))
    node.publish()
    host.configure(f"{NO_DAEMON} kubelet_read_only_port = {node.kubelet.port}")
    assert "pod-name:cart-1" in host.attest(here).selectors  # and the connection to the kubelet is made, to be kept
    before = descriptors(host.plugin_pid)
    ends = host.attest(pid, timeout_ms=200, count=50, workers=50).ends
    assert all(end.lower().startswith(OVER) for end in ends)
    until(lambda: descriptors(host.plugin_pid) <= before, 10, "the plugin to forget them")


def test_without_a_daemon_waits_hold_nobody_up(host: Host, node: Node) -> None:
    """500 pending Attests, and one of a process that is known is answered meanwhile; one GET serves all of them."""
    known, late = FakePod("cart-1"), FakePod("late-1", listed=False)
    here, waiting = node.run(known), node.run(late)
    node.publish()
    host.configure(f"{NO_DAEMON} kubelet_read_only_port = {node.kubelet.port}")
    before = node.kubelet.requests
    pending = host.start_attest(waiting, count=500, workers=500)
    until(lambda: node.kubelet.requests > before, 30, "the kubelet to be asked")
    assert "pod-name:cart-1" in host.attest(here, count=100).selectors
    assert not pending.done()
    late.listed = True
    node.publish()
    assert "pod-name:late-1" in host.finish(pending).selectors


def test_ready_means_that_it_can_be_asked_at_once() -> None:
    """From exec to the handshake only what is needed is loaded: neither bcc nor requests."""
    code = (
        "import sys, asyncio\n"
        "from tracer.cli import spire_plugin\n"
        "from tracer.serve import go_plugin, spire_plugin as served\n"
        "from tracer.attestor import Attestor\n"
        "served.handlers(Attestor(1))\n"
        "print([name for name in ('bcc', 'requests', 'psutil', 'rich', 'prometheus_client') if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "[]\n"
