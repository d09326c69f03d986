"""A kubelet's read-only port in a process of its own, so that what it takes is not charged to who asks.

``python -m tracer.bench.kubelet PARENT``: lines ``{"size": N}``, each with a list of N bytes behind it.
"""

from __future__ import annotations

import json
import sys

from tracer.bench.children import end_with
from tracer.bench.helper import Helper


class Kubelet:
    """Serves pod lists on a port of loopback; a context manager."""

    def __init__(self, body: bytes) -> None:
        self._helper = Helper("tracer.bench.kubelet")
        self.set_body(body)
        self.port: int = self._helper.receive(30)["port"]

    def set_body(self, body: bytes) -> None:
        """What it answers from now on."""
        self._helper.send({"size": len(body)}, body)

    def requests(self) -> int:
        """How often it was asked."""
        count: int = self._helper.ask({"size": None})["requests"]
        return count

    def end(self) -> None:
        """Ends it."""
        self._helper.end()


def main() -> None:
    """Serves until the end of the input."""
    end_with(int(sys.argv[1]))
    from tracer.sources.replay import ReplayKubelet

    stdin = sys.stdin.buffer
    body = stdin.read(json.loads(stdin.readline())["size"])
    with ReplayKubelet(body) as kubelet:
        print(json.dumps({"port": kubelet.port}), flush=True)
        while line := stdin.readline():
            size = json.loads(line)["size"]
            if size is None:
                print(json.dumps({"requests": kubelet.requests}), flush=True)
            else:
                kubelet.set_body(stdin.read(size))


if __name__ == "__main__":
    main()
