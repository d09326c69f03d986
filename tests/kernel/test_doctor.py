"""``podtracer doctor`` on this machine, as a user runs it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.machine import hierarchies
from tests.node import FakePod, listing
from tests.podtracer import COMMAND
from tests.waiting import SLOW
from tracer.kernel import bpf, btf
from tracer.sources.replay import ReplayKubelet

pytestmark = pytest.mark.root
ALONE = ("--cri", "none", "--pods-api", "none")
# What an older kernel does in another way, which the forced ways show; and what a busy one leaves out.
DEPENDS = {"table", "pidfs", "losses"}


def _doctor(
    *words: str | int, before: tuple[str, ...] = (), **environ: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, Any]]]:
    """What it did, and the checks by name."""
    done = subprocess.run(
        [*before, *COMMAND, "doctor", "-o", "json", *map(str, words)],
        capture_output=True, text=True, timeout=100 * SLOW, check=False, env={**os.environ, **environ},
    )  # fmt: skip
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["ok"] == (done.returncode == 0)
    return done, {check["name"]: check for check in answer["checks"]}


def _not_ok(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: check["found"] for name, check in checks.items() if check["state"] != "ok" and name not in DEPENDS}


def test_all_is_well_with_a_kubelet(record_property: Callable[[str, object], None]) -> None:
    """With a kubelet that answers every check is ok, each hierarchy has one, and the best ways were taken where this
    kernel has them."""
    with ReplayKubelet(listing(FakePod("a"), FakePod("b"))) as kubelet:
        done, checks = _doctor("--kubelet-read-only-port", kubelet.port, *ALONE)
    assert (done.returncode, _not_ok(checks)) == (0, {})
    record_property("doctor", sorted(name for name in {"table", "pidfs"} if checks[name]["state"] == "warn"))
    assert "2 pods" in checks["kubelet"]["found"]
    assert checks["source"]["found"].startswith("pods come from kubelet")
    assert "gone after its end" in checks["self-test"]["found"]
    assert (checks["table"]["state"] == "ok") == (not bpf.refuses_exchange())
    assert (checks["pidfs"]["state"] == "ok") == ("O_PID_INO" in btf.macros(btf.read()))
    assert os.uname().release in checks["kernel"]["found"]
    v1 = sum(kind == "cgroup" and path.name != "systemd" for path, kind in hierarchies().items())
    v2 = "cgroup2" in hierarchies().values()
    assert len([name for name in checks if name.startswith("cgroup ")]) == v1 + v2


@pytest.mark.parametrize(
    ("way", "name", "taken"),
    [("hash", "table", "hash"), ("procfs", "iterator", "/proc"), ("starttime", "pidfs", "start times")],
)
def test_a_forced_way_is_named(way: str, name: str, taken: str) -> None:
    """The second best way is a warning that names it, and everything else works, the self-test included."""
    with ReplayKubelet(listing()) as kubelet:
        done, checks = _doctor("--kubelet-read-only-port", kubelet.port, *ALONE, PODTRACER_FORCE=way)
    assert done.returncode == 0
    assert checks[name]["state"] == "warn"
    assert taken in checks[name]["found"]
    assert "forced" in checks[name]["found"]
    assert set(_not_ok(checks)) <= {name}
    assert checks["self-test"]["state"] == "ok"


def test_an_unknown_way_is_a_failed_check() -> None:
    """A word that PODTRACER_FORCE does not know fails one check, and the rest still runs."""
    done, checks = _doctor(*ALONE, "--kubelet", "none", PODTRACER_FORCE="fast")
    assert done.returncode == 1
    assert {name for name, check in checks.items() if check["state"] == "fail"} == {"programs"}
    assert "fast" in checks["programs"]["found"]


def test_an_absent_kubelet_is_a_warning() -> None:
    """Without a kubelet doctor warns of it and of the pods that nobody tells, and ends with 0."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    done, checks = _doctor("--kubelet-read-only-port", port, *ALONE)
    assert done.returncode == 0
    assert set(_not_ok(checks)) == {"kubelet", "source"}
    assert checks["kubelet"]["found"].startswith("connection refused")
    assert checks["kubelet"]["hint"]


def test_without_capabilities_it_says_what_is_missing_and_checks_the_rest() -> None:
    """Who may not trace gets exit 1, the capabilities by name, and every check that takes none."""
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    with ReplayKubelet(listing(FakePod("a"))) as kubelet:
        done, checks = _doctor("--kubelet-read-only-port", kubelet.port, *ALONE, before=bare)
    assert done.returncode == 1
    assert {name for name, check in checks.items() if check["state"] == "fail"} == {"capabilities", "programs"}
    assert "CAP_BPF" in checks["capabilities"]["found"]
    assert "1 pod" in checks["kubelet"]["found"]
    assert checks["bcc"]["state"] == "ok"
    assert any(name.startswith("cgroup ") for name in checks)


@pytest.mark.v2
def test_a_mount_of_a_private_cgroup_namespace_is_red(tmp_path: Path) -> None:
    """A cgroup file system that was mounted in a private cgroup namespace fails, whatever its paths look like."""
    root = next(path for path, kind in hierarchies().items() if kind == "cgroup2")
    home = root / f"podtracer-test-{os.getpid()}"
    home.mkdir()
    script = f'echo $$ > {home}/cgroup.procs; mount -t cgroup2 none {tmp_path}; exec "$@"'
    # The namespace's root is the cgroup of who makes it.
    inside = ("sh", "-c", f"echo $$ > {home}/cgroup.procs; exec \"$@\"", "sh",
              "unshare", "--mount", "--cgroup", "sh", "-c", script, "sh")  # fmt: skip
    try:
        done, checks = _doctor("--cgroupfs", str(tmp_path), "--kubelet", "none", *ALONE, before=inside)
    finally:
        home.rmdir()
    assert done.returncode == 1
    assert checks["cgroup v2"]["state"] == "fail"
    assert str(tmp_path) in checks["cgroup v2"]["found"]
    assert checks["cgroup v2"]["hint"]


def test_text_is_plain_without_a_terminal_and_coloured_when_asked_for() -> None:
    """Piped text has no colours but for --color always."""
    for color, is_colored in (("auto", False), ("always", True)):
        done = subprocess.run(
            [sys.executable, "-m", "tracer.cli.main", "doctor", "--kubelet", "none", *ALONE, "--color", color],
            capture_output=True, text=True, timeout=100 * SLOW, check=False,
            env={name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert ("\x1b[" in done.stdout) == is_colored
        assert "[ok]" in done.stdout
