"""One connection of the socket: bytes in and out, and what it is still owed. Never blocks."""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tracer.protocol import MAX_LINE
from tracer.serve import requests
from tracer.serve.desk import Stream
from tracer.serve.peers import Peer

FULL = 1 << 18
"""Bytes that wait for the peer, from which on nothing more is made for it."""
_CHUNK = 1 << 16
_UCRED = struct.Struct("3i")
_WHO = socket.CMSG_SPACE(_UCRED.size)
_SPACE = socket.CMSG_SPACE(4 * 8) + _WHO


class Line(NamedTuple):
    """A line that came: its bytes (``None`` for one that was too long), the descriptors sent with it, and the PID that
    the kernel says sent it, 0 where it does not say or several did. ``is_stripped`` is one whose descriptors were not
    taken: whatever it asks, it is not about the peer."""

    data: bytes | None
    fds: tuple[int, ...]
    sender: int
    is_stripped: bool = False


class Connection:
    """``ready`` is told of a connection that has something to write.

    ``is_trusted`` is whether its peer may ask about others, as of the last look. Only then are descriptors taken: to
    close one may take as long as the owner of the file system behind it likes.
    """

    def __init__(self, sock: socket.socket, peer: Peer, ready: dict[Connection, None]) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.owner: object = None
        self._ready = ready
        # Before Linux 6.5 each message carries its sender; without space for that it would look like a lost descriptor.
        self._least_space = _WHO if peer.nonce is not None else 0
        self.is_trusted = False
        self.trusted_by: object = None  # what that hangs on
        # Where the index had the peer when its files were read, and whether they allowed it to ask about others.
        self.stands: tuple[object, bool] | None = None
        self.lines: deque[Line] = deque()
        self.out = bytearray()
        self.jobs: deque[Iterator[bytes]] = deque()
        self.streams: dict[requests.Id, Stream] = {}
        self.waits = 0
        self.is_over = False  # nothing more is read from it
        self.is_closed = False
        self.is_last = False  # closed once all was written
        self._is_broken_off = False
        self.events = 0  # that epoll looks for
        self.stalled_since: float | None = None  # when it took something last, while something waits for it
        self._part = bytearray()
        self._part_fds: list[int] = []
        self._part_sender = -1
        self._part_stripped = False
        self._skipping = False

    # ---- in ----

    def receive(self) -> None:
        """Takes in what came; raises ``OSError`` where the connection broke."""
        wants_more = self.is_trusted or self.peer.nonce is not None
        space = _SPACE if wants_more else self._least_space
        data, ancillary, flags, _ = self.socket.recvmsg(_CHUNK, space, socket.MSG_CMSG_CLOEXEC)
        fds, sender = _control(ancillary)
        if not data:
            close_all(fds)
            self.is_over = True
            if self._part and not self._skipping:
                self._end_line()
            return
        is_stripped = False
        if not self.is_trusted:
            is_stripped = bool(fds) if wants_more else bool(flags & socket.MSG_CTRUNC)
            close_all(fds)
            fds = []
        *ended, rest = data.split(b"\n")
        for at, piece in enumerate(ended):
            # Descriptors come with the last of what was sent at once.
            is_last = not rest and at == len(ended) - 1
            self._add(piece, fds if is_last else [], sender, is_stripped=is_stripped and is_last)
            self._end_line()
        if rest:
            self._add(rest, fds, sender, is_stripped=is_stripped)

    def _add(self, piece: bytes, fds: list[int], sender: int, *, is_stripped: bool) -> None:
        self._part_stripped = self._part_stripped or is_stripped
        self._part_sender = sender if self._part_sender in (-1, sender) else 0
        self._part_fds += fds
        if not self._skipping:
            self._part += piece
            if len(self._part) > MAX_LINE:
                self._skipping = True
                self.lines.append(Line(None, (), 0))
                self.is_over = True  # the answer to this is the last one

    def _end_line(self) -> None:
        if self._skipping:
            close_all(self._part_fds)
        else:
            fds, sender = tuple(self._part_fds), max(0, self._part_sender)
            self.lines.append(Line(bytes(self._part), fds, sender, self._part_stripped))
        self._part.clear()
        self._part_stripped = False
        self._part_fds = []
        self._part_sender = -1

    # ---- out ----

    def say(self, data: bytes) -> None:
        """Queues a whole line, behind those that are being made."""
        if self._is_broken_off:
            return
        if self.jobs:
            self.jobs.append(iter((data,)))
        else:
            self.out += data
        self._ready[self] = None

    def make(self, job: Iterator[bytes]) -> None:
        """Queues a line that is made piece by piece, as the peer takes it."""
        self.jobs.append(job)
        self._ready[self] = None

    def break_off(self) -> None:
        """Stops making lines; the connection closes once the lines that are made are written."""
        self.jobs.clear()
        self.is_last = self._is_broken_off = True

    def work(self) -> None:
        """Makes the next piece of what is being made."""
        if not self.jobs or self.is_full:
            return
        job = self.jobs[0]
        piece = next(job, None)
        if piece is not None:
            self.out += piece
        elif self.jobs and self.jobs[0] is job:  # else it was broken off
            self.jobs.popleft()

    def flush(self) -> None:
        """Writes what the peer takes; raises ``OSError`` where the connection broke."""
        while self.out:
            try:
                sent = self.socket.send(self.out)
            except BlockingIOError:
                self.stalled_since = self.stalled_since or time.monotonic()
                return
            del self.out[:sent]
            self.stalled_since = None

    @property
    def is_full(self) -> bool:
        """Whether the peer is to take something before more is made for it."""
        return len(self.out) >= FULL

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do for it."""
        if self.out or self.jobs:
            return False
        return self.is_last or (self.is_over and not (self.lines or self.waits or self.streams))

    def close(self) -> None:
        """Closes it, and all that belongs to it."""
        self.is_closed = True
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()
        self.jobs.clear()
        for line in self.lines:
            close_all(line.fds)
        self.lines.clear()
        close_all(self._part_fds)
        self._part_fds = []
        self.peer.close()
        self.socket.close()


def _control(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], int]:
    """(descriptors, sender's PID) among the ancillary data of a message."""
    fds: list[int] = []
    sender = 0
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) // 4 * 4])
            fds += numbers
        elif kind == socket.SCM_CREDENTIALS and len(data) >= _UCRED.size:
            sender = _UCRED.unpack_from(data)[0]
    return fds, sender


def close_all(fds: Iterable[int]) -> None:
    """Closes these descriptors."""
    for fd in fds:
        os.close(fd)
