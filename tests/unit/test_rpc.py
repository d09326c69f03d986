"""Calls over a UNIX socket, to servers that behave and servers that do not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.rpc import RpcServer, pb, raw_server, socket_folder
from tracer.errors import SourceError, UsageError
from tracer.protobuf import STRING_MAP, Field, declare
from tracer.sources.rpc import CallError, Channel, Service, socket_path

SERVICE = Service("test.Echo", "is this the right socket?", {"UNAVAILABLE": "does it run?"}, max_message=1 << 20)
M = declare(
    "test",
    {
        "Text": {"text": Field(1), "inner": Field(2, "Inner"), "labels": Field(3, STRING_MAP)},
        "Inner": {"numbers": Field(1, "int64", repeated=True), "data": Field(2, "bytes")},
    },
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as folder:
        yield folder


def echo(request: bytes, context: Any) -> bytes:
    return request


def call(path: Path, timeout: float = 10.0, text: str = "x") -> Any:
    channel = Channel(str(path), SERVICE)
    try:
        return channel.call("Say", M.Text(text=text), M.Text, timeout)
    finally:
        channel.close()


def failure(path: Path, timeout: float = 10.0) -> CallError:
    with pytest.raises(CallError) as caught:
        call(path, timeout)
    assert isinstance(caught.value, SourceError)
    assert caught.value.obj == f"unix://{path}"
    return caught.value


def test_a_call(folder: Path) -> None:
    """What is sent comes back."""
    with RpcServer(folder / "s", "test.Echo", {"Say": echo}):
        assert call(folder / "s", text="né").text == "né"


def test_a_path_with_odd_characters(folder: Path) -> None:
    """A path may hold what a URI may not."""
    (folder / "a b%41#?").mkdir()
    real = folder / "a b%41#?" / "s"
    with RpcServer(folder / "s", "test.Echo", {"Say": echo}):
        real.symlink_to(folder / "s")
        assert call(real).text == "x"


def test_unknown_fields_are_skipped(folder: Path) -> None:
    """Fields of a later version do not disturb those that are known."""
    body = pb((1, "x"), (99, 5), (100, b"\xff\xfe"), (3, pb((1, "a"), (2, "b"))), (2, pb((1, 7), (9, "y"))))
    with RpcServer(folder / "s", "test.Echo", {"Say": lambda *_: body}):
        answer = call(folder / "s")
    assert (answer.text, dict(answer.labels), list(answer.inner.numbers)) == ("x", {"a": "b"}, [7])


@pytest.mark.parametrize(
    "body", [b"\xff" * 20, b"\x0a\x05abc", pb((1, b"\xff\xfe")), b"\x0b" * 200, b"\x12\x02\x0a\x80"]
)
def test_garbage_messages(folder: Path, body: bytes) -> None:
    """An answer that is no protobuf, is cut short, or has a string that is no UTF-8, is an error."""
    with RpcServer(folder / "s", "test.Echo", {"Say": lambda *_: body}):
        error = failure(folder / "s")
    assert error.code == "DATA_LOSS"
    assert error.what.startswith("the answer cannot be decoded: ")
    assert error.hint == "is this the right socket?"


def test_another_type_on_the_wire(folder: Path) -> None:
    """A known number with another wire type counts as unknown, as protobuf has it."""
    with RpcServer(folder / "s", "test.Echo", {"Say": lambda *_: pb((1, 5))}):
        assert call(folder / "s").text == ""


def test_no_such_method(folder: Path) -> None:
    """A service or method that is not there is told apart from others."""
    with RpcServer(folder / "s", "test.Other", {"Say": echo}):
        assert failure(folder / "s").code == "UNIMPLEMENTED"


def test_a_status_with_words(folder: Path) -> None:
    """What the server says is in the error, cut, behind words that do not vary."""

    def refuse(request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not yet" + "!" * 1000)
        raise AssertionError

    with RpcServer(folder / "s", "test.Echo", {"Say": refuse}):
        error = failure(folder / "s")
    assert error.code == "FAILED_PRECONDITION"
    assert error.what.startswith("the answer is FAILED_PRECONDITION: not yet!")
    assert len(error.what) < 400


def test_a_large_message(folder: Path) -> None:
    """A message above the limit is an error before it is taken in."""
    with RpcServer(folder / "s", "test.Echo", {"Say": lambda *_: pb((1, "x" * (2 << 20)))}):
        error = failure(folder / "s")
    assert error.code == "RESOURCE_EXHAUSTED"


def test_a_bomb(folder: Path) -> None:
    """What was compressed is not unpacked: a thousand bytes may become a million."""
    server = RpcServer(folder / "s", "test.Echo", {"Say": lambda *_: pb((1, "x" * (4 << 20)))})
    server.compression = grpc.Compression.Gzip
    with server:
        assert failure(folder / "s").code == "DATA_LOSS"


def hang(conn: socket.socket, closing: threading.Event) -> None:
    closing.wait(30)


def hang_up(conn: socket.socket, closing: threading.Event) -> None:
    conn.recv(100)


def noise(conn: socket.socket, closing: threading.Event) -> None:
    while not closing.is_set():
        conn.sendall(os.urandom(1 << 16))


def http1(conn: socket.socket, closing: threading.Event) -> None:
    conn.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    closing.wait(30)


def settings_then_noise(conn: socket.socket, closing: threading.Event) -> None:
    conn.sendall(b"\0\0\0\4\0\0\0\0\0" + os.urandom(1 << 20))
    closing.wait(30)


@pytest.mark.parametrize("script", [hang, hang_up, noise, http1, settings_then_noise])
def test_other_talk(
    folder: Path, script: Callable[[socket.socket, threading.Event], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Silence, a hang-up, noise without end and HTTP/1 end in an error, in time, and stderr stays clean."""
    with raw_server(folder / "s", script):
        began = time.monotonic()
        error = failure(folder / "s", timeout=2)
        assert time.monotonic() - began < 5
    assert error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL")
    assert capfd.readouterr().err == ""


