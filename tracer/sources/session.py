"""GETs at one server whose keys rotate: the files are read anew from time to time, and when they are refused.

fresh ──reload_interval passes──▶ due ──GET──▶ files read: changed → new connection, else the old one goes on
  └──401, or TLS fails──▶ files read: changed → the same GET once more, else the failure stands
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tracer.errors import SourceError
from tracer.sources.credentials import Credentials, Keys
from tracer.sources.ownership import RootCheck
from tracer.sources.peer import Peer

if TYPE_CHECKING:
    from tracer.sources.transport import Transport

RELOAD_INTERVAL = 60.0


class Session:
    """One GET at a time; only ``close`` may be called from another thread.

    ``timeout`` (seconds) bounds the whole of a GET, the second try included; ``max_body`` (bytes) its answer. Without
    ``credentials`` it is plain HTTP. ``check`` is made of each connection, where there is one.
    """

    def __init__(
        self,
        peer: Peer,
        credentials: Credentials | None = None,
        *,
        timeout: float,
        max_body: int,
        reload_interval: float = RELOAD_INTERVAL,
        check: RootCheck | None = None,
    ) -> None:
        self._peer = peer
        self._check = check
        self._credentials = credentials
        self._timeout = timeout
        self._max_body = max_body
        self._reload_interval = reload_interval
        self._transport: Transport | None = None
        self._keys: Keys | None = None
        self._loaded = 0.0
        self._closed = False
        self._opening = threading.Lock()

    def get(self, url: str, headers: Mapping[str, str]) -> bytes:
        """The body of a 200. Raises SourceError, whatever went wrong."""
        end = time.monotonic() + self._timeout
        if self._keys is None or time.monotonic() - self._loaded >= self._reload_interval:
            self._reload()
        try:
            return self._send(url, headers, end)
        except SourceError as error:
            if error.status not in (None, 401) or not self._reload():
                raise
        return self._send(url, headers, end)

    @property
    def connected(self) -> int | None:
        """When the connection in use was made, boot time nanoseconds."""
        return self._transport.connected if self._transport is not None else None

    def close(self) -> None:
        """End the GET in flight, with SourceError in the thread that waits for it; later ones fail too."""
        with self._opening:
            self._closed = True
            transport = self._transport
        if transport is not None:
            transport.close()

    def _send(self, url: str, headers: Mapping[str, str], end: float) -> bytes:
        transport = self._open(url)
        if self._keys is not None:
            headers = {**headers, **self._keys.headers}
        return transport.get(
            url,
            headers,
            timeout=self._timeout,
            left=max(0.0, end - time.monotonic()),
            max_body=self._max_body,
        )

    def _reload(self) -> bool:
        """Read the files anew; whether they changed. What fails is tried again at the next GET."""
        if self._credentials is None:
            return False
        before, self._keys = self._keys, None
        keys = self._credentials.load()
        self._loaded = time.monotonic()
        if before is not None and before.digest == keys.digest:
            self._keys = before
            return False
        self._keys = keys
        with self._opening:
            old, self._transport = self._transport, None
        if old is not None:
            old.close()
        return True

    def _open(self, url: str) -> Transport:
        # Imported here: requests costs more than a whole look-up that needs no kubelet.
        from tracer.sources.transport import Transport

        with self._opening:
            if self._closed:
                raise SourceError("the client was closed", url)
            if self._transport is None:
                self._transport = Transport(self._peer, self._keys.tls if self._keys else None, self._check)
            return self._transport
