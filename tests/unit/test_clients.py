"""Both clients of the socket: the answers of a tracer in the same process, through restarts and refusals."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.desk import CART, HOST, PENDING, FakeDesk
from tests.waiting import until
from tracer import clock
from tracer.aioclient import AsyncClient
from tracer.client import Client
from tracer.errors import DaemonError, DaemonUnreachable
from tracer.model import Event, Identity, State
from tracer.serve.access import Access
from tracer.serve.socket import Server

OTHER = 1 << 22


class Daemon:
    """A server that can be started anew at its place."""

    def __init__(self, desk: FakeDesk, path: str) -> None:
        self.desk = desk
        self.path = path
        self.server: Server | None = None

    def start(self, **more: Any) -> None:
        self.server = Server(self.desk, self.path, Access(), status=lambda: {"pid": os.getpid()}, **more)
        self.server.start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None


@pytest.fixture
def desk() -> FakeDesk:
    """Knows one process that is made up."""
    desk = FakeDesk()
    desk.made_up.add(OTHER)
    desk.workloads[OTHER] = CART
    return desk


@pytest.fixture
def daemon(desk: FakeDesk, tmp_path: Path) -> Iterator[Daemon]:
    """A running server."""
    daemon = Daemon(desk, str(tmp_path / "s.sock"))
    daemon.start()
    yield daemon
    daemon.stop()


def _sync(daemon: Daemon, ask: str, *words: Any, **more: Any) -> Any:
    with Client(daemon.path) as client:
        return getattr(client, ask)(*words, **more)


def _async(daemon: Daemon, ask: str, *words: Any, **more: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(daemon.path) as client:
            return await getattr(client, ask)(*words, **more)

    return asyncio.run(run())


Ask = Callable[..., Any]
both = pytest.mark.parametrize("ask", [_sync, _async])


def _plain(identity: Identity) -> dict[str, Any]:
    said = identity.to_dict(clock.read())
    del said["age_ms"], said["pods_age_ms"]
    return said


@both
def test_an_identity_is_what_the_tracer_itself_gives(desk: FakeDesk, daemon: Daemon, ask: Ask) -> None:
    """Every field of it survives the socket, the labels too, and ages go on from where they were."""
    found = ask(daemon, "lookup", OTHER)
    own = desk.lookup(OTHER)
    assert _plain(found) == _plain(own)
    assert found.workload == own.workload
    assert found.process is not None
    assert abs(clock.boottime() - found.process.since - 5_000_000_000) < 5_000_000_000


@both
def test_each_way_to_ask_has_its_answer(desk: FakeDesk, daemon: Daemon, ask: Ask) -> None:
    """Itself, many, a container, all, an explanation, the status and the version."""
    desk.containers["cd" * 32] = CART
    assert ask(daemon, "lookup").key.pid == os.getpid()
    many = ask(daemon, "lookup_many", [OTHER, os.getpid(), OTHER + 1])
    assert [identity.state for identity in many] == [State.RESOLVED, State.HOST, State.GONE]
    assert ask(daemon, "lookup_container", "cd" * 32, "6f2a").workload.pod == "cart-7d9f"
    assert ask(daemon, "lookup_container", "cd" * 32, "other").state is State.PENDING
    assert [identity.key.pid for identity in ask(daemon, "ps")] == [os.getpid(), OTHER]
    assert ask(daemon, "explain", OTHER) == {"pid": OTHER, "steps": []}
    assert ask(daemon, "status") == {"pid": os.getpid()}
    assert ask(daemon, "version")


@both
def test_how_to_answer_is_passed_on(desk: FakeDesk, daemon: Daemon, ask: Ask) -> None:
    """Mode, parity and the selectors that are left out reach the tracer as they were said."""
    ask(daemon, "lookup", OTHER, mode="parity", parity=True, container_selectors=False)
    assert desk.asked[-1] == {"mode": "parity", "container_selectors": False, "parity": True}
    assert ask(daemon, "lookup", OTHER, pidfd_ino=7).state is State.GONE


@both
def test_a_refusal_has_its_code_and_hint(desk: FakeDesk, daemon: Daemon, ask: Ask) -> None:
    """What the daemon refuses is an error that says what it said; the exit code for permission is 77."""
    desk.workloads[os.getpid()] = CART
    with pytest.raises(DaemonError) as refused:
        ask(daemon, "lookup", OTHER)
    assert (refused.value.code, refused.value.exit_code) == ("permission_denied", 77)
    assert refused.value.hint
    with pytest.raises(DaemonError) as wrong:
        ask(daemon, "request", "dance")
    assert (wrong.value.code, wrong.value.exit_code) == ("unknown_op", 70)


@both
def test_before_peers_are_told_by_pidfd_the_nonce_is_sent_back(desk: FakeDesk, daemon: Daemon, ask: Ask) -> None:
    """Where the kernel only tells a number, a client shows who it is without its user's help."""
    daemon.stop()
    daemon.start(by_number=True)
    assert ask(daemon, "lookup").key.pid == os.getpid()
    assert ask(daemon, "lookup", OTHER).workload.pod == "cart-7d9f"


@both
def test_nobody_there_is_said_at_once(tmp_path: Path, ask: Ask) -> None:
    """Where no socket is, or nobody accepts at it, the error names it."""
    nobody = Daemon(FakeDesk(), str(tmp_path / "none.sock"))
    with pytest.raises(DaemonUnreachable) as error:
        ask(nobody, "lookup", OTHER)
    assert (error.value.obj, error.value.exit_code) == (nobody.path, 69)