def test_nobody_there(folder: Path) -> None:
    """No socket is an error with a hint, at once."""
    error = failure(folder / "none")
    assert (error.code, error.hint) == ("UNAVAILABLE", "does it run?")
    assert error.what.startswith("no connection: ")


def test_a_deadline(folder: Path) -> None:
    """A server that does not answer is given up on."""

    def wait(request: bytes, context: Any) -> bytes:
        server.closing.wait(30)
        return b""

    server = RpcServer(folder / "s", "test.Echo", {"Say": wait})
    with server:
        error = failure(folder / "s", timeout=0.2)
    assert (error.code, error.what) == ("DEADLINE_EXCEEDED", "no complete answer within 0.2 s")


def test_close_ends_a_call(folder: Path) -> None:
    """Closing from another thread ends a call that waits, and refuses later ones."""
    asked = threading.Event()

    def wait(request: bytes, context: Any) -> bytes:
        asked.set()
        server.closing.wait(30)
        return b""

    server = RpcServer(folder / "s", "test.Echo", {"Say": wait})
    with server:
        channel = Channel(str(folder / "s"), SERVICE)
        errors: list[CallError] = []

        def ask() -> None:
            with pytest.raises(CallError) as caught:
                channel.call("Say", M.Text(), M.Text, 30)
            errors.append(caught.value)

        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(30)
        began = time.monotonic()
        channel.close()
        thread.join(30)
        assert time.monotonic() - began < 1
        assert [error.what for error in errors] == ["the client was closed"]
        with pytest.raises(CallError, match="the client was closed"):
            channel.call("Say", M.Text(), M.Text, 30)
        with pytest.raises(CallError, match="the client was closed"):
            channel.stream("Say", M.Text(), M.Text)


def test_a_restart(folder: Path) -> None:
    """After a restart the same channel reaches the new server, within some seconds."""
    server = RpcServer(folder / "s", "test.Echo", {"Say": echo})
    channel = Channel(str(folder / "s"), SERVICE)
    with server:
        assert channel.call("Say", M.Text(text="a"), M.Text, 10).text == "a"
    with pytest.raises(CallError):
        channel.call("Say", M.Text(text="b"), M.Text, 10)
    with server:
        deadline = time.monotonic() + 20
        answer = None
        while answer is None and time.monotonic() < deadline:
            try:
                answer = channel.call("Say", M.Text(text="c"), M.Text, 10)
            except CallError:
                time.sleep(0.05)
        assert answer is not None
        assert answer.text == "c"
    channel.close()


@pytest.mark.parametrize("endpoint", ["", "run/x.sock", "tcp://127.0.0.1:1", "unix:x", "/a\0b", "/" + "x" * 107])
def test_no_endpoint(endpoint: str) -> None:
    """What is no path of a socket is refused by the name of its setting."""
    with pytest.raises(UsageError) as caught:
        socket_path(endpoint, "cri")
    assert caught.value.obj == "cri"


def test_imports() -> None:
    """The modules of the sources import neither grpc nor protobuf: who uses no such source does not pay for them."""
    code = (
        "import sys, tracer.sources.cri_source, tracer.sources.pods_source\n"
        "assert not [name for name in sys.modules if name.startswith(('grpc', 'google'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
