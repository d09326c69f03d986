"""One HTTP GET with an end: a deadline for all of it, a limit to its body, and a way to cut it from outside.

Read timeouts do not bound a request: a server that sends one byte a second resets them for ever, in the
headers as well as in the body. So a watchdog shuts down the connection's socket when the time is up;
whatever reads it then sees its end. Closing from another thread works the same way. The watchdog has to know
the socket before a handshake hangs on it, and checks that neither requests nor urllib3 offer have to be made
(a chain without a host name): so connections are made here, and those libraries find them open.

This module imports requests. Whoever may not need it imports this one late.
"""

from __future__ import annotations

import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from tracer.clock import boottime
from tracer.errors import SourceError
from tracer.sources.credentials import Tls
from tracer.sources.ownership import Ends, NotRoots, RootCheck
from tracer.sources.peer import READ_ONLY, Peer

_CHUNK = 1 << 18
_QUOTED = 200
_TIME_UP = "no complete answer"
_CLOSED = "the client was closed"
_OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH

# What a request and the reading of its body can raise. ValueError: a field that is no number, a closed file.
_FAILURES = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)


class _Line:
    """The connection in use, and why it was cut, if it was. ``check`` decides of each new one whether it is used."""

    def __init__(self, tls: Tls | None, check: RootCheck | None) -> None:
        self._tls = tls
        self._check = check
        self._unchecked: Ends | None = None  # those of a connection on which no answer has come yet
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._end = 0.0
        self.connected: int | None = None
        self.cut_because: str | None = None

    def begin(self, end: float) -> None:
        self._end = end
        with self._lock:
            if self.cut_because != _CLOSED:
                self.cut_because = None

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection, ready for HTTP, by the end of the time. Raises OSError, which all errors of TLS are."""
        error: OSError = TimeoutError("no time left")
        for family, kind, protocol, _, address in _resolve(host, port, self._end):
            sock = socket.socket(family, kind, protocol)
            try:
                return self._connect(sock, address)
            except ssl.SSLError:
                raise
            except (BrokenPipeError, ConnectionResetError) as failure:
                # With these urllib3 would go on and wait for an answer, though there is no connection.
                raise ConnectionAbortedError(failure.strerror) from failure
            except OSError as failure:  # another address may answer
                error = failure
        raise error

    def _connect(self, sock: socket.socket, address: Any) -> socket.socket:
        try:
            self._connected(sock)
            sock.settimeout(max(0.001, self._end - time.monotonic()))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
            self._connected(sock)  # once more: what is not connected yet cannot be cut
            if self._check is not None:
                self._unchecked = self._check(sock, self._end, lambda: self._connected(sock))
            if self._tls is not None:
                # The handshake comes later: the socket is another one now, and the watchdog has to know it.
                name = self._tls.host_name
                sock = self._tls.context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
                self._connected(sock)
                sock.do_handshake()
            self.connected = boottime()
            return sock
        except BaseException:
            sock.close()
            raise

    def check_again(self) -> None:
        """To be called before a body is believed. Raises NotRoots."""
        ends, self._unchecked = self._unchecked, None
        if ends is not None and self._check is not None:
            self._check.again(ends)

    def cut(self, because: str) -> None:
        with self._lock:
            if self.cut_because != _CLOSED:
                self.cut_because = because
            self._shut_down()

    def _connected(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = sock
            if self.cut_because is not None:
                raise ConnectionAbortedError(self.cut_because)

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # Of the plain socket: that of a TLS socket would have it go on without TLS.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _resolve(host: str, port: int, end: float) -> list[tuple[Any, ...]]:
    """The addresses of ``host``, by ``end``. Raises OSError."""
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    # The resolver takes the time it likes and cannot be interrupted, so it is left alone with the question.
    answers: queue.SimpleQueue[list[tuple[Any, ...]] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            answers.put(error)
        except UnicodeError as error:  # a name that cannot be one
            answers.put(socket.gaierror(socket.EAI_NONAME, str(error)))

    threading.Thread(target=ask, name="podtracer-resolver", daemon=True).start()
    try:
        found = answers.get(timeout=max(0.001, end - time.monotonic()))
    except queue.Empty:
        raise TimeoutError("the host name was not resolved in time") from None
    if isinstance(found, OSError):
        raise found
    return found


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        # Even when told to follow none, requests reads a redirect's whole body, without a limit.
        return None


class _Adapter(HTTPAdapter):
    """An adapter without retries and with pools of its own, whose connections are made by ``line``.

    The pools speak plain HTTP over what they are given: TLS, and whom to trust, is none of their business.
    """

    def __init__(self, line: _Line) -> None:
        class Connection(HTTPConnection):
            def connect(self) -> None:
                self.sock = line.connect(self.host, self.port)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        self._pool = Pool
        self._pools: dict[str, HTTPConnectionPool] = {}
        super().__init__(max_retries=0)

    def get_connection(self, url: Any, proxies: Any = None) -> Any:  # noqa: ARG002 - requests before 2.32
        """The pool for the host of ``url``."""
        parts = urlsplit(str(url))
        if parts.netloc not in self._pools:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            self._pools[parts.netloc] = self._pool(parts.hostname or "", port, maxsize=1)
        return self._pools[parts.netloc]

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:  # noqa: ARG002
        """The pool for the host of ``request``."""
        return self.get_connection(request.url)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing: the connection has checked what it was told to, and requests would look for certifi."""

    def close(self) -> None:
        """Close the connections that are idle."""
        for pool in tuple(self._pools.values()):
            pool.close()
        self._pools.clear()
        super().close()


