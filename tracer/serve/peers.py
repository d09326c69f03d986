"""Pinning who connected: a pidfd of that process, taken once, when the connection is accepted.

``SO_PEERCRED`` is a number: who hands its descriptor on and ends lets the next holder of its PID be taken for it. So a
peer is a pidfd, from ``SO_PEERPIDFD`` (Linux 6.5, commit 7b26952a91cf). Before, the number is opened as a pidfd, and
nothing is believed before a nonce, made after that, came back in a message that the kernel says is of that PID
(``SCM_CREDENTIALS``) while the pidfd lives: then it was sent by the process behind the pidfd.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import struct
from dataclasses import dataclass

from tracer import pidfd

_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77
_UCRED = struct.Struct("3i")
_SIZES = (64, 1024)  # bytes of an option; Python asks for no more
_ABSENT = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)


@dataclass(slots=True)
class Peer:
    """The process that connected. ``fd`` is its pidfd (-1 where it had ended by then), ``ino`` that one's inode;
    ``nonce`` is what is to be sent back first, ``None`` once it is certain who it is. ``counts_alike`` is whether it is
    in our PID namespace, which it is for its whole life, so that a number means the same process to both."""

    pid: int
    uid: int
    gids: frozenset[int]
    fd: int
    ino: int
    nonce: str | None = None
    counts_alike: bool = False

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.fd >= 0 and pidfd.alive(self.fd)

    def take(self, nonce: str | None, sender: int) -> bool:
        """Whether it is certain who it is, given what a request sent back and who the kernel says sent it."""
        if self.nonce is None:
            return True
        if nonce == self.nonce and sender == self.pid and self.is_alive():
            self.nonce = None
        return self.nonce is None

    def close(self) -> None:
        """Closes the pidfd."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def pin(connection: socket.socket, *, by_number: bool = False) -> Peer:
    """The peer of a connection just accepted; ``by_number`` takes the way of kernels before 6.5."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    gids = frozenset((gid, *_groups(connection)))
    if not by_number:
        try:
            fd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno not in _ABSENT:
                return Peer(pid, uid, gids, -1, 0)  # ended and reaped before it was accepted
        else:
            return Peer(pid, uid, gids, fd, pidfd.inode(fd), counts_alike=_counts_alike(pid, fd))
    try:
        fd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return Peer(pid, uid, gids, -1, 0)  # its requests carry no credentials then: it proves nothing
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return Peer(pid, uid, gids, fd, pidfd.inode(fd), secrets.token_hex(16), _counts_alike(pid, fd))


def _counts_alike(pid: int, fd: int) -> bool:
    """Whether the process with this PID, behind this pidfd, is in our PID namespace; false if that is uncertain."""
    try:
        return pidfd.numbers(fd) == (pid,)
    except OSError:
        return False


def has_peer_pidfd() -> bool:
    """Whether this kernel tells a peer by pidfd."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
        except OSError as error:
            return error.errno not in _ABSENT
    return True


def _groups(connection: socket.socket) -> tuple[int, ...]:
    """The supplementary groups of the peer when it connected (Linux 4.13); none of one that is in more than 256."""
    for size in _SIZES:
        try:
            raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size)
        except OSError as error:
            if error.errno != errno.ERANGE:
                return ()
        else:
            return struct.unpack(f"{len(raw) // 4}I", raw)
    return ()
