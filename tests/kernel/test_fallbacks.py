"""The second-best ways, forced one by one and together: the answers are the same."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.lab import Cgroup, Helper
from tests.node import FakePod, listing
from tests.waiting import until
from tracer import Tracer
from tracer.errors import UsageError
from tracer.kernel import btf
from tracer.kernel.loader import forced
from tracer.model import Event, State
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

pytestmark = pytest.mark.root
# All of them together on every kernel; one by one where it is quick.
ONE_BY_ONE = [pytest.param(way, marks=pytest.mark.brisk) for way in ("hash", "procfs", "starttime")]
WAYS = ["", *ONE_BY_ONE, "hash,procfs,starttime"]


@pytest.mark.parametrize("ways", WAYS)
def test_every_way_gives_the_same_answers(ways: str, monkeypatch: pytest.MonkeyPatch, lab_binary: Path) -> None:
    """Whoever ran before the tracer, is born, execs, moves, dies, or is only a thread is answered rightly by the table
    or the hash, by the iterator or /proc, by the pidfd's inode or the start time."""
    monkeypatch.setenv("PODTRACER_FORCE", ways)
    pod = FakePod("cart-1")
    with (
        ReplayKubelet(listing(pod)) as kubelet,
        Helper(lab_binary, "pause") as earlier,
        Helper(lab_binary, "dead-leader") as leaderless,
        Tracer(Settings(kubelet_read_only_port=kubelet.port)) as tracer,
    ):
        assert tracer.wait_synced(30)
        features = tracer.features
        assert (features.no_table == "forced") == ("hash" in ways)
        assert (features.no_iterator == "forced") == ("procfs" in ways)
        assert features.pidfs == ("starttime" not in ways and "O_PID_INO" in btf.macros(btf.read()))
        assert tracer._feed is not None
        cgroup = Cgroup(tracer._feed.mount, pod.cgroup())
        try:
            for pid in (earlier.pid, leaderless.pid, os.getpid(), 1):
                assert tracer.lookup(pid).state is State.HOST
            for pid in (earlier.pid, leaderless.pid):
                cgroup.add(pid)
                assert tracer.lookup(pid).workload.pod == "cart-1"
                assert tracer.lookup(pid, verify=True).workload.pod == "cart-1"
            with tracer.watch() as watch:
                child = subprocess.Popen(["/bin/sh", "-c", f"echo $$ > {cgroup.procs}; exec sleep 100"])
                found: list[Event] = []

                def kinds(pid: int) -> list[str]:
                    while (event := watch.next(0)) is not None:
                        found.append(event)
                    return [event.event for event in found if event.identity and event.identity.key.pid == pid]

                until(lambda: kinds(child.pid)[-3:] == ["exec", "move", "exec"], 10, "the child's move and exec")
                assert tracer.lookup(child.pid).workload.pod == "cart-1"
                assert tracer.lookup(child.pid, verify=True).workload.pod == "cart-1"
                child.kill()
                child.wait()
                assert tracer.lookup(child.pid).state is State.GONE
                until(lambda: "exit" in kinds(child.pid), 10, "the child's exit")
                (ended,) = [e for e in found if e.event == "exit" and e.identity and e.identity.key.pid == child.pid]
                assert ended.extra == {"exit_code": None, "signal": 9}
                earlier.finish()
                assert tracer.lookup(earlier.pid).state is State.GONE
                until(lambda: "exit" in kinds(earlier.pid), 10, "the exit of the process that was there before")
                assert kinds(child.pid).count("exit") == kinds(earlier.pid).count("exit") == 1
        finally:
            leaderless.finish()
            cgroup.remove()


def test_an_unknown_way_is_an_error() -> None:
    """A word in PODTRACER_FORCE that names no fall-back is refused with the words that do."""
    with pytest.raises(UsageError) as error:
        forced({"PODTRACER_FORCE": "hash,fast"})
    assert "fast" in str(error.value)
    assert "procfs" in str(error.value.hint)
