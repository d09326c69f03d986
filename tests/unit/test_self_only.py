"""What a peer learns that may ask about itself only: its own, by the daemon's rules, and nothing of others."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.desk import CART, HOST, PENDING, FakeDesk
from tests.entries import AGENT, body, entry
from tests.waiting import until
from tracer import clock, explaining
from tracer.client import Client
from tracer.explanation import Step
from tracer.identity import entries, parity
from tracer.identity.explained import Explained
from tracer.identity.parity import Line, Located
from tracer.identity.pods import PodTable, decode_pod_list
from tracer.model import Cgroup, Identity, Process, ProcessKey, Source, State, Workload
from tracer.serve.access import Access
from tracer.serve.connection import FULL
from tracer.serve.socket import Server

OTHER = 1 << 22
MANY = 20000


class Peer:
    """A connection to the socket, spoken by hand."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")

    def send(self, *fds: int, **request: Any) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([json.dumps(request).encode() + b"\n"], rights)

    def line(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.lines.readline())
        return said

    def ask(self, *fds: int, **request: Any) -> dict[str, Any]:
        self.send(*fds, **request)
        return self.line()

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@pytest.fixture
def desk() -> FakeDesk:
    """Has this process in a pod, and one that is made up in another."""
    desk = FakeDesk()
    desk.made_up.add(OTHER)
    desk.workloads |= {os.getpid(): CART, OTHER: replace(CART, pod="victim")}
    return desk


@pytest.fixture
def server(desk: FakeDesk, tmp_path: Path) -> Iterator[Server]:
    """A server of it."""
    server = Server(desk, str(tmp_path / "s.sock"), Access(), status=lambda: {"pid": os.getpid()})
    server.start()
    yield server
    server.close()


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    """Asks."""
    peer = Peer(server.path)
    yield peer
    peer.close()


def as_host(desk: FakeDesk) -> None:
    desk.workloads[os.getpid()] = HOST


# ---- by whose rules ----


@pytest.mark.parametrize("about", [{}, {"pid": os.getpid()}, {"wait_ms": 5000}, {"pid": os.getpid(), "wait_ms": 5000}])
def test_whoever_asks_about_itself_only_gets_the_daemons_own_rules(
    desk: FakeDesk, peer: Peer, about: dict[str, Any]
) -> None:
    """Neither the mode nor what is left out is for it to choose, at once and after a wait; root of the host chooses."""
    how = {"mode": "parity", "container_selectors": False, "parity": True}
    assert peer.ask(id=1, op="lookup", **about, **how)["ok"]
    asked = [how for how in desk.asked if how != {"mode": "strict"}]
    assert all("mode" not in how for how in asked)
    assert asked[0] == {"parity": True}
    desk.asked.clear()
    as_host(desk)
    assert peer.ask(id=2, op="lookup", pid=OTHER, **how)["ok"]
    assert how in desk.asked


@pytest.mark.parametrize(
    ("workload", "leaves_out"), [(CART, True), (PENDING, False), (Workload(State.HOST, "sandbox"), False)]
)
def test_without_container_selectors_it_has_to_be_somebody_all_the_same(
    desk: FakeDesk, peer: Peer, workload: Workload, *, leaves_out: bool
) -> None:
    """Selectors are left out of an answer that the daemon's rules give; whom they do not resolve, its pod alone does
    not, as it would for whoever may ask about others."""
    desk.workloads[os.getpid()] = workload
    found = peer.ask(id=1, op="lookup", container_selectors=False)
    assert found["result"]["state"] == workload.state
    assert any(how.get("container_selectors") is False for how in desk.asked) is leaves_out


def test_it_is_explained_to_itself_without_others(desk: FakeDesk, peer: Peer) -> None:
    """By its number, or without one; whoever may ask about everyone gets all of it, of itself too."""
    assert peer.ask(id=1, op="explain", pid=os.getpid())["result"]["steps"] == ["its own"]
    assert peer.ask(id=2, op="explain", itself=True)["result"] == {"pid": os.getpid(), "steps": ["its own"]}
    as_host(desk)
    assert peer.ask(id=3, op="explain", itself=True)["result"]["steps"] == []
    for wrong in ({}, {"itself": True, "pid": 1}):
        assert peer.ask(id=4, op="explain", **wrong)["error"]["code"] == "bad_request"
    assert peer.ask(id=5, op="lookup", itself=True)["error"]["code"] == "bad_request"


