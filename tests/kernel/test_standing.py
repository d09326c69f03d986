"""Where the daemon itself stands: in cgroup, PID, mount and time namespaces of its own it answers right, or says what
is missing in the words of doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.machine import hierarchies, remove_cgroup
from tests.podtracer import COMMAND
from tests.servers import unused_port
from tests.waiting import SLOW, until
from tracer.client import Client
from tracer.errors import DaemonUnreachable

pytestmark = [pytest.mark.root, pytest.mark.v2]

ALONE = ("--kubelet", "none", "--cri", "none", "--pods-api", "none")
THREE = "-all,+bpf,+perfmon,+dac_read_search"
POD = "kubepods/besteffort/pod6f1c1f3e-9a55-4d0e-8f3e-0d8c5a1b2c3d"
ID, OTHER_ID = "ab" * 32, "cd" * 32
IN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class Cgroups:
    """Cgroups of v2 below one of the test's own."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name

    @property
    def prefix(self) -> tuple[str, ...]:
        """What has pods looked for here alone: others of this machine may have some too."""
        return "--cgroup-prefix", f"/{self.name}/kubepods"

    def make(self, path: str) -> Path:
        """The folder of ``path`` below the test's own."""
        folder = self.root / self.name / path
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    root = next(path for path, kind in hierarchies().items() if kind == "cgroup2")
    made = Cgroups(root, f"podtracer-test-{os.getpid()}")
    yield made
    remove_cgroup(f"/{made.name}")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Children that end with the test."""
    children: list[subprocess.Popen[str]] = []
    yield children
    for child in children:
        child.kill()
        child.communicate()


def _inside(folder: Path) -> tuple[str, ...]:
    """What starts a command in a cgroup."""
    return ("sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh")


def _in_mounts(script: str) -> tuple[str, ...]:
    """What starts a command in mounts of its own."""
    return ("unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh")


def _failing(*before: str, words: tuple[str, ...] = ()) -> str:
    """What a daemon says that ends at once, with 69, and doctor in the same place; the sentence."""
    run = [*before, *COMMAND]
    with tempfile.TemporaryDirectory() as folder:
        where = ("--socket", f"{folder}/podtracer.sock", "--http-address", "none")
        daemon = subprocess.run(
            [*run, "daemon", *ALONE, *where, *words], capture_output=True, text=True, timeout=60 * SLOW, check=False
        )
    assert daemon.returncode == 69, daemon.stderr
    said = next(line for line in daemon.stderr.splitlines() if line.startswith("error: ")).removeprefix("error: ")
    assert "\nhint: " in daemon.stderr
    assert "level=" not in daemon.stderr, "told twice"
    doctor = subprocess.run(
        [*run, "doctor", "-o", "json", *ALONE, *words], capture_output=True, text=True, timeout=60 * SLOW, check=False
    )
    assert doctor.returncode == 1, doctor.stdout
    found = [check["found"] for check in json.loads(doctor.stdout)["checks"] if check["state"] == "fail"]
    assert _without_numbers(said) in [_without_numbers(each) for each in found]
    return said


def _without_numbers(text: str) -> str:
    """Each run has its own PID namespace, and PID."""
    return "".join("0" if letter.isdigit() else letter for letter in text).replace("00", "0").replace("00", "0")


@contextmanager
def _daemon(
    folder: Path, *before: str, words: tuple[str, ...] = ()
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], Client]]]:
    """A daemon that answers, run behind ``before``."""
    socket = str(folder / "podtracer.sock")
    child = subprocess.Popen(
        [*before, *COMMAND, "daemon", *ALONE, "--socket", socket, *words],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def answers() -> bool:
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        try:
            with Client(socket) as client:
                return bool(client.request("version")["version"])
        except DaemonUnreachable:
            return False

    try:
        until(answers, 60, "the daemon to answer")
        yield child, lambda: Client(socket, timeout=60 * SLOW)
    finally:
        child.kill()  # unshare passes no other signal on
        child.communicate()


# ---- cgroup namespaces ----

# Compares what /proc tells of every process with what the kernel's slots say.
COMPARE = """
import json, os, sys
from tracer import Tracer, pidfd
from tracer.settings import Settings

