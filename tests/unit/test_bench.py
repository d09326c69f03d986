"""The bench's own arithmetic, its outputs and its exit codes; what it measures is not asserted."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import require
from tracer.bench import plot
from tracer.bench.accuracy import verdict
from tracer.bench.lanes import LANES, Lanes, Truth
from tracer.bench.lookup import Size, sizes
from tracer.bench.oracle import DUE, Place, Score
from tracer.bench.pods import make_pods, pod_list
from tracer.bench.report import Report
from tracer.bench.statistics import curve, quantile, summarize
from tracer.bench.user import FORMS
from tracer.cli import bench, bench_output
from tracer.cli.app import App
from tracer.cli.main import run
from tracer.identity.cgroup_path import match_strict
from tracer.identity.index import gone
from tracer.identity.pods import decode_pod_list
from tracer.model import Cgroup, Identity, ProcessKey, State, Workload

SAMPLES = st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=300)
MACHINE = {"kernel": "Linux 6", "cpus": 2, "cpu": "a CPU", "python": "3", "podtracer": "0", "load": [0.0]}


# ---- statistics ----


def test_a_quantile_is_the_nearest_rank() -> None:
    """Of a hundred values the 99th is p99, and the last one is never taken for it."""
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.9, 0.99, 0.999, 1.0)] == [50, 90, 99, 100, 100]


@given(SAMPLES)
def test_every_figure_of_a_summary_was_measured(samples: list[float]) -> None:
    """A summary drops nothing and makes nothing up: its figures are samples, in order, and its ends are the ends."""
    found = summarize(samples, "µs")
    assert found is not None
    tail = [figure for figure in (found.p90, found.p99, found.p999) if figure is not None]
    figures = [found.min, found.p50, *tail, found.max]
    assert figures == sorted(figures)
    assert set(figures) <= set(samples)
    assert (found.count, found.min, found.max) == (len(samples), min(samples), max(samples))


@pytest.mark.parametrize(("count", "told"), [(9, 0), (10, 1), (99, 1), (100, 2), (999, 2), (1000, 3)])
def test_a_quantile_that_is_the_maximum_is_not_told(count: int, told: int) -> None:
    """p90 takes ten samples, p99 a hundred, p99.9 a thousand; of fewer it would only be their maximum again."""
    found = summarize([float(n) for n in range(count)], "ms")
    assert found is not None
    assert [found.p90, found.p99, found.p999].count(None) == 3 - told


def test_nothing_measured_is_no_summary() -> None:
    """No sample gives no figure."""
    assert summarize([], "µs") is None


@given(st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=3000))
def test_a_curve_rises_from_the_least_to_the_most(samples: list[float]) -> None:
    """However many samples there are, their curve has few points, both ends, and shares that are true."""
    values, shares = curve(samples, 400)
    assert len(values) == len(shares) <= 460
    assert (values[0], values[-1], shares[-1]) == (min(samples), max(samples), 1.0)
    assert values == sorted(values)
    assert shares == sorted(shares)
    ordered = sorted(samples)
    assert all(ordered[round(share * len(ordered)) - 1] == value for value, share in zip(values, shares, strict=True))


# ---- pods and sizes ----


@pytest.mark.parametrize("size", [2000, 8000, 10_000])
def test_pods_are_as_long_as_wanted_and_readable(size: int) -> None:
    """A list of pods has the size asked for, within a tenth, and is read by the decoder that is measured."""
    body = pod_list(make_pods(20, 2), size)
    assert size * 20 <= len(body) <= size * 22
    found = decode_pod_list(body)
    assert not found.skipped
    assert [len(pod.containers) for pod in found.pods] == [2] * 20


def test_sizes_are_a_cross() -> None:
    """Every list is measured with the middle number of processes, every number of processes with the middle list."""
    found = sizes((3, 110, 250), (2, 8, 10), (100, 1000, 10_000))
    assert len(found) == len(set(found)) == 11
    assert {each.processes for each in found if (each.pods, each.kilobytes) == (110, 8)} == {100, 1000, 10_000}
    assert Size(250, 10, 1000) in found


# ---- the oracle ----

TRUTH = Truth(2, 7, 70, 1)
CART = Place("/kubepods/a", "shop", "cart", "uid-1", "app", "c1", listed=1)
HOST = Place("/elsewhere")


def _answer(state: State = State.RESOLVED, ino: int = 70, **names: Any) -> Identity:
    own = {"namespace": "shop", "pod": "cart", "pod_uid": "uid-1", "container": "app", "container_id": "c1"}
    return Identity(ProcessKey(7, ino), 7, Workload(state, **(own | names)))  # type: ignore[arg-type]


def _judged(identity: Identity, place: Place = CART, at: int = DUE + 1) -> tuple[int, int, int]:
    score = Score()
    score.settled(identity, TRUTH, place, at, inodes=True)
    return score.right, score.wrong, score.late


def test_only_the_true_container_and_process_is_right() -> None:
    """An answer is right when state, names, IDs and inode are all true, and wrong when one of them is not."""
    assert _judged(_answer()) == (1, 0, 0)
    for name in ("namespace", "pod", "pod_uid", "container", "container_id"):
        assert _judged(_answer(**{name: "another"})) == (0, 1, 0)
    assert _judged(_answer(ino=71)) == (0, 1, 0)
    assert _judged(_answer(State.HOST)) == (0, 1, 0)
    assert _judged(gone(7)) == (0, 1, 0)


def test_silence_is_late_only_once_it_is_due() -> None:
    """Pending and unknown are never wrong; they are late from a second after the container was listed."""
    for state in (State.PENDING, State.UNKNOWN):
        assert _judged(_answer(state), at=DUE + 1) == (0, 0, 1)
        assert _judged(_answer(state), at=DUE) == (0, 0, 0)


def test_a_process_of_no_container_is_a_host_process() -> None:
    """Beside all pods only "host" is right, and a container's name is wrong."""
    assert _judged(_answer(State.HOST), HOST) == (1, 0, 0)
    assert _judged(_answer(), HOST) == (0, 1, 0)


