"""The attestor asks the daemon and answers in SPIRE's words, goes SPIRE's way without it, and hangs on neither."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conftest import require
from tests.fake_daemon import SELECTORS, FakeDaemon, resolved
from tests.servers import pod, pod_list
from tracer import pidfd
from tracer.attestor import Attestor
from tracer.errors import AttestError, UsageError
from tracer.serve.spire_config import read
from tracer.sources.replay import ReplayKubelet

T = TypeVar("T")
WAIT = 30.0
ME = os.getpid()
AGENT = os.getppid()
UID = "11111111-2222-3333-4444-555555555555"
CONTAINER = "a1" * 32
VALUES = tuple(selector.removeprefix("k8s:") for selector in SELECTORS)
PENDING = {"state": "pending", "reason": "not_listed_yet"}
TIMED_OUT = ("DeadlineExceeded", "no selectors found after max poll attempts")
QUICK = 'poll_retry_interval = "10ms" max_poll_attempts = 3'
STATUS = {
    "containerStatuses": [{"name": "app", "containerID": f"containerd://{CONTAINER}", "image": "i", "imageID": "d"}]
}
LISTED = pod_list(pod(status=STATUS))


@contextmanager
def procfs(folder: Path, cgroup: str = f"0::/kubepods/pod{UID}/{CONTAINER}\n") -> Iterator[str]:
    """Files of ``/proc`` that say that this process is in a pod."""
    (folder / str(ME)).mkdir(exist_ok=True)
    (folder / str(ME) / "cgroup").write_text(cgroup)
    yield str(folder)


class Lab:
    """An attestor with its daemon, both in one loop."""

    def __init__(self, folder: Path, port: int) -> None:
        self.daemon = FakeDaemon(folder / "s")
        with procfs(folder) as made:
            self.attestor = Attestor(AGENT, procfs=made)
        self._base = f'socket_path = "{self.daemon.path}" kubelet_read_only_port = {port}\n'

    def configure(self, more: str = "") -> None:
        self.attestor.configure(read(self._base + more, {}))

    async def attest(self, pid: int = ME) -> tuple[str, ...]:
        """The selectors, or the code and words of the error."""
        try:
            return await self.attestor.attest(pid)
        except AttestError as error:
            return error.code, error.what

    async def until_up(self) -> None:
        """What is attested is asked of the daemon."""
        daemon = self.attestor.counts.daemon
        while self.attestor.counts.daemon == daemon:
            await self.attest()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def lab(folder: Path, more: str = "", port: int = 1) -> AsyncIterator[Lab]:
    made = Lab(folder, port)
    made.configure(more)
    async with made.daemon:
        try:
            yield made
        finally:
            await made.attestor.close()


def run(made: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(WAIT):
            return await made

    return asyncio.run(bounded())


# ---- what is asked, and what of the answer is told ----


def test_the_daemon_is_asked_for_the_process_that_was_there_at_arrival(tmp_path: Path) -> None:
    async def ask() -> dict[str, Any]:
        async with lab(tmp_path, "max_poll_attempts = 4") as made:
            assert await made.attest() == VALUES
            (asked,) = made.daemon.lookups
            return asked

    asked = run(ask())
    with pidfd.pinned(ME) as fd:
        assert fd is not None
        ino = pidfd.inode(fd) if pidfd.tells_apart() else None
    assert (asked["pid"], asked.get("pidfd_ino"), asked["mode"]) == (ME, ino, "strict")
    assert 1900 < asked["wait_ms"] <= 2000
    assert asked["settled_wait_ms"] == 1000
    assert asked["container_selectors"] is True


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ({"state": "host", "reason": "no_container"}, ()),
        ({"state": "gone", "reason": "gone"}, ()),
        (PENDING, TIMED_OUT),
        (resolved() | {"selectors": []}, TIMED_OUT),
        ({"state": "unknown", "reason": "not_listed"}, TIMED_OUT),
        ({"state": "unknown", "reason": "deleted"}, TIMED_OUT),
        ({"state": "unknown", "reason": "conflict"}, ("Internal", "two pods found with same container Id")),
        ({"state": "unknown", "reason": "stale", "reason_text": "too old"}, ("Unavailable", "too old")),
        ({"state": "unknown", "reason": "unnamed", "reason_text": "no name"}, ("Internal", "no name")),
    ],
    ids=lambda value: value.get("reason") if isinstance(value, dict) else "",
)
def test_every_state_is_told_in_spires_words(tmp_path: Path, answer: dict[str, Any], end: tuple[str, ...]) -> None:
    async def ask() -> tuple[str, ...]:
        async with lab(tmp_path, QUICK) as made:
            made.daemon.answer = answer
            return await made.attest()

    assert run(ask()) == end


def test_the_agent_itself_is_answered_without_asking_anybody(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path, "fallback = false") as made:
            await made.daemon.stop()
            assert await made.attest(AGENT) == ()
            assert not made.daemon.asked

    run(ask())


def test_a_process_that_is_gone_is_answered_without_asking_anybody(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()

    async def ask() -> None:
        async with lab(tmp_path) as made:
            for pid in (child.pid, 0, -1, 2**31 - 1):
                assert await made.attest(pid) == ()
            assert not made.daemon.asked

    run(ask())


def test_nothing_is_attested_before_configure_nor_after_deinit(tmp_path: Path) -> None:
    async def ask() -> None:
        made = Lab(tmp_path, 1)
        assert await made.attest() == ("FailedPrecondition", "not configured")
        made.configure()
        made.attestor.unconfigure()
        assert await made.attest() == ("FailedPrecondition", "not configured")
        await made.attestor.close()

    run(ask())


def test_a_disabled_kubelet_client_is_told_in_spires_words(tmp_path: Path) -> None:
    async def ask() -> tuple[str, ...]:
        made = Attestor(AGENT)
        made.configure(read("disable_kubelet_client = true", {}))
        try:
            await made.attest(ME)
        except AttestError as error:
            return error.code, error.what
        finally:
            await made.close()
        return ()

    assert run(ask()) == ("FailedPrecondition", "kubelet client is disabled")


def test_container_selectors_are_not_asked_for_where_they_are_disabled(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path, "disable_container_selectors = true") as made:
            made.daemon.answer = resolved("k8s:ns:shop")
            assert await made.attest() == ("ns:shop",)
            assert made.daemon.lookups[0]["container_selectors"] is False

    run(ask())


@pytest.mark.parametrize(
    ("keys", "of_daemon", "end"),
    [
        ("", SELECTORS, TIMED_OUT),
        ("", [], TIMED_OUT),
        ("ephemeral_containers = false", SELECTORS, TIMED_OUT),
        ("ephemeral_containers = true", SELECTORS, VALUES),
        ("ephemeral_containers = true", [], TIMED_OUT),
        ("disable_container_selectors = true", ["k8s:ns:shop"], ("ns:shop",)),
        ("disable_container_selectors = true", [], TIMED_OUT),
        ("disable_container_selectors = true ephemeral_containers = true", [], TIMED_OUT),
    ],
)
def test_an_ephemeral_container_is_attested_where_plugin_and_daemon_both_say_so(
    tmp_path: Path, keys: str, of_daemon: list[str], end: tuple[str, ...]
) -> None:
    """The stricter of daemon and plugin counts; a refusal has SPIRE's code and words, at once, and asks no kubelet."""

    async def ask() -> tuple[str, ...]:
        async with lab(tmp_path, keys) as made:
            made.daemon.answer = resolved(kind="ephemeral") | {"selectors": of_daemon}
            answer = await made.attest()
            assert made.attestor.counts.fallback == 0
            return answer

    assert run(ask()) == end


