"""Who counts as the host's root on the socket, and whom a number means: peers in containers and in namespaces."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.entries import entry, write
from tests.kernel.lab import Cgroup
from tests.kernel.test_tracer import Node
from tests.node import FakePod, listing
from tests.waiting import SLOW, until
from tracer import Tracer
from tracer.kernel import cgroupfs
from tracer.model import State
from tracer.serve.access import Access
from tracer.serve.socket import Server
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

pytestmark = pytest.mark.root
CART, VICTIM = FakePod("cart-1"), FakePod("victim-1", "vault", "admin")
USER = 12345
ALONE = ("--cri", "none", "--pods-api", "none", "--http-address", "none")

# Runs in whatever it was started in; says what came of the code that it is given, `said`, or the error's code.
ASKER = """
import asyncio, ctypes, json, os, subprocess, sys, threading
from tracer.aioclient import AsyncClient
from tracer.client import Client
from tracer.errors import DaemonError
path, uid, code = json.loads(sys.argv[1])
if uid:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
said = {}
try:
    with Client(path, timeout=60) as client:
        exec(code)
except DaemonError as error:
    said = {"code": error.code, "what": error.what, "hint": error.hint}
print(json.dumps(said))
"""
OTHERS = "said = client.request('status')"
ITSELF = "i = client.lookup(); said = {'state': i.state, 'reason': i.workload.reason, 'pod': i.workload.pod}"
IN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")

# A user namespace in which every ID is what it is outside: only its inode tells it from the initial one.
MAPPED_ALIKE = """
import ctypes, os, sys
ours, theirs = os.pipe(), os.pipe()
child = os.fork()
if not child:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    os.write(ours[1], b"x"); os.read(theirs[0], 1)
    os.execv(sys.argv[1], sys.argv[1:])
