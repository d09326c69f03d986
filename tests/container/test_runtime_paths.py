"""Where containerd and runc put containers, and that the fixtures leave nothing of them behind."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path

import pytest

from tests import machine
from tests.conftest import require
from tests.containers import APP, Container, Containerd, new_id, pod_cgroup
from tests.runc import Runc
from tests.waiting import until

pytestmark = pytest.mark.container


def cgroups_of(pid: int | str) -> dict[str, str]:
    """``/proc/PID/cgroup`` as controllers → path; the v2 hierarchy has no controllers: ``""``."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def names_of(pids: list[int]) -> list[str]:
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids]


@pytest.fixture
def sleeper(containerd: Containerd):
    """A container that sleeps."""
    container = containerd.run()
    yield container
    container.remove()


def test_every_hierarchy_has_the_container_where_it_was_asked_for(sleeper: Container) -> None:
    """Each line of ``/proc/PID/cgroup``, v1 and v2, is the path given with ``ctr run --cgroup``."""
    assert set(cgroups_of(sleeper.pid).values()) == {sleeper.cgroup}
    assert len(machine.cgroup_folders(sleeper.cgroup)) == len(machine.hierarchies())


def test_the_path_and_the_id_are_the_callers(containerd: Containerd) -> None:
    """An ID and a pod's cgroup chosen by the test are the ones the container has."""
    container_id, pod_uid = new_id(), str(uuid.uuid4())
    cgroup = pod_cgroup(container_id, pod_uid=pod_uid, qos="burstable")
    container = containerd.run(container_id=container_id, cgroup=cgroup, image=APP)
    assert container.cgroup == f"/kubepods/burstable/pod{pod_uid}/{container_id}"
    assert set(cgroups_of(container.pid).values()) == {cgroup}
    container.remove()


def test_entrypoint_runs_below_the_shim(sleeper: Container) -> None:
    """The PID is the entrypoint's, already past its exec, and its parent is the shim, which is in no pod."""
    shim = parent_of(sleeper.pid)
    assert names_of([sleeper.pid, shim]) == ["sleep", "containerd-shim"]
    assert sleeper.cgroup not in cgroups_of(shim).values()


def test_children_are_in_their_parents_container(containerd: Containerd) -> None:
    """What the entrypoint forks and execs is its child, and in its cgroup."""
    container = containerd.run("sh", "-c", "sleep 1000 & sleep 2000 & wait")
    pids = until(lambda: len(pids := container.pids()) == 3 and pids, 10, "a shell and its two children")
    until(lambda: sorted(names_of(pids)) == ["sh", "sleep", "sleep"], 10, "both children's exec")
    assert {parent_of(pid) for pid in pids if pid != container.pid} == {container.pid}
    assert all(set(cgroups_of(pid).values()) == {container.cgroup} for pid in pids)
    container.remove()


def test_exec_joins_the_container(sleeper: Container) -> None:
    """A process started from outside is in the container's cgroup, but no child of its entrypoint."""
    pid = sleeper.spawn("sleep", "3000")
    assert set(cgroups_of(pid).values()) == {sleeper.cgroup}
    assert parent_of(pid) == parent_of(sleeper.pid)
    assert sleeper.pids() == sorted([sleeper.pid, pid])


def test_exec_returns_what_the_command_wrote(sleeper: Container) -> None:
    """``exec`` waits, and gives the output and the exit code."""
    assert sleeper.exec("echo", "hello").stdout == "hello\n"
    assert sleeper.exec("sh", "-c", "exit 3", check=False).returncode == 3


def test_wait_gives_exit_code_and_output(containerd: Containerd) -> None:
    """An entrypoint that ends by itself leaves its output and its exit code."""
    container = containerd.run("sh", "-c", "echo so far; exit 7")
    assert container.wait() == 7
    assert container.output() == "so far\n"


def test_a_killed_container_ends_with_the_signal(containerd: Containerd) -> None:
    """``kill`` reaches the entrypoint, and the exit code says by which signal it died."""
    container = containerd.run()
    container.kill(signal.SIGKILL)
    assert container.wait() == 128 + signal.SIGKILL


def test_removal_leaves_no_cgroup(containerd: Containerd) -> None:
    """After ``remove`` neither the entrypoint nor the container's cgroup is there, in any hierarchy."""
    container = containerd.run("sh", "-c", "sleep 1000 & wait")
    entrypoint = machine.Process.of(container.pid)
    container.remove()
    assert not entrypoint.alive()
    assert machine.cgroup_folders(container.cgroup) == []


def test_runc_alone_joins_every_hierarchy(runc: Runc) -> None:
    """runc by itself puts a container where it is asked to, in v1 and in v2."""
    container = runc.run("sleep", "1000")
    assert set(cgroups_of(container.pid).values()) == {container.cgroup}
    container.remove()
    assert machine.cgroup_folders(container.cgroup) == []


def test_runc_can_be_kept_out_of_v2(runc: Runc) -> None:
    """On a hybrid host a container may be in the v1 hierarchies only; in v2 it stays where its parent is."""
    require(Path("/sys/fs/cgroup/unified").is_dir(), "needs a hybrid host: v1 hierarchies and, beside them, v2")
    container = runc.run("sleep", "1000", v2=False)
    cgroups = cgroups_of(container.pid)
    assert cgroups.pop("") == cgroups_of("self")[""]
    assert set(cgroups.values()) == {container.cgroup}
    container.remove()


def test_the_end_of_containerd_leaves_nothing(tmp_path: Path) -> None:
    """Leaving the ``with`` block removes running containers, mounts and cgroups, parents included."""
    missing_before = not machine.cgroup_folders("/kubepods/leftover")
    with Containerd(tmp_path / "c") as runtime:
        one = runtime.run(cgroup=f"/kubepods/leftover/pod{uuid.uuid4()}/{new_id()}")
        two = runtime.run("sh", "-c", "sleep 1000 & wait")
        processes = [machine.Process.of(pid) for container in (one, two) for pid in container.pids()]
        processes += machine.processes_with_argument(runtime.socket)
        processes += runtime.daemons.recorded().values()
    assert missing_before
    assert [process for process in processes if process.alive()] == []
    assert [point for point, _ in machine.mounts() if point.is_relative_to(tmp_path)] == []
    for path in (one.cgroup, two.cgroup, "/kubepods/leftover", str(Path(two.cgroup).parent)):
        assert machine.cgroup_folders(path) == []
