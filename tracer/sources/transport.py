"""One HTTP GET with an end: a deadline for all of it, a limit to its body, and a way to cut it from outside.

Read timeouts do not bound a request: a server that sends one byte a second resets them for ever, in the
headers as well as in the body. So a watchdog shuts down the connection's socket when the time is up;
whatever reads it then sees its end. Closing from another thread works the same way.

This module imports requests. Whoever may not need it imports this one late.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from tracer.errors import SourceError

_CHUNK = 1 << 18
_QUOTED = 200
_TIME_UP = "no complete answer"
_CLOSED = "the client was closed"

# What a request and the reading of its body can raise. ValueError: a field that is no number, a closed file.
_FAILURES = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)


class _Line:
    """The connection in use, and why it was cut, if it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.cut_because: str | None = None

    def begin(self) -> None:
        with self._lock:
            if self.cut_because != _CLOSED:
                self.cut_because = None

    def connected(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = sock
            if self.cut_because is not None:
                self._shut_down()

    def cut(self, because: str) -> None:
        with self._lock:
            if self.cut_because != _CLOSED:
                self.cut_because = because
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        # Even when told to follow none, requests reads a redirect's whole body, without a limit.
        return None


class _Adapter(HTTPAdapter):
    """An adapter without retries whose connections report their sockets to ``line``."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        line = self._line

        class Connection(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                line.connected(self.sock)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        self.poolmanager.pool_classes_by_scheme = {"http": Pool}


class Transport:
    """A keep-alive session for GETs, one at a time; no proxies, no ``.netrc``, no redirects."""

    def __init__(self) -> None:
        self._line = _Line()
        self._session = _Session()
        self._session.trust_env = False
        self._session.mount("http://", _Adapter(self._line))

    def get(self, url: str, headers: Mapping[str, str], *, timeout: float, max_body: int) -> bytes:
        """The body of a 200. ``timeout`` in seconds bounds everything from connecting to the last byte.

        Raises SourceError for everything else: its ``what`` begins with fixed words, and what varies from
        try to try stands behind ``": "``.
        """
        self._line.begin()
        watchdog = threading.Timer(timeout, self._line.cut, [_TIME_UP])
        watchdog.name = "podtracer-deadline"
        watchdog.daemon = True
        watchdog.start()
        try:
            body = self._get(url, headers, timeout, max_body)
            # A body that only its end delimits looks whole when we are the ones who ended it.
            if self._line.cut_because is not None:
                raise SourceError(self._line.cut_because, url)
            return body
        except SourceError as error:
            self._session.close()
            if self._line.cut_because is not None:
                raise self._explain(error, url, timeout) from error
            raise
        except _FAILURES as error:
            self._session.close()
            raise self._explain(error, url, timeout) from error
        finally:
            watchdog.cancel()
            watchdog.join()

    def close(self) -> None:
        """End the request in flight, whichever thread waits for it, and refuse all later ones."""
        self._line.cut(_CLOSED)
        self._session.close()

    def _get(self, url: str, headers: Mapping[str, str], timeout: float, max_body: int) -> bytes:
        if self._line.cut_because is not None:
            raise SourceError(_CLOSED, url)
        with self._session.get(
            url,
            headers={"Accept-Encoding": "identity", **headers},
            timeout=timeout,
            stream=True,
            allow_redirects=False,
        ) as response:
            if response.status_code != 200:
                raise self._refusal(response, url)
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                raise SourceError(f"the answer is compressed, which was not asked for: {encoding!r}", url)
            return _read_body(response, url, max_body)

    def _refusal(self, response: requests.Response, url: str) -> SourceError:
        status = response.status_code
        head = response.raw.read(4 * _QUOTED, decode_content=False).decode("utf-8", "replace").strip()
        what = f"the kubelet answered {status}" + (f": {head[:_QUOTED]!r}" if head else "")
        if 300 <= status < 400:
            hint = "redirects are not followed; is this really the kubelet's port?"
        elif status == 400 and "HTTPS" in head:
            hint = "this is the kubelet's secure port; the read-only port is usually 10255"
        elif status in (401, 403):
            hint = "this port wants a credential; the kubelet's read-only port, usually 10255, does not"
        elif status == 404:
            hint = "nothing is served at this address; is this really the kubelet's port?"
        else:
            hint = "see the kubelet's log"
        return SourceError(what, url, hint, status=status)

    def _explain(self, error: Exception, url: str, timeout: float) -> SourceError:
        """The one place where foreign errors become ours."""
        because = self._line.cut_because
        if because == _CLOSED:
            return SourceError(_CLOSED, url)
        timed_out = isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError))
        if because == _TIME_UP or timed_out:
            hint = "the kubelet is overloaded or hangs; see its log"
            return SourceError(f"{_TIME_UP} within {timeout:g} s", url, hint)
        causes = _causes(error)
        if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
            hint = "nothing listens there; is the kubelet running, with readOnlyPort set to this port?"
            return SourceError("connection refused", url, hint)
        if any(isinstance(cause, http.client.IncompleteRead) for cause in causes):
            return _cut_short(url)
        if any(isinstance(cause, (ConnectionError, http.client.RemoteDisconnected)) for cause in causes):
            hint = "the kubelet may be starting or ending; try again"
            return SourceError(f"connection lost: {causes[-1]!r}"[:300], url, hint)
        hint = "is this really the kubelet's port?"
        return SourceError(f"no valid HTTP answer: {causes[-1]!r}"[:300], url, hint)


def _read_body(response: requests.Response, url: str, max_body: int) -> bytes:
    said = response.headers.get("Content-Length", "")
    length = int(said) if said.isascii() and said.isdigit() and len(said) < 20 else None
    if "Transfer-Encoding" in response.headers:
        length = None
    if length is not None and length > max_body:
        raise _too_long(url, max_body)
    # BytesIO gives its buffer away without a copy, which chunks joined at the end would need.
    body = BytesIO()
    while chunk := response.raw.read(_CHUNK, decode_content=False):
        if body.tell() + len(chunk) > max_body:
            raise _too_long(url, max_body)
        body.write(chunk)
    # urllib3 compares these since 2.0; distributions still have 1.26.
    if length is not None and body.tell() != length:
        raise _cut_short(url)
    return body.getvalue()


def _too_long(url: str, max_body: int) -> SourceError:
    hint = "no node has that many pods; is this really the kubelet's port?"
    return SourceError(f"the answer is longer than {max_body} bytes", url, hint)


def _cut_short(url: str) -> SourceError:
    return SourceError("the answer was cut short", url, "the kubelet may be ending; try again")


def _causes(error: BaseException) -> list[BaseException]:
    """``error`` and what lies beneath it: causes, contexts, and the arguments in which urllib3 keeps them."""
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo and len(found) < 20:
        item = todo.pop(0)
        if not isinstance(item, BaseException) or any(item is seen for seen in found):
            continue
        found.append(item)
        todo += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]
    return found
