"""Sockets that nobody named: which of the known ones is taken, and whose has to be the path to it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rpc import RpcServer, raw_server
from tests.runtime import FakeRuntime
from tests.unit.test_podsources import make_sources
from tests.waiting import until
from tracer import doctor
from tracer.identity.index import Index
from tracer.settings import Settings
from tracer.sources import cri, pods_api
from tracer.sources.cri_finding import FoundCri
from tracer.sources.known_sockets import not_roots
from tracer.sources.rpc import CallError

pytestmark = pytest.mark.root
USER = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that root alone may write, all the way up."""
    made = Path(tempfile.mkdtemp(prefix="podtracer-", dir="/run"))
    yield made
    shutil.rmtree(made)


def left_over(path: Path) -> str:
    """A socket whose server is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return str(path)


def without_cri(path: Path) -> RpcServer:
    """A containerd whose CRI plugin is off: gRPC, and no such service."""
    return RpcServer(path, "containerd.services.version.v1.Version", {})


# --- whose a path is


def test_a_path_of_root_alone(folder: Path) -> None:
    """A socket of root's in folders of root's is root's, also by a link, a relative one, and with dots in the path."""
    path = left_over(folder / "a" / "x.sock")
    (folder / "link").symlink_to(folder / "a")
    (folder / "relative").symlink_to("a/../a")
    paths = [path, f"{folder}/link/x.sock", f"{folder}/relative/x.sock", f"{folder}//a/./../a/x.sock"]
    assert [not_roots(each) for each in paths] == [None] * 4


def _give(path: Path) -> None:
    os.lchown(path, USER, USER)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(lambda top: _give(top / "a/b/x.sock"), "a/b/x.sock belongs to uid 65534", id="socket"),
        pytest.param(lambda top: _give(top / "a/b"), "a/b belongs to uid 65534", id="folder"),
        pytest.param(lambda top: _give(top / "a"), "a belongs to uid 65534", id="folder-above"),
        pytest.param(lambda top: (top / "a").chmod(0o757), "users other than root may write {top}/a", id="for-all"),
        pytest.param(lambda top: (top / "a").chmod(0o1777), "users other than root may write {top}/a", id="sticky"),
        pytest.param(
            lambda top: (top / "a/b").chmod(0o775), "users other than root may write {top}/a/b", id="for-a-group"
        ),
    ],
)
def test_a_path_that_a_user_may_change(folder: Path, spoil: Callable[[Path], None], why: str) -> None:
    """A socket is not root's if a user owns it, or owns or may write any folder above it."""
    path = left_over(folder / "a" / "b" / "x.sock")
    (folder / "link").symlink_to("a/b/x.sock")
    spoil(folder)
    assert (not_roots(path) or "").endswith(why.format(top=folder))
    assert not_roots(f"{folder}/link") == not_roots(path)


def test_a_link_in_a_users_folder(folder: Path) -> None:
    """A user's link to root's socket is a user's path: it can be another one the next time."""
    left_over(folder / "x.sock")
    (folder / "theirs").mkdir()
    (folder / "theirs" / "link").symlink_to(folder / "x.sock")
    _give(folder / "theirs")
    assert (not_roots(f"{folder}/theirs/link") or "").endswith("theirs belongs to uid 65534")


def test_a_path_that_leads_nowhere(folder: Path) -> None:
    """A path that leads nowhere, or round in a ring of links, raises OSError soon."""
    (folder / "ring").symlink_to("ring")
    for name in ("none", "ring"):
        with pytest.raises(OSError, match=r"No such file|too many"):
            not_roots(f"{folder}/{name}")


# --- the runtime


