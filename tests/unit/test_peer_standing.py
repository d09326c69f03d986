"""Whether a peer's own files say that it is of the host, or of the daemon's container; the files are made by hand."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desk import CART, HOST
from tracer import pidfd
from tracer.model import Cgroup, Identity, ProcessKey, State, Workload
from tracer.serve.peers import Peer
from tracer.serve.standing import is_of_host, is_of_own_container

ID, OTHER_ID = "0123456789abcdef" * 4, "fedcba9876543210" * 4
UID = "6f2a1b3c-0000-4111-8222-333344445555"
HOSTS = "4:memory:/user.slice\n0::/user.slice/user-0.slice/session-1.scope\n"
SYSTEMD = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID.replace('-', '_')}.slice"


@pytest.fixture
def procfs(tmp_path: Path) -> Path:
    """The files of this process, as if it were the only one: root of the host's."""
    folder = tmp_path / str(os.getpid())
    (folder / "ns").mkdir(parents=True)
    (folder / "ns/user").symlink_to("/proc/self/ns/user")
    (folder / "stat").write_text(f"{os.getpid()} (a) b) S 1 1\n")
    (folder / "cgroup").write_text(HOSTS)
    return tmp_path


@pytest.fixture
def peer() -> Iterator[Peer]:
    """This process, pinned."""
    fd = os.pidfd_open(os.getpid())
    yield Peer(os.getpid(), os.geteuid(), frozenset(), fd, pidfd.inode(fd), None, counts_alike=True)
    os.close(fd)


def _is_of_host(peer: Peer, procfs: Path, cgroup: str | None = None) -> bool:
    if cgroup is not None:
        (procfs / str(os.getpid()) / "cgroup").write_text(cgroup)
    return is_of_host(peer, str(procfs))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/init.scope",
        "/user.slice/user-0.slice/session-4.scope",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/podman-1234.scope",
        "/system.slice/docker.service",
        "/system.slice/containerd.service",
        "/system.slice/kubelet.service",
        "/system.slice/podtracer.service",
        "/machine.slice/machine-box.scope",  # has a PID namespace of its own
        "/a/0123456789abcdef0123456789abcdef",
    ],
)
def test_services_and_sessions_are_of_the_host(peer: Peer, procfs: Path, path: str) -> None:
    """Processes are of the host if no cgroup has a container's name, the runtime's own daemons among them."""
    assert _is_of_host(peer, procfs, f"3:cpuset:/\n2:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::{path}\n")


@pytest.mark.parametrize("line", ["{}:memory:{}", "{}:name=systemd:{}", "0::{1}"])
@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{ID}",
        f"/../../docker/{ID}",
        f"/docker/{ID}/init.scope",
        f"/docker/{ID} (deleted)",
        f"/system.slice/docker-{ID}.scope",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/system.slice:docker:{ID}",
        f"/{ID.upper()}",
        f"/kubepods/besteffort/pod{UID}/{ID}",
        f"/kubepods/besteffort/pod{UID}",
        "/kubepods/besteffort/podmy-static-01/app",
        f"{SYSTEMD}/cri-containerd-{ID}.scope",
        SYSTEMD,
        "/kubelet.slice/kubelet-kubepods.slice/x",
        f"/elsewhere/pod{UID}/app",
        f"/elsewhere/pod{UID.replace('-', '')}",
        f"/system.slice/containerd.service/kubepods-pod{UID.replace('-', '_')}.slice:cri-containerd:{ID}",
    ],
)
def test_a_container_in_any_line_is_enough(peer: Peer, procfs: Path, path: str, line: str) -> None:
    """A container's cgroup in any hierarchy keeps a peer from being of the host."""
    assert not _is_of_host(peer, procfs, f"5:pids:/\n{line.format(9, path)}\n1:cpu:/user.slice\n")


@pytest.mark.parametrize("missing", ["stat", "cgroup", "ns/user"])
def test_what_cannot_be_read_is_not_certain(peer: Peer, procfs: Path, missing: str) -> None:
    """A file that is missing, or empty, is no reason to trust anyone."""
    assert _is_of_host(peer, procfs)
    file = procfs / str(os.getpid()) / missing
    file.unlink()
    assert not _is_of_host(peer, procfs)
    file.write_text("")
    assert not _is_of_host(peer, procfs)


@pytest.mark.parametrize("state", ["Z", "X"])
def test_whose_first_thread_has_ended_is_not_certain(peer: Peer, procfs: Path, state: str) -> None:
    """On v1 its cgroup reads as the root."""
    (procfs / str(os.getpid()) / "stat").write_text(f"1 (x) S) {state} 1\n")
    assert not _is_of_host(peer, procfs)


def test_other_namespaces_are_not_the_hosts(peer: Peer, procfs: Path) -> None:
    """A peer is not of the host in another user namespace, or in a PID namespace that is another one or unknown."""
    link = procfs / str(os.getpid()) / "ns/user"
    link.unlink()
    link.symlink_to("/proc/self/ns/mnt")
    assert not _is_of_host(peer, procfs)
    link.unlink()
    link.symlink_to("/proc/self/ns/user")
    assert _is_of_host(peer, procfs)
    peer.counts_alike = False
    assert not _is_of_host(peer, procfs)


