"""The daemon as users run it, on a socket of the bench's own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Self

from tracer.bench.facts import resident
from tracer.bench.helper import environment, private_folder
from tracer.client import Client
from tracer.errors import DaemonUnreachable, TracerError
from tracer.settings import Settings

_PATIENCE = 60.0  # seconds until it must be ready
_LOOK = 0.002  # seconds between two looks at whether it is
_END = 5.0


class Daemon:
    """``podtracer daemon``, started and ready; a context manager. ``ready`` is how long that took, in seconds from
    before its program was executed; ``charged`` are the cgroup's own words where it is put into a ``memory`` cgroup."""

    def __init__(self, settings: Settings, *, memory: str | None = None) -> None:
        self._stack = ExitStack()
        self._memory = memory
        try:
            folder = self._stack.enter_context(private_folder())
            self.socket = f"{folder}/socket"
            self._config = f"{folder}/config.yaml"
            Path(self._config).touch()  # whatever this machine's daemon is told is not for this one
            self._noise = self._stack.enter_context(open(os.memfd_create("podtracer-bench"), "w+b"))  # noqa: SIM115
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-SP",
                    "-m",
                    "tracer.bench.launch",
                    str(os.getpid()),
                    memory or "-",
                    *self._command(settings),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._noise,
                start_new_session=True,
                env={name: value for name, value in environment().items() if not name.startswith("PODTRACER_")},
            )
            self._stack.callback(self._end)
            assert self._child.stdout is not None
            begun = int(self._child.stdout.readline() or 0)
            self.client = self._stack.enter_context(Client(self.socket))
            self._wait()
            self.ready = (time.monotonic_ns() - begun) / 1e9
        except BaseException:
            self._stack.close()
            raise

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    def _command(self, settings: Settings) -> list[str]:
        words = [
            sys.executable,
            "-P",
            "-m",
            "tracer.cli.main",
            "daemon",
            "--socket",
            self.socket,
            "--http-address",
            "none",
        ]
        words += ["--config", self._config]
        for each in fields(settings):
            value = getattr(settings, each.name)
            if value == each.default or value is None:
                continue
            words.append(f"--{each.name.replace('_', '-')}")
            if value is not True:
                words.append(str(value))
        return words

    def _wait(self) -> None:
        end = time.monotonic() + _PATIENCE
        while self._child.poll() is None and time.monotonic() < end:
            if os.path.exists(self.socket):
                with suppress(DaemonUnreachable):
                    if all(self.client.status()["ready"].values()):
                        return
            time.sleep(_LOOK)
        self._noise.seek(0)
        said = self._noise.read().decode("utf-8", "backslashreplace").strip().splitlines()
        errors = [line for line in said if line.startswith("error: ")] or said
        why = "has ended" if self._child.poll() is not None else "does not become ready"
        raise TracerError(
            f"the bench's daemon {why}: {errors[-1] if errors else 'without a word'}",
            "podtracer daemon",
            "try it by hand",
        )

    def cpu(self) -> float:
        """Seconds of processor time of its threads, to the nanosecond."""
        return (
            sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{self.pid}/task").glob("*/schedstat")) / 1e9
        )

    def resident(self) -> float:
        """Its resident memory in MB."""
        return resident(self.pid)

    def charged(self) -> float | None:
        """What its memory cgroup is charged with, in MB; ``None`` where it has none."""
        for name in ("memory.current", "memory.usage_in_bytes"):
            with suppress(OSError):
                if self._memory is not None:
                    return int(Path(self._memory, name).read_text()) / 2**20
        return None

    def _end(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(_END)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()
