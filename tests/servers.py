"""Servers on loopback that misbehave as told, and what tests need to talk about their answers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

WAIT = 30.0


def pod(uid: str | None = "11111111-2222-3333-4444-555555555555", **more: Any) -> dict[str, Any]:
    """A pod as the kubelet lists it, with no more than it must have."""
    metadata: dict[str, Any] = {"name": "cart", "namespace": "shop"}
    if uid is not None:
        metadata["uid"] = uid
    spec = {
        "serviceAccountName": "cart",
        "nodeName": "node-1",
        "containers": [{"name": "app", "image": "app:1"}],
    }
    return {"metadata": metadata, "spec": spec, "status": {}, **more}


def pod_list(*pods: dict[str, Any]) -> bytes:
    """A pod list with these pods, the way the kubelet writes none at all included: ``"items": null``."""
    return json.dumps({"kind": "PodList", "apiVersion": "v1", "items": list(pods) or None}).encode()


def answer(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """An HTTP answer as bytes; ``length`` lies about the body's."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def read_request(conn: socket.socket) -> bytes:
    """The head of the next request on ``conn``; empty when the client hung up."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = conn.recv(65536)
        if not data:
            return b""
        head += data
    return head


class RawServer:
    """Gives each connection to ``script(server, conn)`` in a thread of its own, then closes it.

    ``closing`` is set when the test is over: a script that hangs waits for it. ``connections`` counts, and
    ``most_at_once`` is the highest number of ``with server.counted()`` blocks that ever ran together.
    """

    def __init__(self, script: Callable[[RawServer, socket.socket], None], port: int = 0) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._now = 0
        self.most_at_once = 0
        self.connections = 0
        self.closing = threading.Event()
        self._closed = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> RawServer:
        self._acceptor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        # Wakes up accept(), which a plain close does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(WAIT)
        self._listener.close()
        with self._lock:
            for conn in self._open:
                with suppress(OSError):
                    conn.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT)
            assert not thread.is_alive(), "a script did not end"

    def counted(self) -> _Counted:
        """A block in which a request counts as being in flight."""
        return _Counted(self)

    def wait_closed(self, count: int) -> None:
        """Wait until ``count`` more connections are closed."""
        for _ in range(count):
            assert self._closed.acquire(timeout=WAIT)

    def enter(self) -> None:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(conn)
            thread = threading.Thread(target=self._serve, args=(conn,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, conn: socket.socket) -> None:
        with suppress(OSError):
            self._script(self, conn)
        with self._lock:
            self._open.discard(conn)
            conn.close()
            self._closed.release()


class _Counted:
    def __init__(self, server: RawServer) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._server.enter()

    def __exit__(self, *exc: object) -> None:
        self._server.leave()


def always(data: bytes) -> Callable[[RawServer, socket.socket], None]:
    """A script that sends ``data`` for the first request and closes the connection."""

    def script(server: RawServer, conn: socket.socket) -> None:
        if read_request(conn):
            conn.sendall(data)

    return script


def unused_port() -> int:
    """A loopback port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
