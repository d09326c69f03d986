"""``podtracer watch`` against a tracer of hand-made events, in this process and as a real one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fakes import HOST, WAITING, FakeTracer, event, identity

from tracer.cli.app import App
from tracer.cli.main import run
from tracer.model import Event

FAKES = str(Path(__file__).with_name("cli_fakes.py"))


def watch(tracer: FakeTracer, *args: str, environ: dict[str, str] | None = None) -> int:
    return run(["watch", "--standalone", *args], App(tracer=tracer.factory, environ=environ or {}))


def told(capsys: pytest.CaptureFixture[str], events: list[Event], *args: str) -> list[tuple[str, int | None]]:
    tracer = FakeTracer(events=events)
    assert watch(tracer, "-o", "json", "--duration", "50ms", *args) == 0
    assert not tracer.is_open
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [(record["event"], record.get("pid")) for record in records]


STORY = [
    event("snapshot", 1),
    event("snapshot", 2, HOST),
    event("synced"),
    event("exec", 3, WAITING),
    event("fork", 4, HOST),
    event("resolved", 3),
    event("lost", count=2),
    event("exit", 3),
    event("exit", 1),
]


def test_what_runs_comes_first_then_what_happens_and_host_processes_are_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert told(capsys, STORY) == [
        ("snapshot", 1), ("synced", None), ("exec", 3), ("resolved", 3), ("lost", None), ("exit", 3), ("exit", 1),
    ]  # fmt: skip


def test_host_shows_host_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert ("fork", 4) in told(capsys, STORY, "--host")


def test_under_a_filter_a_pending_process_is_shown_once_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (
        ["-n", "shop"],
        ["-l", "app=cart"],
        ["--pod", "cart-7d9f"],
        ["-c", "app,other"],
        ["-n", "x", "-n", "shop"],
    ):
        shown = told(capsys, STORY, *flags)
        assert ("exec", 3) not in shown
        assert ("resolved", 3) in shown
        assert ("synced", None) in shown
    assert told(capsys, STORY, "-n", "other") == [("synced", None), ("lost", None)]


def test_all_namespaces_overrides_a_configured_one(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, lines in (([], 0), (["-A"], 1)):
        environ = {"PODTRACER_NAMESPACE": "other"}
        tracer = FakeTracer(events=[event("exec", 1)])
        assert watch(tracer, "-o", "json", "--duration", "10ms", *flags, environ=environ) == 0
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_process_can_be_watched_by_its_pid(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, STORY, "-p", "4", "-p", "1") == [
        ("snapshot", 1), ("synced", None), ("fork", 4), ("lost", None), ("exit", 1),
    ]  # fmt: skip


def test_count_counts_the_shown_events_of_processes_behind_the_snapshot(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, STORY, "--count", "3")[-1] == ("exit", 3)
    assert told(capsys, STORY, "--count", "1")[-1] == ("exec", 3)
    assert told(capsys, STORY, "--count", "1", "-n", "shop")[-1] == ("resolved", 3)


def test_without_snapshot_the_tracer_is_asked_for_none_and_counting_starts_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracer = FakeTracer(events=[event("exec", 1), event("exec", 2)])
    assert watch(tracer, "--no-snapshot", "--count", "1", "-o", "json") == 0
    assert tracer.calls == [("watch", False)]
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("waiting", [1, 255, 256, 257, 513, 2000])
def test_every_event_that_waits_is_written(waiting: int, capsys: pytest.CaptureFixture[str]) -> None:
    """However many events wait at once, each is written, once and in order."""
    tracer = FakeTracer(events=[event("exec", pid) for pid in range(1, waiting + 1)])
    assert watch(tracer, "--no-snapshot", "--count", str(waiting), "-o", "json") == 0
    written = [json.loads(line)["pid"] for line in capsys.readouterr().out.splitlines()]
    assert written == list(range(1, waiting + 1))


def test_a_duration_ends_a_busy_watch_too(capsys: pytest.CaptureFixture[str]) -> None:
    def busy() -> Iterator[Event]:
        while True:
            yield event("exec", 1)

    started = time.monotonic()
    assert watch(FakeTracer(events=busy()), "--duration", "100ms") == 0
    assert time.monotonic() - started < 5
    assert capsys.readouterr().out.startswith("TIME ")


def test_the_output_is_a_table_with_the_chosen_columns(capsys: pytest.CaptureFixture[str]) -> None:
    one = FakeTracer(events=[event("exec", 1)])
    assert watch(one, "--no-snapshot", "--count", "1", "-o", "wide", "--no-trunc", "-t", "--no-headers") == 0
    (row,) = capsys.readouterr().out.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  exec ", row)
    assert identity(1).workload.container_id in row.split()


def start(script: str, *args: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, FAKES, script, "watch", "--standalone", *args]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_watch_cleanly_and_no_event_waits_behind_a_pipe(number: signal.Signals) -> None:
    with start("one", "-o", "json") as child:
        assert child.stdout
        assert child.stderr
        assert json.loads(child.stdout.readline())["pid"] == 7
        child.send_signal(number)
        assert child.wait(10) == 0
        assert child.stdout.read() == b""
        assert child.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_never_leaves_half_a_line(number: signal.Signals) -> None:
    with start("endless", "-o", "json") as child:
        assert child.stdout
        child.stdout.readline()
        child.send_signal(number)
        rest = child.stdout.read()
        assert child.wait(10) == 0
    assert rest.endswith(b"\n")
    for line in rest.splitlines():
        json.loads(line)


def _wait_until_full(pipe: int) -> None:
    held = bytearray(4)
    while int.from_bytes(held, sys.byteorder) < fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) - select.PIPE_BUF:
        fcntl.ioctl(pipe, termios.FIONREAD, held)


def test_a_signal_ends_a_watch_whose_reader_sleeps() -> None:
    with start("endless", "-o", "json") as child:
        assert child.stdout
        assert child.stderr
        child.stdout.readline()
        _wait_until_full(child.stdout.fileno())
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert child.stderr.read() == b""


def test_a_reader_that_goes_ends_the_watch() -> None:
    with start("endless", "-o", "json") as child:
        assert child.stdout
        assert child.stderr
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(10) == 0
        assert child.stderr.read() == b""


def test_a_reader_that_goes_while_nothing_happens_ends_the_watch_too() -> None:
    with start("one", "-o", "json") as child:
        assert child.stdout
        assert child.stderr
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(10) == 0
        assert child.stderr.read() == b""


def test_a_failing_tracer_is_an_internal_error_and_is_closed() -> None:
    with start("failing") as child:
        assert child.stderr
        assert child.wait(10) == 70
        assert child.stderr.read().splitlines() == [
            b"error: internal error: a bug (ZeroDivisionError)",
            b"hint: --debug shows the traceback",
        ]


def test_on_a_terminal_rows_are_coloured_and_cut_unless_plain() -> None:
    for flags, is_cut in (([], True), (["--plain"], False)):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        command = [sys.executable, FAKES, "one", "watch", "--standalone", "--no-snapshot", "--count", "1", *flags]
        with subprocess.Popen(command, stdout=slave, env=environ | {"TERM": "xterm"}) as child:
            os.close(slave)
            text = b""
            try:
                while chunk := os.read(master, 65536):
                    text += chunk
            except OSError:  # the terminal's other end is closed
                pass
            assert child.wait(10) == 0
        os.close(master)
        assert (b"\x1b[32mexec\x1b[0m" in text) is is_cut
        lines = re.sub(rb"\x1b\[\d+m", b"", text).decode().splitlines()
        assert all((len(line) <= 40) is is_cut for line in lines)
