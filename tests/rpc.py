"""gRPC servers on UNIX sockets for tests, and protobuf by hand: no table of ours is tested by itself."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

Value = int | str | bytes
Unary = Callable[[bytes, Any], bytes]
Streaming = Callable[[bytes, Any], Iterator[bytes]]

WAIT = 30.0


def pb(*fields: tuple[int, Value]) -> bytes:
    """A message on the wire: (number, value) of each field, an int as varint, everything else with its length."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def pb_map(number: int, entries: Mapping[str, str]) -> list[tuple[int, Value]]:
    """A map of strings, as the fields of its message."""
    return [(number, pb((1, key), (2, value))) for key, value in entries.items()]


def read_strings(data: bytes) -> dict[int, str]:
    """The strings of a message that has nothing but short strings and messages, by number."""
    found: dict[int, str] = {}
    while data:
        number, size = data[0] >> 3, data[1]
        found[number] = data[2 : 2 + size].decode()
        data = data[2 + size :]
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="podtracer-") as folder:
        yield Path(folder)


class RpcServer:
    """A gRPC service on a socket; ``stop`` and ``start`` are a restart. Handlers take and give bytes.

    ``unary`` and ``streaming`` are handlers by method. A handler that hangs waits for ``closing``.
    """

    def __init__(
        self, path: Path, service: str, unary: Mapping[str, Unary], streaming: Mapping[str, Streaming] | None = None
    ) -> None:
        self.path = path
        self.closing = threading.Event()
        self._service = service
        self._handlers = {
            **{name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in unary.items()},
            **{name: grpc.unary_stream_rpc_method_handler(handler) for name, handler in (streaming or {}).items()},
        }
        self._server: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self.compression: Any = None

    def __enter__(self) -> RpcServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; back when connections are taken."""
        self.closing = threading.Event()
        self._pool = ThreadPoolExecutor(32)
        options = (("grpc.max_send_message_length", -1),)
        self._server = grpc.server(self._pool, options=options, compression=self.compression)
        handler = grpc.method_handlers_generic_handler(self._service, self._handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()

    def stop(self) -> None:
        """Drop every connection, and remove the socket."""
        if self._server is not None:
            self.closing.set()
            self._server.stop(0).wait(WAIT)
            self._server = None
            assert self._pool is not None
            self._pool.shutdown()
            self.path.unlink(missing_ok=True)


@contextmanager
def raw_server(path: Path, script: Callable[[socket.socket, threading.Event], None]) -> Iterator[list[int]]:
    """A socket that gives each connection to ``script(conn, closing)``; the list grows by one for each."""
    connections: list[int] = []
    closing = threading.Event()
    threads: list[threading.Thread] = []
    open_connections: list[socket.socket] = []

    def serve(conn: socket.socket) -> None:
        with conn, suppress(OSError):
            script(conn, closing)

    def accept() -> None:
        while not closing.is_set():
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            connections.append(1)
            open_connections.append(conn)
            threads.append(threading.Thread(target=serve, args=[conn]))
            threads[-1].start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield connections
        finally:
            closing.set()
            for sock in (listener, *open_connections):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in (acceptor, *threads):
                thread.join(WAIT)
