"""``scripts/test --kernels``: runs the kernel tests on the distributions' kernels, in virtual machines.

    python -m tests.vm.run [WORD…]      only the machines in whose names all the words stand, as in "6.1 legacy"

A line for each machine with its count of tests, then what failed, by name. A test that was expected and has no result
is a failure, whatever became of its machine. A run of all machines writes ``docs/kernels.md``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.vm import bare, build, document
from tests.vm.boot import Machine, Running
from tests.vm.plan import BARE, CASES, PROJECT, Case, selection

AT_A_TIME = 2
SLOW = 6  # times that things may take longer there


@dataclass
class Outcome:
    """What became of one machine: what it found, a text for each test that failed, and what is wrong with itself;
    ``note`` is what else is to be known of a good one, ``absent`` why there is none, where it is optional."""

    case: Case
    found: dict[str, Any] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    seconds: float = 0.0
    panic: str = ""
    note: str = ""
    absent: str = ""

    @property
    def good(self) -> bool:
        """Whether all is well."""
        return bool(self.absent or self.passed) and not self.failed and not self.problem

    def answer_for(self, tests: Sequence[str]) -> None:
        """What was expected and has no result has failed."""
        for test in tests:
            if test not in self.passed:
                self.failed.setdefault(test, "has no result")

    def line(self) -> str:
        """One line for people, and for whoever counts."""
        if self.absent:
            return f"{self.case.name}: cannot be had today, and is not counted: {self.absent}"
        release = self.found.get("release", self.case.series)
        what = f"{self.case.name} (Linux {release}, {self.case.cpus} CPU, pid_max {self.case.pid_max})"
        note = f" ({self.note})" if self.note else ""
        return f"{what}: {len(self.passed)} passed, {len(self.failed)} failed, {self.seconds:.0f} s{note}"

    def report(self) -> str:
        """What went wrong, in full."""
        parts = [f"=== {self.case.name}: {self.problem}"] if self.problem else []
        parts += [f"=== {self.case.name}: {test}\n{text}" for test, text in self.failed.items()]
        return "\n".join(parts)


def expected(case: Case) -> list[str]:
    """The tests that a machine has to answer for, collected here."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider"]
    words = [*command, *selection(case.layout, case.cpus)]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode or not found:
        raise build.BuildError(f"the tests cannot be collected:\n{done.stdout[-2000:]}{done.stderr[-1000:]}")
    return found


def panic(console: str) -> str:
    """What a kernel says of its end, on one line, with where it was; nothing when it did not panic."""
    found = re.search(r"Kernel panic - not syncing: *(.*)", console)
    where = re.search(r"RIP: \d+:(\S+)", console)
    return f"kernel panic: {found[1].strip()}{f' at {where[1]}' if where else ''}" if found else ""


def listen(running: Running, outcome: Outcome) -> None:
    """Takes in what a machine tells."""
    started, finished = "", False
    try:
        for line in running.told():
            if "found" in line:
                outcome.found |= line["found"]
            elif "started" in line:
                started = line["started"]
            elif "ended" in line and line["outcome"] == "passed":
                outcome.passed.add(line["ended"])
            elif "ended" in line:  # a skip too: what has no place there is not in the plan
                outcome.failed[line["ended"]] = f"{line['outcome']}\n{line['text']}"
            elif "finished" in line:
                finished = True
        if not finished:
            outcome.problem = "the machine stopped" if outcome.found else "the machine did not boot"
    except TimeoutError as error:
        outcome.problem = f"the machine hangs: {error}"
    except (ValueError, LookupError) as error:
        outcome.problem = f"the machine speaks in riddles: {error!r}"
    if outcome.problem:
        words = running.last_words()
        outcome.problem += f"; its console ends:\n{words}"
        outcome.panic = panic(words)
        if started and started not in outcome.passed:
            outcome.failed.setdefault(started, "the machine stopped or hung in this test")
    elif "bcc" not in outcome.found:
        outcome.problem = "the programs do not load there"


def boot(case: Case, kernel: build.Kernel, initramfs: Path, tests: Sequence[str]) -> Outcome:
    """Boots one machine and lets it run its tests; one of several CPUs again, once, when it has panicked.

    A kernel patches its code while another CPU runs it, as it does when a program is attached, and emulation does not
    bear that each time. With one CPU there is no such excuse, nor for panicking twice.
    """
    first = _boot(case, kernel, initramfs, tests)
    if case.cpus == 1 or not first.panic:
        return first
    second = _boot(case, kernel, initramfs, tests)
    second.note = f"its second boot; the first ended after {first.seconds:.0f} s in a {first.panic}"
    return second