def test_a_pidfd_can_be_asked_about(desk: FakeDesk, daemon: Daemon) -> None:
    """The process behind it is the one that is answered."""
    child = subprocess.Popen(["sleep", "100"])
    desk.workloads[child.pid] = CART
    fd = os.pidfd_open(child.pid)
    try:
        assert _sync(daemon, "lookup", pidfd=fd).key.pid == child.pid
    finally:
        os.close(fd)
        child.kill()
        child.wait()


def test_a_wait_ends_with_the_news(desk: FakeDesk, daemon: Daemon) -> None:
    """A look-up that waits is answered when the identity is known."""
    desk.workloads[OTHER] = PENDING
    found: list[Identity] = []
    thread = threading.Thread(target=lambda: found.append(_sync(daemon, "lookup", OTHER, wait=60)))
    thread.start()
    assert daemon.server is not None
    waits = daemon.server.operations.waits
    until(lambda: len(waits) == 1, 10, "the wait")
    desk.workloads[OTHER] = CART
    daemon.server.news()
    thread.join(20)
    assert found[0].state is State.RESOLVED


def test_a_client_goes_on_after_the_daemon_was_started_anew(desk: FakeDesk, daemon: Daemon) -> None:
    """A request that meets a daemon which is just starting again is answered by the new one."""
    with Client(daemon.path) as client:
        assert client.lookup(OTHER).workload.pod == "cart-7d9f"
        daemon.stop()
        again = threading.Timer(0.2, daemon.start)
        again.start()
        assert client.lookup(OTHER).workload.pod == "cart-7d9f"
        again.join()


def _run(work: Callable[[AsyncClient], Awaitable[None]], path: str, **more: Any) -> None:
    async def run() -> None:
        async with AsyncClient(path, **more) as client:
            await work(client)

    asyncio.run(run())


def test_tasks_go_on_after_the_daemon_was_started_anew(desk: FakeDesk, daemon: Daemon) -> None:
    """Requests that wait when the daemon ends are asked again of the next one, all of them."""
    desk.workloads[OTHER] = PENDING

    async def work(client: AsyncClient) -> None:
        tasks = [asyncio.create_task(client.lookup(OTHER, wait=60)) for _ in range(50)]
        assert daemon.server is not None
        while len(daemon.server.operations.waits) < 50:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(daemon.stop)
        desk.workloads[OTHER] = CART
        await asyncio.to_thread(daemon.start)
        assert {found.state for found in await asyncio.gather(*tasks)} == {State.RESOLVED}

    _run(work, daemon.path)


def test_a_cancelled_task_is_cancelled_in_the_daemon(desk: FakeDesk, daemon: Daemon) -> None:
    """Nobody waits there for an answer that nobody wants; other tasks are answered."""
    desk.workloads[OTHER] = PENDING

    async def work(client: AsyncClient) -> None:
        task = asyncio.create_task(client.lookup(OTHER, wait=60))
        assert daemon.server is not None
        while not len(daemon.server.operations.waits):
            await asyncio.sleep(0.01)
        task.cancel()
        while len(daemon.server.operations.waits):
            await asyncio.sleep(0.01)
        assert (await client.lookup(os.getpid())).state is State.HOST

    _run(work, daemon.path)


def test_an_unreachable_daemon_is_given_up_after_the_time_for_it(daemon: Daemon) -> None:
    """With ``retry`` a task does not wait for a daemon that has gone longer than that, whatever it may wait for."""

    async def work(client: AsyncClient) -> None:
        await client.version()
        await asyncio.to_thread(daemon.stop)
        with pytest.raises(DaemonUnreachable):
            await client.lookup(OTHER, wait=3600)

    _run(work, daemon.path, retry=0.1)


def test_both_watch(desk: FakeDesk, daemon: Daemon) -> None:
    """A watch gives events as objects, and ends with the daemon."""
    with Client(daemon.path) as client, client.watch() as watch:
        first = watch.next(10)
        assert first is not None
        assert first.event == "synced"
        desk.streams[0].events.append(Event("move", clock.boottime(), desk.lookup(OTHER), {"from": "/a"}))
        desk.streams[0].on_event()
        event = watch.next(10)
        assert event is not None
        assert event.identity is not None
        assert (event.event, event.identity.workload.pod, event.extra["from"]) == ("move", "cart-7d9f", "/a")
        assert event.identity.workload.labels == {"app": "cart"}
        assert watch.next(0) is None
        daemon.stop()
        with pytest.raises(DaemonUnreachable):
            watch.next(10)
    daemon.start()

    async def work(client: AsyncClient) -> None:
        async for event in client.watch(snapshot=False):
            assert event.event == "synced"
            break

    _run(work, daemon.path)


def test_what_is_no_daemon_is_told() -> None:
    """A line that is no answer, or an identity that is none, is an error and nothing worse."""
    from tracer import protocol

    for line in (b"hello", b"[]", b"{}", b'{"id":1,"ok":false}', b"7"):
        with pytest.raises(DaemonError):
            protocol.reply(line)
    for said in ({}, {"pid": "x"}, {"pid": 1, "source": "dream"}):
        with pytest.raises(DaemonError):
            protocol.identity(said, clock.read())
    with pytest.raises(DaemonError):
        protocol.event({"event": "party", "time": "2026-01-01T00:00:00Z"}, clock.read())


def test_the_client_imports_nothing_heavy() -> None:
    """What asks a daemon loads neither the tracer nor what that needs."""
    code = "import sys, tracer.client; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {
        "msgspec",
        "requests",
        "psutil",
        "grpc",
        "click",
        "rich",
        "yaml",
        "asyncio",
        "prometheus_client",
    }
    assert HOST.state is State.HOST
