"""The daemon's log: one line of ``key=value`` pairs for each event, on stderr, as journald and people read it."""

from __future__ import annotations

import logging
import sys
import time


class Formatter(logging.Formatter):
    """``time=… level=… logger=… msg="…"``. Text is quoted, so that nothing in it can make a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback is part of it."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        pairs = [f"time={at}", f"level={record.levelname.lower()}", f"logger={record.name}"]
        pairs.append(f"msg={_quoted(record.getMessage())}")
        if record.exc_info:
            pairs.append(f"error={_quoted(self.formatException(record.exc_info))}")
        return " ".join(pairs)


def _quoted(text: str) -> str:
    """``text`` in double quotes, controls and what is beyond ASCII escaped."""
    return '"' + text.replace('"', "'").encode("unicode_escape").decode("ascii") + '"'


def to_stderr(*, verbose: int = 0) -> None:
    """From now on the log goes to stderr; with ``verbose`` what is said for developers too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    root = logging.getLogger("podtracer")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = False
