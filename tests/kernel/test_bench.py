"""Benchmarks on this machine, small: that they end, judge rightly, and leave nothing behind. No time is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.machine import hierarchies
from tests.waiting import SLOW, until
from tracer.bench import accuracy
from tracer.bench.report import Report
from tracer.identity.cgroups import vouched
from tracer.identity.index import gone
from tracer.model import Identity
from tracer.node import Tracer
from tracer.settings import Settings

pytestmark = [pytest.mark.root, pytest.mark.brisk, pytest.mark.timeout(240)]

PODTRACER = Path(sys.executable).with_name("podtracer")


def _left() -> list[Path]:
    """Cgroups of benches."""
    return [found for point in hierarchies() for found in Path(point).glob("podtracer-bench-*")]


def _inside() -> list[int]:
    """The processes in these, which come and go while one looks."""
    pids: list[int] = []
    for top in _left():
        for folder, _, _ in os.walk(top):
            with suppress(OSError):
                pids += map(int, Path(folder, "cgroup.procs").read_text().split())
    return pids


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert _left() == []


def _bench(*words: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [PODTRACER, "bench", *words, "-o", "json"],
        capture_output=True,
        text=True,
        timeout=120 * SLOW,
        check=False,
        umask=0,  # whoever starts it, nobody else may write its cgroups
    )
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _rows(found: dict[str, Any], title: str) -> list[dict[str, Any]]:
    return next(table["rows"] for table in found["tables"] if table["title"] == title)


def test_no_answer_is_wrong_and_a_weak_index_is() -> None:
    """While PIDs are reused, processes moved and records lost, every answer is true, and the bare PID's are not all."""
    found = _bench("accuracy", "--duration", "4s", "--least", "100")
    assert found["ok"], found["failures"]
    ours = [row for row in _rows(found, "answers") if row["index"] == "podtracer"]
    assert {row["asked by"] for row in ours} >= {"pid", "pidfd", "a user's process", "container ID"}
    assert all(row["lookups"] > 0 and row["wrong"] == 0 for row in ours)
    weak = next(row for row in _rows(found, "answers") if row["index"] != "podtracer")
    assert weak["wrong"] > 0
    happened = {row["what"]: row["count"] for row in _rows(found, "what happened")}
    assert min(happened[what] for what in ("reuses", "moves", "lost", "restarts", "user_names", "user_moves")) > 0


class BarePid:
    """A tracer that believes its own table by the bare PID, and never reads a slot."""

    def __init__(self, tracer: Tracer) -> None:
        self._index = tracer._index

    def lookup(self, pid: int, *, verify: bool = False) -> Identity:  # noqa: ARG002
        known = self._index.processes.get(pid)
        if known is None:
            return gone(pid)
        return self._index.identify(known.key, pid, known.hierarchy, known.cgroup, known.process)

    def lookup_pidfd(self, fd: int) -> Identity:  # noqa: ARG002
        return gone(0)

    def lookup_container(self, container_id: str, pod_uid: str | None = None) -> Identity:  # noqa: ARG002
        return gone(0)


def test_an_index_by_the_bare_pid_is_found_wrong() -> None:
    """The same run with a broken index in the tracer's place says that answers are wrong."""
    report = Report("accuracy")
    accuracy.run(
        report, Settings(), duration=3, least=1, seed=7, progress=lambda _: None, warn=lambda _: None, examined=BarePid
    )
    assert any("answers are wrong" in failure for failure in report.failures), report.failures


def test_who_believes_a_users_names_is_found_wrong() -> None:
    """The same run with a tracer that does not ask who owns the cgroups above a container's says that answers for the
    user's processes are wrong."""

    def believing(tracer: Tracer) -> Tracer:
        tracer._index.cgroups.guard = vouched
        return tracer

    report = Report("accuracy")
    accuracy.run(
        report,
        Settings(),
        duration=3,
        least=1,
        seed=7,
        progress=lambda _: None,
        warn=lambda _: None,
        examined=believing,
    )
    rows = {row["asked by"]: row for row in _rows(report.to_dict(), "answers") if row["index"] == "podtracer"}
    assert rows["a user's process"]["wrong"] > 0
    assert any("answers are wrong" in failure for failure in report.failures), report.failures