def test_without_cap_sys_ptrace_the_maps_tell(peer: Peer, procfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the daemon may not read the user namespace, maps that differ show that it is another one."""
    stat = os.stat

    def refused(path: str, **how: object) -> os.stat_result:
        if str(path).startswith(str(procfs)):
            raise PermissionError
        return stat(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("tracer.serve.standing.os.stat", refused)
    assert not _is_of_host(peer, procfs)  # no maps
    folder = procfs / str(os.getpid())
    for name in ("uid_map", "gid_map"):
        (folder / name).write_text(Path(f"/proc/self/{name}").read_text())
    assert _is_of_host(peer, procfs)
    (folder / "gid_map").write_text("         0          0          1\n")
    assert not _is_of_host(peer, procfs)


def test_a_peer_that_has_ended_is_not_of_the_host(procfs: Path) -> None:
    """A peer that has ended is not of the host, since the files of its PID may be another process's."""
    child = subprocess.Popen(["true"])
    fd = os.pidfd_open(child.pid)
    child.wait()
    try:
        os.rename(procfs / str(os.getpid()), procfs / str(child.pid))
        assert not is_of_host(Peer(child.pid, 0, frozenset(), fd, 0, None, counts_alike=True), str(procfs))
    finally:
        os.close(fd)


# ---- the daemon's own container ----

POD = f"/kubepods/besteffort/pod{UID}"
OWN = Workload(State.PENDING, "not_listed_yet", pod_uid=UID, container_id=ID)


def _at(path: str | None, workload: Workload = OWN) -> Identity:
    return Identity(ProcessKey(1, 2), 1, workload, Cgroup(1, path))


@pytest.fixture
def own_cgroups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What the daemon's own file of cgroups says: in the container in every hierarchy but one."""
    file = tmp_path / "own"
    file.write_text(f"4:memory:{POD}/{ID}\n2:rdma:/\n0::{POD}/{ID}\n")
    from tracer.serve import standing

    read = standing._read
    monkeypatch.setattr(standing, "_read", lambda path: read(str(file) if path == "/proc/self/cgroup" else path))
    return file


@pytest.mark.parametrize(
    ("path", "lines", "is_own"),
    [
        (f"{POD}/{ID}", f"4:memory:{POD}/{ID}\n2:rdma:/\n0::{POD}/{ID}\n", True),
        (f"{POD}/{ID}/init.scope", f"4:memory:{POD}/{ID}/a\n2:rdma:/\n0::{POD}/{ID}/init.scope\n", True),
        (f"{POD}/{ID}", f"4:memory:/\n2:rdma:/\n0::{POD}/{ID}\n", True),
        (f"{POD}/{ID}", f"4:memory:{POD}/{OTHER_ID}\n2:rdma:/\n0::{POD}/{ID}\n", False),
        (f"{POD}/{ID}", f"4:memory:{POD}/{ID}\n2:rdma:/docker/{ID}\n0::{POD}/{ID}\n", False),
        (f"{POD}/{ID}", f"4:memory:{POD}/{ID}\n0::{POD}/{ID}\n", False),
        (f"{POD}/{ID}", "", False),
        (f"{POD}/{ID}/docker/{OTHER_ID}", f"4:memory:{POD}/{ID}\n2:rdma:/\n0::{POD}/{ID}\n", False),
        (f"/elsewhere/{ID}", f"4:memory:{POD}/{ID}\n2:rdma:/\n0::{POD}/{ID}\n", False),
        (None, f"4:memory:{POD}/{ID}\n2:rdma:/\n0::{POD}/{ID}\n", False),
    ],
)
@pytest.mark.usefixtures("own_cgroups")
def test_the_daemons_container_is_told_by_all_its_cgroups(
    peer: Peer, procfs: Path, path: str | None, lines: str, *, is_own: bool
) -> None:
    """The same home in the tracked hierarchy, and in no other one another container, nor one nested in it; a name that
    is the same elsewhere is not enough."""
    (procfs / str(os.getpid()) / "cgroup").write_text(lines)
    assert is_of_own_container(peer, _at(path), _at(f"{POD}/{ID}"), str(procfs)) is is_own


@pytest.mark.usefixtures("own_cgroups")
def test_both_container_and_user_have_to_be_the_daemons(peer: Peer, procfs: Path) -> None:
    """The container alone or the user alone is not enough, and a daemon on the host has no container of its own."""
    (procfs / str(os.getpid()) / "cgroup").write_text(f"4:memory:{POD}/{ID}\n2:rdma:/\n0::{POD}/{ID}\n")
    home = _at(f"{POD}/{ID}")
    assert is_of_own_container(peer, home, home, str(procfs))
    other = Workload(State.PENDING, container_id=OTHER_ID)
    assert not is_of_own_container(peer, _at(f"{POD}/{OTHER_ID}", other), home, str(procfs))
    assert not is_of_own_container(peer, _at("/a", HOST), _at("/b", HOST), str(procfs))
    assert not is_of_own_container(peer, _at("/a", CART), _at("/a", CART), str(procfs))  # the path does not name it
    assert not is_of_own_container(peer, _at(None, Workload(State.GONE)), home, str(procfs))
    peer.uid += 1
    assert not is_of_own_container(peer, home, home, str(procfs))
