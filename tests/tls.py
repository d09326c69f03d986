"""An HTTPS server on loopback that knows who asks, and certificates made with openssl."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from tests.cluster.pki import Pki
from tests.conftest import require
from tests.servers import RawServer, answer, pod_list, read_request

Script = Callable[[RawServer, socket.socket], None]

NODE = "localhost"  # a name that resolves to loopback everywhere


def make_pki(folder: Path) -> Pki:
    """An authority, with certificates: ``node`` bears the name ``NODE``, ``other`` another one, ``client`` none."""
    require(shutil.which("openssl"), "needs openssl")
    pki = Pki(folder)
    pki.make_ca()
    pki.sign("node", "/CN=node", f"subjectAltName=DNS:{NODE}")
    pki.sign("other", "/CN=node-7", "subjectAltName=DNS:node-7")
    pki.sign("client", "/O=test/CN=podtracer")
    return pki


def server_context(pki: Pki, name: str = "node", clients: Path | None = None) -> ssl.SSLContext:
    """What a server with this certificate speaks; ``clients`` has the authorities of clients it knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.certificate(name), pki.key(name))
    if clients is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(clients)
    return context


def over_tls(context: ssl.SSLContext, script: Callable[[RawServer, ssl.SSLSocket], None]) -> Script:
    """The script, spoken over TLS."""

    def secured(server: RawServer, conn: socket.socket) -> None:
        with context.wrap_socket(conn, server_side=True) as tls:
            script(server, tls)

    return secured


class SecureServer:
    """A kubelet's secure port: who shows one of ``tokens``, or a certificate of the authority it knows, gets the
    list. ``requests`` has every head that came; all attributes may be changed while it runs."""

    def __init__(self, context: ssl.SSLContext, *, tokens: tuple[str, ...] = (), body: bytes = pod_list()) -> None:
        self.context = context
        self.tokens = tokens
        self.body = body
        self.anonymous = False
        self.requests: list[bytes] = []
        self._lock = threading.Lock()
        self._open: set[ssl.SSLSocket] = set()
        self._server = RawServer(self._serve)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    @property
    def connections(self) -> int:
        """How many connections it has had."""
        return self._server.connections

    def hang_up(self) -> None:
        """End all connections, as a kubelet does that restarts."""
        with self._lock:
            for conn in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(conn, socket.SHUT_RDWR)

    def __enter__(self) -> SecureServer:
        self._server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.hang_up()
        self._server.__exit__(*exc)

    def _serve(self, _server: RawServer, conn: socket.socket) -> None:
        with self.context.wrap_socket(conn, server_side=True) as tls:
            with self._lock:
                self._open.add(tls)
            try:
                while head := read_request(tls):
                    self.requests.append(head)
                    tls.sendall(self._answer(head, tls))
            finally:
                with self._lock:
                    self._open.discard(tls)

    def _answer(self, head: bytes, tls: ssl.SSLSocket) -> bytes:
        shown = [line.partition(b" ")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"authorization:")]
        known = any(f"Bearer {token}".encode() in shown for token in self.tokens)
        if not (known or self.anonymous or tls.getpeercert()):
            return answer(b"Unauthorized", "401 Unauthorized")
        return answer(self.body)
