"""Boots a virtual machine by software emulation and reads what it tells, line by line, until it is over."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STALL = 240.0  # seconds without a word after which a machine hangs
_TURN = 0.1


@dataclass(frozen=True, slots=True)
class Machine:
    """What to boot. ``arguments`` reach the guest on the kernel's command line."""

    kernel: Path
    initramfs: Path
    arguments: Mapping[str, str]
    cpus: int = 1
    memory: int = 3072  # MiB; the initramfs lies in it twice while it is unpacked


class Running:
    """A virtual machine; its console is the file ``console`` in the folder. Turned off with the ``with`` block."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.console = folder / "console"
        self._port = folder / "port"
        self._port.touch()
        words = " ".join(f"podtracer.{name}={value}" for name, value in machine.arguments.items())
        self._child = subprocess.Popen(
            [
                "qemu-system-x86_64",
                "-machine",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                os.environ.get("CPU", "max"),
            ]
            + ["-smp", str(machine.cpus), "-m", str(machine.memory), "-display", "none", "-nic", "none", "-no-reboot"]
            + ["-serial", f"file:{self.console}", "-serial", f"file:{self._port}", "-monitor", "none"]
            + ["-kernel", machine.kernel, "-initrd", machine.initramfs]
            + ["-append", f"console=ttyS0 rdinit=/init panic=-1 quiet {os.environ.get('EXTRA', '')} {words}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self) -> Iterator[dict[str, Any]]:
        """The lines that the guest writes, until it is off. Raises ``TimeoutError`` when it has hung."""
        rest, heard = "", time.monotonic()
        with self._port.open(encoding="utf-8", errors="replace") as port:
            while True:
                over = self._child.poll() is not None
                text = port.read()
                if text:
                    heard = time.monotonic()
                    *lines, rest = (rest + text).split("\n")
                    yield from (json.loads(line) for line in lines if line.strip())
                elif over:
                    return
                elif time.monotonic() - heard > STALL:
                    raise TimeoutError(f"nothing was heard for {STALL:g} s")
                else:
                    time.sleep(_TURN)

    def last_words(self, lines: int = 25) -> str:
        """The end of the console, and what qemu itself said."""
        assert self._child.stderr is not None
        said = self._child.stderr.read() if self._child.poll() else ""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join([*text.replace("\r", "").splitlines()[-lines:], said]).strip()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()
        assert self._child.stderr is not None
        self._child.stderr.close()