def test_a_users_process_is_never_a_pods() -> None:
    """In a cgroup that its user called like a container any resolved answer is wrong, before, during and after a move
    too; host and unknown are not."""
    first, second = Place("a user's cgroup (colon)"), Place("a user's cgroup (ID alone)")
    assert _judged(_answer(), first) == (0, 1, 0)
    assert _judged(_answer(State.HOST), first) == (1, 0, 0)
    assert _judged(_answer(State.UNKNOWN), first) == (0, 0, 0)
    score = Score()
    score.moved(_answer(), first, second)
    score.ended(_answer(), second)
    score.moved(_answer(State.UNKNOWN), first, second)
    assert (score.lookups, score.wrong) == (3, 2)


def test_a_container_is_itself_in_its_own_cgroup() -> None:
    """Asked for by its ID it may be itself, with or without its cgroup. Another one is wrong, and so is itself in a
    cgroup that somebody called like it. Silence is late once it is due, but not of one that may end meanwhile."""
    own = replace(CART, path="/site/kubepods/pod1/c1")
    for place, identity, judged in (
        (own, _answer(), (1, 0, 0)),
        (own, _answer()._replace(cgroup=Cgroup(9, own.path)), (1, 0, 0)),
        (own, _answer()._replace(cgroup=Cgroup(9, "/site/user.slice/kubepods/pod1/c1")), (0, 1, 0)),
        (own, _answer(container_id="c2"), (0, 1, 0)),
        (own, _answer(State.PENDING), (0, 0, 1)),
        (replace(own, restartable=True), _answer(State.UNKNOWN), (0, 0, 0)),
    ):
        score = Score()
        score.named(identity, place, DUE + 1)
        assert (score.right, score.wrong, score.late) == judged


def test_a_users_names_are_containers_to_the_strict_rule() -> None:
    """Each form in which the user calls a cgroup says that container's ID to who reads the path alone: nothing but its
    owner tells it from a pod's."""
    (pod,) = make_pods(1)
    container_id = pod.containers[0].id
    for form, path in FORMS.items():
        found = match_strict("/user.slice/user@65534.service/" + path(pod.uid, container_id))
        assert found.container is not None, form
        assert found.container.container_id == container_id, form
        assert found.container.pod_uid in (pod.uid, None), form


def test_while_a_process_moves_it_is_in_one_of_both_places() -> None:
    """During a change an answer may name where it was or where it went, and no third container."""
    score = Score()
    there = Place("/kubepods/b", "shop", "cart", "uid-1", "app", "c2")
    for container, wrong in (("c1", 0), ("c2", 0), ("c3", 1)):
        before = score.wrong
        score.moved(_answer(container_id=container), CART, there)
        assert score.wrong - before == wrong
    score.moved(gone(7), CART, None)
    assert (score.wrong, score.overtaken) == (1, 4)


