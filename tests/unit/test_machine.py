"""The tests' own helpers: processes are never mistaken for others, and waiting ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import machine
from tests.waiting import until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A child that sleeps."""
    child = subprocess.Popen(["sleep", "1000"])
    yield child
    child.kill()
    child.wait()


def test_another_start_time_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    """A process with the PID but not the start time is not alive, and gets no signal."""
    real = machine.Process.of(sleeper.pid)
    other = machine.Process(real.pid, real.start_time - 1)
    other.signal(9)
    assert not other.alive()
    assert real.alive()
    assert sleeper.poll() is None


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    """A process that has ended but was not waited for counts as ended."""
    process = machine.Process.of(sleeper.pid)
    machine.end([process], grace=0)
    assert not process.alive()


def test_no_process_of_a_free_pid() -> None:
    """Asking for a PID that nobody has raises ``ProcessLookupError``."""
    with pytest.raises(ProcessLookupError):
        machine.Process.of(2**22 + 1)


def test_daemons_are_found_again_by_another_object(tmp_path: Path) -> None:
    """What one ``Daemons`` has started, another one on the same folder knows and stops."""
    first, second = machine.Daemons(tmp_path), machine.Daemons(tmp_path)
    process = first.start("sleeper", ["sh", "-c", "echo started; exec sleep 1000"])
    assert second.recorded() == {"sleeper": process}
    assert second.alive("sleeper")
    until(lambda: second.log("sleeper").read_text() == "started\n", 10, "the log")
    second.stop("sleeper")
    assert not process.alive()
    assert second.recorded() == {}
    first.stop("sleeper")


def test_a_daemon_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """``stop`` returns when the daemon is dead, whatever it does with SIGTERM."""
    daemons = machine.Daemons(tmp_path)
    process = daemons.start("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    until(lambda: daemons.log("stubborn").read_text(), 10, "the trap")
    daemons.stop("stubborn", grace=0.1)
    assert not process.alive()


def test_until_returns_what_came_true() -> None:
    """``until`` gives back the first true value."""
    values = iter([0, "", None, 7, 8])
    assert until(lambda: next(values), 10, "a true value", interval=0) == 7


def test_until_says_what_it_waited_for() -> None:
    """``until`` fails with what it waited for, and with the last failed assertion as cause."""

    def never() -> bool:
        raise AssertionError("three is not four")

    with pytest.raises(TimeoutError, match=r"waited 0\.01 s for a miracle") as failure:
        until(never, 0.01, "a miracle", interval=0.001)
    assert str(failure.value.__cause__) == "three is not four"