def test_lookups_are_measured_beside_the_way_they_replace() -> None:
    """Each size of node has the three ways, each with its spread, on answers that agree."""
    found = _bench("lookup", "--pods", "2,5", "--kilobytes", "2", "--processes", "10,40", "--rounds", "2")
    rows = _rows(found, "look-up")
    ways = {row["way"] for row in rows}
    assert ways == {"podtracer", "SPIRE's way, cached", "SPIRE's way, fetch"}
    assert {(row["pods"], row["processes"]) for row in rows} == {(2, 40), (5, 10), (5, 40)}
    assert all(row["min"] <= row["p50"] <= row["max"] for row in rows)
    assert {row["server"] for row in _rows(found, "over the socket")} == {"podtracer", "echo"}
    assert {row["asked"] for row in _rows(found, "through the plugin")} == {"Attest"}


def test_a_storm_is_measured_with_and_without() -> None:
    """Both rates, what the kernel and the consumer took, and what was lost and repaired, are there."""
    found = _bench("storm", "--duration", "4s")
    assert {row["podtracer"] for row in _rows(found, "fork+exec")} == {"with", "without"}
    assert {"fork", "exec", "exit"} <= {row["program"] for row in _rows(found, "in the kernel")}
    assert _rows(found, "records")[0]["count"] == 0
    (repair,) = _rows(found, "repair")
    assert repair["lost_records"] > 0
    assert repair["unrepaired"] == 0


def test_starts_are_measured_on_a_busy_node() -> None:
    """Time and memory are told for each number of processes."""
    found = _bench("start", "--processes", "10,50", "--runs", "2")
    assert [(row["processes"], row["count"]) for row in _rows(found, "ready")] == [(10, 2), (50, 2)]
    assert all(row["min"] > 0 for row in _rows(found, "resident"))


def test_ctrl_c_in_the_middle_leaves_nothing() -> None:
    """Interrupted, a benchmark prints one object, ends with 130, and all its processes and cgroups are gone."""
    child = subprocess.Popen(
        [PODTRACER, "bench", "accuracy", "-o", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    for line in child.stderr:
        if "reuses" in line:
            break
    inside = _inside()
    child.send_signal(signal.SIGINT)
    stdout, _ = child.communicate(timeout=60 * SLOW)
    assert child.returncode == 130
    assert json.loads(stdout)["interrupted"] is True
    assert inside
    assert [pid for pid in inside if os.path.exists(f"/proc/{pid}")] == []


@pytest.mark.parametrize("line", ["start --processes 20 --runs 1000", "accuracy --duration 600s"])
def test_nothing_outlives_a_bench_that_is_killed(line: str) -> None:
    """Killed outright, its processes end with it, a user's among them, and the next bench removes its cgroups."""
    child = subprocess.Popen([PODTRACER, "bench", *line.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    inside = until(lambda: found if len(found := _inside()) > 20 else [], 20, "the bench's processes")
    child.kill()
    child.wait()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in inside), 10, "them to end")
    _bench("start", "--processes", "1", "--runs", "1")
    assert list(Path(tempfile.gettempdir()).glob(f"podtracer-bench-{child.pid}-*")) == []


def test_without_root_nothing_is_measured() -> None:
    """Without capabilities a benchmark ends with 77 and one error that names them."""
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", str(PODTRACER)]
    done = subprocess.run([*bare, "bench", "accuracy"], capture_output=True, text=True, timeout=60 * SLOW, check=False)
    assert done.returncode == 77
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: not allowed to trace (missing: CAP_BPF")
    assert hint == "hint: run it as root"
