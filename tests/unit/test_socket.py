"""The daemon's socket: each request is answered, whatever comes, and nobody keeps the others waiting."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.desk import CART, HOST, PENDING, FakeDesk
from tests.waiting import until
from tracer import clock
from tracer.client import Client
from tracer.errors import MissingError
from tracer.model import Event, Identity, ProcessKey, State, Workload
from tracer.protocol import MAX_LINE
from tracer.serve.access import Access
from tracer.serve.socket import Server

OTHER = 1 << 22  # a PID beyond every kernel's, for processes that are made up
ALLOWED = Access(allowed=[frozenset(CART.selectors[:2])])


class Peer:
    """A connection to the socket, spoken by hand."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        with suppress(BrokenPipeError):
            self.socket.sendall(data)

    def ask(self, **request: Any) -> None:
        self.send(json.dumps(request).encode() + b"\n")

    def line(self) -> dict[str, Any] | None:
        """The next line; ``None`` at the end."""
        with suppress(ConnectionResetError):
            if line := self._file.readline():
                said: dict[str, Any] = json.loads(line)
                return said
        return None

    def answer(self, **request: Any) -> dict[str, Any]:
        self.ask(**request)
        said = self.line()
        assert said is not None
        return said

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def desk() -> FakeDesk:
    """Knows this process as one of the host, and one that is made up."""
    desk = FakeDesk()
    desk.made_up.add(OTHER)
    desk.workloads[OTHER] = CART
    return desk


class Served:
    """A server of a desk, and those who are connected to it."""

    def __init__(self, desk: FakeDesk, path: Path) -> None:
        self.desk = desk
        self.path = str(path)
        self.access = Access()
        self._opened = ExitStack()
        self.server: Server | None = None

    def start(self, access: Access | None = None, **more: Any) -> Server:
        self.server = Server(
            self.desk, self.path, access or self.access, status=lambda: {"pid": os.getpid()}, **more
        )  # fmt: skip
        self.server.start()
        return self.server

    def peer(self) -> Peer:
        if self.server is None:
            self.start()
        peer = Peer(self.path)
        self._opened.callback(peer.close)
        return peer

    def close(self) -> None:
        self._opened.close()
        if self.server is not None:
            self.server.close()


@pytest.fixture
def served(desk: FakeDesk, tmp_path: Path) -> Iterator[Served]:
    """A server, started with the first peer."""
    served = Served(desk, tmp_path / "s.sock")
    yield served
    served.close()


def as_pod(desk: FakeDesk, workload: Workload = CART) -> None:
    """From now on this process is in a pod."""
    desk.workloads[os.getpid()] = workload


# ---- who may ask ----


def test_root_of_the_host_may_ask_about_everyone(served: Served) -> None:
    """A host process of root gets the identity of another process, and its id back."""
    said = served.peer().answer(id="x7", op="lookup", pid=OTHER)
    assert (said["id"], said["ok"]) == ("x7", True)
    assert (said["result"]["pid"], said["result"]["state"], said["result"]["pod"]) == (OTHER, "resolved", "cart-7d9f")


@pytest.mark.parametrize(
    "workload",
    [
        CART,
        PENDING,
        Workload(State.UNKNOWN, "conflict"),
        Workload(State.HOST, "sandbox"),
        Workload(State.HOST, "pod_cgroup"),
    ],
)
@pytest.mark.parametrize(
    "request_",
    [
        {"op": "lookup", "pid": OTHER},
        {"op": "lookup", "pids": [OTHER]},
        {"op": "lookup", "container_id": CART.container_id},
        {"op": "ps"},
        {"op": "watch"},
        {"op": "status"},
        {"op": "explain", "pid": OTHER},
    ],
)
def test_root_in_a_pod_may_not_ask_about_others(
    desk: FakeDesk, served: Served, workload: Workload, request_: dict[str, Any]
) -> None:
    """Whoever is not known to be a process of the host, outside all pods, is refused, whatever its uid."""
    as_pod(desk, workload)
    said = served.peer().answer(id=1, **request_)
    assert (said["ok"], said["error"]["code"]) == (False, "permission_denied")
    assert said["error"]["hint"]


@pytest.mark.parametrize("words", [{}, {"pid": os.getpid()}])
def test_anyone_may_ask_about_itself(desk: FakeDesk, served: Served, words: dict[str, Any]) -> None:
    """A pod's process gets its own identity, with its number or without."""
    as_pod(desk)
    said = served.peer().answer(id=1, op="lookup", **words)
    assert (said["result"]["pid"], said["result"]["pod"]) == (os.getpid(), "cart-7d9f")


