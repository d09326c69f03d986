"""Boots a virtual machine by software emulation and reads what it tells, line by line, until it is over."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STALL = 300.0  # seconds without a word after which a machine hangs
# Nobody attacks it: what the kernel does against speculation and guessing is slow to emulate. All CPUs take turns in
# one thread, which costs less than threads of their own that wait for each other, and leaves the machine's second CPU
# to the second virtual machine. And kernels patch code that another CPU is running, which emulation in several threads
# does not bear: now and then a boot ended in a panic. So the emulated clock is trusted from the start, too.
KERNEL_ARGUMENTS = "console=ttyS0 rdinit=/init panic=-1 quiet mitigations=off nokaslr norandmaps tsc=reliable"
_TURN = 0.1


@dataclass(frozen=True, slots=True)
class Machine:
    """What to boot. ``arguments`` reach the guest on the kernel's command line."""

    kernel: Path
    initramfs: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 1
    memory: int = 3072  # MiB; the initramfs lies in it twice while it is unpacked

    def command(self, console: Path, port: Path) -> list[str | Path]:
        """qemu's command line."""
        words = " ".join(f"podtracer.{name}={value}" for name, value in self.arguments.items())
        options: dict[str, str | Path] = {
            "machine": "q35",
            "accel": "tcg,thread=single",
            "cpu": "max",
            "smp": str(self.cpus),
            "m": str(self.memory),
            "display": "none",
            "monitor": "none",
            "nic": "none",
            "kernel": self.kernel,
            "initrd": self.initramfs,
            "append": f"{KERNEL_ARGUMENTS} {words}",
        }
        command: list[str | Path] = ["qemu-system-x86_64", "-no-reboot"]
        for name, value in options.items():
            command += [f"-{name}", value]
        return [*command, "-serial", f"file:{console}", "-serial", f"file:{port}"]


class Running:
    """A virtual machine; its console is the file ``console`` in the folder. Turned off with the ``with`` block."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.console = folder / "console"
        self._port = folder / "port"
        self._port.touch()
        self._child = subprocess.Popen(
            machine.command(self.console, self._port),
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

    def last_words(self, lines: int = 80) -> str:
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
