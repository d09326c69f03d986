"""The plan of virtual machines, and what is said of one that goes down; without booting any."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import bare, build, document, run
from tests.vm.build import newest
from tests.vm.document import BEGIN, DOCUMENT, END, HEAD
from tests.vm.plan import BARE, CASES, LEFT_OUT, PROJECT, TAKEN_ALL_THE_SAME, Case, selection

CASE = Case("6.1", "bookworm-security", "unified", "bookworm")
FOUND = {
    "release": "6.1.0-56-cloud-amd64",
    "bcc": "0.26.0",
    "python": "3.11.2",
    "no_table": None,
    "no_iterator": None,
    "pidfs": False,
    "peer_pidfd": False,
    "doctor": ["pidfs"],
}
ONE, TWO = "tests/kernel/test_a.py::test_one", "tests/kernel/test_a.py::test_two"


PANIC = """\
Oops: invalid opcode: 0000 [#1] SMP NOPTI
RIP: 0010:ktime_get_mono_fast_ns+0x10/0x90
Kernel panic - not syncing: Fatal exception in interrupt
"""


class Told:
    """A machine that says these lines and is off, or hangs."""

    def __init__(self, *lines: dict[str, Any], hangs: bool = False, console: str = PANIC) -> None:
        self._lines, self._hangs, self._console = lines, hangs, console

    def told(self) -> Iterator[dict[str, Any]]:
        yield from self._lines
        if self._hangs:
            raise TimeoutError("nothing was heard for 300 s")

    def last_words(self) -> str:
        return self._console


def _outcome(*lines: dict[str, Any], hangs: bool = False) -> run.Outcome:
    outcome = run.Outcome(CASE)
    run.listen(Told(*lines, hangs=hangs), outcome)  # type: ignore[arg-type]
    outcome.answer_for([ONE, TWO])
    return outcome


def _passed(test: str) -> list[dict[str, Any]]:
    return [{"started": test}, {"ended": test, "outcome": "passed", "seconds": 1, "text": ""}]


def test_a_machine_on_which_all_passed_is_good() -> None:
    """Every expected test has passed and the run was told finished: nothing is wrong."""
    outcome = _outcome({"found": FOUND}, *_passed(ONE), *_passed(TWO), {"finished": 0})
    assert outcome.good
    assert "2 passed, 0 failed" in outcome.line()


def test_a_test_without_result_is_a_failure() -> None:
    """A test that was expected and never ran fails by name, although the run finished well."""
    outcome = _outcome({"found": FOUND}, *_passed(ONE), {"finished": 0})
    assert outcome.failed == {TWO: "has no result"}
    assert not outcome.good


def test_a_skip_is_a_failure() -> None:
    """A test that was skipped there is no test that passed."""
    skip = {"ended": TWO, "outcome": "skipped", "seconds": 0, "text": "needs gcc"}
    outcome = _outcome({"found": FOUND}, *_passed(ONE), {"started": TWO}, skip, {"finished": 0})
    assert list(outcome.failed) == [TWO]
    assert "needs gcc" in outcome.report()


@pytest.mark.parametrize("hangs", [True, False])
def test_a_machine_that_goes_down_names_the_test(hangs: bool) -> None:
    """A machine that panics or hangs fails by its name and the test's, with the end of its console."""
    outcome = _outcome({"found": FOUND}, *_passed(ONE), {"started": TWO}, hangs=hangs)
    assert list(outcome.failed) == [TWO]
    assert "in this test" in outcome.failed[TWO]
    assert CASE.name in outcome.report()
    assert "Kernel panic" in outcome.report()


def _boots(monkeypatch: pytest.MonkeyPatch, cpus: int, *boots: Told) -> run.Outcome:
    """What becomes of a machine that says these things, one boot after the other."""
    left = list(boots)

    def attempt(case: Case, *_: object) -> run.Outcome:
        outcome = run.Outcome(case)
        run.listen(left.pop(0), outcome)  # type: ignore[arg-type]
        outcome.answer_for([ONE])
        return outcome

    monkeypatch.setattr(run, "_boot", attempt)
    outcome = run.boot(dataclasses.replace(CASE, cpus=cpus), None, None, [ONE])  # type: ignore[arg-type]
    assert not left, "it was not booted as often"
    return outcome


def _well() -> Told:
    return Told({"found": FOUND}, *_passed(ONE), {"finished": 0})


def test_a_machine_of_several_cpus_that_panics_is_booted_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second boot counts, and the line says that there was a first one and in what it ended."""
    outcome = _boots(monkeypatch, 2, Told({"found": FOUND}, {"started": ONE}), _well())
    assert outcome.good
    assert "second boot" in outcome.line()
    assert "Fatal exception in interrupt at ktime_get_mono_fast_ns" in outcome.line()


def test_a_second_panic_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that panics each time has failed."""
    outcome = _boots(monkeypatch, 2, *(Told({"found": FOUND}, {"started": ONE}) for _ in range(2)))
    assert list(outcome.failed) == [ONE]


@pytest.mark.parametrize(
    ("cpus", "told"),
    [
        (1, Told({"found": FOUND}, {"started": ONE})),
        (2, Told({"found": FOUND}, {"started": ONE}, hangs=True, console="")),
        (2, Told({"found": FOUND}, {"started": ONE}, {"ended": ONE, "outcome": "failed", "text": ""}, {"finished": 1})),
    ],
)
def test_nothing_else_is_tried_again(cpus: int, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panic of a machine of one CPU, a machine that hangs and a test that fails are failures at once."""
    outcome = _boots(monkeypatch, cpus, told)
    assert list(outcome.failed) == [ONE]
    assert outcome.note == ""


def test_a_machine_that_speaks_in_riddles_fails() -> None:
    """A machine whose words mean nothing fails by its name; nothing is lost."""
    outcome = _outcome({"ended": ONE})
    assert "riddles" in outcome.report()
    assert set(outcome.failed) == {ONE, TWO}


def test_without_qemu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an emulator there is one error that names it, one hint, and an exit code that is none of success."""
    monkeypatch.setattr(run.shutil, "which", lambda _name: None)
    monkeypatch.setattr(run.os, "geteuid", lambda: 0)
    assert run.main([]) == 69
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert "qemu-system-x86_64" in error
    assert "scripts/setup --kernels" in hint


@pytest.mark.parametrize(
    ("result", "current", "code", "said"),
    [
        ("passed", True, 0, "2 passed, 0 failed"),
        ("failed", True, 1, "1 passed, 1 failed"),
        ("passed", False, 1, "2 passed, 1 failed"),
    ],
)
def test_the_last_line_counts_what_failed(
    result: str,
    current: bool,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last line counts the tests that passed and all that did not, a document that is not current among them."""
    outcome = run.Outcome(CASE)
    outcome.passed, outcome.failed = ({ONE}, {}) if result == "passed" else (set(), {ONE: "failed"})
    monkeypatch.setattr(run.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(run.os, "geteuid", lambda: 0)
    monkeypatch.setattr(run, "run", lambda _cases: [outcome])
    monkeypatch.setattr(run, "without_btf", lambda: run.Outcome(BARE, passed={TWO}))
    monkeypatch.setattr(document, "update", lambda *_args, **_options: current)
    assert run.main([]) == code
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_a_machine_that_does_not_boot_fails_every_test() -> None:
    """A machine that never says a word has failed in all of its tests."""
    outcome = _outcome()
    assert "did not boot" in outcome.problem
    assert set(outcome.failed) == {ONE, TWO}


def test_programs_that_do_not_load_are_a_problem() -> None:
    """A kernel that takes no program is named as such, with the verifier's words from the tests that met them."""
    refused = {"ended": ONE, "outcome": "failed", "seconds": 1, "text": "[setup]\nMissingError: R1 invalid"}
    outcome = _outcome({"found": {"release": "6.1.0"}}, {"started": ONE}, refused, {"finished": 1})
    assert "do not load" in outcome.problem
    assert "R1 invalid" in outcome.report()


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("a_lookup_says_that_btf_is_missing", bare.Said(70, "", "error: internal error (KeyError)\nhint: report it\n")),
        (
            "a_lookup_says_that_btf_is_missing",
            bare.Said(69, "", "error: the kernel is too old (Linux 5.4)\nhint: BTF\n"),
        ),
        ("doctor_is_red_for_btf", bare.Said(1, '{"checks": []}', "")),
        ("doctor_is_red_for_btf", bare.Said(1, '{"checks": [{"name": "btf", "state": "ok"}]}', "")),
    ],
)
def test_another_end_than_that_of_missing_btf_fails(test: str, said: bare.Said) -> None:
    """What is expected without BTF is no other failure's words."""
    with pytest.raises(AssertionError):
        bare.TESTS[test][1](said)


def test_a_kernel_without_btf_that_does_not_boot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be had or does not boot all of its tests have failed, by name."""

    def not_there() -> None:
        raise build.BuildError("bookworm has no user-mode-linux")

    monkeypatch.setattr(bare, "run", not_there)
    outcome = run.without_btf()
    assert set(outcome.failed) == set(bare.TESTS)
    assert "bookworm has no user-mode-linux" in outcome.report()


def test_what_is_optional_may_be_absent() -> None:
    """A machine that cannot be built is told, and is a failure unless it is optional."""
    error = build.BuildError("sid has no bcc")
    failed = run.not_built(CASE, [ONE, TWO], error)
    assert (failed.good, list(failed.failed)) == (False, [ONE, TWO])
    absent = run.not_built(dataclasses.replace(CASE, optional=True), [ONE, TWO], error)
    assert (absent.good, absent.failed) == (True, {})
    assert "sid has no bcc" in absent.line()


def test_no_kernel_and_no_layout_depends_on_what_is_optional() -> None:
    """Each kernel, layout and number of CPUs is on a machine that has to be there."""
    needed = [case for case in CASES if not case.optional]
    assert {case.series for case in needed} == {case.series for case in CASES} >= {"5.10", "6.1", "6.12", "newest"}
    assert {case.layout for case in needed} == {"unified", "legacy"}
    assert {case.space for case in needed} == {"bookworm", "trixie"}
    assert {case.cpus for case in needed} >= {1, 4}
    assert {case.pid_max for case in needed} == {32768, 4194304}


def test_what_is_left_out_is_there() -> None:
    """Every test file that the plan leaves out, or takes one test of, exists."""
    for name in (*LEFT_OUT, *(test.partition("::")[0] for test in TAKEN_ALL_THE_SAME)):
        assert (PROJECT / name).is_file(), name


def test_every_mark_that_a_machine_goes_without_another_has() -> None:
    """What one layout or number of CPUs has no place for runs on another machine of the plan, or on a hybrid host."""
    for mark in ("v1", "v2", "several", "smp"):
        assert any(f"not {mark}" not in selection(case.layout, case.cpus)[-1] for case in CASES), mark


def test_the_newest_kernel_is_the_highest_version() -> None:
    """Releases are compared as versions, not as text."""
    names = [f"linux-image-6.1.0-{number}-cloud-amd64" for number in (9, 56, 10)]
    assert newest(names) == "linux-image-6.1.0-56-cloud-amd64"


YESTERDAY, TODAY = (
    [f"linux-image-{release}-cloud-amd64" for release in ("6.1.0-9", last, "6.12.3")]
    for last in ("6.1.0-10", "6.1.0-11")
)


class Suite:
    """apt whose lists are of yesterday until it is asked for fresh ones; the mirror has what is in those."""

    def __init__(self, suite: str, *, fresh: bool = False) -> None:
        self.suite, self._names = suite, TODAY if fresh else YESTERDAY

    def names(self, pattern: str) -> list[str]:
        return [name for name in self._names if re.search(pattern, name)]

    def unpack(self, package: str, folder: Path) -> None:
        if package not in TODAY:
            raise build.BuildError(f"{package}: 404 Not Found")
        (folder / "boot").mkdir()
        (folder / "boot" / f"vmlinuz-{package}").touch()


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A suite and an empty cache."""
    monkeypatch.setattr(build, "Apt", Suite)
    monkeypatch.setattr(build, "cache", lambda: tmp_path)


@pytest.mark.usefixtures("suite")
def test_a_kernel_that_is_no_longer_there_is_replaced_by_the_newest() -> None:
    """Where the newest of the lists cannot be downloaded any more, the newest of fresh lists is taken."""
    assert build.kernel("bookworm-security", "6.1").release == "6.1.0-11-cloud-amd64"


@pytest.mark.usefixtures("suite")
def test_a_series_that_is_no_longer_there_is_named() -> None:
    """Where the suite has no kernel of the series, the error names both; of another series none is taken."""
    with pytest.raises(build.BuildError, match=r"bookworm-security has no kernel 6\.6 any more"):
        build.kernel("bookworm-security", "6.6")


def test_the_document_has_a_row_for_each_machine() -> None:
    """docs/kernels.md was written by a run of the plan as it is: a row for each kernel, layout and user space."""
    written = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0].removeprefix("\n").removeprefix(HEAD)
    rows = [document.cells(line) for line in written.splitlines()]
    assert sorted(tuple(row[1:5]) for row in rows) == sorted(document.known(case) for case in CASES)
    for case in CASES:
        first = r"\d+\.\d+ \(sid\)" if case.series == "newest" else re.escape(case.series)
        mine = [row for row in rows if re.fullmatch(first, row[0]) and tuple(row[1:5]) == document.known(case)]
        assert len(mine) == 1, case.name