def test_an_error_inside_is_told_to_it_without_its_words(desk: FakeDesk, peer: Peer) -> None:
    """A caller that may ask about itself only does not get the words of an exception; root of the host does."""

    def fails(_pid: int, **_how: Any) -> Any:
        raise KeyError("victim")

    desk.explain_record = fails  # type: ignore[method-assign]
    assert "victim" not in peer.ask(id=1, op="explain", itself=True)["error"]["message"]
    as_host(desk)
    assert "victim" in peer.ask(id=2, op="explain", itself=True)["error"]["message"]


# ---- whoever becomes a pod while it is answered ----


@pytest.mark.parametrize("about", [{"pids": [OTHER]}, {"container_id": "cd" * 32}])
def test_whoever_becomes_a_pod_while_it_waits_is_not_told_of_others(
    desk: FakeDesk, server: Server, peer: Peer, about: dict[str, Any]
) -> None:
    """A caller that waits for an answer about others is refused if it may not ask any more when the answer comes."""
    as_host(desk)
    desk.workloads[OTHER] = PENDING
    peer.send(id=1, op="lookup", wait_ms=60000, **about)
    until(lambda: len(server.operations.waits) == 1, 10, "the wait")
    desk.workloads |= {os.getpid(): CART, OTHER: replace(CART, pod="victim")}
    desk.containers["cd" * 32] = desk.workloads[OTHER]
    server.news()
    assert peer.line()["error"]["code"] == "permission_denied"
    assert len(server.operations.waits) == 0


@pytest.mark.parametrize("end", ["answered", "refused", "ended", "cancelled", "hung up"])
def test_whoever_waits_for_a_pidfd_is_not_told_either(desk: FakeDesk, server: Server, peer: Peer, end: str) -> None:
    """And the copy of the descriptor that waits is closed, however the wait ends."""
    as_host(desk)
    with subprocess.Popen(["sleep", "100"]) as child:
        fd = os.pidfd_open(child.pid)
        try:
            desk.workloads[child.pid] = PENDING
            assert peer.ask(id=0, op="status")["ok"]  # from here on its descriptors are taken
            until(lambda: _copies(fd) == 1, 10, "no copy of it")
            peer.send(fd, id=1, op="lookup", wait_ms=60000)
            until(lambda: len(server.operations.waits) == 1, 10, "the wait")
            until(lambda: _copies(fd) == 2, 10, "a copy of it")
            if end == "answered":
                desk.workloads[child.pid] = CART
                server.news()
                assert peer.line()["result"]["pid"] == child.pid
            elif end == "refused":
                desk.workloads |= {os.getpid(): CART, child.pid: CART}
                server.news()
                assert peer.line()["error"]["code"] == "permission_denied"
            elif end == "ended":
                child.kill()
                child.wait()
                server.news()
                assert peer.line()["result"]["state"] == "gone"
            elif end == "cancelled":
                peer.send(id=2, op="cancel", of=1)
                assert [peer.line()["id"], peer.line()["id"]] == [1, 2]
            else:
                peer.close()
            until(lambda: _copies(fd) == 1, 10, "the copy to be closed")
        finally:
            os.close(fd)
            child.kill()


def _copies(fd: int) -> int:
    """How many descriptors are open here for the process behind this pidfd."""
    inode, found = os.fstat(fd).st_ino, 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.fstat(int(name)).st_ino == inode
    return found


@pytest.mark.parametrize("request_", [{"op": "ps"}, {"op": "lookup", "pids": [OTHER] * 1000}])
def test_a_list_breaks_off_when_its_reader_becomes_a_pod(
    desk: FakeDesk, server: Server, peer: Peer, request_: dict[str, Any]
) -> None:
    """A slow reader of a long list, who is a pod by then, gets the end of its connection and not the rest."""
    as_host(desk)
    desk.made_up |= set(range(OTHER, OTHER + MANY))
    desk.workloads |= dict.fromkeys(range(OTHER, OTHER + MANY), CART)
    peer.send(id=1, **request_)
    assert peer.socket.recv(10)
    until(
        lambda: any(each.is_full for each in server._connections.values()),
        10,
        "all to be written that there is room for",
    )
    desk.workloads[os.getpid()] = CART
    rest = b""
    while data := peer.socket.recv(1 << 20):
        rest += data
    assert not rest.endswith(b"]}\n")
    assert len(rest) < 4 * FULL
    until(lambda: server.connections == 0, 10, "the end of the connection")


# ---- descriptors ----


