"""Who asks over the socket, told by the kernel: users, groups, pods, and a descriptor that was handed on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.kernel.conftest import Run
from tests.kernel.test_tracer import Node
from tests.node import FakePod, listing
from tests.waiting import SLOW, until
from tracer import Tracer
from tracer.model import State
from tracer.serve.access import Access
from tracer.serve.socket import Server
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

pytestmark = pytest.mark.root
CART, VICTIM = FakePod("cart-1"), FakePod("victim-1", "vault", "admin")
USER, GROUP = 12345, 23456

# Asks as another user, from another cgroup perhaps; what it needs of files is read before.
ASKER = """
import json, os, sys

from tracer.client import Client
path, cgroup, uid, gid, groups, op, fields = json.loads(sys.argv[1])
if cgroup:
    open(cgroup, "w").write(str(os.getpid()))
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
from tracer.errors import DaemonError
try:
    print(json.dumps({"pid": os.getpid(), "said": Client(path, timeout=60).request(op, **fields)}))
except DaemonError as error:
    print(json.dumps({"pid": os.getpid(), "code": error.code}))
"""


@pytest.fixture(scope="module")
def tracer() -> Iterator[Tracer]:
    """A tracer that knows the two pods."""
    with (
        ReplayKubelet(listing(CART, VICTIM)) as kubelet,
        Tracer(Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none")) as running,
    ):
        assert running.wait_synced(30 * SLOW)
        yield running


@pytest.fixture
def node(tracer: Tracer) -> Iterator[Node]:
    """The tracer and a place for cgroups."""
    node = Node(tracer)
    yield node
    node.remove()


@pytest.fixture
def folder() -> Iterator[str]:
    """A folder that everyone may enter."""
    with tempfile.TemporaryDirectory(prefix="podtracer-peers-") as name:
        os.chmod(name, 0o755)
        yield name


@pytest.fixture(params=["best", pytest.param("number", marks=pytest.mark.brisk)])
def server(request: pytest.FixtureRequest, tracer: Tracer, folder: str) -> Iterator[Server]:
    """A server that is not started yet, by the best way to tell peers that this kernel has, and by that of kernels
    before 6.5, which they take by themselves."""
    access = Access(GROUP, [frozenset({"k8s:ns:vault", "k8s:sa:admin"})])
    made = Server(tracer, f"{folder}/s.sock", access, status=dict, by_number=request.param == "number")
    yield made
    made.close()


def _ask(
    server: Server,
    op: str = "lookup",
    *,
    cgroup: Path | None = None,
    uid: int = 0,
    gid: int = 0,
    groups: tuple[int, ...] = (),
    **fields: Any,
) -> dict[str, Any]:
    words = [server.path, str(cgroup) if cgroup else None, uid, gid, groups, op, fields]
    run = subprocess.run(
        [sys.executable, "-c", ASKER, json.dumps(words)], capture_output=True, text=True, timeout=60 * SLOW, check=False
    )
    assert run.returncode == 0, run.stderr
    said: dict[str, Any] = json.loads(run.stdout)
    return said


def test_an_ordinary_user_may_ask_about_itself_only(server: Server) -> None:
    """A host process of a user is told who it is, and refused when it asks about PID 1."""
    server.start()
    found = _ask(server, uid=USER, gid=USER)
    assert (found["said"]["pid"], found["said"]["state"]) == (found["pid"], "host")
    assert _ask(server, uid=USER, gid=USER, pid=1)["code"] == "permission_denied"
    assert _ask(server, "ps", uid=USER, gid=USER)["code"] == "permission_denied"


def test_root_and_members_of_the_group_may_ask_about_others(server: Server) -> None:
    """On the host: root, a user whose group it is, and a user who has it as a supplementary group."""
    server.start()
    for who in ({}, {"uid": USER, "gid": GROUP}, {"uid": USER, "gid": USER, "groups": (1, GROUP)}):
        assert _ask(server, **who, pid=1)["said"]["pid"] == 1
    assert _ask(server, uid=USER, gid=USER, groups=(1, GROUP + 1), pid=1)["code"] == "permission_denied"


def test_a_pod_is_a_pod_whatever_its_user_and_group(server: Server, node: Node) -> None:
    """Root in a pod, and one with the socket's gid, own and supplementary, ask about themselves only."""
    server.start()
    cgroup = node.cgroup(CART.cgroup())
    for who in ({}, {"uid": USER, "gid": GROUP}, {"uid": USER, "gid": USER, "groups": (GROUP,)}):
        found = _ask(server, **who, cgroup=cgroup.procs)
        assert (found["said"]["pid"], found["said"]["pod"]) == (found["pid"], "cart-1")
        assert _ask(server, **who, cgroup=cgroup.procs, pid=1)["code"] == "permission_denied"


def test_a_pod_that_was_allowed_may_ask_about_others(server: Server, node: Node) -> None:
    """One with all selectors of a set is answered about others."""
    server.start()
    cgroup = node.cgroup(VICTIM.cgroup())
    assert _ask(server, uid=USER, gid=USER, cgroup=cgroup.procs, pid=1)["said"]["pid"] == 1


def test_a_pod_that_nobody_lists_is_a_pod(server: Server, node: Node) -> None:
    """Root in a container that is pending is refused."""
    server.start()
    cgroup = node.cgroup(FakePod("unlisted").cgroup())
    assert _ask(server, cgroup=cgroup.procs, pid=1)["code"] == "permission_denied"
    assert _ask(server, cgroup=cgroup.procs)["said"]["state"] == "pending"


# Connects, says something perhaps, hands the connection on, and ends.
HANDING_ON = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode())
socket.send_fds(socket.socket(fileno=0), [b"x"], [s.fileno()])
"""


def _handed_on(server: Server, before: str) -> tuple[socket.socket, int]:
    """A connection that a process made which has ended since, and that one's PID."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        child = subprocess.Popen([sys.executable, "-c", HANDING_ON, server.path, before], stdin=theirs)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        assert child.wait(60 * SLOW) == 0
    connection = socket.socket(fileno=fds[0])
    connection.settimeout(30 * SLOW)
    return connection, child.pid


def _refusal(lines: BinaryIO) -> dict[str, Any]:
    """The error of the next answer, which is a refusal."""
    said = json.loads(lines.readline())
    assert not said["ok"]
    assert said["error"]["code"] == "permission_denied"
    error: dict[str, Any] = said["error"]
    return error


@pytest.mark.parametrize("early", [False, True])
def test_whoever_has_the_number_of_an_ended_peer_is_not_taken_for_it(
    server: Server, node: Node, lab: Run, early: bool
) -> None:
    """A connection that was handed on by a process that ended never gets the identity of the pod's process that has
    its number now: accepted before the number was reused, or only after."""
    if not early:
        server.start()
    connection, pid = _handed_on(server, '{"id":0,"op":"lookup"}\n' if early else '{"id":0,"op":"version"}\n')
    with connection:
        if not early:
            assert b'"version"' in connection.recv(65536)
        victim = lab("with-pid", pid)
        assert victim.number() == pid
        node.cgroup(VICTIM.cgroup()).add(pid)
        until(lambda: node.tracer.lookup(pid).workload.pod == "victim-1", 10, "the victim to be known")
        if early:
            server.start()
        lines = connection.makefile("rb")
        nonce = _refusal(lines).get("nonce") if early else None
        for _ in range(3):
            connection.sendall(json.dumps({"id": 1, "op": "lookup", "nonce": nonce}).encode() + b"\n")
            nonce = _refusal(lines).get("nonce")
        lines.close()
    assert node.tracer.lookup(pid).state is State.RESOLVED