def test_a_pidfd_of_an_ended_process_is_nobodys() -> None:
    """Whoever has the number now is not whom the pidfd is of."""
    score = Score()
    score.ended(gone(7), CART)
    score.ended(_answer(), CART)
    assert (score.right, score.wrong) == (1, 1)


def test_a_lane_says_whether_it_stood_still() -> None:
    """The turn of a lane is odd while it changes, and another one after."""
    lanes = Lanes.make()
    last = LANES - 1
    before = lanes.read(last)
    lanes.begin(last)
    assert lanes.turn(last) % 2 == 1
    lanes.end(last, 7, 70, 3)
    assert lanes.read(last) == Truth(before.turn + 2, 7, 70, 3)
    lanes.add(1)
    assert lanes.counts()["moves"] == 1


ENOUGH = dict.fromkeys(("reuses", "moves", "lost", "user_names", "user_moves"), 1000)


def test_a_run_that_shows_everything_has_no_failure() -> None:
    """Nothing wrong, all that was due resolved, enough of everything, and a weak index found wrong: that is shown."""
    assert verdict([Score(due=1000, right=1000)], Score(wrong=1), ENOUGH, 1000) == []


@pytest.mark.parametrize(
    ("score", "weak", "done", "said"),
    [
        (Score(due=10_000, wrong=1, examples=["7: host"]), 1, ENOUGH, "1 answers are wrong: 7: host"),
        (Score(due=10_000, late=11), 1, ENOUGH, "only 99.89 % of the look-ups that were due are resolved"),
        (Score(), 1, ENOUGH, "no container was listed for a second"),
        (Score(due=10), 1, ENOUGH | {"lost": 999}, "only 999 lost records of 1000 happened: say a longer --duration"),
        (
            Score(due=10),
            1,
            ENOUGH | {"user_names": 7},
            "only 7 names by a user of 1000 happened: say a longer --duration",
        ),
        (Score(due=10), 0, ENOUGH, "the run is invalid: an index by the bare PID was never wrong in it"),
    ],
)
def test_each_failure_is_said(score: Score, weak: int, done: dict[str, int], said: str) -> None:
    """Whatever is missing for the verdict is named, alone."""
    assert verdict([score], Score(wrong=weak), done, 1000) == [said]


# ---- reports ----


def _report(**more: Any) -> Report:
    report = Report("lookup", machine=MACHINE, **more)
    report.add("look-up", {"pods": 3, "way": "podtracer"}, [1.0, 2.0, 30_000.0], series="podtracer", times=1.0)
    report.add("records", {"what": "lost"}, count=0)
    report.end()
    return report


def test_a_report_is_one_object_of_json() -> None:
    """A row has what it is about, its unit, its spread and its figures, by fixed names."""
    found = json.loads(json.dumps(_report().to_dict()))
    assert found["ok"] is True
    row = found["tables"][0]["rows"][0]
    assert row == {
        "pods": 3, "way": "podtracer", "unit": "µs", "count": 3, "min": 1.0, "p50": 2.0, "p90": None, "p99": None,
        "p99.9": None, "max": 30_000.0, "times": 1.0,
    }  # fmt: skip
    assert found["tables"][1]["rows"] == [{"what": "lost", "count": 0}]


@pytest.mark.parametrize(
    ("report", "code"),
    [(Report("x"), 0), (Report("x", failures=["no"]), 1), (Report("x", failures=["no"], interrupted=True), 130)],
)
def test_a_report_is_an_exit_code(report: Report, code: int) -> None:
    """0 for what was shown, 1 for what was not, 130 for who interrupted it."""
    assert report.exit_code == code


def test_a_report_for_people_shows_every_figure_with_its_spread() -> None:
    """The table has the columns of what was measured, and what was interrupted says so."""
    shown = "".join(bench_output.text(_report(interrupted=True), colored=False))
    header = next(line for line in shown.splitlines() if line.startswith("pods"))
    assert header.split() == ["pods", "way", "p50", "p90", "p99", "p99.9", "min", "max", "unit", "n", "times"]
    assert re.search(r"^3 +podtracer +2\.00 +- .* 30,000 +µs +3 +1\.00$", shown, re.M)
    assert "interrupted after" in shown


# ---- plots ----


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        require(False, "needs matplotlib")


