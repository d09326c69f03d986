"""Strict mode against SPIRE's rules on real containers, and how the command explains where they differ."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.containers import Container, Containerd
from tests.entries import body, entry
from tests.machine import cgroup_folders
from tests.node import FakePod, listing
from tests.podtracer import Watch, podtracer
from tests.waiting import until
from tracer.sources.replay import ReplayKubelet

pytestmark = [pytest.mark.root, pytest.mark.container]

# Waits for /go/go, then moves itself into each cgroup of the list, as a workload can that has its cgroups at hand.
SCRIPT = """
until [ -e /go/go ]; do /bin/sleep 0.02; done
for folder in $(cat /go/go); do echo $$ > "/cg/${folder#/sys/fs/cgroup/}/cgroup.procs"; done
exec /bin/sleep 1000
"""


@pytest.fixture
def own() -> FakePod:
    """The pod that the container is in."""
    return FakePod("cart-7d9f", "shop", "cart", labels={"app": "cart"})


@pytest.fixture
def victim() -> FakePod:
    """Another pod of the node, whose names a container may give to a cgroup of its own."""
    return FakePod("vault-0", "secrets", "vault")


def nest(folder: Path, victim: FakePod) -> Path:
    """A cgroup below this one, named as that of the victim's container."""
    for name in (f"pod{victim.uid}", victim.containers["app"]):
        folder = folder / name
        folder.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):  # without them a v1 cpuset takes no process
            if (folder.parent / setting).exists():
                (folder / setting).write_text((folder.parent / setting).read_text())
    return folder


def end(container: Container, made: list[Path]) -> None:
    """Ends the container, and removes what was made in its cgroups before it."""
    container.kill()
    until(container.stopped, 10, "the container's end")
    for folder in made:
        folder.rmdir()
        folder.parent.rmdir()
    container.remove()


@contextlib.contextmanager
def nested(
    containerd: Containerd,
    tmp_path: Path,
    own: FakePod,
    victim: FakePod,
    before: Callable[[int], object] = lambda _pid: None,
) -> Iterator[Container]:
    """A container whose process moves itself into cgroups within its own that are named after the victim's;
    ``before`` is called with its PID before that."""
    mounts = [f"type=bind,src={src},dst={dst},options=rbind:rw" for src, dst in (("/sys/fs/cgroup", "/cg"),
                                                                                (tmp_path, "/go"))]  # fmt: skip
    container = containerd.run(
        "/bin/sh", "-c", SCRIPT, container_id=own.containers["app"], cgroup=own.cgroup(),
        options=[word for mount in mounts for word in ("--mount", mount)],
    )  # fmt: skip
    made: list[Path] = []
    try:
        before(container.pid)
        made += [nest(folder, victim) for folder in cgroup_folders(container.cgroup)]
        (tmp_path / "list").write_text("\n".join(map(str, made)))
        (tmp_path / "list").rename(tmp_path / "go")

        def has_moved() -> bool:
            lines = Path(f"/proc/{container.pid}/cgroup").read_text().splitlines()
            return sum(line.endswith(victim.containers["app"]) for line in lines) == len(made)

        until(has_moved, 10, "the process to have moved")
        yield container
    finally:
        end(container, made)


def ask(command: str, kubelet: ReplayKubelet, *words: str | int) -> tuple[int, Any]:
    done = podtracer(command, "--standalone", "--kubelet-read-only-port", kubelet.port, "-o", "json", *words)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_nested_cgroup_named_after_another_pod(
    containerd: Containerd, tmp_path: Path, own: FakePod, victim: FakePod
) -> None:
    """Strict mode says the process's own pod and that SPIRE would not; parity mode says the victim; explain tells what
    happened, to people and to programs."""
    with nested(containerd, tmp_path, own, victim) as container, ReplayKubelet(listing(own, victim)) as kubelet:
        code, identity = ask("lookup", kubelet, container.pid)
        assert (code, identity["state"], identity["pod"], identity["mode"]) == (0, "resolved", own.name, "strict")
        assert identity["parity"] is False

        code, fooled = ask("lookup", kubelet, container.pid, "--mode", "parity")
        assert (code, fooled["state"], fooled["pod"], fooled["mode"]) == (0, "resolved", victim.name, "parity")
        assert (fooled["parity"], "k8s:sa:vault" in fooled["selectors"]) == (False, True)

        code, told = ask("explain", kubelet, container.pid)
        assert (code, told["pod"], told["parity"]) == (0, own.name, False)
        assert told["parity_answer"]["pod_uid"] == victim.uid
        assert told["parity_answer"]["container_id"] == victim.containers["app"]
        assert set(identity) <= set(told)

        done = podtracer("explain", "--standalone", "--kubelet-read-only-port", kubelet.port, container.pid)
    assert done.returncode == 0
    assert f"of another pod, {victim.uid}" in done.stdout
    assert "it impersonates that pod" in done.stdout
    assert "6. Selectors" in done.stdout
    assert "k8s:sa:cart" in done.stdout


