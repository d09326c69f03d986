"""The tracer in a PID namespace of its own: numbers are that namespace's, everywhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.waiting import SLOW

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
