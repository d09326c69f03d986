"""Inside the virtual machine: says what was found here, runs the tests, and tells each result as soon as it is there.

``python -m tests.vm.guest PORT`` writes a JSON object a line to the serial port: ``found``, ``collected``, ``started``
and ``ended`` for each test, and ``finished``. A machine that stops on the way has told how far it came.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.kernel.lab import Kernel
from tests.vm.plan import selection
from tracer import doctor
from tracer.serve.peers import has_peer_pidfd


def arguments(path: str = "/proc/cmdline") -> dict[str, str]:
    """The kernel's command line: what it says to us."""
    words = (word.partition("=") for word in Path(path).read_text().split())
    return {key.removeprefix("podtracer."): value for key, _, value in words if key.startswith("podtracer.")}


def machine() -> dict[str, Any]:
    """Which kernel and user space this is."""
    return {
        "release": platform.release(),
        "python": platform.python_version(),
        "peer_pidfd": has_peer_pidfd(),
        "cpus": os.cpu_count(),
        "pid_max": int(Path("/proc/sys/kernel/pid_max").read_text()),
    }


def ways(kernel: Kernel) -> dict[str, Any]:
    """Which ways the tracer takes here."""
    features = kernel.programs.features
    return {
        "bcc": doctor.bcc().found.partition(",")[0],  # importing it would warn, and cost 100 MB
        "no_table": features.no_table,
        "no_iterator": features.no_iterator,
        "pidfs": features.pidfs,
        "missing_tracepoints": features.missing_tracepoints,
        "hierarchies": list(kernel.mounts),
    }


class Told:
    """A pytest plugin that writes each test's outcome."""

    def __init__(self, port: TextIO) -> None:
        self._port = port
        self._phases: list[pytest.TestReport] = []

    def tell(self, **fields: Any) -> None:
        """One line."""
        self._port.write(json.dumps(fields) + "\n")
        self._port.flush()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """All that will run."""
        self.tell(collected=[item.nodeid for item in session.items])

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Once the programs are attached it is known which ways were taken."""
        made = yield
        if isinstance(made, Kernel) and fixturedef.argname == "attached":
            self.tell(found=ways(made))
        return made

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Told before, so that a test which takes the machine down is known."""
        self._phases = []
        self.tell(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps set-up, call and tear-down; what a test records was found here."""
        self._phases.append(report)
        if report.when == "teardown" and report.user_properties:
            self.tell(found=dict(report.user_properties))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """The worst of its phases is the test's outcome."""
        outcome, text = "passed", ""
        for report in self._phases:
            if report.outcome != "passed":
                outcome = report.outcome
                text += f"[{report.when}]\n{report.longreprtext[-6000:]}\n"
                text += "".join(f"-- {name} --\n{content[-2000:]}\n" for name, content in report.sections)
        self.tell(
            ended=nodeid, outcome=outcome, seconds=round(sum(r.duration for r in self._phases), 2), text=text.strip()
        )


def main() -> int:
    """Runs the tests that the kernel's command line asks for."""
    asked = arguments()
    with open(sys.argv[1], "w", encoding="utf-8") as port:
        told = Told(port)
        told.tell(found=machine())
        words = selection(asked["layout"], int(asked["cpus"]))
        code = pytest.main([*words, "-p", "no:cacheprovider", "--tb=short", "-q"], plugins=[told])
        told.tell(finished=int(code))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
