"""The demo as a user runs it: what it shows is what it lists, and nothing is left of it however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.machine import hierarchies
from tests.waiting import SLOW, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PODTRACER = Path(sys.executable).with_name("podtracer")


class MountNamespace:
    """A mount namespace like ours in which nobody else mounts anything."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout
        self._holder.stdout.readline()
        self.enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    def mounts(self) -> str:
        """Its mount table."""
        return Path(f"/proc/{self._holder.pid}/mountinfo").read_text()

    def close(self) -> None:
        """Lets it go."""
        self._holder.communicate(timeout=10)


class Demo:
    """A running ``podtracer demo``, marked in its environment, which all of its processes inherit."""

    def __init__(self, namespace: MountNamespace, *args: str, stdout: Any = subprocess.PIPE) -> None:
        self._namespace = namespace
        self._mark = f"PODTRACER_TEST_MARK={uuid.uuid4()}"
        self._mounts = namespace.mounts()
        name, value = self._mark.split("=")
        self.child = subprocess.Popen(
            [*namespace.enter, PODTRACER, "demo", *args],
            env={**os.environ, name: value},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            umask=0,  # whoever starts it, nobody else may write its cgroups
        )
        assert self.child.stderr
        said = self.child.stderr.readline()
        port = re.search(r"--kubelet-read-only-port (\d+)", said)
        assert port, said
        self.port = int(port[1])

    def listed(self) -> dict[str, tuple[str, str, str]]:
        """(namespace, pod, container) by container ID, as its kubelet lists them now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/pods", timeout=5) as answer:
            pods = json.load(answer)["items"]
        return {
            status["containerID"].removeprefix("containerd://"): (
                pod["metadata"]["namespace"],
                pod["metadata"]["name"],
                status["name"],
            )
            for pod in pods
            for status in (*pod["status"]["containerStatuses"], *pod["status"]["initContainerStatuses"])
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """What it writes, to its end."""
        assert self.child.stdout
        yield from map(json.loads, self.child.stdout)

    def await_watch(self) -> None:
        """Returns once it shows what runs."""
        assert any(record["event"] == "synced" for record in self.records())

    def processes(self) -> list[int]:
        """Its processes that live."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if self._mark.encode() in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
        return found

    def cgroups(self) -> list[Path]:
        """Its cgroups, of every hierarchy."""
        return [found for root in hierarchies() for found in root.rglob(f"podtracer-demo-{self.child.pid}")]

    def leaves_nothing(self) -> None:
        """Asserts that no process, cgroup, mount or server is there any more."""
        assert self.processes() == []
        assert self.cgroups() == []
        assert self._namespace.mounts() == self._mounts
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", self.port)) != 0

    def close(self) -> None:
        """Ends it where a test failed to."""
        self.child.kill()
        self.child.communicate(timeout=20 * SLOW)


@pytest.fixture(scope="module")
def namespace() -> Iterator[MountNamespace]:
    """Where the demos of this module mount what they mount."""
    made = MountNamespace()
    yield made
    made.close()