def test_a_pod_whose_selectors_are_allowed_may_ask(desk: FakeDesk, served: Served) -> None:
    """A pod that has all selectors of a set is answered, one that lacks any of them is not."""
    as_pod(desk)
    served.start(ALLOWED)
    assert served.peer().answer(id=1, op="lookup", pid=OTHER)["ok"]
    as_pod(desk, replace(CART, selectors=CART.selectors[:1]))
    assert served.peer().answer(id=1, op="lookup", pid=OTHER)["error"]["code"] == "permission_denied"


def test_who_becomes_a_pod_is_a_pod_for_its_next_request(desk: FakeDesk, served: Served) -> None:
    """What a peer may is decided at each request, by where the pinned process is then."""
    peer = served.peer()
    assert peer.answer(id=1, op="lookup", pid=OTHER)["ok"]
    as_pod(desk)
    assert not peer.answer(id=2, op="lookup", pid=OTHER)["ok"]


def test_an_ended_peer_is_nobody(desk: FakeDesk, served: Served) -> None:
    """Who holds the descriptor of a process that has ended gets no answer about whoever has its number then."""
    served.start()
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "socket.send_fds(socket.socket(fileno=0), [b'x'], [s.fileno()])"
    )
    subprocess.run(["python3", "-c", code, served.path], stdin=theirs, check=True)
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=fds[0]) as handed_on, ours, theirs:
        handed_on.settimeout(20)
        for line in (b'{"id":1,"op":"lookup"}\n', b'{"id":2,"op":"lookup","pid":%d}\n' % OTHER):
            handed_on.sendall(line)
            said = json.loads(handed_on.recv(65536))
            assert said["error"]["code"] == "permission_denied"


def test_who_a_peer_is_is_told_by_the_strict_rule(desk: FakeDesk, served: Served) -> None:
    """Whatever the mode of the daemon, by whose rules root of a pod may look like root of the host."""
    strict, by_files = CART, HOST
    found = desk.lookup

    def lookup(pid: int, **how: Any) -> Identity:
        as_pod(desk, strict if how.get("mode") == "strict" else by_files)
        return found(pid, **how)

    desk.lookup = lookup  # type: ignore[method-assign]
    assert served.peer().answer(id=1, op="lookup", pid=OTHER)["error"]["code"] == "permission_denied"


def test_who_asks_about_itself_by_number_never_gets_another_of_that_number(desk: FakeDesk, served: Served) -> None:
    """Not even when the number is another's as soon as the question was let pass, nor after a wait."""
    as_pod(desk, PENDING)
    peer = served.peer()
    peer.ask(id=1, op="lookup", pid=os.getpid(), wait_ms=60000)
    assert peer.answer(id=2, op="version")["ok"]
    found, mine = desk.lookup, os.getpid()

    def reused(pid: int, **how: Any) -> Identity:
        return found(OTHER, **how)._replace(key=ProcessKey(pid, 7), asked=pid) if pid == mine else found(pid, **how)

    desk.lookup = reused  # type: ignore[method-assign]
    assert served.server is not None
    served.server.news()
    said = peer.line()
    assert said is not None
    assert said["result"]["state"] == "gone"
    assert peer.answer(id=3, op="lookup", pid=mine)["error"]["code"] == "permission_denied"


def test_a_watch_ends_when_its_peer_may_not_watch_any_more(desk: FakeDesk, served: Served) -> None:
    """Whoever becomes a pod gets no more events of others."""
    peer = served.peer()
    assert peer.answer(id=1, op="watch")["event"]["event"] == "synced"
    stream = desk.streams[0]
    as_pod(desk)
    stream.events.append(Event("exec", clock.boottime(), desk.lookup(OTHER)))
    stream.on_event()
    said = peer.line()
    assert said is not None
    assert (said["id"], said["error"]["code"]) == (1, "permission_denied")
    assert stream.is_closed