def test_labels_of_the_namespace_that_were_not_asked_for_are_left_out(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path) as made:
            made.daemon.answer = resolved(*SELECTORS, "k8s:ns-label:a:b")
            assert await made.attest() == VALUES
            made.configure("enable_namespace_labels = true")
            assert await made.attest() == (*VALUES, "ns-label:a:b")

    run(ask())


def test_a_namespace_without_labels_is_whole_where_the_daemon_knows_labels(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path, "enable_namespace_labels = true") as made:
            made.daemon.status["namespace_labels"] = True
            assert await made.attest() == VALUES

    run(ask())


@pytest.mark.parametrize(
    ("more", "answer", "status"),
    [
        ("enable_namespace_labels = true", SELECTORS, {"namespace_labels": False}),
        ("", ["k8s:ns:shop"], {"disable_container_selectors": True}),
    ],
    ids=["namespace labels", "container selectors"],
)
def test_what_the_daemon_is_not_configured_for_goes_spires_way(
    tmp_path: Path, more: str, answer: list[str], status: dict[str, bool]
) -> None:
    async def ask(port: int) -> None:
        async with lab(tmp_path, more, port) as made:
            made.daemon.answer = resolved(*answer)
            made.daemon.status |= status
            await made.attest()
            assert made.attestor.counts.daemon == 0
            assert made.attestor.counts.fallback == 1
            made.configure(f"{more}\nfallback = false")
            assert (await made.attest())[0] == "Unavailable"

    with ReplayKubelet(LISTED) as kubelet:
        run(ask(kubelet.port))