@pytest.fixture
def demo(namespace: MountNamespace) -> Iterator[Any]:
    """Starts demos, which are over when the test is."""
    started: list[Demo] = []

    def start(*args: str, stdout: Any = subprocess.PIPE) -> Demo:
        started.append(Demo(namespace, *args, stdout=stdout))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_every_process_is_shown_as_what_the_demos_kubelet_lists(demo: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("w") as stdout:
        running = demo("-o", "json", "--duration", "4s", stdout=stdout)
    listed: dict[str, tuple[str, str, str]] = {}
    while running.child.returncode is None:
        with suppress(OSError, HTTPException):  # at its end
            listed |= running.listed()
        with suppress(subprocess.TimeoutExpired):
            running.child.wait(0.02)
    assert running.child.returncode == 0
    assert running.child.stderr.read() == ""
    running.leaves_nothing()

    records = [json.loads(line) for line in out.read_text().splitlines()]
    told = [record for record in records if "pid" in record]
    assert {"snapshot", "synced", "fork", "exec", "move", "exit", "resolved"} == {record["event"] for record in records}
    for record in told:
        assert record["cgroup"].startswith(f"/podtracer-demo-{running.child.pid}/kubepods/burstable/pod")
        assert record["container_id"] in record["cgroup"]
        if record["state"] == "resolved":
            shown = (record["namespace"], record["pod"], record["container"])
            assert shown == listed[record["container_id"]]
            assert f"k8s:container-name:{record['container']}" in record["selectors"]
        else:
            assert record["state"] == "pending"
            assert record["container"] is None
    resolved = {(r["namespace"], r["container"]) for r in told if r["event"] == "resolved"}
    assert {("shop", "migrate"), ("shop", "app"), ("shop", "proxy")} <= resolved
    ended = {(r["container"], r["comm"], r["exit_code"]) for r in told if r["event"] == "exit"}
    assert ("scorer", "scorer", 1) in ended
    assert ("db", "pg_isready", 0) in ended
    assert len({r["container_id"] for r in told if r["comm"] == "scorer"}) == 2, (
        "a restart has a container ID of its own"
    )


def test_filters_and_limits_are_those_of_watch(demo: Any) -> None:
    running = demo("-o", "json", "--no-snapshot", "-n", "payments", "-l", "app=ledger", "--count", "3")
    shown = [record for record in running.records() if "pid" in record]
    assert running.child.wait(20 * SLOW) == 0
    assert {(record["namespace"], record["container"]) for record in shown} == {("payments", "db")}
    assert len(shown) == 3
    running.leaves_nothing()


@pytest.mark.parametrize(
    "kind", [pytest.param("cgroup", marks=pytest.mark.v1), pytest.param("cgroup2", marks=pytest.mark.v2)]
)
def test_it_runs_on_either_kind_of_hierarchy(demo: Any, kind: str) -> None:
    # Not any: a process cannot join a cpuset that was given no CPUs.
    root = next(
        root for root, found in hierarchies().items() if found == kind and (kind == "cgroup2" or root.name == "pids")
    )
    running = demo("-o", "json", "--cgroupfs", str(root), "--no-snapshot", "-c", "web", "--count", "3")
    cgroups = running.cgroups()
    assert [record["comm"] for record in running.records() if "pid" in record] == ["web", "render", "render"]
    assert running.child.wait(30 * SLOW) == 0
    assert cgroups == [root / f"podtracer-demo-{running.child.pid}"]
    running.leaves_nothing()


def test_when_its_pods_end_too_early_it_says_so_and_goes_on(demo: Any) -> None:
    running = demo("-o", "json")
    running.await_watch()
    (stage,) = Path(f"/proc/{running.child.pid}/task/{running.child.pid}/children").read_text().split()
    os.kill(int(stage), signal.SIGKILL)
    assert running.child.stderr.readline().startswith("warning: the demo's pods have ended")
    assert any(record.get("signal") == 9 for record in running.records())
    running.child.send_signal(signal.SIGTERM)
    assert running.child.wait(20 * SLOW) == 0
    running.leaves_nothing()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_nothing_is_left(demo: Any, number: signal.Signals) -> None:
    running = demo("-o", "json")
    running.await_watch()
    assert len(running.processes()) > 8
    assert len(running.cgroups()) == 1
    running.child.send_signal(number)
    assert running.child.wait(20 * SLOW) == 0
    running.leaves_nothing()


def test_ctrl_c_before_the_first_line_and_again_meanwhile_leaves_nothing_either(demo: Any) -> None:
    running = demo()
    while running.child.poll() is None:
        running.child.send_signal(signal.SIGINT)
    # While Python itself is ending, long after us, a signal does what it does to any program.
    assert running.child.returncode in (0, -signal.SIGINT)
    running.leaves_nothing()


def test_a_killed_demo_takes_its_processes_along_and_the_next_one_removes_its_cgroups(demo: Any) -> None:
    killed = demo("-o", "json")
    killed.await_watch()
    killed.child.kill()
    killed.child.wait(20 * SLOW)
    until(lambda: not killed.processes(), 10, "the processes of a killed demo to end")
    assert len(killed.cgroups()) == 1
    following = demo("-o", "json", "--duration", "10ms")
    assert following.child.wait(20 * SLOW) == 0
    following.leaves_nothing()
    killed.leaves_nothing()


def test_two_demos_do_not_mind_each_other(demo: Any) -> None:
    one = demo("-o", "json")
    one.await_watch()
    other = demo("-o", "json", "--count", "1")
    assert all(str(other.child.pid) in record["cgroup"] for record in other.records() if "pid" in record)
    assert other.child.wait(20 * SLOW) == 0
    other.leaves_nothing()
    assert one.listed()
    assert len(one.cgroups()) == 1
    one.child.send_signal(signal.SIGINT)
    assert one.child.wait(20 * SLOW) == 0
    one.leaves_nothing()


def test_a_reader_that_goes_ends_it(demo: Any) -> None:
    running = demo("-o", "json")
    running.child.stdout.readline()
    running.child.stdout.close()
    assert running.child.wait(20 * SLOW) == 0
    assert running.child.stderr.read() == ""
    running.leaves_nothing()


def test_a_full_disk_is_an_error_that_leaves_nothing(demo: Any) -> None:
    with open("/dev/full", "w") as full:
        running = demo(stdout=full)
    assert running.child.wait(20 * SLOW) == 70
    assert "cannot be written" in running.child.stderr.read()
    running.leaves_nothing()


def test_without_capabilities_it_says_what_watch_says() -> None:
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", str(PODTRACER)]
    watch, demo = (
        subprocess.run([*bare, name, "--standalone"], capture_output=True, text=True, timeout=60 * SLOW)
        for name in ("watch", "demo")
    )
    assert (demo.returncode, demo.stderr) == (77, watch.stderr)
    assert "CAP_BPF" in demo.stderr