# ---- bad input ----


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"hello", "bad_request"),
        (b"", "bad_request"),
        (b'{"id":1,"op":"lookup"', "bad_request"),
        (b"\xff\xfe", "bad_request"),
        (b"[" * 60000, "bad_request"),
        (b'{"id":1,"op":"' + b"x" * MAX_LINE + b'"}', "too_large"),
    ],
)
def test_a_line_that_is_none_is_answered_then_the_connection_is_closed(served: Served, line: bytes, code: str) -> None:
    """What is no JSON, or longer than 64 KiB, gets an error, and what was asked before it its answer."""
    peer = served.peer()
    peer.send(b'{"id":0,"op":"version"}\n' + line + b"\n")
    first, second = peer.line(), peer.line()
    assert first is not None
    assert second is not None
    assert (first["id"], first["ok"]) == (0, True)
    assert (second["ok"], second["error"]["code"]) == (False, code)
    assert peer.line() is None


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({"op": "dance"}, "unknown_op"),
        ({}, "bad_request"),
        ({"op": 7}, "bad_request"),
        ({"op": "lookup", "pid": "4321"}, "bad_request"),
        ({"op": "lookup", "pid": -1}, "bad_request"),
        ({"op": "lookup", "pid": 0}, "bad_request"),
        ({"op": "lookup", "pid": True}, "bad_request"),
        ({"op": "lookup", "pid": 1.5}, "bad_request"),
        ({"op": "lookup", "pid": None, "pids": [1, -2]}, "bad_request"),
        ({"op": "lookup", "pids": 3}, "bad_request"),
        ({"op": "lookup", "pids": [1] * 1001}, "too_large"),
        ({"op": "lookup", "pid": 1, "container_id": "x"}, "bad_request"),
        ({"op": "lookup", "pid": 1, "wait_ms": -5}, "bad_request"),
        ({"op": "lookup", "pid": 1, "wait_ms": 1e300}, "bad_request"),
        ({"op": "lookup", "pid": 1, "mode": "lenient"}, "bad_request"),
        ({"op": "explain"}, "bad_request"),
    ],
)
def test_a_wrong_request_is_told_so_and_the_next_one_answered(served: Served, words: dict[str, Any], code: str) -> None:
    """Unknown operations, wrong types and numbers that are no PID get an error with their id; the connection stays."""
    peer = served.peer()
    said = peer.answer(id=5, **words)
    assert (said["id"], said["ok"], said["error"]["code"]) == (5, False, code)
    assert peer.answer(id=6, op="version")["ok"]


@pytest.mark.parametrize("line", [b'{"id":"\\ud800","op":"version"}', b'{"id":"\xed\xa0\x80","op":5}'])
def test_an_id_that_is_no_text_is_answered(served: Served, line: bytes) -> None:
    """Half a surrogate pair, which UTF-8 cannot write, is said back as it came; the next request is answered."""
    peer = served.peer()
    peer.send(line + b"\n")
    said = peer.line()
    assert said is not None
    assert said["id"] in ("\ud800", None)
    assert said["error"]["code"] == "bad_request"
    assert peer.answer(id=2, op="version")["ok"]


def test_a_pid_that_no_kernel_has_is_gone(served: Served) -> None:
    """A number beyond every PID is that of no process, alone and among others."""
    peer = served.peer()
    for huge in (2**31, 2**32 + OTHER, 2**62, 10**30):
        assert peer.answer(id=1, op="lookup", pid=huge)["result"]["state"] == "gone"
        states = [each["state"] for each in peer.answer(id=2, op="lookup", pids=[OTHER, huge])["result"]]
        assert states == ["resolved", "gone"]


