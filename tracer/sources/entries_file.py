"""The file of registration entries, read again whenever it changes.

The file is looked at, not subscribed to: that serves a file that is replaced, one that is written in place, and one
behind the links of a ConfigMap alike. One that cannot be used, half written say, changes nothing: what was read before
stays.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable

from tracer.errors import InputError
from tracer.identity.entries import HINT, Entries, decode

MOST_BYTES = 64 << 20
"""A longer file is refused: 100,000 entries take about as much."""

INTERVAL = 0.5  # seconds between two looks
# A file system stamps to the tick: a file that was this young when it was read may change under the same stamp.
_YOUNG = 100_000_000

_Stamp = tuple[int, int, int, int]


def read(path: str) -> Entries:
    """The entries of the file, which may also be a pipe. Raises ``InputError``, which names it, and the place."""
    return _read(path)[0]


def _read(path: str) -> tuple[Entries, _Stamp | None]:
    """The entries, and the file's stamp, ``None`` where it may have changed since without a change of the stamp."""
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            body = file.read(MOST_BYTES + 1)
            after = os.fstat(file.fileno())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"the registration entries cannot be read: {reason}", path, HINT) from None
    if len(body) > MOST_BYTES:
        raise InputError(f"these registration entries are larger than {MOST_BYTES >> 20} MiB", path, HINT)
    try:
        entries = decode(body)
    except InputError as error:
        raise InputError(error.what, path, error.hint) from None
    young = abs(time.time_ns() - after.st_mtime_ns) < _YOUNG
    return entries, None if young or _stamp(before) != _stamp(after) else _stamp(after)


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class EntriesFile:
    """Watches the file from a thread of its own.

    ``on_entries`` gets what was read, when it differs; ``warn`` gets one sentence when the file cannot be used any
    more, and one when it can be again. ``start`` reads for the first time and raises ``InputError``.
    """

    def __init__(
        self,
        path: str,
        *,
        on_entries: Callable[[Entries], None],
        warn: Callable[[str], None],
        interval_s: float = INTERVAL,
    ) -> None:
        self._path = path
        self._on_entries = on_entries
        self._warn = warn
        self._interval = interval_s
        self._entries: Entries | None = None
        self._stamp: _Stamp | None = None
        # What is wrong with the file as it is now, and whether that was told.
        self._bad: tuple[_Stamp | None, bool] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Reads the file, and goes on to watch it, unless it is none: a pipe is read once."""
        self._take(*_read(self._path))
        found = self._look()
        if found is not None and stat.S_ISREG(found.st_mode):
            self._thread = threading.Thread(target=self._run, name="podtracer-entries", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the watching; may be called twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self.look()

    def look(self) -> None:
        """Reads the file if it has changed since."""
        found = self._look()
        stamp = _stamp(found) if found is not None else None
        if stamp is not None and stamp == self._stamp and self._bad is None:
            return
        if self._bad is not None and self._bad == (stamp, True):
            return
        if found is not None and not stat.S_ISREG(found.st_mode):
            self._fail(stamp, InputError("the registration entries are no file any more", self._path, HINT))
            return
        try:
            entries, read_at = _read(self._path)
        except InputError as error:
            self._fail(stamp, error)
            return
        if self._bad is not None and self._bad[1]:
            self._warn(f"the registration entries can be read again ({self._path})")
        self._bad = None
        self._take(entries, read_at)

    def _take(self, entries: Entries, stamp: _Stamp | None) -> None:
        self._stamp = stamp
        if entries != self._entries:
            self._entries = entries
            self._on_entries(entries)

    def _fail(self, stamp: _Stamp | None, error: InputError) -> None:
        # Told when it is the same at two looks, since whoever is writing is done soon; and once until it is good again.
        told = self._bad is not None and self._bad[1]
        if not told and self._bad is not None and self._bad[0] == stamp:
            self._warn(f"{error}; the entries read before stay")
            told = True
        self._bad = (stamp, told)

    def _look(self) -> os.stat_result | None:
        try:
            return os.stat(self._path)
        except (OSError, ValueError):
            return None
