"""The command, run as a user runs it: a watch whose events are collected, and one-shot commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.waiting import SLOW, until

COMMAND = [sys.executable, "-m", "tracer.cli.main"]


class Watch:
    """``podtracer watch -o json`` with these further words; ``events`` grows while it runs."""

    def __init__(self, *words: str | int) -> None:
        self.events: list[dict[str, Any]] = []
        self._child = subprocess.Popen(
            [*COMMAND, "watch", "--standalone", "-o", "json", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self.events.append(json.loads(line))

    def of(self, pid: int) -> list[dict[str, Any]]:
        """The events of one PID."""
        return [event for event in tuple(self.events) if event.get("pid") == pid]

    def __enter__(self) -> Watch:
        def synced() -> bool:
            assert self._child.poll() is None, "the watch has ended"
            return any(event["event"] == "synced" for event in tuple(self.events))

        until(synced, 60, "the watch to be synced")
        return self

    def __exit__(self, *_: object) -> None:
        self._child.send_signal(signal.SIGINT)
        try:
            code = self._child.wait(20 * SLOW)
        finally:
            self._child.kill()
        self._reader.join(10)
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._child.stdout.close()
        said = self._child.stderr.read()
        self._child.stderr.close()
        assert code == 0, said


def podtracer(*words: str | int) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120 * SLOW,
        check=False,
        env=dict(os.environ),
    )


def cgroup_of(pid: int, hierarchy: str = "0::") -> str:
    """The process's cgroup as /proc has it, of the line that starts with ``hierarchy``."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith(hierarchy):
            return line.removeprefix(hierarchy)
    raise AssertionError(f"no line {hierarchy} for {pid}")