def test_an_error_inside_is_told_and_logged(desk: FakeDesk, served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """A request that fails in a way nobody thought of is answered, and the next one too."""
    desk.explain_record = lambda _pid: 1 // 0  # type: ignore[assignment,method-assign]
    peer = served.peer()
    said = peer.answer(id=3, op="explain", pid=OTHER)
    assert (said["id"], said["error"]["code"]) == (3, "internal")
    assert "ZeroDivisionError" in caplog.text
    assert peer.answer(id=4, op="version")["ok"]


def test_untrusted_text_is_written_in_ascii(desk: FakeDesk, served: Served) -> None:
    """Controls beyond ASCII, which a terminal may obey, are escaped."""
    desk.workloads[OTHER] = replace(CART, pod="\x9b31m\u202eevil")
    peer = served.peer()
    peer.ask(id=1, op="lookup", pid=OTHER)
    raw = peer.socket.recv(65536)
    assert raw.isascii()
    assert json.loads(raw)["result"]["pod"] == "\x9b31m\u202eevil"


# ---- streams of requests ----


def test_requests_may_be_sent_ahead_and_before_a_half_close(served: Served) -> None:
    """A thousand lines sent at once, the last without an end, are all answered after the peer has closed its half."""
    peer = served.peer()
    lines = [b'{"id":%d,"op":"lookup","pid":%d}' % (number, OTHER) for number in range(1000)]
    peer.send(b"\n".join(lines))
    peer.socket.shutdown(socket.SHUT_WR)
    ids = []
    while (said := peer.line()) is not None:
        assert said["result"]["pod"] == "cart-7d9f"
        ids.append(said["id"])
    assert ids == list(range(1000))


def test_a_line_may_come_byte_by_byte(served: Served) -> None:
    """A request is one however it is cut."""
    peer = served.peer()
    for byte in b'{"id":1,"op":"version"}\n':
        peer.send(bytes([byte]))
    said = peer.line()
    assert said is not None
    assert said["ok"]


def test_who_never_reads_keeps_nobody_waiting(desk: FakeDesk, served: Served) -> None:
    """While one peer asks for ever and takes nothing, what waits for it is bounded, and another one is answered."""
    greedy, modest = served.peer(), served.peer()
    greedy.socket.settimeout(0.2)
    with suppress(TimeoutError):
        while True:
            greedy.socket.sendall(b'{"id":1,"op":"lookup","pid":%d}\n' % OTHER * 100)
    assert modest.answer(id=2, op="lookup", pid=OTHER)["ok"]
    assert served.server is not None
    held = max(len(connection.out) for connection in served.server._connections.values())
    assert held < 1 << 20


def test_those_who_asked_for_much_take_turns(desk: FakeDesk, served: Served) -> None:
    """Three connections have sent more than is answered in one turn: nobody is done before all had a second one."""
    served.start()
    peers = [served.peer() for _ in range(3)]
    asked: list[int] = []
    began, lookup = threading.Event(), desk.lookup

    def note(pid: int, **how: Any) -> Any:
        if pid == OTHER:
            began.wait(20)  # until all have sent all
        elif pid > OTHER:
            asked.append(pid - OTHER)
        return lookup(pid, **how)

    desk.lookup = note  # type: ignore[method-assign]
    holder = served.peer()
    holder.ask(id=1, op="lookup", pid=OTHER)
    for number, peer in enumerate(peers, 1):
        desk.made_up.add(OTHER + number)
        desk.workloads[OTHER + number] = CART
        peer.send(b'{"id":1,"op":"lookup","pid":%d}\n' % (OTHER + number) * 128)
    began.set()
    for peer in peers:
        for _ in range(128):
            assert peer.line()
    first_done = min(len(asked) - asked[::-1].index(number) for number in (1, 2, 3))
    assert all(asked[:first_done].count(number) > 32 for number in (1, 2, 3))


def test_a_list_that_fails_ends_its_connection_only(
    desk: FakeDesk, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a line cannot be taken back: who asked sees the end of the connection, and others are answered."""
    other, peer = served.peer(), served.peer()
    assert other.answer(id=1, op="version")["ok"]
    lookup = desk.lookup

    def fails(pid: int, **how: Any) -> Any:
        if pid == OTHER:
            raise RuntimeError("no table")
        return lookup(pid, **how)

    desk.lookup = fails  # type: ignore[method-assign]
    peer.ask(id=2, op="lookup", pids=[OTHER, OTHER])
    with suppress(json.JSONDecodeError):
        assert peer.line() is None
    assert other.answer(id=2, op="version")["ok"]
    assert "serving a connection failed" in caplog.text


def test_a_long_list_is_made_while_others_are_answered(desk: FakeDesk, served: Served) -> None:
    """The list of 20,000 processes comes whole, and a request that came after it is answered before its end."""
    desk.made_up |= set(range(OTHER, OTHER + 20000))
    desk.workloads |= dict.fromkeys(range(OTHER, OTHER + 20000), CART)
    many, one = served.peer(), served.peer()
    many.ask(id=1, op="ps")
    assert many.socket.recv(10)
    assert one.answer(id=2, op="lookup", pid=OTHER)["ok"]
    data = b""  # the first ten bytes are read already
    while not data.endswith(b"]}\n"):
        data += many.socket.recv(1 << 20)
    assert data.count(b'"cart-7d9f"') == 20000


# ---- waits ----


def _news(served: Served, desk: FakeDesk, workload: Workload) -> None:
    desk.workloads[OTHER] = workload
    assert served.server is not None
    served.server.news()


def test_a_pending_answer_is_waited_for(desk: FakeDesk, served: Served) -> None:
    """A look-up that may wait is answered when its process is known, and others meanwhile."""
    desk.workloads[OTHER] = PENDING
    peer = served.peer()
    peer.ask(id=1, op="lookup", pid=OTHER, wait_ms=60000)
    assert peer.answer(id=2, op="version")["id"] == 2
    _news(served, desk, CART)
    said = peer.line()
    assert said is not None
    assert (said["id"], said["result"]["state"]) == (1, "resolved")


def test_a_wait_that_is_over_is_answered_as_it_stands(desk: FakeDesk, served: Served) -> None:
    """Pending after its time is pending."""
    desk.workloads[OTHER] = PENDING
    assert served.peer().answer(id=1, op="lookup", pid=OTHER, wait_ms=30)["result"]["state"] == "pending"


def test_images_that_may_still_change_are_waited_for(desk: FakeDesk, served: Served) -> None:
    """With settled_wait_ms an answer comes when it is settled, or at the end of that time as it is."""
    desk.workloads[OTHER] = replace(CART, settled=False)
    peer = served.peer()
    assert peer.answer(id=1, op="lookup", pid=OTHER, settled_wait_ms=30)["result"]["settled"] is False
    peer.ask(id=2, op="lookup", pid=OTHER, wait_ms=60000, settled_wait_ms=60000)
    assert peer.answer(id=3, op="version")["ok"]
    _news(served, desk, CART)
    said = peer.line()
    assert said is not None
    assert (said["id"], said["result"]["settled"]) == (2, True)


def test_a_wait_can_be_cancelled(desk: FakeDesk, served: Served) -> None:
    """Cancelled, a look-up is answered at once as it stands; what does not wait cannot be cancelled."""
    desk.workloads[OTHER] = PENDING
    peer = served.peer()
    peer.ask(id=1, op="lookup", pid=OTHER, wait_ms=60000)
    peer.ask(id=2, op="cancel", of=1)
    found = [peer.line(), peer.line()]
    assert [said["id"] for said in found if said] == [1, 2]
    assert [said["result"].get("state", said["result"].get("cancelled")) for said in found if said] == ["pending", True]
    assert peer.answer(id=3, op="cancel", of=1)["result"] == {"cancelled": False}


def test_hundreds_of_waits_hold_nobody_up(desk: FakeDesk, served: Served) -> None:
    """While 500 look-ups wait, each news is taken in and another one is answered; then all 500 are."""
    desk.workloads[OTHER] = PENDING
    peer, other = served.peer(), served.peer()
    for number in range(500):
        peer.ask(id=number, op="lookup", pid=OTHER, wait_ms=60000)
    assert peer.answer(id="last", op="version")["ok"]
    assert served.server is not None
    served.server.news()
    assert other.answer(id=1, op="lookup", pid=os.getpid())["ok"]
    assert len(served.server.operations.waits) == 500
    _news(served, desk, CART)
    assert {said["id"] for _ in range(500) if (said := peer.line()) is not None} == set(range(500))


def test_waits_are_bounded_for_each_connection(desk: FakeDesk, served: Served) -> None:
    """More than 1,024 waiting requests of one connection are refused, and so is an id that waits already."""
    desk.workloads[OTHER] = PENDING
    peer = served.peer()
    for number in range(1024):
        peer.ask(id=number, op="lookup", pid=OTHER, wait_ms=60000)
    assert peer.answer(id=0, op="lookup", pid=OTHER, wait_ms=60000)["error"]["code"] == "bad_request"
    assert peer.answer(id=1024, op="lookup", pid=OTHER, wait_ms=60000)["error"]["code"] == "too_large"


def test_who_may_ask_about_itself_only_has_few_waits(desk: FakeDesk, served: Served) -> None:
    """Anyone may open connections: what all of them wait for together stays small."""
    as_pod(desk, PENDING)
    peer = served.peer()
    for number in range(16):
        peer.ask(id=number, op="lookup", wait_ms=60000)
    assert peer.answer(id=16, op="lookup", wait_ms=60000)["error"]["code"] == "too_large"


def test_a_wait_that_fails_is_answered_once(desk: FakeDesk, served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """At once or later, with an error; nothing is waited or looked for any more."""
    container, lookup = "cd" * 32, desk.lookup_container
    peer = served.peer()
    peer.ask(id=1, op="lookup", container_id=container, wait_ms=60000)
    until(lambda: desk.wanted[container] == 1, 10, "it to be wanted")

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no table")

    desk.lookup_container = fails  # type: ignore[method-assign]
    for number in (1, 2):
        if number == 2:
            peer.ask(id=2, op="lookup", container_id=container, wait_ms=60000)
        said = peer.line()
        assert said is not None
        assert (said["id"], said["error"]["code"]) == (number, "internal")
    desk.lookup_container = lookup  # type: ignore[method-assign]
    assert desk.wanted[container] == 0
    assert served.server is not None
    assert len(served.server.operations.waits) == 0
    assert caplog.text.count("a request failed") == 2


def test_a_container_is_looked_for_while_somebody_waits(desk: FakeDesk, served: Served) -> None:
    """The sources are told to look for it, and told when nobody waits any more: answered, over, or hung up."""
    peer, other = served.peer(), served.peer()
    peer.ask(id=1, op="lookup", container_id="cd" * 32, wait_ms=60000)
    other.ask(id=1, op="lookup", container_id="cd" * 32, wait_ms=60000)
    until(lambda: desk.wanted["cd" * 32] == 2, 10, "both to be wanted")
    other.close()
    until(lambda: desk.wanted["cd" * 32] == 1, 10, "the end of one")
    desk.containers["cd" * 32] = CART
    assert served.server is not None
    served.server.news()
    said = peer.line()
    assert said is not None
    assert (said["result"]["pod"], said["result"]["pid"]) == ("cart-7d9f", None)
    until(lambda: desk.wanted["cd" * 32] == 0, 10, "the end of the other")


# ---- which process is meant ----


def test_another_process_of_the_same_number_is_gone(served: Served) -> None:
    """With the inode of the pidfd, or the start, of the process that is meant, whoever else has its number is gone."""
    peer = served.peer()
    right = peer.answer(id=1, op="lookup", pid=OTHER, pidfd_ino=OTHER + 1000)["result"]
    assert right["state"] == "resolved"
    assert peer.answer(id=2, op="lookup", pid=OTHER, pidfd_ino=7)["result"]["state"] == "gone"
    assert peer.answer(id=3, op="lookup", pid=OTHER, start_time=right["start_time"])["result"]["state"] == "resolved"
    assert peer.answer(id=4, op="lookup", pid=OTHER, start_time="2020-01-01T00:00:00Z")["result"]["state"] == "gone"


@pytest.mark.parametrize("seconds", [1.0, -1.0, 7200.0])
def test_who_lives_is_not_gone_because_the_clock_was_set(
    served: Served, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A start that was told before the wall clock was set still means the same process, and so does the one told
    after it; the start in boot time stays the same number."""
    peer = served.peer()
    before = peer.answer(id=1, op="lookup", pid=OTHER)["result"]
    real = time.time
    monkeypatch.setattr(clock.time, "time", lambda: real() + seconds)
    after = peer.answer(id=2, op="lookup", pid=OTHER)["result"]
    assert before["start_time"] != after["start_time"]
    assert before["start_ns"] == after["start_ns"]
    for text in (before["start_time"], after["start_time"]):
        assert peer.answer(id=3, op="lookup", pid=OTHER, start_time=text)["result"]["state"] == "resolved"


def test_a_start_in_boot_time_says_which_process_is_meant(served: Served) -> None:
    """The very number is the process, and so is its tick where one of the two comes from /proc; others are gone."""
    peer = served.peer()
    start = peer.answer(id=1, op="lookup", pid=OTHER)["result"]["start_ns"]
    tick = 10_000_000
    for number in (start, start // tick * tick):
        assert peer.answer(id=2, op="lookup", pid=OTHER, start_ns=number)["result"]["state"] == "resolved"
    for number in (0, -1, start - tick, start + tick, start // tick * tick + tick):
        assert peer.answer(id=3, op="lookup", pid=OTHER, start_ns=number)["result"]["state"] == "gone"


def test_a_client_says_back_what_it_was_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client shows of a process is the daemon's own word, to the nanosecond, and means the same process in a
    later question, whatever happens to the clock meanwhile."""
    told = served.peer().answer(id=1, op="lookup", pid=OTHER)["result"]
    with Client(served.path) as client:
        shown = client.lookup(OTHER).to_dict(clock.read())
        assert (shown["start_ns"], shown["start_time"]) == (told["start_ns"], told["start_time"])
        real = time.time
        monkeypatch.setattr(clock.time, "time", lambda: real() + 60)
        for which in ({"start_ns": shown["start_ns"]}, {"start_time": shown["start_time"]}):
            assert client.lookup(OTHER, **which).state == "resolved"
        assert client.lookup(OTHER, start_ns=shown["start_ns"] + 10**9).state == "gone"


@pytest.mark.parametrize("text", ["", "yesterday", "2020-01-01T00:00:00", "2020-13-01T00:00:00Z", "12:00Z"])
def test_what_is_no_time_is_a_bad_request(served: Served, text: str) -> None:
    """A start_time that is not a time of RFC 3339 is an error, and the process is not gone."""
    said = served.peer().answer(id=1, op="lookup", pid=OTHER, start_time=text)
    assert (said["ok"], said["error"]["code"]) == (False, "bad_request")
    assert "start_time" in said["error"]["message"]


def _with_fds(peer: Peer, data: bytes, *fds: int) -> None:
    peer.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_a_pidfd_that_is_sent_along_says_who_is_meant(desk: FakeDesk, served: Served) -> None:
    """A descriptor belongs to the line that it came with, not to earlier ones; one that is not a pidfd is an error."""
    desk.workloads[os.getpid()] = HOST
    child = subprocess.Popen(["sleep", "100"])
    desk.workloads[child.pid] = CART
    fd = os.pidfd_open(child.pid)
    try:
        peer = served.peer()
        peer.send(b'{"id":1,"op":"lookup"}\n')
        _with_fds(peer, b'{"id":2,"op":"lookup"}\n', fd)
        peer.send(b'{"id":3,"op":"lookup"}\n')
        found = {said["id"]: said["result"]["pid"] for _ in range(3) if (said := peer.line())}
        assert found == {1: os.getpid(), 2: child.pid, 3: os.getpid()}
        with open("/dev/null") as null:
            _with_fds(peer, b'{"id":4,"op":"lookup"}\n', null.fileno())
        said = peer.line()
        assert said is not None
        assert said["error"]["code"] == "bad_request"
    finally:
        os.close(fd)
        child.kill()
        child.wait()


def test_a_descriptor_that_is_not_taken_is_never_answered_as_the_peer_itself(desk: FakeDesk, served: Served) -> None:
    """Who may not ask about others is refused, not told of itself; who may by then sends it again."""
    as_pod(desk)
    fd = os.pidfd_open(os.getppid())
    try:
        peer = served.peer()
        _with_fds(peer, b'{"id":1,"op":"lookup"}\n{"id":2,"op":"lookup"}\n{"id":3,', fd)
        peer.send(b'"op":"lookup"}\n{"id":4,"op":"lookup"}\n')
        said = {line["id"]: line for _ in range(4) if (line := peer.line())}
        assert said[3]["error"]["code"] == "permission_denied"
        assert [said[number]["result"]["pid"] for number in (1, 2, 4)] == [os.getpid()] * 3
        desk.workloads[os.getpid()] = HOST
        with Client(served.path) as client:
            desk.workloads[os.getpid()] = CART
            client.lookup()
            desk.workloads[os.getpid()] = HOST
            assert client.lookup(pidfd=fd).key.pid == os.getppid()
    finally:
        os.close(fd)


@pytest.mark.parametrize("by_number", [False, True])
def test_the_first_request_of_a_connection_may_bring_a_descriptor(served: Served, *, by_number: bool) -> None:
    """Also where who asks has to be shown first, as before Linux 6.5."""
    served.start(by_number=by_number)
    fd = os.pidfd_open(os.getppid())
    try:
        with Client(served.path) as client:
            assert client.lookup(pidfd=fd).key.pid == os.getppid()
    finally:
        os.close(fd)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_behind(desk: FakeDesk, served: Served) -> None:
    """Descriptors that were sent, many at once, by whoever may and may not, half lines and hang-ups leave nothing."""
    served.start()
    before = _descriptors()
    for workload in (HOST, CART):
        as_pod(desk, workload)
        for _ in range(20):
            peer = Peer(served.path)
            _with_fds(peer, b'{"id":1,"op":"lookup"}\n{"id":2,', *[0] * 8)
            assert peer.line()
            _with_fds(peer, b'"op":"lookup"}\n', *[0] * 8)
            assert peer.line()
            _with_fds(peer, b'{"id":3,', 0)
            peer.close()
    until(lambda: _descriptors() == before, 10, "all descriptors to be closed")


# ---- watch ----


def test_a_watch_is_sent_until_it_is_cancelled(desk: FakeDesk, served: Served) -> None:
    """Events come as they happen, with labels; other requests are answered between them; cancelled, it ends."""
    peer = served.peer()
    said = peer.answer(id=9, op="watch", snapshot=False)
    assert (said["id"], said["event"]["event"], said["event"]["snapshot"]) == (9, "synced", False)
    stream = desk.streams[0]
    stream.events.append(Event("exec", clock.boottime(), desk.lookup(OTHER)))
    stream.on_event()
    said = peer.line()
    assert said is not None
    assert (said["event"]["event"], said["event"]["pod"]) == ("exec", "cart-7d9f")
    assert said["event"]["labels"] == {"app": "cart"}
    peer.ask(id=10, op="cancel", of=9)
    found = [peer.line(), peer.line()]
    assert [said and said["id"] for said in found] == [9, 10]
    assert stream.is_closed


def test_an_event_that_comes_while_another_wakes_the_loop_is_told(
    desk: FakeDesk, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wakes the loop just as it takes a wake-up in is heard, and so is everyone after."""
    peer = served.peer()
    peer.ask(id=1, op="watch")
    assert peer.line()
    stream, read = desk.streams[0], os.eventfd_read

    def take(fd: int) -> int:
        assert served.server is not None
        served.server.wake()
        return read(fd)

    monkeypatch.setattr(os, "eventfd_read", take)
    for _ in range(3):
        stream.events.append(Event("synced", clock.boottime()))
        stream.on_event()
        said = peer.line()
        assert said is not None
        assert said["event"]["event"] == "synced"


def test_a_watch_ends_with_its_connection(desk: FakeDesk, served: Served) -> None:
    """Who hangs up, or the server's end, closes the stream."""
    first, second = served.peer(), served.peer()
    first.answer(id=1, op="watch")
    second.answer(id=1, op="watch")
    first.close()
    until(lambda: len(desk.streams) == 1, 10, "the end of the first")
    assert served.server is not None
    served.server.close()
    served.server = None
    assert not desk.streams
    assert second.line() is None


def test_a_slow_watcher_slows_nobody(desk: FakeDesk, served: Served) -> None:
    """While one watcher reads nothing, what is made for it is bounded, and the other gets all its events."""
    slow, quick = served.peer(), served.peer()
    slow.answer(id=1, op="watch")
    quick.answer(id=1, op="watch")
    event = Event("exec", clock.boottime(), desk.lookup(OTHER))
    for stream in desk.streams:
        stream.events.extend([event] * 5000)
        stream.on_event()
    for _ in range(5000):
        assert quick.line() is not None
    left = [len(stream.events) for stream in desk.streams]
    assert left[1] == 0
    assert left[0] > 2000


# ---- many ----


def test_a_thousand_connections_are_bounded_and_answered(served: Served) -> None:
    """Of a thousand connections of one user some are turned away with an error, all others are answered; when they
    have gone a new one is welcome."""
    server = served.start()
    peers = [Peer(served.path) for _ in range(1000)]
    try:
        said = [peer.answer(id=1, op="version") if _is_open(peer) else peer.line() for peer in peers]
        turned_away = [each for each in said if each is not None and not each["ok"]]
        assert all(each["error"]["code"] == "too_large" for each in turned_away)
        assert sum(each is not None and each["ok"] for each in said) == 256
        assert server.connections == 256
    finally:
        for peer in peers:
            peer.close()
    until(lambda: server.connections == 0, 10, "all to be gone")
    assert served.peer().answer(id=1, op="version")["ok"]


def _is_open(peer: Peer) -> bool:
    peer.socket.settimeout(0)
    try:
        return not peer.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        peer.socket.settimeout(20)


def test_who_connects_and_says_nothing_keeps_nobody_waiting(served: Served) -> None:
    """Silent peers are just there."""
    silent = [served.peer() for _ in range(100)]
    assert served.peer().answer(id=1, op="version")["ok"]
    assert len(silent) == 100


# ---- the socket itself ----


def test_anyone_may_connect_and_a_stale_socket_is_replaced(served: Served) -> None:
    """The socket is there at once with mode 0666, whatever lay at its path, and gone with the server."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(served.path)
    server = served.start()
    assert os.stat(served.path).st_mode & 0o777 == 0o666
    assert served.peer().answer(id=1, op="version")["ok"]
    server.close()
    served.server = None
    assert not os.path.exists(served.path)


def test_a_socket_that_is_anothers_by_now_is_left(served: Served, desk: FakeDesk) -> None:
    """A server that ends removes only its own socket."""
    first = served.start()
    second = served.start()
    first.close()
    assert served.peer().answer(id=1, op="version")["ok"]
    assert served.server is second


def test_a_place_where_no_socket_can_be_is_named(desk: FakeDesk, tmp_path: Path) -> None:
    """A folder that is not there, or a path that is too long, is an error that says where."""
    for path in (tmp_path / "no" / "s.sock", tmp_path / ("x" * 200)):
        with pytest.raises(MissingError) as error:
            Server(desk, str(path), Access(), status=dict)
        assert error.value.obj == str(path)