def test_an_answer_before_all_images_is_given_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        async with lab(tmp_path, 'pod_images_wait = "250ms"') as made:
            made.daemon.answer = resolved(settled=False)
            assert await made.attest() == VALUES
            assert await made.attest() == VALUES
            assert made.daemon.lookups[0]["settled_wait_ms"] == 250
            assert made.attestor.counts.unsettled == 2

    with caplog.at_level(logging.INFO):
        run(ask())
    told = [record for record in caplog.records if "pod-image" in record.message]
    assert [record.__dict__["fields"]["count"] for record in told] == [1]


# ---- parity ----


def test_in_parity_mode_both_files_are_read_here_and_the_container_asked_for(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path, 'mode = "parity"') as made:
            assert await made.attest() == VALUES
            (asked,) = made.daemon.lookups
            assert (asked["container_id"], asked["pod_uid"], asked["mode"]) == (CONTAINER, UID, "parity")
            assert "pid" not in asked
            with procfs(tmp_path, "0::/\n"):
                assert await made.attest() == ()
            with procfs(tmp_path, f"1:a:/{CONTAINER}\n2:b:/{'b2' * 32}\n"):
                assert (await made.attest())[0] == "FailedPrecondition"
            assert len(made.daemon.lookups) == 1

    run(ask())


# ---- waiting ----


def test_a_pending_process_is_answered_when_it_is_known(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path) as made:
            made.daemon.answer = PENDING
            waits = [asyncio.create_task(made.attest()) for _ in range(50)]
            while made.daemon.waiting < 50:
                await asyncio.sleep(0.01)
            await made.daemon.tell(resolved())
            assert set(await asyncio.gather(*waits)) == {VALUES}
            assert len(made.daemon.lookups) == 50

    run(ask())


def test_who_goes_away_ends_the_wait_in_the_daemon(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path) as made:
            made.daemon.answer = PENDING
            wait = asyncio.create_task(made.attest())
            while not made.daemon.waiting:
                await asyncio.sleep(0.01)
            wait.cancel()
            while made.daemon.asked[-1]["op"] != "cancel":
                await asyncio.sleep(0.01)
            assert made.daemon.asked[-1]["of"] == made.daemon.lookups[0]["id"]

    run(ask())


# ---- without the daemon ----