home = sys.argv[1]
found = {}
with Tracer(Settings(kubelet="none", cri="none", pods_api="none")) as tracer:
    feed = tracer._feed
    if home:
        open(f"{home}/cgroup.procs", "w").write(str(os.getpid()))
    for pid in sys.argv[2:]:
        with pidfd.pinned(int(pid)) as fd:
            slot = feed.slot_from_procfs(int(pid), fd)
        right = feed.programs.slots.read(int(pid))
        found[pid] = [open(f"/proc/{pid}/cgroup").read().splitlines()[-1], slot and slot.cgroup, right and right.cgroup]
    found["init"] = [tracer.lookup(1).state, tracer.lookup(1).workload.reason]
print(json.dumps(found))
"""


def _sleepers(started: list[subprocess.Popen[str]], *folders: Path) -> list[str]:
    started += [subprocess.Popen([*_inside(folder), "sleep", "300"], text=True) for folder in folders]
    for child in started:
        until(lambda pid=child.pid: "sleep" in Path(f"/proc/{pid}/comm").read_text(), 10, "the exec")
    return [str(child.pid) for child in started]


@pytest.mark.parametrize(
    "home", [None, ".", *(pytest.param(home, marks=pytest.mark.brisk) for home in ("top/us/below", "top/beside"))]
)
def test_a_private_cgroup_namespace_takes_no_cgroup_for_another(
    cgroups: Cgroups, started: list[subprocess.Popen[str]], home: str | None
) -> None:
    """In a cgroup namespace of its own, also after it was moved within or out of it, a tracer finds in /proc the very
    cgroups of processes that stand beside, above and below it, or none; and init is on the host."""
    us = cgroups.make("top/us")
    places = ("top/us", "top/us/below", "top/beside", "top", "other/far", ".")
    pids = _sleepers(started, *(cgroups.make(place) for place in places))
    moved = str(cgroups.make(home)) if home is not None else ""
    done = subprocess.run(
        [*_inside(us), "unshare", "--cgroup", sys.executable, "-c", COMPARE, moved, *pids],
        capture_output=True, text=True, timeout=60 * SLOW, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    init = found.pop("init")
    assert any("/../" in shown for shown, _, _ in found.values())
    for shown, cgroup, right in found.values():
        assert right is not None
        assert cgroup in (None, right), shown
    if home is None or home.startswith("top/us"):  # we know where the namespace's root is
        assert all(cgroup is not None for _, cgroup, _ in found.values())
        assert init == ["host", "no_container"]
    assert init[0] in ("host", "unknown")


def test_a_mount_over_a_cgroup_is_no_cgroup(cgroups: Cgroups, started: list[subprocess.Popen[str]]) -> None:
    """The inode of a mount over a process's cgroup is not the id of a cgroup: the process's cgroup is unknown then."""
    folder = cgroups.make("covered")
    (pid,) = _sleepers(started, folder)
    for kind in (f"mount -t tmpfs none {folder}", f"mount --bind {cgroups.make('another')} {folder}"):
        done = subprocess.run(
            [*_in_mounts(kind), sys.executable, "-c", COMPARE, "", pid],
            capture_output=True, text=True, timeout=60 * SLOW, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        _, cgroup, right = json.loads(done.stdout)[pid]
        assert (cgroup, right is not None) == (None, True)


def test_a_daemon_in_a_private_cgroup_namespace_answers_right(
    cgroups: Cgroups, started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """With the host's mount it answers as outside: whole paths, and init on the host."""
    us, them = cgroups.make("us"), cgroups.make("them")
    (pid,) = _sleepers(started, them)
    before = (*_inside(us), "unshare", "--cgroup")
    with _daemon(tmp_path, *before, words=("--http-address", "none")) as (_, client), client() as asking:
        for about, path in ((int(pid), f"/{cgroups.name}/them"), (1, None)):
            identity = asking.lookup(about)
            assert (identity.state, identity.workload.reason) == ("host", "no_container")
            assert identity.cgroup is not None
            assert path is None or identity.cgroup.path == path


@pytest.mark.brisk
def test_without_the_hosts_mount_the_daemon_does_not_start(cgroups: Cgroups, tmp_path: Path) -> None:
    """A tmpfs in place of the cgroup file systems, or their mount as a private cgroup namespace has it, ends the daemon
    with doctor's words."""
    us = cgroups.make("us")
    assert "no cgroup hierarchy is mounted" in _failing(*_in_mounts("mount -t tmpfs none /sys/fs/cgroup"))
    private = (*_inside(us), "unshare", "--cgroup")
    said = _failing(*private, *_in_mounts(f"mount -t cgroup2 none {tmp_path}"), words=("--cgroupfs", str(tmp_path)))
    assert f"{tmp_path} is not the root of the hierarchy" in said
    script = "mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/x && mount -t cgroup2 none /sys/fs/cgroup/x"
    assert "is not the root of the hierarchy" in _failing(*private, *_in_mounts(script))


