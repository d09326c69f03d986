"""gRPC over a UNIX socket, with an end to everything: deadlines, a limit to messages, a close from outside.

One place maps what gRPC raises to ``CallError``, and one place sets what a channel may do: no proxies, no
retries that nobody asked for, no compression (a small message could become a large one), a new connection
within a second of a restart.

This module imports grpc only when a channel is opened: that takes about 50 ms and 20 MB.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from tracer.errors import SourceError, UsageError

_SCHEME: Final = "unix://"
_CLOSED: Final = "the client was closed"
_QUOTED: Final = 300
_LONGEST_PATH: Final = 107  # what sun_path holds, without its final zero

_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
    # Without a pool of its own a channel shares its connection, and the pauses between tries, with others.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_loading = threading.Lock()

# What a status means where the server says nothing of its own that is better. What varies comes behind it.
_WORDS: Final = {
    "UNAVAILABLE": "no connection",
    "UNIMPLEMENTED": "this service is not there",
    "RESOURCE_EXHAUSTED": "more than the other end or we take",
    "PERMISSION_DENIED": "refused",
    "UNAUTHENTICATED": "refused",
    "CANCELLED": "cancelled by the other end",
}


class CallError(SourceError):
    """A call that failed; ``code`` is the name of its gRPC status, ``DATA_LOSS`` for what cannot be decoded."""

    def __init__(self, code: str, what: str, obj: str, hint: str | None = None) -> None:
        super().__init__(what, obj, hint)
        self.code = code


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service, and what to tell a person when it fails: hints by status name. ``metadata`` goes with each
    call."""

    name: str
    hint: str
    hints: dict[str, str] = field(default_factory=dict)
    max_message: int = 64 << 20
    metadata: tuple[tuple[str, str], ...] = ()


def socket_path(endpoint: str, what: str) -> str:
    """The path of ``unix:///run/x.sock`` or ``/run/x.sock``. Raises UsageError, for the setting ``what``."""
    path = endpoint.removeprefix(_SCHEME)
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{endpoint!r} is no UNIX socket", what, "say unix:// and an absolute path")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise UsageError(f"{path!r} is too long for a socket", what, f"at most {_LONGEST_PATH} bytes will do")
    return path


class Channel:
    """Calls to one service on one socket, from any thread. The connection is made when it is needed, and again."""

    def __init__(self, path: str, service: Service) -> None:
        self.url = _SCHEME + path
        self._service = service
        # What a URI may not hold is quoted, and unquoted by gRPC.
        self._target = f"unix:{quote(path)}"
        self._opening = threading.Lock()
        self._channel: Any = None
        self._closed = False

    def call(self, method: str, request: Any, answer: Any, timeout: float) -> Any:
        """One request, one answer, of the message class ``answer``, within ``timeout`` seconds.

        Raises CallError.
        """
        grpc = _grpc()
        try:
            call = self._open().unary_unary(f"/{self._service.name}/{method}")
            data = call(request.SerializeToString(), timeout=timeout, metadata=self._service.metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._explain(error, timeout) from error
        return self._decode(answer, data)

    def stream(self, method: str, request: Any, answer: Any, *, timeout: float | None = None) -> Stream:
        """One request, many answers, for as long as it takes, or ``timeout`` seconds. Raises CallError."""
        grpc = _grpc()
        try:
            call = self._open().unary_stream(f"/{self._service.name}/{method}")(
                request.SerializeToString(), timeout=timeout, metadata=self._service.metadata
            )
        except (grpc.RpcError, ValueError) as error:
            raise self._explain(error, None) from error
        return Stream(self, call, answer)

    def close(self) -> None:
        """End every call in flight, whichever thread waits for it, and refuse all later ones."""
        with self._opening:
            self._closed = True
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _open(self) -> Any:
        with self._opening:
            if self._closed:
                raise CallError("CANCELLED", _CLOSED, self.url)
            if self._channel is None:
                limit = ("grpc.max_receive_message_length", self._service.max_message)
                self._channel = _grpc().insecure_channel(self._target, options=(*_OPTIONS, limit))
            return self._channel

    def _decode(self, answer: Any, data: bytes) -> Any:
        from google.protobuf.message import DecodeError

        try:
            return answer.FromString(data)
        except DecodeError as error:
            raise self.garbage(str(error)) from error

    def garbage(self, detail: str) -> CallError:
        """The error for an answer that is not what it should be."""
        return CallError("DATA_LOSS", f"the answer cannot be decoded: {detail[:_QUOTED]}", self.url, self._service.hint)

    def _explain(self, error: Exception, timeout: float | None) -> CallError:
        """The one place where foreign errors become ours."""
        grpc = _grpc()
        if self._closed or not isinstance(error, grpc.RpcError):
            # A ValueError is what gRPC raises for a channel that was closed just now.
            return CallError("CANCELLED", _CLOSED, self.url)
        status: Any = error
        code = status.code().name
        hint = self._service.hints.get(code, self._service.hint)
        if code == "DEADLINE_EXCEEDED" and timeout is not None:
            return CallError(code, f"no complete answer within {timeout:g} s", self.url, hint)
        words = _WORDS.get(code, f"the answer is {code}")
        detail = (status.details() or "")[:_QUOTED]
        return CallError(code, f"{words}: {detail}" if detail else words, self.url, hint)


class Stream:
    """The answers to one request. Iterating raises CallError at the end, whoever brought it about."""

    def __init__(self, channel: Channel, call: Any, answer: Any) -> None:
        self._channel = channel
        self._call = call
        self._answer = answer
        self._cancelled = False

    def __iter__(self) -> Iterator[Any]:
        grpc = _grpc()
        try:
            for data in self._call:
                yield self._channel._decode(self._answer, data)
        except (grpc.RpcError, ValueError) as error:
            if self._cancelled:
                raise CallError("CANCELLED", "the stream was cancelled", self._channel.url) from error
            raise self._channel._explain(error, None) from error
        finally:
            self._call.cancel()
        raise CallError("OK", "the stream was ended by the other end", self._channel.url)

    def cancel(self) -> None:
        """End it, whichever thread reads it."""
        self._cancelled = True
        self._call.cancel()


def _grpc() -> Any:
    # gRPC's core writes to stderr whatever it likes, unless this is set when it is loaded.
    with _loading:
        before = os.environ.get("GRPC_VERBOSITY")
        if before is None and "grpc" not in sys.modules:
            os.environ["GRPC_VERBOSITY"] = "NONE"
        try:
            import grpc
        finally:
            if before is None:
                os.environ.pop("GRPC_VERBOSITY", None)
    return grpc