class Transport:
    """A keep-alive session for GETs, one at a time; no proxies, no ``.netrc``, no redirects.

    ``peer`` is what errors call the server; without ``tls`` only ``http`` is spoken, with it only ``https``. With a
    ``check`` nothing is sent to, or believed of, a server that is not root's.
    """

    def __init__(self, peer: Peer = READ_ONLY, tls: Tls | None = None, check: RootCheck | None = None) -> None:
        self._peer = peer
        self._line = _Line(tls, check)
        self._session = _Session()
        self._session.trust_env = False
        self._session.adapters.clear()
        self._session.mount("http://" if tls is None else "https://", _Adapter(self._line))

    def get(
        self, url: str, headers: Mapping[str, str], *, timeout: float, max_body: int, left: float | None = None
    ) -> bytes:
        """The body of a 200. ``timeout`` in seconds bounds everything from connecting to the last byte; where some of
        it was spent on an earlier try, ``left`` says how much there is still.

        Raises SourceError for everything else: its ``what`` begins with fixed words, and what varies from
        try to try stands behind ``": "``.
        """
        left = timeout if left is None else left
        self._line.begin(time.monotonic() + left)
        watchdog = threading.Timer(left, self._line.cut, [_TIME_UP])
        watchdog.name = "podtracer-deadline"
        watchdog.daemon = True
        watchdog.start()
        try:
            body = self._get(url, headers, timeout, max_body)
            # A body that only its end delimits looks whole when we are the ones who ended it.
            if self._line.cut_because is not None:
                raise SourceError(self._line.cut_because, url)
            self._line.check_again()
            return body
        except NotRoots as error:
            self._session.close()
            raise NotRoots(error.what, url, error.hint) from error
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

    @property
    def connected(self) -> int | None:
        """When the newest connection was made, boot time nanoseconds."""
        return self._line.connected

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
        what = f"{self._peer.name} answered {status}" + (f": {head[:_QUOTED]!r}" if head else "")
        if status in self._peer.statuses:
            hint = self._peer.statuses[status]
        elif 300 <= status < 400:
            hint = f"redirects are not followed; {self._peer.wrong}"
        elif status == 400 and "HTTPS" in head:
            hint = "this is the kubelet's secure port; the read-only port is usually 10255"
        elif status == 404:
            hint = f"nothing is served at this address; {self._peer.wrong}"
        else:
            hint = f"see the log of {self._peer.name}"
        return SourceError(what, url, hint, status=status)

    def _explain(self, error: Exception, url: str, timeout: float) -> SourceError:
        """The one place where foreign errors become ours."""
        because = self._line.cut_because
        if because == _CLOSED:
            return SourceError(_CLOSED, url)
        peer = self._peer
        causes = _causes(error)
        late = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
        if because == _TIME_UP or any(isinstance(cause, late) for cause in causes):
            hint = f"{peer.name} is overloaded or hangs; see its log"
            return SourceError(f"{_TIME_UP} within {timeout:g} s", url, hint)
        if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
            return SourceError("connection refused", url, peer.refused)
        nameless = next((cause for cause in causes if isinstance(cause, socket.gaierror)), None)
        if nameless is not None:
            return SourceError(f"the host name cannot be resolved: {_text(nameless)}", url, peer.host_name)
        if any(isinstance(cause, http.client.IncompleteRead) for cause in causes):
            return _cut_short(url)
        refusal = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
        if refusal is not None and not isinstance(refusal, ssl.SSLEOFError):
            return self._distrust(refusal, url)
        lost = (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError)
        if any(isinstance(cause, lost) for cause in causes):
            hint = f"{peer.name} may be starting or ending; try again"
            return SourceError(f"connection lost: {causes[-1]!r}"[:300], url, hint)
        return SourceError(f"no valid HTTP answer: {causes[-1]!r}"[:300], url, peer.wrong)

    def _distrust(self, error: ssl.SSLError, url: str) -> SourceError:
        peer = self._peer
        if isinstance(error, ssl.SSLCertVerificationError):
            name = error.verify_code in _OTHER_NAME
            what = "is for another name" if name else "is not trusted"
            hint = peer.host_name if name else peer.trust
            return SourceError(f"{peer.name}'s certificate {what}: {_text(error)}", url, hint)
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return SourceError("this port does not speak TLS", url, peer.wrong)
        return SourceError(
            f"TLS failed: {_text(error)}", url, f"see the log of {peer.name}; it may refuse our certificate"
        )


def _text(error: BaseException) -> str:
    text = getattr(error, "verify_message", None) or getattr(error, "reason", None) or getattr(error, "strerror", None)
    return (text if isinstance(text, str) else str(error))[:_QUOTED]


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