def _kinds(stack: ExitStack, folder: Path) -> Iterator[int]:
    """A descriptor of each kind that is not a pidfd."""
    yield stack.enter_context(open(os.devnull)).fileno()  # noqa: SIM115
    yield stack.enter_context(open(folder / "file", "w+")).fileno()  # noqa: SIM115
    folder_fd = os.open(folder, os.O_RDONLY)
    path_fd = os.open(folder, os.O_PATH)
    ours, theirs = os.pipe()
    for fd in (folder_fd, path_fd, ours, theirs, os.eventfd(0), os.memfd_create("Pid:1")):
        stack.callback(os.close, fd)
        yield fd
    yield stack.enter_context(select.epoll()).fileno()
    yield from (each.fileno() for each in map(stack.enter_context, socket.socketpair()))


@pytest.mark.parametrize("op", ["lookup", "explain"])
def test_a_descriptor_that_is_no_pidfd_is_an_error_and_none_is_left(
    desk: FakeDesk, server: Server, peer: Peer, tmp_path: Path, op: str
) -> None:
    """Files, pipes, sockets, polls: each gets an error that says so, several at once too, and one beside a PID; all
    are closed, and the next request is answered."""
    as_host(desk)
    assert peer.ask(id=0, op="status")["ok"]  # from here on its descriptors are taken
    with ExitStack() as stack:
        fds = list(_kinds(stack, tmp_path))
        before = len(os.listdir("/proc/self/fd"))
        for number, fd in enumerate(fds):
            said = peer.ask(fd, id=number, op=op)
            assert (said["id"], said["error"]["code"]) == (number, "bad_request")
            assert "not a pidfd" in said["error"]["message"]
        own = os.pidfd_open(os.getpid())
        stack.callback(os.close, own)
        for several in ([own] * 2, fds[:4], [own] * 8, [own] * 40):
            assert peer.ask(*several, id=1, op=op)["error"]["code"] == "bad_request"
        assert peer.ask(own, id=1, op=op, pid=1)["error"]["code"] == "bad_request"
        assert peer.ask(own, id=2, op=op)["result"]["pid"] == os.getpid()
        until(lambda: len(os.listdir("/proc/self/fd")) == before + 1, 10, "all to be closed")


@pytest.mark.parametrize("op", ["lookup", "explain"])
def test_a_pidfd_of_who_has_ended_is_nobodys(desk: FakeDesk, peer: Peer, op: str) -> None:
    """A pidfd of an ended process gets no answer about a process that has its PID by then."""
    as_host(desk)
    assert peer.ask(id=0, op="status")["ok"]  # from here on its descriptors are taken
    child = subprocess.Popen(["true"])
    fd = os.pidfd_open(child.pid)
    try:
        child.wait()
        said = peer.ask(fd, id=1, op=op)["result"]
        assert not said["pid"]
    finally:
        os.close(fd)


def test_a_descriptor_that_is_not_open_is_an_error_of_the_client(desk: FakeDesk, server: Server) -> None:
    """At once, and the connection goes on."""
    as_host(desk)
    fd = os.pidfd_open(os.getpid())
    os.close(fd)
    with Client(server.path) as client:
        with pytest.raises(OSError, match="Bad file descriptor"):
            client.lookup(pidfd=fd)
        assert client.lookup().key.pid == os.getpid()


def test_a_child_that_asks_over_its_parents_connection_is_not_taken_for_it(desk: FakeDesk, server: Server) -> None:
    """The daemon knows who connected: a child's question about itself is sent with its number."""
    as_host(desk)
    with Client(server.path) as client:
        assert client.lookup(os.getpid()).key.pid == os.getpid()
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            found = client.lookup(os.getpid()).key.pid
            os.write(theirs, str(found).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert int(os.read(ours, 20)) == child
        os.close(ours)
        os.close(theirs)


# ---- what an explanation of oneself tells ----

VICTIM_ID, OWN_ID = "ab" * 32, "cd" * 32
PODS = {
    "kind": "PodList",
    "items": [
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-of-{name}", "labels": {"secret": name}},
            "spec": {"serviceAccountName": name, "containers": [{"name": "app", "image": f"{name}:1"}]},
            "status": {
                "containerStatuses": [
                    {"name": "app", "image": f"{name}:1", "imageID": "i", "containerID": f"containerd://{container}",
                     "state": {"running": {}}}
                ]
            },
        }
        for name, namespace, container in (("victim", "vault", VICTIM_ID), ("cart", "shop", OWN_ID))
    ],
}  # fmt: skip
ENTRIES = entries.decode(
    body(
        entry("/cart", "k8s:ns:shop"),
        entry("/victim", "k8s:ns:shop", "k8s:sa:victim"),
        entry("/undecided", "k8s:ns:shop", "unix:path:/bin/victim"),
    )
)
SELECTORS = ("k8s:ns:shop", "k8s:sa:cart")


