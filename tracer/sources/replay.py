"""Recorded pod lists, served the way a kubelet's read-only port serves them.

The demo and the tests give these to the same client that asks a real kubelet, so that a recording takes the
real path through sockets, HTTP and JSON.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class ReplayKubelet:
    """A server on a free loopback port; a context manager that ends with every connection closed.

    Each GET of ``/pods`` gets the next of ``bodies`` (bytes, or a file, which is read now), the last one
    again and again. Raises OSError for a file that cannot be read.
    """

    def __init__(self, *bodies: bytes | Path) -> None:
        if not bodies:
            raise ValueError("a replay needs at least one body")
        self._lock = threading.Lock()
        self._bodies = deque(body.read_bytes() if isinstance(body, Path) else body for body in bodies)
        self._requests = 0
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="replay-kubelet",
            daemon=True,
        )
        self.port: int = self._server.server_address[1]

    @property
    def requests(self) -> int:
        """How many times ``/pods`` was asked for."""
        with self._lock:
            return self._requests

    def set_body(self, body: bytes) -> None:
        """From now on, answer with this; bodies not served yet are dropped."""
        with self._lock:
            self._bodies = deque([body])

    def next_body(self) -> bytes:
        """What the GET that just came is answered with; counts it."""
        with self._lock:
            self._requests += 1
            return self._bodies.popleft() if len(self._bodies) > 1 else self._bodies[0]

    def __enter__(self) -> ReplayKubelet:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.end()


class _Server(ThreadingHTTPServer):
    # Its threads are waited for at the end, each being woken up by the end of its connection.
    daemon_threads = False

    def __init__(self, kubelet: ReplayKubelet) -> None:
        self.kubelet = kubelet
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""

    def end(self) -> None:
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: without this the second would wait for a delayed acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/pods":
            self._answer(HTTPStatus.OK, self.server.kubelet.next_body(), "application/json")
        elif self.path == "/healthz":
            self._answer(HTTPStatus.OK, b"ok", "text/plain")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"404 page not found\n", "text/plain")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: a terminal with a live table is no place for an access log."""

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
