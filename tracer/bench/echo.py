"""The least that a server can do, to tell what a daemon adds to it: for each line that comes a fixed one goes back.

``python -m tracer.bench.echo PARENT PATH``. First line of input: the length of what is sent back; answered when it
listens. One client at a time.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

from tracer.bench.children import end_with
from tracer.bench.helper import Helper

_CHUNK = 1 << 16


class Line:
    """A connection over which lines are asked and answered in turn, without reading what they say."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(path)

    def ask(self, line: bytes) -> bytes:
        """The answer, its end included."""
        self._socket.sendall(line)
        answer = self._socket.recv(_CHUNK)
        while not answer.endswith(b"\n"):
            answer += self._socket.recv(_CHUNK)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()


class Echo:
    """An echo server at ``path`` whose answers have this length; a context manager."""

    def __init__(self, path: str, length: int) -> None:
        self._helper = Helper("tracer.bench.echo", path)
        try:
            self._helper.ask(length)
        except BaseException:
            self._helper.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._helper.end()


def main() -> None:
    """Serves one client after the other, until its parent ends."""
    end_with(int(sys.argv[1]))
    answer = b"x" * (json.loads(sys.stdin.buffer.readline()) - 1) + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with suppress(FileNotFoundError):
            os.unlink(sys.argv[2])  # of the echo server before
        listener.bind(sys.argv[2])
        listener.listen()
        print("true", flush=True)
        while True:
            client, _ = listener.accept()
            with client:
                while client.recv(_CHUNK):
                    client.sendall(answer)


if __name__ == "__main__":
    main()
