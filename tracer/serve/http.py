"""Health and metrics over HTTP: ``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``, for probes and Prometheus."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tracer.errors import MissingError, UsageError
from tracer.serve.metrics import Exposition

_TIMEOUT = 5.0  # seconds for a request to come in, and for its answer to be taken
_MOST = 16  # requests at once
# By name, whether the check holds; a text says what is missing.
Checks = Callable[[], Mapping[str, bool | str]]


def address(text: str) -> tuple[str, int]:
    """(host, port) of ``HOST:PORT``, the host in brackets where it is IPv6. Raises :class:`UsageError`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is no address", "http-address", "say HOST:PORT, [::1]:9469 for IPv6, or none")
    return host, int(port)


class _Server(http.server.ThreadingHTTPServer):
    """A server of few requests: those over the limit are turned away."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, where: tuple[str, int], live: Checks, ready: Checks, metrics: Exposition) -> None:
        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        self.live, self.ready, self.metrics = live, ready, metrics
        self._free = threading.BoundedSemaphore(_MOST)
        super().__init__(where, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, while there is one left."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's concern."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version = "podtracer"
    sys_version = ""
    timeout = _TIMEOUT

    def do_GET(self) -> None:
        """Answers a request."""
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._answer(HTTPStatus.BAD_REQUEST, b"no path of a URL\n")
            return
        if parts.path == "/metrics":
            body, kind = self.server.metrics.text(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, body, kind)
            return
        checks = {"/livez": self.server.live, "/healthz": self.server.live, "/readyz": self.server.ready}
        found = checks.get(parts.path.rstrip("/"))
        if found is None:
            self._answer(HTTPStatus.NOT_FOUND, b"not found: see /livez, /readyz, /healthz and /metrics\n")
            return
        self._health(parts.path.strip("/"), found(), "verbose" in parse_qs(parts.query, keep_blank_values=True))

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _health(self, name: str, checks: Mapping[str, bool | str], verbose: bool) -> None:
        is_ok = all(good is True for good in checks.values())
        lines = [f"[{'+' if good is True else '-'}]{check} {_word(good)}" for check, good in checks.items()]
        last = f"{name} check {'passed' if is_ok else 'failed'}"
        text = "\n".join([*lines, last]) + "\n" if verbose or not is_ok else "ok"
        self._answer(HTTPStatus.OK if is_ok else HTTPStatus.SERVICE_UNAVAILABLE, text.encode())

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Requests are not logged: probes come every few seconds."""


def _word(good: bool | str) -> str:
    return good if isinstance(good, str) else "ok" if good else "not yet"


class HttpServer:
    """Serves at ``where`` (host, port; 0 is any free one) until it is closed. ``live`` and ``ready`` give each check by
    name. Raises :class:`MissingError` where it cannot listen."""

    def __init__(self, where: tuple[str, int], *, live: Checks, ready: Checks, metrics: Exposition) -> None:
        try:
            self._server = _Server(where, live, ready, metrics)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            shown = f"{where[0]}:{where[1]}"
            raise MissingError(f"health and metrics cannot be served: {reason}", shown, "see --http-address") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="podtracer-http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens at."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