def _explained(named: tuple[str, str], state: State = State.RESOLVED, mode: Any = "strict") -> Explained:
    """The cart, whose files name this pod and container."""
    uid, container = named
    path = f"/kubepods/poduid-of-cart/{OWN_ID}/pod{uid}/{container}"
    answer = Located(uid, container, (Line("cgroup", 1, path, container, uid, "taken"),), "cgroup")
    workload = Workload(
        state, pod_uid="uid-of-cart", container_id=OWN_ID, namespace="shop", pod="cart",
        selectors=SELECTORS if state is State.RESOLVED else (),
    )  # fmt: skip
    table = PodTable.build(decode_pod_list(json.dumps(PODS).encode()).pods)
    outcome = parity.attest(answer, table, disable_container_selectors=False)
    process = Process(1, "cart", 1, Source.EXEC, 1)
    same = parity.is_same(workload, answer)
    identity = Identity(ProcessKey(7, 8), 7, workload, Cgroup(1, path), process, 1, mode, same)
    return Explained(identity, workload, answer, outcome, "v2", "/kubepods", None, 2, 0, "kubelet")


def _told(found: Explained, *, of_itself: bool) -> dict[str, Any]:
    said = explaining.record(found, clock.read(), of_itself=of_itself)
    explaining.compare(said, ENTRIES, None, "entries.json", 0.0, of_itself=of_itself)
    return said


OWN, VICTIM = ("uid-of-cart", OWN_ID), ("uid-of-victim", VICTIM_ID)


def test_near_misses_are_for_who_may_ask_about_everyone() -> None:
    """Entries that do not match have SPIFFE IDs and selectors of others, in JSON and in words; what matches is said."""
    said = _told(_explained(OWN), of_itself=True)
    assert [match["id"] for match in said["entries"]["matched"]] == ["cart"]
    assert said["entries"]["near"] == said["entries"]["undecided"] == []
    assert "near_left_out" not in said["entries"]
    assert "/victim" not in json.dumps(said)
    assert "/undecided" not in json.dumps(said)
    everything = _told(_explained(OWN), of_itself=False)
    assert [near["id"] for near in everything["entries"]["near"]] == ["victim"]
    assert [each["id"] for each in everything["entries"]["undecided"]] == ["undecided"]
    assert "/victim" in json.dumps(everything["steps"])
    assert AGENT in json.dumps(everything)


@pytest.mark.parametrize("state", [State.RESOLVED, State.PENDING, State.UNKNOWN, State.HOST])
def test_what_spire_makes_of_forged_files_is_not_told_to_who_forged_them(state: State) -> None:
    """Whoever nests a cgroup called like a victim's does not read the victim's selectors and names as SPIRE's answer;
    it is told that SPIRE's rules differ. Who may ask about everyone sees what SPIRE would answer."""
    said = _told(_explained(VICTIM, state), of_itself=True)
    text = json.dumps(said)
    assert "k8s:sa:victim" not in text
    assert "secret" not in text
    assert "vault" not in text
    assert said["parity_answer"]["selectors"] is None
    assert said["parity_answer"]["container_id"] == VICTIM_ID  # as its own files say
    assert said["parity"] in (False, None)
    assert "k8s:sa:victim" in json.dumps(_told(_explained(VICTIM, state), of_itself=False))


def test_an_id_that_is_used_and_not_given_tells_nothing() -> None:
    """Whose cgroup and files both use a listed ID, and who is not resolved, is not told what SPIRE would answer."""
    said = _told(_explained(OWN, State.UNKNOWN), of_itself=True)
    assert said["parity"] is True
    assert said["parity_answer"]["selectors"] is None
    assert "secret" not in json.dumps(said)


def test_ones_own_answer_is_told_whole() -> None:
    """Where both rules give its own container, and in a daemon's parity mode, SPIRE's answer is its own."""
    for found in (_explained(OWN), _explained(VICTIM, mode="parity")):
        assert _told(found, of_itself=True)["parity_answer"] == _told(found, of_itself=False)["parity_answer"]


def test_how_many_pods_the_node_has_is_not_told() -> None:
    """The list has an age and a source for everyone, a size for who may ask about everyone."""

    def pods(*, of_itself: bool) -> str:
        steps = map(Step.of_dict, _told(_explained(OWN), of_itself=of_itself)["steps"])
        return next(step.lines[0] for step in steps if step.title == "Pod data")

    assert pods(of_itself=True).startswith("the newest list is from kubelet, fetched")
    assert pods(of_itself=False).startswith("the newest list has 2 pods, from kubelet, fetched")