os.read(ours[0], 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{child}/{name}", "w") as file:
        file.write("0 0 4294967295")
os.write(theirs[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
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
def folder() -> Iterator[Path]:
    """A folder that everyone may enter."""
    with tempfile.TemporaryDirectory(prefix="podtracer-standing-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(params=["best", pytest.param("number", marks=pytest.mark.brisk)])
def server(request: pytest.FixtureRequest, tracer: Tracer, folder: Path) -> Iterator[Server]:
    """A server, by the best way to tell peers that this kernel has, and by that of kernels before 6.5; the victim's pod
    may ask about everyone."""
    access = Access(None, [frozenset({"k8s:ns:vault", "k8s:sa:admin"})])
    made = Server(tracer, f"{folder}/s.sock", access, status=dict, by_number=request.param == "number")
    made.start()
    yield made
    made.close()


def _ask(
    path: str, code: str, *, uid: int = 0, cgroups: Sequence[Cgroup] = (), within: Sequence[str] = ()
) -> dict[str, Any]:
    """What a process in these cgroups, started by these words, gets for its questions."""
    joins = "".join(f"echo $$ > '{cgroup.procs}' || exit; " for cgroup in cgroups)
    words = [*within, sys.executable, "-c", ASKER, json.dumps([path, uid, code])]
    run = subprocess.run(
        ["/bin/sh", "-c", f'{joins}exec "$@"', "sh", *words],
        capture_output=True, text=True, timeout=60 * SLOW, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said: dict[str, Any] = json.loads(run.stdout)
    return said


def _is_refused(said: dict[str, Any]) -> bool:
    return said.get("code") == "permission_denied" and bool(said["hint"])


# ---- who counts as the host's root ----


def test_root_of_the_host_is_root_here(server: Server) -> None:
    """Outside containers, in the daemon's own namespaces, it may ask about everyone."""
    assert _ask(server.path, OTHERS) == {}


@pytest.mark.parametrize(
    "within",
    [
        ("unshare", "--user", "--map-root-user"),
        (sys.executable, "-c", MAPPED_ALIKE),
        ("unshare", "--pid", "--fork"),
        IN_PID_NAMESPACE,
        ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"),
    ],
    ids=["user", "user-mapped-alike", "pid", "pid-and-proc", "both"],
)
def test_root_with_namespaces_of_its_own_is_not_the_hosts(server: Server, within: tuple[str, ...]) -> None:
    """In a user or PID namespace of its own a process may ask about itself only, though its number is 0 and its cgroup
    is no container's; an answer about itself it gets."""
    refused = _ask(server.path, OTHERS, within=within)
    assert _is_refused(refused)
    assert "namespaces" in refused["what"]
    assert _ask(server.path, ITSELF, within=within) == {"state": "host", "reason": "no_container", "pod": None}


def test_other_namespaces_take_nothing_away(server: Server) -> None:
    """Mount, network, UTS and IPC namespaces of services of the host do not make root a stranger."""
    assert _ask(server.path, OTHERS, within=("unshare", "--mount", "--net", "--uts", "--ipc")) == {}


@pytest.mark.brisk
def test_a_daemon_of_three_capabilities_tells_the_same(folder: Path) -> None:
    """Without CAP_SYS_PTRACE, and less than whoever asks, it knows the host's root, and who has a user or PID namespace
    of its own."""
    least = ("setpriv", "--bounding-set=-all,+bpf,+perfmon,+dac_read_search", "--inh-caps=-all")
    with Daemon(folder, "--kubelet", "none", *ALONE, prefix=least) as daemon:
        assert _ask(daemon.socket, OTHERS)["pid"] == daemon.child.pid
        for within in (("unshare", "--user", "--map-root-user"), IN_PID_NAMESPACE):
            assert _is_refused(_ask(daemon.socket, OTHERS, within=within))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/docker/{}", "not_listed_yet"),
        ("/system.slice/docker-{}.scope", "not_listed_yet"),
        ("/machine.slice/libpod-{}.scope/container", "not_listed_yet"),
        ("/docker/{}/system.slice/ssh.service", "not_listed_yet"),
        ("/machine.slice/libpod-conmon-{}.scope", "conmon"),
    ],
)
def test_root_in_a_container_outside_kubernetes_is_not_the_hosts(
    server: Server, node: Node, path: str, reason: str
) -> None:
    """By its cgroup alone: with ``--privileged --pid=host --userns=host`` it has the host's namespaces. It may yet be
    listed as a pod's, so for now it is pending."""
    cgroup = node.cgroup(path.format(secrets.token_hex(32)))
    assert _is_refused(_ask(server.path, OTHERS, cgroups=[cgroup]))
    assert _ask(server.path, ITSELF, cgroups=[cgroup])["reason"] == reason


@pytest.mark.parametrize(
    "path",
    [
        "/docker/{}",
        "/kubepods/besteffort/pod1/{}",
        "/{}-kubepods.slice",
        "/a/b-pod00000000_1111_2222_3333_444444444444.slice",
    ],
)
def test_a_container_in_any_hierarchy_is_one(server: Server, node: Node, path: str) -> None:
    """Root whom the tracked hierarchy has on the host and another one in a container is not trusted: the other one may
    hold the containers, and may be tracked a moment later."""
    feed = node.tracer._feed
    assert feed is not None
    home = node.cgroup(CART.cgroup())
    until(lambda: _ask(server.path, ITSELF, cgroups=[home]) and feed.certain, 10, "the hierarchy to be found out")
    elsewhere = [mount for mount in feed.mounts if mount is not feed.mount]
    for mount in elsewhere[:1] + elsewhere[1:][-1:]:  # none on pure v2; see tests/unit/test_standing.py
        cgroup = Cgroup(mount, path.format(secrets.token_hex(32)))
        try:
            assert _is_refused(_ask(server.path, OTHERS, cgroups=[cgroup]))
            said = _ask(server.path, ITSELF, cgroups=[cgroup])["reason"]
            assert said in ("no_container", "hierarchy", "not_listed_yet", "pod_cgroup")
        finally:
            cgroup.remove()


# Its first thread ends, and another one connects and asks.
LEADERLESS = """
import socket
def ask():
    while open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    connection = socket.socket(socket.AF_UNIX); connection.connect(path)
    lines, nonce = connection.makefile(), None
    for _ in range(2):
        connection.sendall(json.dumps({"id": 1, "op": "status", "nonce": nonce}).encode() + b"\\n")
        error = json.loads(lines.readline()).get("error", {})
        nonce = error.get("nonce")
        if nonce is None:
            break
    print(json.dumps(error), flush=True)
    os._exit(0)
threading.Thread(target=ask).start()
ctypes.CDLL(None).syscall(NUMBER, 0)
""".replace("NUMBER", "60" if os.uname().machine == "x86_64" else "93")


def test_root_without_its_first_thread_is_not_certain(server: Server) -> None:
    """A process whose first thread has ended is not trusted, since its files do not show where it is."""
    assert _is_refused(_ask(server.path, LEADERLESS))


# ---- the daemon's own container ----


@pytest.mark.v2
def test_the_daemons_own_container_may_ask_about_everyone(folder: Path) -> None:
    """Its own user in its own container, as kubectl exec makes it; not another user there, nor its user in another
    container of its pod, in one that is nested in its own, or in another one of another hierarchy."""
    pod = FakePod("podtracer-1", "kube-system", containers={"daemon": "ab" * 32, "side": "cd" * 32})
    mounts = cgroupfs.find_mounts("/sys/fs/cgroup", "/proc", {}, None)
    made = [Cgroup(mount, pod.cgroup("daemon")) for mount in mounts[:1]]
    home, side = made[0], Cgroup(mounts[0], pod.cgroup("side"))
    nested = Cgroup(mounts[0], f"{pod.cgroup('daemon')}/docker/{'ef' * 32}")
    below = Cgroup(mounts[0], f"{pod.cgroup('daemon')}/init.scope")
    made += [side, nested, below]
    try:
        with ReplayKubelet(listing(pod)) as kubelet:
            daemon = Daemon(folder, "--kubelet-read-only-port", kubelet.port, *ALONE)
            with daemon:
                home.add(daemon.child.pid)
                until(lambda: _lookup(daemon.socket, home)["pod"] == "podtracer-1", 30, "the daemon's own pod")
                assert _ask(daemon.socket, OTHERS, cgroups=[home])["pid"] == daemon.child.pid
                assert _ask(daemon.socket, OTHERS, cgroups=[below])["pid"] == daemon.child.pid
                for who in (
                    {"cgroups": [home], "uid": USER},
                    {"cgroups": [side]},
                    {"cgroups": [nested]},
                    {"cgroups": [home], "within": ("unshare", "--user", "--map-root-user")},
                    {"cgroups": [home], "within": IN_PID_NAMESPACE},
                ):
                    assert _is_refused(_ask(daemon.socket, OTHERS, **who)), who
                if len(mounts) > 1:
                    elsewhere = Cgroup(mounts[1], f"/docker/{'ef' * 32}")
                    made.append(elsewhere)
                    assert _is_refused(_ask(daemon.socket, OTHERS, cgroups=[home, elsewhere]))
    finally:
        for cgroup in reversed(made):
            cgroup.remove()


def _lookup(path: str, cgroup: Cgroup) -> dict[str, Any]:
    return _ask(path, ITSELF, cgroups=[cgroup])


@pytest.mark.brisk
@pytest.mark.v2
def test_the_daemons_own_container_may_ask_before_anybody_lists_it(folder: Path) -> None:
    """A daemon without pod data is debugged from its own container, which is pending; the next pod is not trusted."""
    pod, other = FakePod("podtracer-1"), FakePod("other-1")
    mount = cgroupfs.find_mounts("/sys/fs/cgroup", "/proc", {}, None)[0]
    home, stranger = Cgroup(mount, pod.cgroup()), Cgroup(mount, other.cgroup())
    try:
        with Daemon(folder, "--kubelet", "none", *ALONE) as daemon:
            home.add(daemon.child.pid)
            until(lambda: _lookup(daemon.socket, home)["state"] == "pending", 30, "the container to be seen")
            assert _ask(daemon.socket, OTHERS, cgroups=[home])["pid"] == daemon.child.pid
            assert _is_refused(_ask(daemon.socket, OTHERS, cgroups=[stranger]))
    finally:
        home.remove()
        stranger.remove()


# ---- what a pod learns that asks about itself ----

# Nests a cgroup called like the victim's pod and container below its own, enters it, and asks for what it is then.
FORGER = """
from pathlib import Path
nested = Path(NESTED)
nested.mkdir(parents=True)
(nested / "cgroup.procs").write_text(str(os.getpid()))
def told(i):
    return [i.state, i.workload.pod, i.mode, i.parity, list(i.workload.selectors)]
def asked(client, **how):
    return [told(client.lookup(**how)), told(client.lookup(os.getpid(), **how)), told(client.lookup(wait=1, **how))]
said = {"plain": asked(client), "parity": asked(client, mode="parity", parity=True),
        "bare": asked(client, container_selectors=False), "explained": client.explain(os.getpid())}
"""


@pytest.mark.brisk
@pytest.mark.v2
def test_a_pod_that_names_a_cgroup_after_another_reads_nothing_of_it(folder: Path) -> None:
    """Whatever mode it asks for, and however it is explained to itself: neither the other pod's selectors and names,
    nor which entries it does not match; root of the host is told both."""
    entries = write(
        folder / "entries.json",
        entry("/cart", "k8s:ns:shop"),
        entry("/victim", "k8s:ns:vault", "k8s:sa:admin"),
        entry("/undecided", "k8s:ns:shop", "unix:path:/bin/victim"),
    )
    mount = cgroupfs.find_mounts("/sys/fs/cgroup", "/proc", {}, None)[0]
    cart = Cgroup(mount, CART.cgroup())
    nested = f"{cart.folder}{VICTIM.cgroup().removeprefix('/kubepods')}"
    code = FORGER.replace("NESTED", repr(nested))
    try:
        with ReplayKubelet(listing(CART, VICTIM)) as kubelet:
            words = ("--kubelet-read-only-port", kubelet.port, *ALONE, "--entries-file", entries)
            with Daemon(folder, *words) as daemon:
                until(lambda: _lookup(daemon.socket, cart)["pod"] == "cart-1", 30, "the pod to be known")
                said = _ask(daemon.socket, code, cgroups=[cart])
                seen = json.dumps(said)
                for secret in ("victim-1", "k8s:ns:vault", "k8s:sa:admin", "/victim", "/undecided"):
                    assert secret not in seen
                for found in (*said["plain"], *said["parity"], *said["bare"]):
                    assert found[:3] == ["resolved", "cart-1", "strict"]
                assert all(found[3] is False for found in said["parity"])
                assert all("container-name" not in text for found in said["bare"] for text in found[4])
                assert [match["id"] for match in said["explained"]["entries"]["matched"]] == ["cart"]
                child = subprocess.Popen(["sleep", "100"])
                try:
                    Path(nested, "cgroup.procs").write_text(str(child.pid))
                    with daemon.client() as client:
                        everything = json.dumps(client.explain(child.pid))
                        by_files = client.lookup(child.pid, mode="parity")
                finally:
                    child.kill()
                    child.wait()
                assert "k8s:sa:admin" in everything
                assert "/undecided" in everything
                assert by_files.workload.pod == "victim-1"
    finally:
        cart.remove()


# ---- whom a number means ----

# In a PID namespace of its own: its child, a thread of it, and itself, by numbers that mean others outside.
NUMBERS = """
child = subprocess.Popen(["sleep", "100"])
threads = subprocess.Popen(
    [sys.executable, "-c", "import threading, sys; threading.Thread(target=sys.stdin.read).start();"
     "print(threading.enumerate()[-1].native_id, flush=True)"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
tid = int(threads.stdout.readline())
asked = [child.pid, threads.pid, tid, os.getpid(), 30000]
async def with_tasks():
    async with AsyncClient(path, timeout=60) as tasks:
        single = await asyncio.gather(*map(tasks.lookup, asked))
        many = await tasks.lookup_many(asked)
        return single, many, await tasks.explain(child.pid)
found = [[client.lookup(pid) for pid in asked], client.lookup_many(asked)]
fd = os.pidfd_open(child.pid)
by_fd = client.lookup(pidfd=fd)
explained = [client.explain(child.pid), client.explain(os.getpid())]
singles, many, record = asyncio.run(with_tasks())
found += [singles, many]
try:
    client.request("lookup", pid=child.pid)
except DaemonError as error:
    bare = [error.code, error.what]
try:
    client.request("explain", pid=child.pid)
except DaemonError as error:
    bare += [error.code]
said = {"asked": asked, "found": [[[i.asked, i.key.pid, i.state, i.workload.pod] for i in each] for each in found],
        "explained": [[e["asked"], e["pid"], e["pod"]] for e in [*explained, record]],
        "by_fd": by_fd.key.pid, "bare": bare}
for each in (child, threads):
    each.kill(); each.wait()
"""


@pytest.mark.parametrize("proc", [True, False])
def test_numbers_of_another_pid_namespace_are_asked_by_pidfd(server: Server, node: Node, *, proc: bool) -> None:
    """A pod that may ask about everyone asks about processes of its own PID namespace, by their numbers there: each is
    answered as that process, with the daemon's number in ``pid`` and the asked one in ``asked``, threads too; a number
    that no process has there is gone; and a bare number is refused with words that say why."""
    cgroup = node.cgroup(VICTIM.cgroup())
    within = IN_PID_NAMESPACE if proc else IN_PID_NAMESPACE[:-1]
    # Whose thread it is, only files of that namespace tell.
    code = NUMBERS if proc else NUMBERS.replace("tid, os.getpid()", "os.getpid()")
    said = _ask(server.path, code, cgroups=[cgroup], within=within)
    assert "code" not in said, said
    asked, found = said["asked"], said["found"]
    for answers in found:
        assert [answer[0] for answer in answers] == asked
        assert answers[-1][1:] == [0, "gone", None]
        assert {(answer[2], answer[3]) for answer in answers[:-1]} == {("resolved", "victim-1")}
    outside = [answer[1] for answer in found[0][:-1]]
    assert all(number > 1000 or number not in asked for number in outside)
    assert len({tuple(answer[1] for answer in answers) for answers in found}) == 1
    if proc:
        assert outside[1] == outside[2]
    assert said["by_fd"] == outside[0]
    assert said["explained"] == [
        [asked[0], outside[0], "victim-1"],
        [1, outside[-1], "victim-1"],
        [asked[0], outside[0], "victim-1"],
    ]
    assert said["bare"][0] == "bad_request"
    assert said["bare"][1] == f"PID {asked[0]} is of another PID namespace than the daemon's"
    assert said["bare"][2] == "bad_request"


def test_a_pod_in_a_pid_namespace_is_told_of_itself_by_its_own_number(server: Server, node: Node) -> None:
    """Also where it may ask about itself only, whoever has that number outside; about its child it is refused, and
    about a bare number told why."""
    cgroup = node.cgroup(CART.cgroup())
    code = (
        "i = client.lookup(os.getpid()); e = client.explain(os.getpid())\n"
        "said = {'asked': i.asked, 'pod': i.workload.pod, 'explained': e['pod'], 'pid': i.key.pid == e['pid'],"
        "        'alike': client.counts_alike()}"
    )
    said = _ask(server.path, code, cgroups=[cgroup], within=IN_PID_NAMESPACE)
    assert said == {"asked": 1, "pod": "cart-1", "explained": "cart-1", "pid": True, "alike": False}
    assert _ask(server.path, "said = {'alike': client.counts_alike()}", cgroups=[cgroup]) == {"alike": True}
    child = "client.lookup(subprocess.Popen(['sleep', '1']).pid)"
    assert _is_refused(_ask(server.path, child, cgroups=[cgroup], within=IN_PID_NAMESPACE))
    for request in ("pid=1", "pids=[1]", "pid=1, wait_ms=5000"):
        bare = _ask(server.path, f"client.request('lookup', {request})", cgroups=[cgroup], within=IN_PID_NAMESPACE)
        assert bare["code"] == "bad_request"
        assert "another PID namespace" in bare["what"]


def test_numbers_of_a_proc_of_outside_are_nobodys(server: Server, node: Node) -> None:
    """Where /proc is still that of the namespace outside, the numbers that it has of ourselves and of our threads mean
    nobody inside: they are gone, not ourselves."""
    cgroup = node.cgroup(VICTIM.cgroup())
    code = (
        "thread = threading.Thread(target=sys.stdin.read, daemon=True); thread.start()\n"
        "outside = [int(os.readlink('/proc/self')), *map(int, os.listdir('/proc/self/task'))]\n"
        "said = {'inside': os.getpid(), 'outside': outside, 'states': [client.lookup(n).state for n in outside]}"
    )
    said = _ask(server.path, code, cgroups=[cgroup], within=IN_PID_NAMESPACE[:-1])
    assert said["inside"] not in said["outside"]
    assert set(said["states"]) == {"gone"}


def test_a_pidfd_that_cannot_be_opened_leaves_the_number(server: Server) -> None:
    """Where pidfd_open is refused, numbers are sent as they are, which do in the daemon's own PID namespace."""
    code = (
        "import errno\n"
        "def refused(pid, flags=0): raise OSError(errno.EPERM, 'no')\n"
        "os.pidfd_open = refused\n"
        "pid = os.getppid() or subprocess.Popen(['sleep', '1']).pid\n"
        "said = {'right': client.lookup(pid).key.pid == pid}"
    )
    assert _ask(server.path, code) == {"right": True}
    said = _ask(server.path, code, within=IN_PID_NAMESPACE)
    assert said["code"] == "bad_request"


@pytest.mark.brisk
@pytest.mark.v2
def test_the_commands_ask_by_pidfd_and_know_themselves(folder: Path) -> None:
    """``lookup self`` and ``explain self`` are podtracer's own process in any PID namespace, ``lookup $$`` the shell's
    where the caller may ask about everyone, and a stranger of that number nowhere."""
    mount = cgroupfs.find_mounts("/sys/fs/cgroup", "/proc", {}, None)[0]
    cart, victim = Cgroup(mount, CART.cgroup()), Cgroup(mount, VICTIM.cgroup())
    try:
        with ReplayKubelet(listing(CART, VICTIM)) as kubelet:
            words = ("--kubelet-read-only-port", kubelet.port, *ALONE, "--socket-allow", "k8s:ns:vault")
            with Daemon(folder, *words) as daemon:
                until(lambda: _lookup(daemon.socket, victim)["pod"] == "victim-1", 30, "the pods to be known")
                for cgroup, pod in ((cart, "cart-1"), (victim, "victim-1")):
                    for asked in ("lookup self", "explain self"):
                        found = _command(asked, daemon.socket, cgroup)
                        assert (found["pod"], found["asked"] != found["pid"]) == (pod, True)
                assert _command("lookup $$", daemon.socket, victim)["pod"] == "victim-1"
                assert _command("explain $$", daemon.socket, victim)["pod"] == "victim-1"
                assert _command("lookup $$", daemon.socket, cart)["code"] == 77
                entries = write(folder / "entries.json", entry("/root", "k8s:ns:vault", "unix:uid:0"))
                issued = _command(f"lookup $$ --entries-file {entries}", daemon.socket, victim)
                assert issued["spiffe_ids"] == ["spiffe://example.org/root"]  # by files of its own number
                gone = _command("lookup 30000", daemon.socket, victim)
                assert (gone["state"], gone["pid"], gone["asked"]) == ("gone", None, 30000)
    finally:
        cart.remove()
        victim.remove()


def _command(words: str, path: str, cgroup: Cgroup) -> dict[str, Any]:
    """What a command says in a shell that is init of a PID namespace of this cgroup."""
    shell = f"{sys.executable} -m tracer.cli.main {words} -o json --socket {path}; code=$?; echo; exit $code"
    run = subprocess.run(
        ["/bin/sh", "-c", f'echo $$ > {cgroup.procs}; exec "$@"', "sh", *IN_PID_NAMESPACE, "/bin/sh", "-c", shell],
        capture_output=True, text=True, timeout=60 * SLOW, check=False,
    )  # fmt: skip
    if not run.stdout.strip():
        return {"code": run.returncode, "said": run.stderr}
    said: dict[str, Any] = json.loads(run.stdout)
    return said


@pytest.mark.brisk
def test_before_pidfs_pidfds_and_namespaces_do_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without inodes of pidfds, and peers told by number, who is trusted and whom a number means is the same."""
    monkeypatch.setenv("PODTRACER_FORCE", "starttime")
    with (
        ReplayKubelet(listing(CART, VICTIM)) as kubelet,
        Tracer(Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none")) as tracer,
    ):
        assert tracer.wait_synced(30 * SLOW)
        node = Node(tracer)
        server = Server(
            tracer, f"{folder}/s.sock", Access(None, [frozenset({"k8s:ns:vault"})]), status=dict, by_number=True
        )
        server.start()
        try:
            cgroup = node.cgroup(VICTIM.cgroup())
            assert _ask(server.path, OTHERS) == {}
            assert _is_refused(_ask(server.path, OTHERS, within=IN_PID_NAMESPACE))
            said = _ask(server.path, NUMBERS, cgroups=[cgroup], within=IN_PID_NAMESPACE)
            for answers in said["found"]:
                assert {answer[2:][0] for answer in answers[:-1]} == {State.RESOLVED}
            assert said["by_fd"] == said["found"][0][0][1]
        finally:
            server.close()
            node.remove()
