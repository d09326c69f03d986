"""Without a daemon a process is attested as SPIRE attests it: its files, its attempts, its codes and words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.servers import RawServer, always, answer, pod, pod_list, read_request, unused_port
from tracer.errors import AttestError, UsageError
from tracer.fallback import SPACING, Fallback, PodLists, endpoint, locate
from tracer.identity.parity import Located
from tracer.identity.pods import PodTable
from tracer.serve.spire_config import PluginConfig, read
from tracer.sources.replay import ReplayKubelet

T = TypeVar("T")

CONTAINER = "a1" * 32
UID = "11111111-2222-3333-4444-555555555555"
STATUS = {
    "containerStatuses": [{"name": "app", "containerID": f"containerd://{CONTAINER}", "image": "i", "imageID": "d"}]
}
LISTED = pod_list(pod(status=STATUS))
EMPTY = pod_list()
HERE = Located(UID, CONTAINER)
TIMED_OUT = ("DeadlineExceeded", "no selectors found after max poll attempts")


def config(port: int, more: str = "") -> PluginConfig:
    return read(f'kubelet_read_only_port = {port} poll_retry_interval = "10ms" max_poll_attempts = 3 {more}', {})


def run(made: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(made)


async def attested(fallback: Fallback, located: Located = HERE) -> tuple[str, ...] | tuple[str, str] | None:
    """The selectors, or the code and words of the error."""
    try:
        return await fallback.attest(located)
    except AttestError as error:
        return error.code, error.what


async def once(config: PluginConfig, located: Located = HERE) -> tuple[str, ...] | tuple[str, str] | None:
    fallback = Fallback(config)
    try:
        return await attested(fallback, located)
    finally:
        fallback.close()


def files(procfs: Path, pid: int, cgroup: str | None, mountinfo: str | None = None) -> None:
    folder = procfs / str(pid)
    folder.mkdir()
    for name, text in (("cgroup", cgroup), ("mountinfo", mountinfo)):
        if text is not None:
            (folder / name).write_text(text)


def test_a_listed_container_has_its_selectors() -> None:
    with ReplayKubelet(LISTED) as kubelet:
        found = run(once(config(kubelet.port)))
        assert kubelet.requests == 1
    assert found is not None
    assert {"k8s:ns:shop", "k8s:container-name:app", "k8s:pod-uid:" + UID} < set(found)


def test_container_selectors_are_left_out_where_they_are_disabled() -> None:
    with ReplayKubelet(LISTED) as kubelet:
        found = run(once(config(kubelet.port, "disable_container_selectors = true"), Located(UID, "b2" * 32)))
    assert found is not None
    assert "k8s:ns:shop" in found
    assert not any(selector.startswith("k8s:container") for selector in found)


def test_no_container_is_answered_without_asking_anybody() -> None:
    assert run(once(config(unused_port()), Located(None, None))) == ()


def test_an_unlisted_container_is_tried_for_and_given_up_in_spires_words() -> None:
    with ReplayKubelet(EMPTY) as kubelet:
        assert run(once(config(kubelet.port))) == TIMED_OUT
        assert kubelet.requests == 3


def test_a_container_that_is_listed_later_is_found() -> None:
    with ReplayKubelet(EMPTY, LISTED) as kubelet:
        found = run(once(config(kubelet.port)))
        assert kubelet.requests == 2
    assert found is not None
    assert "k8s:ns:shop" in found


def test_two_pods_with_one_container_are_an_error_at_once() -> None:
    other = pod("99999999-2222-3333-4444-555555555555", status=STATUS)
    with ReplayKubelet(pod_list(pod(status=STATUS), other)) as kubelet:
        end = run(once(config(kubelet.port), Located(None, CONTAINER)))
        assert kubelet.requests == 1
    assert end == ("Internal", "two pods found with same container Id")


def test_a_kubelet_that_fails_is_tried_as_often_and_its_last_error_told() -> None:
    with RawServer(always(answer(b"no", "500 Oops"))) as kubelet:
        end = run(once(config(kubelet.port)))
        assert kubelet.connections == 3
    assert end is not None
    assert end[0] == "Unavailable"
    assert "500" in end[1]


def test_a_kubelet_that_comes_back_between_two_attempts_is_asked() -> None:
    def script(server: RawServer, conn: Any) -> None:
        if read_request(conn) and server.connections > 1:
            conn.sendall(answer(LISTED))

    with RawServer(script) as kubelet:
        found = run(once(config(kubelet.port)))
    assert found is not None
    assert "k8s:ns:shop" in found


def test_all_who_wait_share_one_get() -> None:
    async def many(port: int) -> list[object]:
        fallback = Fallback(config(port, 'poll_retry_interval = "1m"'))
        try:
            return await asyncio.gather(*(attested(fallback) for _ in range(100)))
        finally:
            fallback.close()

    with ReplayKubelet(LISTED) as kubelet:
        found = run(many(kubelet.port))
        assert kubelet.requests == 1
    assert len(set(found)) == 1
    assert "k8s:ns:shop" in found[0]  # type: ignore[operator]


def lists(keep: float, *, fail: bool = False) -> PodLists:
    def fetch() -> PodTable:
        if fail:
            raise OSError
        return PodTable.build(())

    return PodLists(fetch, keep)


@pytest.mark.parametrize(("keep", "fail"), [(0.001, False), (60.0, True)], ids=["old", "failed"])
def test_gets_start_half_a_second_apart_whatever_became_of_the_last(keep: float, fail: bool) -> None:
    async def thrice() -> list[float]:
        shared, starts = lists(keep, fail=fail), []
        for _ in range(3):
            try:
                await shared.get()
            except OSError:
                assert fail
            starts.append(shared.started)
            await asyncio.sleep(0.002)
        shared.close()
        return starts

    # A timer may be early by its resolution.
    assert all(later - sooner > SPACING - 0.01 for sooner, later in pairwise(run(thrice())))


def test_a_list_is_kept_as_long_as_spire_keeps_it() -> None:
    async def twice() -> int:
        shared = lists(60.0)
        assert await shared.get() is await shared.get()
        shared.close()
        return shared.fetches

    assert run(twice()) == 1


def test_who_goes_away_leaves_the_get_to_the_others() -> None:
    async def leave(server: RawServer) -> object:
        fallback = Fallback(config(server.port))
        impatient = asyncio.create_task(attested(fallback))
        patient = asyncio.create_task(attested(fallback))
        while not server.connections:
            await asyncio.sleep(0.01)
        impatient.cancel()
        await asyncio.wait([impatient])
        server.closing.set()
        try:
            return await patient
        finally:
            fallback.close()

    def script(server: RawServer, conn: Any) -> None:
        if read_request(conn):
            server.closing.wait(30)
            conn.sendall(answer(LISTED))

    with RawServer(script) as kubelet:
        assert "k8s:ns:shop" in run(leave(kubelet))  # type: ignore[operator]
        assert kubelet.connections == 1


def test_namespace_labels_that_cannot_be_had_fail_the_attestation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with ReplayKubelet(LISTED) as kubelet:
        end = run(once(config(kubelet.port, "enable_namespace_labels = true")))
    assert end is not None
    assert end[0] == "Unavailable"
    assert "'shop'" in end[1]


def test_somebody_else_may_be_asked_between_two_attempts() -> None:
    async def ask(port: int) -> tuple[str, ...] | None:
        fallback = Fallback(config(port))
        try:
            return await fallback.attest(HERE, 2, lambda: True)
        finally:
            fallback.close()

    with ReplayKubelet(EMPTY) as kubelet:
        assert run(ask(kubelet.port)) is None
        assert kubelet.requests == 1


# ---- the files of a process ----


def test_both_files_are_read_and_the_first_that_names_a_container_counts(tmp_path: Path) -> None:
    mounts = f"1 2 0:3 /kubepods/pod{UID}/{CONTAINER} /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    files(tmp_path, 1, f"0::/kubepods/pod{UID}/{CONTAINER}\n", "no mountinfo at all")
    files(tmp_path, 2, "0::/\n", mounts)
    files(tmp_path, 3, None, mounts)
    files(tmp_path, 4, "0::/\n")
    for pid in (1, 2, 3):
        found = locate(str(tmp_path), pid)
        assert (found.pod_uid, found.container_id) == (UID, CONTAINER)
    assert locate(str(tmp_path), 4).container_id is None


def test_a_process_that_is_gone_has_no_container(tmp_path: Path) -> None:
    assert locate("/proc", 1 << 30).container_id is None


def test_names_that_contradict_each_other_are_told_in_spires_words(tmp_path: Path) -> None:
    files(tmp_path, 1, f"1:a:/{CONTAINER}\n2:b:/{'b2' * 32}\n")

    async def located() -> object:
        fallback = Fallback(config(unused_port()), procfs=str(tmp_path))
        try:
            return await fallback.locate(1)
        except AttestError as error:
            return error.code, error.what
        finally:
            fallback.close()

    assert run(located()) == (
        "FailedPrecondition",
        f'multiple container IDs found ("{CONTAINER}", "{"b2" * 32}")',
    )


def test_a_file_that_is_there_and_cannot_be_read_is_an_internal_error(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "cgroup").mkdir()

    async def located() -> AttestError:
        fallback = Fallback(config(unused_port()), procfs=str(tmp_path))
        try:
            with pytest.raises(AttestError) as caught:
                await fallback.locate(1)
        finally:
            fallback.close()
        return caught.value

    assert run(located()).code == "Internal"


# ---- the keys ----


@pytest.mark.parametrize(
    ("text", "url", "token", "certificate", "ca"),
    [
        ("", "https://127.0.0.1:10250/pods", "/var/run/secrets/kubernetes.io/serviceaccount/token", None, True),
        ('node_name = "n"', "https://n:10250/pods", "/var/run/secrets/kubernetes.io/serviceaccount/token", None, True),
        ('token_path = "/t" skip_kubelet_verification = true', "https://127.0.0.1:10250/pods", "/t", None, False),
        ('certificate_path = "/c" private_key_path = "/k"', "https://127.0.0.1:10250/pods", None, "/c", True),
        (
            'certificate_path = "/c" private_key_path = "/k" use_anonymous_authentication = true',
            "https://127.0.0.1:10250/pods", None, None, True,
        ),
    ],
)  # fmt: skip
def test_the_keys_say_who_we_are_to_the_kubelet(
    text: str, url: str, token: str | None, certificate: str | None, ca: bool
) -> None:
    made = endpoint(read(text, {}))
    assert made.url == url
    assert made.credentials is not None
    assert made.credentials.token_path == token
    assert made.credentials.certificate_path == certificate
    assert (made.credentials.ca_path is not None) is ca


def test_the_read_only_port_needs_no_node_name() -> None:
    made = endpoint(read('kubelet_read_only_port = 10255 node_name = "n"', {}))
    assert (made.url, made.credentials) == ("http://127.0.0.1:10255/pods", None)


def test_a_name_that_no_node_has_is_refused_by_its_key() -> None:
    with pytest.raises(UsageError, match="'a/b'") as caught:
        endpoint(read('node_name = "a/b"', {}))
    assert caught.value.obj == "node_name"


def test_nothing_is_left_open(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with ReplayKubelet(LISTED) as kubelet:
        run(once(config(kubelet.port)))
        before = descriptors()
        for _ in range(5):
            run(once(config(kubelet.port)))
    # Of the kubelet's side connections may still be open, of ours none.
    assert descriptors() <= before + 1