def test_without_a_daemon_it_goes_spires_way_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(port: int) -> None:
        async with lab(tmp_path, port=port) as made:
            await made.daemon.stop()
            for _ in range(20):
                assert "ns:shop" in await made.attest()
            assert made.attestor.counts.fallback == 20
            await made.daemon.start()
            await made.until_up()
            assert await made.attest() == VALUES

    with caplog.at_level(logging.INFO), ReplayKubelet(LISTED) as kubelet:
        run(ask(kubelet.port))
        assert kubelet.requests == 1
    said = [record.message for record in caplog.records if record.name == "podtracer.plugin"]
    assert said == ["the daemon cannot be asked; going SPIRE's way", "asking the daemon"]


def test_without_a_daemon_and_a_fallback_it_is_unavailable(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path, "fallback = false") as made:
            await made.daemon.stop()
            for _ in range(3):
                code, words = await made.attest()
                assert code == "Unavailable"
                assert str(made.daemon.path) in words

    run(ask())


def test_pending_waits_are_asked_again_when_the_daemon_is_back(tmp_path: Path) -> None:
    async def ask(port: int) -> None:
        async with lab(tmp_path, port=port) as made:
            made.daemon.answer = PENDING
            waits = [asyncio.create_task(made.attest()) for _ in range(20)]
            while made.daemon.waiting < 20:
                await asyncio.sleep(0.01)
            await made.daemon.stop()
            while made.attestor.counts.fallback < 20:
                await asyncio.sleep(0.01)
            await made.daemon.start()
            while made.daemon.waiting < 20:
                await asyncio.sleep(0.01)
            assert {asked.get("pid") for asked in made.daemon.lookups} == {ME}
            assert {asked["mode"] for asked in made.daemon.lookups} == {"strict"}
            await made.daemon.tell(resolved())
            assert set(await asyncio.gather(*waits)) == {VALUES}

    with ReplayKubelet(pod_list()) as kubelet:
        run(ask(kubelet.port))


def test_labels_that_only_the_daemon_waits_for_are_not_waited_for_twice(tmp_path: Path) -> None:
    async def ask(port: int) -> None:
        async with lab(tmp_path, QUICK, port) as made:
            made.daemon.answer = {"state": "pending", "reason": "namespace_labels", "reason_text": "no labels"}
            assert "ns:shop" in await made.attest()
            made.configure(f"{QUICK} enable_namespace_labels = true")
            assert await made.attest() == ("Unavailable", "no labels")

    with ReplayKubelet(LISTED) as kubelet:
        run(ask(kubelet.port))