def test_while_its_own_pod_is_withheld_it_is_pending(
    containerd: Containerd, tmp_path: Path, own: FakePod, victim: FakePod
) -> None:
    """Where the list has the victim and not yet the process's own pod, it is pending, and never the victim."""
    with nested(containerd, tmp_path, own, victim) as container, ReplayKubelet(listing(victim)) as kubelet:
        code, told = ask("explain", kubelet, container.pid)
        assert (code, told["state"], told["pod_uid"], told["parity"]) == (75, "pending", own.uid, False)
        assert told["selectors"] == []
        assert [step["title"] for step in told["steps"] if step["failed"]] == ["Pod data"]
        done = podtracer("explain", "--standalone", "--kubelet-read-only-port", kubelet.port, container.pid)
        assert done.returncode == 75
        assert "<- it ends here" in done.stdout
        assert "hint: ask again" in done.stdout


def test_an_ordinary_container_is_the_same_by_both_rules(containerd: Containerd, own: FakePod) -> None:
    """Strict mode and SPIRE's rules agree on a container that nests nothing, and on a host process; a number that
    nobody has is not compared."""
    container = containerd.run(container_id=own.containers["app"], cgroup=own.cgroup())
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    try:
        with ReplayKubelet(listing(own)) as kubelet:
            for mode in ("strict", "parity"):
                code, identity = ask("lookup", kubelet, container.pid, "--mode", mode)
                assert (code, identity["pod"], identity["parity"], identity["mode"]) == (0, own.name, True, mode)
            assert ask("explain", kubelet, os.getpid())[1]["parity"] is True
            code, gone = ask("explain", kubelet, ended.pid)
            assert (code, gone["state"], gone["parity"], gone["lines"]) == (1, "gone", None, [])
    finally:
        container.remove()


def test_which_entries_a_process_matches(containerd: Containerd, own: FakePod, tmp_path: Path) -> None:
    """Of three entries explain says which one matches, which nearly does and why, and which is expired; a host process
    matches none of them."""
    file = tmp_path / "entries.json"
    file.write_bytes(
        body(
            entry("/cart", "k8s:ns:shop", "k8s:sa:cart"),
            entry("/other", "k8s:ns:shop", "k8s:sa:other"),
            entry("/old", "k8s:ns:shop", expires_at=1),
        )
    )
    container = containerd.run(container_id=own.containers["app"], cgroup=own.cgroup())
    try:
        with ReplayKubelet(listing(own)) as kubelet:
            code, told = ask("explain", kubelet, container.pid, "--entries-file", str(file))
            _, host = ask("explain", kubelet, os.getpid(), "--entries-file", str(file))
    finally:
        container.remove()
    assert code == 0
    matched = {found["spiffe_id"].rpartition("/")[2]: found["expired"] for found in told["entries"]["matched"]}
    assert matched == {"cart": False, "old": True}
    (near,) = told["entries"]["near"]
    assert near["missing"] == [{"want": "k8s:sa:other", "have": ["k8s:sa:cart"]}]
    assert host["entries"]["matched"] == []


def test_a_watch_in_parity_mode(containerd: Containerd, tmp_path: Path, own: FakePod, victim: FakePod) -> None:
    """In parity mode each event of a watch carries SPIRE's answer: the process is its own pod's until it moves into
    the nested cgroup, and the victim's from then on."""
    with (
        ReplayKubelet(listing(own, victim)) as kubelet,
        Watch("--kubelet-read-only-port", kubelet.port, "--mode", "parity") as watch,
    ):

        def shown(pid: int) -> None:
            until(lambda: any(e["comm"] == "sh" for e in watch.of(pid)), 20, "the container to be shown")

        with nested(containerd, tmp_path, own, victim, shown) as container:
            until(
                lambda: any(e["event"] == "move" and e["pod"] == victim.name for e in watch.of(container.pid)),
                20,
                "the move to be shown",
            )
        events = watch.of(container.pid)
    assert {event["mode"] for event in events} == {"parity"}
    before = [event for event in events if event["parity"] and event["state"] == "resolved"]
    assert {event["pod"] for event in before} == {own.name}
    after = [event for event in events if event["parity"] is False and event["state"] == "resolved"]
    assert {event["pod"] for event in after} == {victim.name}


def test_a_move_in_another_hierarchy_is_followed(containerd: Containerd, own: FakePod, victim: FakePod) -> None:
    """A process that moves in a hierarchy that is not the tracked one is compared anew: SPIRE reads them all."""
    container = containerd.run(container_id=own.containers["app"], cgroup=own.cgroup())
    folders = cgroup_folders(container.cgroup)
    made: list[Path] = []
    try:
        require(len(folders) > 1, "needs several hierarchies")
        with (
            ReplayKubelet(listing(own, victim)) as kubelet,
            Watch("--kubelet-read-only-port", kubelet.port, "--mode", "parity") as watch,
        ):
            until(lambda: watch.of(container.pid), 10, "the snapshot")
            assert watch.of(container.pid)[-1]["parity"] is True
            for folder in folders:
                made.append(nest(folder, victim))
                (made[-1] / "cgroup.procs").write_text(str(container.pid))
                if len(made) == 1:
                    until(lambda: watch.of(container.pid)[-1]["parity"] is False, 10, "its first move")
            until(lambda: watch.of(container.pid)[-1]["pod"] == victim.name, 10, "all of its moves")
            moves = [event for event in watch.of(container.pid) if event["event"] == "move"]
    finally:
        end(container, made)
    assert moves[0]["parity"] is False
    assert any(move.get("elsewhere") for move in moves)
