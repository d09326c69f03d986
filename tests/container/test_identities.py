"""Real containers of containerd and runc, watched and looked up by the command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.container.pods import is_the_pods
from tests.containers import Containerd
from tests.machine import cgroup_folders
from tests.node import FakePod, listing
from tests.podtracer import Watch, podtracer
from tests.waiting import until
from tracer.sources.replay import ReplayKubelet

pytestmark = [pytest.mark.root, pytest.mark.container]


def test_a_watch_shows_a_containers_life(containerd: Containerd, pod: FakePod, kubelet: ReplayKubelet) -> None:
    """Of a container the exec of its entrypoint, 500 short-lived processes with fork, exec and exit each, and its own
    exit are all shown, every one with its namespace, service account, pod and container."""
    with Watch("--kubelet-read-only-port", kubelet.port, "-n", "shop") as watch:
        container = containerd.run(
            "/bin/sh", "-c", "i=0; while [ $i -lt 500 ]; do /bin/env true; i=$((i+1)); done; exit 3",
            container_id=pod.containers["app"], cgroup=pod.cgroup(),
        )  # fmt: skip
        until(
            lambda: [e for e in watch.of(container.pid) if e["event"] == "exit"], 60, "the container's exit to be shown"
        )
        container.wait()
        events = tuple(watch.events)
    mine = [event for event in events if event["event"] in ("fork", "exec", "move", "exit", "resolved")]
    assert all(is_the_pods(event, pod) for event in mine)
    children = {event["pid"] for event in mine if event["ppid"] == container.pid}
    kinds = {pid: [e["event"] for e in mine if e["pid"] == pid] for pid in children}
    # "env" execs "true" in its turn.
    full = [pid for pid, seen in kinds.items() if seen == ["fork", "exec", "exec", "exit"]]
    odd = {pid: seen for pid, seen in kinds.items() if pid not in full}
    assert len(full) == 500, odd
    assert all(e["exit_code"] == 0 for e in mine if e["event"] == "exit" and e["pid"] in children)
    own = [event for event in mine if event["pid"] == container.pid]
    assert [event["comm"] for event in own if event["event"] == "exec"][-1] == "sh"
    assert (own[-1]["event"], own[-1]["exit_code"]) == ("exit", 3)


def test_lookups_of_every_kind(containerd: Containerd, pod: FakePod, kubelet: ReplayKubelet) -> None:
    """A container's process that ran before, one of "exec", one that was moved into its cgroup, a host process and a
    number that nobody has are answered so, with the exit code that says so."""
    container = containerd.run(container_id=pod.containers["app"], cgroup=pod.cgroup())
    outsider = subprocess.Popen(["/bin/sleep", "1000"])
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    try:
        inside = container.spawn("/bin/sleep", "1000")
        for folder in cgroup_folders(container.cgroup):
            (folder / "cgroup.procs").write_text(str(outsider.pid))

        def lookup(*pids: int) -> tuple[int, list[dict[str, object]]]:
            result = podtracer("lookup", "--standalone", "--kubelet-read-only-port", kubelet.port, "-o", "json", *pids)
            return result.returncode, [json.loads(line) for line in result.stdout.splitlines()]

        code, found = lookup(container.pid, inside, outsider.pid)
        assert code == 0
        assert [identity["pid"] for identity in found] == [container.pid, inside, outsider.pid]
        assert all(is_the_pods(identity, pod) for identity in found)
        assert found[0]["comm"] == "sleep"
        assert {"k8s:ns:shop", "k8s:sa:cart", "k8s:pod-label:app:cart", "k8s:container-name:app"} <= set(
            found[0]["selectors"]  # type: ignore[arg-type]
        )
        code, (host,) = lookup(os.getpid())
        assert (code, host["state"], host["selectors"]) == (1, "host", [])
        code, (gone,) = lookup(ended.pid)
        assert (code, gone["state"]) == (1, "gone")
    finally:
        outsider.kill()
        outsider.wait()
        container.remove()


def test_an_unlisted_container_is_pending(containerd: Containerd, pod: FakePod) -> None:
    """A container in a pod-shaped cgroup that no list has is pending, with the IDs that its path tells, exit 75."""
    container = containerd.run(container_id=pod.containers["app"], cgroup=pod.cgroup())
    try:
        with ReplayKubelet(listing()) as empty:
            result = podtracer(
                "lookup", "--standalone", "--kubelet-read-only-port", empty.port, "-o", "json", container.pid
            )
        identity = json.loads(result.stdout)
        assert result.returncode == 75
        assert (identity["state"], identity["pod_uid"], identity["container_id"]) == (
            "pending",
            pod.uid,
            pod.containers["app"],
        )
    finally:
        container.remove()


def test_hostile_names_are_shown_quoted(containerd: Containerd, pod: FakePod, kubelet: ReplayKubelet) -> None:
    """A process whose name holds an escape sequence and a newline is shown quoted in a table, one line an event."""
    container = containerd.run(container_id=pod.containers["app"], cgroup=pod.cgroup())
    try:
        prctl = "import ctypes,time; ctypes.CDLL(None).prctl(15, b'a\\x1b[31m\\nb\\xff', 0, 0, 0); time.sleep(1000)"
        hostile = subprocess.Popen(["/usr/bin/python3", "-c", prctl])
        until(lambda: b"\x1b" in Path(f"/proc/{hostile.pid}/comm").read_bytes(), 10, "the name to be set")
        for folder in cgroup_folders(container.cgroup):
            (folder / "cgroup.procs").write_text(str(hostile.pid))
        table = podtracer("lookup", "--standalone", "--kubelet-read-only-port", kubelet.port, hostile.pid)
        as_json = podtracer(
            "lookup", "--standalone", "--kubelet-read-only-port", kubelet.port, "-o", "json", hostile.pid
        )
        hostile.kill()
        hostile.wait()
        assert table.returncode == as_json.returncode == 0
        assert "\x1b" not in table.stdout + as_json.stdout
        assert len(table.stdout.splitlines()) == 2
        assert r"\x1b[31m" in table.stdout
        assert json.loads(as_json.stdout)["comm"] == "a\x1b[31m\nb\\xff"
    finally:
        container.remove()