def test_a_process_whose_number_is_anothers_by_now_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are those of whoever has the PID when they are read."""
    require(pidfd.tells_apart(), "needs pidfs (Linux 6.9)")

    async def ask(port: int) -> None:
        async with lab(tmp_path, port=port) as made:
            await made.daemon.stop()
            assert "ns:shop" in await made.attest()
            seen = iter([1, 2])
            monkeypatch.setattr(pidfd, "inode", lambda _fd: next(seen))
            assert await made.attest() == ()

    with ReplayKubelet(LISTED) as kubelet:
        run(ask(kubelet.port))


def test_a_daemon_that_is_stopped_holds_nobody_up(tmp_path: Path) -> None:
    async def ask(port: int) -> None:
        async with lab(tmp_path, port=port) as made:
            assert await made.attest() == VALUES
            made.daemon.is_silent = True
            assert "pod-uid:" + UID in await made.attest()
            asked = len(made.daemon.lookups)
            for _ in range(10):
                assert "pod-uid:" + UID in await made.attest()
            assert len(made.daemon.lookups) == asked  # nobody waits for it again
            made.daemon.is_silent = False
            await made.until_up()

    with ReplayKubelet(LISTED) as kubelet:
        run(ask(kubelet.port))


def test_a_wait_is_no_silence(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path) as made:
            made.daemon.answer = PENDING
            wait = asyncio.create_task(made.attest())
            while sum(asked["op"] == "version" for asked in made.daemon.asked) < 2:
                await asyncio.sleep(0.01)
            assert not wait.done()
            await made.daemon.tell(resolved())
            assert await wait == VALUES

    run(ask())


@pytest.mark.parametrize("code", ["permission_denied", "not_ready", "wants_pidfd"])
def test_a_daemon_that_does_not_answer_us_is_as_none_until_it_does(tmp_path: Path, code: str) -> None:
    async def ask(port: int) -> None:
        async with lab(tmp_path, port=port) as made:
            made.daemon.answer = code
            for _ in range(3):
                assert "pod-uid:" + UID in await made.attest()
            assert not made.daemon.lookups
            await made.daemon.tell(resolved())
            await made.until_up()
            made.daemon.answer = code  # as when the daemon's configuration changes
            for _ in range(3):
                assert "pod-uid:" + UID in await made.attest()
            await made.daemon.tell(resolved())
            await made.until_up()

    with ReplayKubelet(LISTED) as kubelet:
        run(ask(kubelet.port))


def test_a_request_that_the_daemon_refuses_goes_spires_way_alone(tmp_path: Path) -> None:
    async def ask(port: int) -> None:
        async with lab(tmp_path, port=port) as made:
            made.daemon.answer = "internal"
            assert "pod-uid:" + UID in await made.attest()
            made.daemon.answer = resolved()
            assert await made.attest() == VALUES

    with ReplayKubelet(LISTED) as kubelet:
        run(ask(kubelet.port))


@pytest.mark.parametrize(
    "garbage",
    [
        b"what\n",
        b"[]\n",
        b'{"id": "x"}\n',
        b"\xff\n",
        b'{"id": 1, "ok": true, "result": {"selectors": 5}}\n',
        b"[" * 65536 + b"\n",
    ],
    ids=["words", "list", "id", "bytes", "types", "deep"],
)
def test_a_daemon_that_talks_nonsense_is_as_none(tmp_path: Path, garbage: bytes) -> None:
    async def ask(port: int) -> None:
        async with lab(tmp_path, port=port) as made:
            made.daemon.garbage = garbage
            assert "pod-uid:" + UID in await made.attest()
            made.daemon.garbage = None
            await made.until_up()
            made.daemon.garbage = garbage
            assert "pod-uid:" + UID in await made.attest()

    with ReplayKubelet(LISTED) as kubelet:
        run(ask(kubelet.port))


# ---- configure ----


def test_a_configuration_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path, "enable_namespace_labels = true") as made:
            made.daemon.answer = resolved("k8s:ns-label:a:b", *SELECTORS)
            with pytest.raises(UsageError):
                made.configure('kubelet_read_only_port = 0 node_name = "a/b"')
            assert "ns-label:a:b" in await made.attest()

    run(ask())


def test_who_waits_is_answered_by_the_configuration_it_came_under(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path, "enable_namespace_labels = true") as made:
            made.daemon.answer = PENDING
            wait = asyncio.create_task(made.attest())
            while not made.daemon.waiting:
                await asyncio.sleep(0.01)
            made.attestor.configure(read('socket_path = "/nonexistent" fallback = false', {}))
            await made.daemon.tell(resolved("k8s:ns-label:a:b", *SELECTORS))
            assert await wait == ("ns-label:a:b", *VALUES)
            assert (await made.attest())[0] == "Unavailable"

    run(ask())


def test_configuring_again_and_again_leaves_nothing_open(tmp_path: Path) -> None:
    async def ask() -> None:
        async with lab(tmp_path, "fallback = false") as made:
            await made.attest()
            before = len(os.listdir("/proc/self/fd"))
            for number in range(20):
                path = made.daemon.path if number % 2 else "/nonexistent"
                made.attestor.configure(read(f'socket_path = "{path}" fallback = false', {}))
                await made.attest()
                await asyncio.sleep(0)
            while len(os.listdir("/proc/self/fd")) > before:  # the loop closes connections when it comes to it
                await asyncio.sleep(0.01)

    run(ask())