@pytest.mark.brisk
def test_a_mount_that_another_one_covers_is_not_believed(tmp_path: Path) -> None:
    """A tmpfs over the very mount of the hierarchy has the same inode as its root, and is not taken for it."""
    script = f"mount -t cgroup2 none {tmp_path} && mount -t tmpfs none {tmp_path}"
    said = _failing(*_in_mounts(script), words=("--cgroupfs", str(tmp_path)))
    assert said == f"no cgroup hierarchy is mounted ({tmp_path})"


# ---- PID and time namespaces ----


@pytest.mark.brisk
def test_in_a_pods_own_pid_namespace_the_daemon_does_not_start(cgroups: Cgroups) -> None:
    """hostPID: false, where init is the daemon in its container or the pod's pause process, ends it with 69; a look-up
    of its own and watch too."""
    for cgroup in (f"{POD}/{ID}", f"{POD}/{ID}/nested"):
        before = (*_inside(cgroups.make(cgroup)), *IN_PID_NAMESPACE)
        said = _failing(*before)
        assert f"it is the PID namespace of one pod, whose first process is in '/{cgroups.name}/{cgroup}'" in said
    script = f'echo $$ > {cgroups.make(f"{POD}/{OTHER_ID}")}/cgroup.procs; "$@"; exit $?'
    paused = (*_inside(cgroups.make(f"{POD}/{ID}")), *IN_PID_NAMESPACE, "sh", "-c", '"$@"; exit $?', "sh")
    assert "it is the PID namespace of one pod" in _failing(*paused, "sh", "-c", script, "sh")
    for words in (("lookup", "1"), ("watch", "--duration", "1s"), ("ps",)):
        done = subprocess.run(
            [*before, *COMMAND, *words, "--standalone", *ALONE],
            capture_output=True, text=True, timeout=60 * SLOW, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (69, "")
        assert "it is the PID namespace of one pod" in done.stderr


@pytest.mark.brisk
def test_a_container_that_sees_none_of_the_pods_is_told(
    cgroups: Cgroups, started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Without --pid host a container or service beside pods that run ends with 69. While none runs, or where the pods
    are in its PID namespace too, as on a node that is a container, it starts."""
    own, hidden = cgroups.make(f"docker/{ID}"), cgroups.make(f"{POD}/{OTHER_ID}")
    alone = (*_inside(own), *IN_PID_NAMESPACE)
    words = ("--http-address", "none", *cgroups.prefix)
    with _daemon(tmp_path, *alone, words=words) as (_, client), client() as asking:
        assert asking.request("version")["version"]
    _sleepers(started, hidden)
    said = _failing(*alone, words=cgroups.prefix)
    assert f"'/{cgroups.name}/{POD}/{OTHER_ID}'" in said
    # Its init, the daemon and a service each have their own cgroup, as in KIND; another node's pods are hidden.
    node = cgroups.make(f"docker/{ID}/init.scope")
    kind = (*_inside(node), *IN_PID_NAMESPACE, "sh", "-c", '"$@"; exit $?', "sh")
    inner = _inside(cgroups.make(f"docker/{ID}/kubelet/{POD}/{ID}"))
    for more in ((), cgroups.prefix):
        words = ("--http-address", "none", *more)
        with _daemon(tmp_path, *kind, *inner, words=words) as (_, client), client() as asking:
            assert asking.request("version")["version"]


@pytest.mark.brisk
def test_a_procfs_or_boot_time_of_another_namespace_ends_the_daemon() -> None:
    """podtracer does not start if /proc belongs to another PID namespace, or boot time is not the machine's."""
    assert "/proc belongs to another PID namespace" in _failing("unshare", "--pid", "--fork", "--kill-child")
    if Path("/proc/self/ns/time").exists():
        before = ("unshare", "--time", "--boottime", "100", "--fork", "--kill-child")
        assert _failing(*before).startswith("boot time is 100 s off")


# ---- while it runs ----


def _ready(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.brisk
def test_a_daemon_is_not_ready_while_it_sees_none_of_the_pods(
    cgroups: Cgroups, started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A pod that starts outside of the daemon's PID namespace makes it not ready, with the sentence, which is logged
    once and stands in its status; when no pod is left it is ready again."""
    port, own, hidden = unused_port(), cgroups.make(f"docker/{ID}"), cgroups.make(f"{POD}/{OTHER_ID}")
    before = (*_inside(own), *IN_PID_NAMESPACE)
    words = ("--http-address", f"127.0.0.1:{port}", *cgroups.prefix)
    with _daemon(tmp_path, *before, words=words) as (child, _):
        until(lambda: _ready(port)[0] == 200, 30, "the daemon to be ready")
        (pid,) = _sleepers(started, hidden)
        until(lambda: _ready(port)[0] == 503, 30, "it not to be ready")
        assert "[-]scan PIDs are those of PID namespace" in _ready(port)[1]
        started[0].kill()
        started[0].wait()
        until(lambda: _ready(port)[0] == 200, 30, "it to be ready again")
        child.kill()
        assert child.stderr is not None
        log = child.stderr.read()
    assert log.count(f"such as those in '/{cgroups.name}/{POD}/{OTHER_ID}'") == 1
    assert pid


@pytest.mark.brisk
def test_a_daemon_is_not_ready_without_its_mount(tmp_path: Path) -> None:
    """When the cgroup file system is unmounted the daemon says so, and reports no process where it is not."""
    port, mount = unused_port(), tmp_path / "cgroups"
    mount.mkdir()
    before = _in_mounts(f"mount -t cgroup2 none {mount}")
    words = ("--cgroupfs", str(mount), "--http-address", f"127.0.0.1:{port}")
    with _daemon(tmp_path, *before, words=words) as (child, client):
        until(lambda: _ready(port)[0] == 200, 30, "the daemon to be ready")
        inside = ("nsenter", f"--mount=/proc/{child.pid}/ns/mnt")
        subprocess.run([*inside, "umount", "--no-mtab", "--lazy", str(mount)], check=True)
        until(lambda: _ready(port)[0] == 503, 30, "it not to be ready")
        assert f"[-]scan {mount} is no longer mounted" in _ready(port)[1]
        with client() as asking:
            assert asking.status()["missing"] == [f"{mount} is no longer mounted: podtracer cannot name cgroups"]
            assert asking.lookup(1).state in ("host", "unknown")


# ---- capabilities ----


@pytest.mark.brisk
@pytest.mark.parametrize("is_hidden", [False, True])
def test_what_three_capabilities_cannot_read_is_told(tmp_path: Path, is_hidden: bool) -> None:
    """Another user with the three capabilities alone traces; doctor warns of CAP_SYS_PTRACE. Where /proc hides other
    users' processes parity mode, which answers by their files, ends with 77; elsewhere parity is known."""
    os.chmod(tmp_path, 0o755)
    mounts = _in_mounts("mount -t proc -o hidepid=invisible none /proc") if is_hidden else ()
    user = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", f"--bounding-set={THREE}",
            f"--inh-caps={THREE}", f"--ambient-caps={THREE}")  # fmt: skip
    for mode in ("strict", "parity"):
        words = ("--mode", mode, *ALONE)
        done = subprocess.run(
            [*mounts, *user, *COMMAND, "doctor", "-o", "json", *words],
            capture_output=True, text=True, timeout=100 * SLOW, check=False,
        )  # fmt: skip
        (check,) = (each for each in json.loads(done.stdout)["checks"] if each["name"] == "reading")
        assert "CAP_SYS_PTRACE" in f"{check['found']} {check['hint']}"
        assert check["state"] == ("fail" if is_hidden and mode == "parity" else "warn")
        found = subprocess.run(
            [*mounts, *user, *COMMAND, "lookup", str(os.getpid()), "--standalone", "-o", "json", *words],
            capture_output=True, text=True, timeout=100 * SLOW, check=False,
        )  # fmt: skip
        if check["state"] == "fail":
            assert (found.returncode, found.stdout) == (77, "")
            assert check["found"] in found.stderr
        else:
            identity = json.loads(found.stdout)
            assert identity["state"] == "host"
            assert identity["parity"] is (True if mode == "parity" else identity["parity"])
