"""``podtracer lookup`` against a tracer of hand-made processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_fakes import CART, HOST, WAITING, FakeTracer, identity

from tracer.cli.app import App
from tracer.cli.main import run
from tracer.model import State

FAKES = str(Path(__file__).with_name("cli_fakes.py"))


def known() -> FakeTracer:
    unknown = replace(WAITING, state=State.UNKNOWN)
    return FakeTracer({7: identity(7), 8: identity(8, HOST), 9: identity(9, WAITING), 10: identity(10, unknown)})


def lookup(tracer: FakeTracer, *args: str) -> int:
    return run(["lookup", "--standalone", *args], App(tracer=tracer.factory, environ={}))


@pytest.mark.parametrize(
    ("pids", "code"),
    [("7", 0), ("8", 1), ("99", 1), ("9", 75), ("10", 75), ("7 8", 1), ("9 8 7", 75), ("2147483647", 1)],
)
def test_the_exit_code_is_the_highest_of_the_answers(pids: str, code: int) -> None:
    assert lookup(known(), *pids.split()) == code


def test_answers_come_in_the_order_asked_after_the_first_pod_list(capsys: pytest.CaptureFixture[str]) -> None:
    tracer = known()
    assert lookup(tracer, "9", "7", "9", "-o", "json") == 75
    assert [json.loads(line)["pid"] for line in capsys.readouterr().out.splitlines()] == [9, 7, 9]
    assert tracer.calls[0] == ("wait_synced",)
    assert not tracer.is_open


@pytest.mark.parametrize("text", ["x", "0", "07x", "1.5", "+7", "٧", "99999999999", "2147483648", "7\n8"])
def test_what_is_no_pid_is_refused_before_anything_is_started(capsys: pytest.CaptureFixture[str], text: str) -> None:
    tracer = known()
    assert lookup(tracer, "7", text) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert tracer.settings is None


@pytest.mark.parametrize(
    ("args", "timeout"),
    [(["--wait", "9"], 30.0), (["9", "--wait"], 30.0), (["--wait=2s", "9"], 2.0),
     (["9", "--wait", "--max-poll-attempts", "4", "--poll-retry-interval", "250ms"], 1.0)],
)  # fmt: skip
def test_wait_waits_for_what_is_pending_and_takes_its_time_only_behind_an_equals_sign(
    args: list[str], timeout: float
) -> None:
    tracer = known()
    tracer.later = {9: identity(9, CART)}
    assert lookup(tracer, *args) == 0
    assert tracer.calls[1] == ("wait_known", (9,), timeout)


def test_without_wait_a_pending_answer_is_given_at_once() -> None:
    tracer = known()
    tracer.later = {9: identity(9, CART)}
    assert lookup(tracer, "9") == 75


def test_self_is_podtracers_own_process(capsys: pytest.CaptureFixture[str]) -> None:
    """Among others, and on stdin too."""
    tracer = known()
    assert lookup(tracer, "self", "7", "-o", "json") == 1
    asked = [call[1] for call in tracer.calls if call[0] == "lookup"]
    assert asked == [os.getpid(), 7]
    capsys.readouterr()
    assert program(b"self\n", "-", "-o", "name").stdout == b"-/-/-\n"
    assert lookup(known(), "Self") == 2


def test_a_bad_wait_is_a_usage_error() -> None:
    assert lookup(known(), "9", "--wait=soon") == 2


def test_a_table_fits_all_rows_and_is_not_coloured_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert lookup(known(), "7", "8", "--color", "auto") == 1
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.index("resolved") == second.index("host") == head.index("STATE")
    assert lookup(known(), "7", "--color", "always") == 0
    assert "\x1b[32mresolved" in capsys.readouterr().out
    assert lookup(known(), "7", "--color", "always", "--plain") == 0
    assert "\x1b" not in capsys.readouterr().out


def program(stdin: bytes, *args: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, FAKES, "none", "lookup", "--standalone", *args]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=30, check=False)


def test_dash_reads_one_pid_a_line() -> None:
    done = program(b"7\n\n 7 \n99", "-", "7", "-o", "name")
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout == b"shop/cart-7d9f/app\n" * 2 + b"-/-/-\n" + b"shop/cart-7d9f/app\n"


def test_nothing_on_stdin_is_nothing_to_answer() -> None:
    assert program(b"", "-", "-o", "json").returncode == 0


def test_a_bad_line_on_stdin_is_named_by_its_number() -> None:
    done = program(b"7\n\xff\x1b\n", "-", "-o", "name")
    assert done.returncode == 2
    assert rb"\xff\x1b" in done.stderr.replace(b"\\\\", b"\\")
    assert b"stdin, line 2" in done.stderr


def test_a_program_may_ask_and_wait_for_each_answer() -> None:
    command = [sys.executable, FAKES, "none", "lookup", "--standalone", "-", "-o", "name"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        for _ in range(3):
            child.stdin.write(b"7\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"shop/cart-7d9f/app\n"
        child.stdin.close()
        assert child.wait(30) == 0


def test_a_reader_that_has_gone_is_no_error() -> None:
    lookup = f"{sys.executable} {FAKES} none lookup --standalone {'7 ' * 3000} -o json"
    command = f"{lookup} | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_full_disk_and_a_closed_stdout_are_survived() -> None:
    command = f"{sys.executable} {FAKES} none lookup --standalone 7 "
    full = subprocess.run(["bash", "-c", command + ">/dev/full"], capture_output=True, text=True, check=False)
    assert full.returncode == 70
    assert len(full.stderr.splitlines()) == 2
    closed = subprocess.run(["bash", "-c", command + ">&-"], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")