def test_a_document_that_says_otherwise_is_not_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that differs is refused when it is only checked, and the lines that differ are printed, else it is
    written; the newest kernel's number alone is no difference."""
    page = tmp_path / "kernels.md"
    page.write_text(f"# Head\n{BEGIN}\n{END}\ntail\n")
    monkeypatch.setattr(document, "DOCUMENT", page)
    sid = dataclasses.replace(CASE, series="newest", suite="sid")
    assert not document.update({sid: FOUND}, only_check=True)
    assert document.update({sid: FOUND}, only_check=False)
    cells = ["6.1 (sid)", "unified", "1", "32,768", "Debian 12", "0.26", "3.11", "mapped table", "start time"]
    assert f"\n| {' | '.join(cells)} | task iterator | `SO_PEERCRED` | pidfs |\n" in page.read_text()
    assert page.read_text().endswith(f"{END}\ntail\n")
    assert document.update({sid: {**FOUND, "release": "6.2.1", "bcc": "1.0"}}, only_check=True)
    assert document.update({sid: None}, only_check=True), "what cannot be had today keeps its line"
    assert not document.update({CASE: FOUND}, only_check=True)
    capsys.readouterr()
    assert not document.update({sid: {**FOUND, "pidfs": True}}, only_check=True)
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("-|") and "start time" in line]
    assert [line for line in told if line.startswith("+|") and "pidfd inode" in line]
