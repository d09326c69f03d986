"""Programs of the bench that run beside it: small Pythons of one thread, told by lines what to do.

They have a session of their own, so that a terminal's Ctrl-C is not for them, and end with whoever started them.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tracer.errors import TracerError

_PATH = os.pathsep.join(
    filter(None, [str(Path(__file__).resolve().parent.parent.parent), os.environ.get("PYTHONPATH"), *sys.path])
)
_PATIENCE = 10.0  # seconds for a helper to end by itself


def private_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for sockets, named by who made it; those of benches that were killed are removed."""
    top = Path(tempfile.gettempdir())
    for left in top.glob("podtracer-bench-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"podtracer-bench-{os.getpid()}-")


def environment() -> dict[str, str]:
    """In which a Python finds the modules that this one finds."""
    return {**os.environ, "PYTHONPATH": _PATH}


class Helper:
    """``python -m MODULE``: reads JSON lines, writes JSON lines; ends at the end of its input.

    ``site`` keeps what Python's start-up adds, which costs a fork some of its speed. Raises ``TracerError`` from
    ``receive`` when it has ended, with what it said last.
    """

    def __init__(self, module: str, *words: str, pass_fds: Sequence[int] = (), site: bool = False) -> None:
        flags = ("-P",) if site else ("-SP",)
        self.module = module
        self._noise = open(os.memfd_create("podtracer-bench"), "w+b")  # noqa: SIM115, closed by end()
        self._child = subprocess.Popen(
            [sys.executable, *flags, "-m", module, str(os.getpid()), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            pass_fds=pass_fds,
            start_new_session=True,
            env=environment(),
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._in: IO[bytes] = self._child.stdin
        self._out: IO[bytes] = self._child.stdout
        self._buffer = b""
        self.pid = self._child.pid

    def send(self, message: Any, body: bytes = b"") -> None:
        """One line, and what belongs to it."""
        try:
            self._in.write(json.dumps(message).encode() + b"\n" + body)
            self._in.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def ready(self, timeout: float = 0.0) -> bool:
        """Whether a line, or its end, waits to be received."""
        return b"\n" in self._buffer or bool(select.select([self._out], [], [], timeout)[0])

    def receive(self, timeout: float | None = None) -> Any:
        """The next line. Raises ``TracerError`` when none comes."""
        while b"\n" not in self._buffer:
            if timeout is not None and not self.ready(timeout):
                raise TracerError("a helper of the bench says nothing", self.module, "is this machine very slow?")
            data = os.read(self._out.fileno(), 1 << 20)
            if not data:
                raise self._failure()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def ask(self, message: Any) -> Any:
        """Sends, and receives the answer."""
        self.send(message)
        return self.receive()

    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _failure(self) -> TracerError:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1)
        self._noise.seek(0)
        lines = self._noise.read().decode("utf-8", "backslashreplace").strip().splitlines()
        return TracerError(
            f"a helper of the bench has ended: {lines[-1] if lines else 'without a word'}",
            self.module,
            "run as root on the host; --debug shows more",
        )

    def end(self) -> None:
        """Ends it; may be called twice."""
        with suppress(OSError, ValueError):
            self._in.close()
        try:
            self._child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._out.close()
        self._noise.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()