def test_the_first_that_speaks_cri(folder: Path) -> None:
    """A left-over socket, one that speaks no CRI, one that speaks no gRPC and a user's are passed over, which is said
    once; what is not there, and later ones, are not spoken of."""
    paths = [folder / name for name in ("none", "stale", "other", "mute", "user", "right", "later")]
    left_over(paths[1])
    notes: list[str] = []
    with (
        without_cri(paths[2]),
        raw_server(paths[3], lambda conn, _: conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        FakeRuntime(paths[4]) as theirs,
        FakeRuntime(paths[5]) as right,
        FakeRuntime(paths[6]) as later,
    ):
        _give(paths[4])
        found = FoundCri(map(str, paths), note=notes.append)
        for _ in range(3):
            assert found.list_containers() == ()
        assert found.url == f"unix://{paths[5]}"
        found.close()
        assert (theirs.calls, later.calls) == ([], [])
        assert right.count("Version") == 1
    (note,) = notes
    assert note.startswith(f"asking the container runtime at unix://{paths[5]}, passed over: {paths[1]} (no connection")
    assert f"{paths[2]} (this service is not there" in note
    assert f"{paths[4]} ({paths[4]} belongs to uid 65534)" in note
    assert str(paths[0]) not in note


def test_nothing_is_said_where_nothing_was_passed_over(folder: Path) -> None:
    """A runtime at the first known socket that is there is used without a word."""
    notes: list[str] = []
    with FakeRuntime(folder / "cri.sock"):
        found = FoundCri([f"{folder}/none", f"{folder}/cri.sock"], note=notes.append)
        assert found.version().name == "faked"
        found.close()
    assert notes == []


def test_it_is_looked_for_until_one_answers(folder: Path) -> None:
    """While no socket answers, each call searches again and says of each socket why it was passed over."""
    stale = left_over(folder / "stale")
    found = FoundCri([stale, f"{folder}/late"])
    for _ in range(2):
        with pytest.raises(CallError, match=rf"no container runtime answers: {stale} \(no connection"):
            found.list_sandboxes()
    with FakeRuntime(folder / "late"):
        assert found.list_sandboxes() == ()
    found.close()


def test_one_that_answered_is_not_left_for_another(folder: Path) -> None:
    """A runtime that is down after it answered is waited for, though another would answer."""
    with FakeRuntime(folder / "first") as first, FakeRuntime(folder / "second") as second:
        found = FoundCri([f"{folder}/first", f"{folder}/second"])
        assert found.list_containers() == ()
        first.server.stop()
        for _ in range(3):
            with pytest.raises(CallError, match="no connection"):
                found.list_containers()
        first.server.start()
        until(lambda: _answers(found), 30, "the first one again")
        assert second.calls == []
        found.close()


def _answers(found: FoundCri) -> bool:
    try:
        return found.list_containers() == ()
    except CallError:
        return False


def test_a_closed_client_looks_no_more(folder: Path) -> None:
    """A closed client opens no socket."""
    with FakeRuntime(folder / "cri.sock") as runtime:
        found = FoundCri([f"{folder}/cri.sock"])
        found.close()
        with pytest.raises(CallError, match="closed"):
            found.version()
        assert runtime.count("ListContainers") == 0


def test_where_runtimes_are_known_to_be() -> None:
    """The sockets of k0s and microk8s are known beside those of containerd, CRI-O, k3s and cri-dockerd."""
    assert {"/run/k0s/containerd.sock", "/var/snap/microk8s/common/run/containerd.sock"} <= set(cri.ENDPOINTS)
    assert cri.ENDPOINTS[0] == "/run/containerd/containerd.sock"


def test_doctor_says_which_were_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the runtime names the one that is used and those passed over, with or without one that answers."""
    stale = left_over(folder / "stale")
    monkeypatch.setattr(cri, "ENDPOINTS", (stale, f"{folder}/cri.sock"))
    check = doctor.runtime(Settings())
    assert check.state == "warn"
    assert f"passed over: {stale} (no connection" in check.found
    with FakeRuntime(folder / "cri.sock"):
        check = doctor.runtime(Settings())
    assert check.state == "ok"
    assert check.found.startswith(f"unix://{folder}/cri.sock: faked 9.8.7, CRI v1, 0 containers; passed over: {stale}")


def test_a_runtime_that_is_installed_later_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podtracer finds and asks a known socket that appears after the start."""
    monkeypatch.setattr(cri, "ENDPOINTS", (f"{folder}/cri.sock",))
    index = Index()
    sources = make_sources(index, Settings(kubelet="none", pods_api="none", refresh_interval=0.1))
    sources.start()
    try:
        assert sources.states == {}
        with FakeRuntime(folder / "cri.sock") as runtime:
            container_id = runtime.add(1)
            until(lambda: index._verdicts.runtime.get(container_id), 30, "the container")
    finally:
        sources.stop()


# --- the Pods API


def test_a_users_pods_api_is_not_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podtracer does not ask a Pods API whose path a user may change, unless a flag names it; doctor says why."""
    path = left_over(folder / "pods-api" / "x.sock")
    monkeypatch.setattr(pods_api, "SOCKET", path)
    sources = make_sources(Index(), Settings(cri="none"))
    assert sources._find_pods_api() == path
    _give(folder / "pods-api")
    assert sources._find_pods_api() is None
    check = doctor.pods_api(Settings(), doctor._Found())
    assert check.state == "warn"
    assert check.found == f"not asking the Pods API at {path}: {folder}/pods-api belongs to uid 65534"
    named: Any = Settings(cri="none", pods_api=f"unix://{path}")
    assert make_sources(Index(), named)._find_pods_api() == f"unix://{path}"
