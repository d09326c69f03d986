"""Logging as a plugin of hashicorp/go-plugin does it: one JSON object a line on stderr, which the host logs as its own.

All values are strings: the host takes nothing else, and dies of it. A host that does not read is not waited for: a
thread writes, and what it cannot write in time is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Mapping
from datetime import UTC, datetime

_QUEUED = 1000
_LONGEST = 4 << 10  # characters of a value, of six bytes at most: the host reads lines of 64 KiB
_LEVELS = {"DEBUG": "debug", "INFO": "info", "WARNING": "warn", "ERROR": "error", "CRITICAL": "error"}


def line(level: str, message: str, at: float, fields: Mapping[str, object]) -> bytes:
    """One line. ``level`` is a name of ``logging``, ``at`` the epoch second."""
    time = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    said = {"@level": _LEVELS.get(level, "info"), "@message": message, "@timestamp": time}
    said |= {key: str(value) for key, value in fields.items() if not key.startswith("@")}
    return json.dumps({key: value[:_LONGEST] for key, value in said.items()}).encode("ascii") + b"\n"


class Handler(logging.Handler):
    """Records as lines on ``fd``. ``extra={"fields": {…}}`` of a record is written beside its message."""

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="podtracer-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits, and never raises."""
        try:
            fields = dict(getattr(record, "fields", {}))
            if record.exc_info:
                fields["exception"] = logging.Formatter().formatException(record.exc_info)
            if self._dropped:
                fields["dropped"] = self._dropped
            self._lines.put_nowait(line(record.levelname, record.getMessage(), record.created, fields))
            self._dropped = 0
        except queue.Full:
            self._dropped += 1
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the name is logging's
        """A record that cannot be written is dropped."""
        self._dropped += 1

    def finish(self, timeout: float = 0.5) -> None:
        """What was logged is written, unless that takes longer than ``timeout`` seconds."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._writer.join(timeout)

    def _write(self) -> None:
        while (data := self._lines.get()) is not None:
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:  # nobody left to tell
                continue