@pytest.mark.parametrize(("name", "start"), [("p.svg", b"<?xml"), ("p.PNG", b"\x89PNG")])
def test_a_plot_is_a_picture_of_its_ending(tmp_path: Path, name: str, start: bytes) -> None:
    """Curves and bars are drawn as the ending says, with the names of what they show."""
    _require_matplotlib()
    for report in (_report(), Report("accuracy", machine=MACHINE, bars={"wrong": 0, "moves": 1234})):
        plot.write(report, str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(start)


def test_a_plot_says_what_its_curves_are(tmp_path: Path) -> None:
    """In an SVG the text stays text: names, the median, the unit, and that the axis is logarithmic."""
    _require_matplotlib()
    plot.write(_report(), str(tmp_path / "p.svg"))
    drawn = (tmp_path / "p.svg").read_text()
    assert "podtracer: p50 2 µs" in drawn
    assert "logarithmic" in drawn


# ---- the command ----


def _command(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., None], *words: str) -> int:
    monkeypatch.setattr("tracer.bench.start.run", measure)
    return run(["bench", "start", *words], App(environ={}))


def _measures(report: Report, *_: Any, **__: Any) -> None:
    report.add("ready", {"processes": 1}, [1.0, 2.0], "ms", series="1 process")


def _error(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith(("error: ", "hint: "))]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench", "missing command"),
        ("bench lokup", "no such command 'lokup'"),
        ("bench storm --duration 0.5", "0.5s is too short to measure anything (duration)"),
        ("bench storm --duration x", "'x' is no duration"),
        ("bench start --processes 0", "'0' is no whole number from 1 to 50000 (--processes)"),
        ("bench start --processes 1,,2", "'' is no whole number"),
        ("bench lookup --here --kubelet none", "SPIRE's way asks the kubelet (kubelet)"),
        ("bench start --plot p.pdf", "neither .svg nor .png (p.pdf)"),
        ("bench start --plot /no/such/p.svg", "no such folder (/no/such)"),
        ("bench start -o table", "'table' is not one of text, json (--output)"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_measured(
    line: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong word ends with 2, one error that names it, one hint, and no measurement."""
    monkeypatch.setattr("tracer.bench.start.run", lambda *_, **__: pytest.fail("it was measured"))
    assert run(line.split(), App(environ={})) == 2
    error, hint = _error(capsys)
    assert said in error
    assert len(hint) > len("hint: ")


def test_a_plot_without_the_library_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib --plot ends with 69 and says how to have it; nothing is measured."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _command(monkeypatch, lambda *_, **__: pytest.fail("it was measured"), "--plot", "p.svg") == 69
    assert _error(capsys)[1] == "hint: pip install 'podtracer[plot]'"


def test_a_full_disk_costs_the_plot_and_not_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the picture does not fit, what was measured is printed all the same, then the error."""
    _require_matplotlib()
    full = tmp_path / "p.svg"
    full.symlink_to("/dev/full")
    assert _command(monkeypatch, _measures, "-o", "json", "--plot", str(full)) == 70
    captured = capsys.readouterr()
    assert json.loads(captured.out)["tables"][0]["rows"][0]["p50"] == 1.0
    assert f"error: the plot cannot be written: No space left on device ({full})" in captured.err


def test_ctrl_c_prints_what_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the middle, a benchmark cleans up, prints what was measured until then, and ends with 130."""
    cleaned = []

    def measure(report: Report, *_: Any, **__: Any) -> None:
        try:
            _measures(report)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it went on")
        finally:
            signal.raise_signal(signal.SIGINT)  # a second one keeps nobody from cleaning up
            cleaned.append(True)

    assert _command(monkeypatch, measure, "-o", "json") == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["interrupted"], found["ok"], len(found["tables"])) == (True, False, 1)
    assert cleaned == [True]


def test_what_was_not_shown_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark that has not shown what it is to show says why, and ends with 1."""

    def measure(report: Report, *_: Any, **__: Any) -> None:
        report.failures.append("it was too dark")

    assert _command(monkeypatch, measure) == 1
    assert "not shown: it was too dark" in capsys.readouterr().out


def test_every_benchmark_has_both_outputs() -> None:
    """Each takes -o and --plot."""
    for name, command in bench.command.commands.items():
        flags = {flag for param in command.params for flag in param.opts}
        assert {"-o", "--plot"} <= flags, name