def _boot(case: Case, kernel: build.Kernel, initramfs: Path, tests: Sequence[str]) -> Outcome:
    outcome, start = Outcome(case), time.monotonic()
    arguments = {"layout": case.layout, "slow": str(SLOW), "cpus": str(case.cpus), "pid_max": str(case.pid_max)}
    with tempfile.TemporaryDirectory(prefix="podtracer-vm-") as folder:
        machine = Machine(kernel.image, initramfs, arguments, cpus=case.cpus)
        with Running(machine, Path(folder)) as running:
            listen(running, outcome)
    outcome.answer_for(tests)
    outcome.seconds = time.monotonic() - start
    return outcome


def not_built(case: Case, tests: Sequence[str], error: build.BuildError) -> Outcome:
    """A machine of which something is not to be had."""
    if case.optional:
        return Outcome(case, absent=str(error))
    return Outcome(case, failed=dict.fromkeys(tests, "has no result"), problem=str(error))


def run(cases: Sequence[Case]) -> list[Outcome]:
    """All machines, two at a time; each that ends is told at once."""
    outcomes: dict[Case, Outcome] = {}
    lock = threading.Lock()

    def done(outcome: Outcome) -> None:
        with lock:
            outcomes[outcome.case] = outcome
            print(outcome.line(), flush=True)

    with tempfile.TemporaryDirectory(prefix="podtracer-vm-") as name, ThreadPoolExecutor(AT_A_TIME) as pool:
        tests = {case: expected(case) for case in cases}
        checkout = build.checkout(Path(name, "checkout"))
        archives: dict[str, Path] = {}
        for case in cases:
            try:
                kernel = build.kernel(case.suite, case.series)
                if case.space not in archives:
                    distribution = build.distribution(case.space)
                    archives[case.space] = build.joined([distribution, checkout], Path(name, case.space))
            except build.BuildError as error:
                done(not_built(case, tests[case], error))
                continue
            future = pool.submit(boot, case, kernel, archives[case.space], tests[case])
            future.add_done_callback(lambda future: done(future.result()))
    return [outcomes[case] for case in cases]


def without_btf() -> Outcome:
    """A kernel without BTF, which is no virtual machine."""
    outcome, start = Outcome(BARE), time.monotonic()
    try:
        outcome.found["release"], results = bare.run()
    except build.BuildError as error:
        outcome.problem = str(error)
        outcome.answer_for(list(bare.TESTS))
    else:
        outcome.passed = {test for test, wrong in results.items() if not wrong}
        outcome.failed = {test: wrong for test, wrong in results.items() if wrong}
    outcome.seconds = time.monotonic() - start
    return outcome


def main(words: Sequence[str]) -> int:
    """The exit code: 0 when every test passed on every machine, and the document says what was found."""
    if os.geteuid() != 0:
        print("error: root is needed, to make root file systems", file=sys.stderr)
        return 77
    if shutil.which("qemu-system-x86_64") is None:
        print("error: no machine can be booted (qemu-system-x86_64 is missing)", file=sys.stderr)
        print("hint: run scripts/setup --kernels", file=sys.stderr)
        return 69
    cases = [case for case in (*CASES, BARE) if all(word in case.name.split() for word in words)]
    if not cases:
        print(f"error: no machine is called {' '.join(words)}; there are {', '.join(c.name for c in (*CASES, BARE))}")
        return 2
    try:
        outcomes = run([case for case in cases if case != BARE])
        if BARE in cases:
            outcomes.append(without_btf())
            print(outcomes[-1].line())
    except build.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for outcome in outcomes:
        if not outcome.good:
            print(outcome.report())
    passed, failed = sum(len(o.passed) for o in outcomes), sum(max(len(o.failed), not o.good) for o in outcomes)
    if not failed and not words:
        found = {
            outcome.case: None if outcome.absent else outcome.found for outcome in outcomes if outcome.case != BARE
        }
        failed += not document.update(found, only_check=os.environ.get("PODTRACER_TEST_REQUIRE") == "1")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
