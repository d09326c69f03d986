"""The tracer in a PID namespace of its own: numbers are that namespace's, everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import SLOW
from tracer.client import Client
from tracer.errors import DaemonError

pytestmark = pytest.mark.root

# Runs as init of a child PID namespace: numbers of processes are small there, and other in the initial namespace.
INSIDE = """
import json, os, subprocess
from tests.kernel.lab import tells
from tests.waiting import until
from tracer import Tracer
from tracer.settings import Settings

early = subprocess.Popen(["sleep", "100"])
with Tracer(Settings(kubelet="none")) as tracer, tracer.watch() as watch:
    late = subprocess.Popen(["sleep", "100"])
    found = {}
    for name, pid in (("init", os.getpid()), ("early", early.pid), ("late", late.pid)):
        def execed():
            identity = tracer.lookup(pid)
            return name == "init" or tracer._index.processes[pid].process.comm == "sleep"
        until(execed, 10, "the exec")  # the end of Popen comes before its record
        identity = tracer.lookup(pid)
        known = tracer._index.processes[pid].process
        right = tells(identity.key.ino, pid, pidfs=tracer.features.pidfs)
        found[name] = [pid, identity.state, right, known.ppid, known.comm]
    late.kill(); late.wait()
    found["gone"] = tracer.lookup(late.pid).state
    events = []
    def ended():
        while (event := watch.next(0)) is not None:
            if event.identity is not None:
                events.append([event.event, event.identity.key.pid])
        return ["exit", late.pid] in events
    until(ended, 10, "the exit")
    found["pids"] = sorted({pid for _, pid in events})
    found["late"].append([kind for kind, pid in events if pid == late.pid])
    found["level"] = tracer._feed.header.ns_level
early.kill(); early.wait()
print(json.dumps(found))
"""


# Runs a daemon there, and is its client; says what it was told, and goes on until its input ends.
DAEMON = """
import json, os, subprocess, sys
from pathlib import Path
from tests.daemon import Daemon

folder, outside = sys.argv[1:]
words = ("--kubelet", "none", "--cri", "none", "--pods-api", "none", "--http-address", "none")
early = subprocess.Popen(["sleep", "100"])
with Daemon(Path(folder), *words) as daemon, daemon.client(timeout=60) as client:
    late = subprocess.Popen(["sleep", "100"])
    asked = [client.lookup(pid) for pid in (None, early.pid, late.pid, int(outside))]
    print(json.dumps([[os.getpid(), early.pid, late.pid], [[i.key.pid, i.state] for i in asked]]), flush=True)
    sys.stdin.read()
for child in (early, late):
    child.kill()
    child.wait()
"""


def test_a_daemon_in_a_child_namespace_answers_who_it_can_see(tmp_path: Path) -> None:
    """There clients and their processes have their numbers of that namespace, a number of outside is gone, and a client
    that comes from outside, whom it has no number for, is refused whoever it asks about."""
    words = [sys.executable, "-c", DAEMON, str(tmp_path), str(os.getpid())]
    inside = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert inside.stdout is not None
        line = inside.stdout.readline()
        assert line, inside.communicate()[1]
        pids, asked = json.loads(line)
        assert pids[0] == 1
        assert asked == [*([pid, "host"] for pid in pids), [os.getpid(), "gone"]]
        with Client(str(tmp_path / "podtracer.sock"), timeout=60 * SLOW) as client:
            for about in (None, 1, os.getpid()):
                with pytest.raises(DaemonError) as refused:
                    client.lookup(about)
                assert refused.value.code == "permission_denied"
    finally:
        said = inside.communicate()[1]
    assert inside.returncode == 0, said


def test_a_tracer_in_a_child_namespace_speaks_its_numbers() -> None:
    """In a child PID namespace processes born before and after the tracer are found by their number there, with the
    right inode and parent; processes of outside, whose forks are seen too, never appear."""
    outside = subprocess.Popen(["/bin/sh", "-c", "while :; do /bin/true; done"])
    try:
        inside = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", INSIDE],
            capture_output=True,
            text=True,
            timeout=60 * SLOW,
            check=False,
        )
    finally:
        outside.kill()
        outside.wait()
    assert inside.returncode == 0, inside.stderr
    found = json.loads(inside.stdout.splitlines()[-1])
    assert found["level"] == 1
    assert found["init"][:4] == [1, "host", True, 0]
    assert found["early"][1:5] == ["host", True, 1, "sleep"]
    assert found["late"][1:5] == ["host", True, 1, "sleep"]
    assert found["late"][5] == ["fork", "exec", "exit"]
    assert found["gone"] == "gone"
    assert max(found["pids"]) < 100
