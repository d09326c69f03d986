"""``podtracer daemon``, run as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.podtracer import COMMAND
from tests.waiting import SLOW, until
from tracer.client import Client
from tracer.errors import DaemonUnreachable


class Daemon:
    """A running daemon with its socket in ``folder``, and these further words, behind a ``prefix`` perhaps that has it
    start with less; ``log`` is what it said so far."""

    def __init__(
        self, folder: Path, *words: str | int, environ: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.socket = str(folder / "podtracer.sock")
        self.log: list[str] = []
        self.child = subprocess.Popen(
            [*prefix, *COMMAND, "daemon", "--socket", self.socket, *map(str, words)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        self.log.extend(self.child.stderr)

    @property
    def text(self) -> str:
        """All that was logged."""
        return "".join(self.log)

    def client(self, **more: Any) -> Client:
        """A client of it."""
        return Client(self.socket, **more)

    def answers(self) -> bool:
        """Whether this daemon, and no other, answers at its socket."""
        assert self.child.poll() is None, f"the daemon has ended: {self.text}"
        try:
            return bool(self.status()["pid"] == self.child.pid)
        except DaemonUnreachable:
            return False

    def status(self) -> dict[str, Any]:
        """How it fares."""
        with self.client() as client:
            return client.status()

    def __enter__(self) -> Daemon:
        try:
            until(self.answers, 60, "the daemon to answer")
        except BaseException:
            self.child.kill()
            self.child.wait()
            raise
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it by a signal; its exit code."""
        self.child.send_signal(number)
        try:
            code = self.child.wait(20 * SLOW)
        finally:
            self.child.kill()
        self._reader.join(10)
        return code

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            assert self.end() == 0, self.text
        assert self.child.stderr is not None
        self.child.stderr.close()
