"""Whether the server at the other end of a TCP connection of ours is root of this host.

Any user can listen on a port before the kubelet does. So podtracer uses a port that no flag names, and no certificate
proves, only if the kernel shows who listens there. It checks each connection:

1. The socket at the other end is among this machine's (``/proc/net/tcp``, ``tcp6``), and belongs to uid 0. If it is not
   there, the connection leads elsewhere, by a packet filter for instance.
2. Every process that holds it, or a socket of uid 0 that listens there, is root of the host: all of its uids are 0, it
   is in the user namespace that we are in and in the PID namespace of the procfs that we read, and in no container's
   cgroup (the root of a pod in the host's network has uid 0 as well).
3. A process whose files we may not read could hold it, so it has to be root of the host by what anybody may read of it.

podtracer checks this when the connection is made, before a byte leaves, and again when the first answer is complete: a
server may hand an accepted connection to another process.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from tracer.errors import SourceError

_ACCEPTED_WITHIN: Final = 2.0  # seconds; a kubelet does it at once
_FIRST_PAUSE, _LAST_PAUSE = 0.001, 0.05
# Names of containers' cgroups by any runtime, and of the cgroups above pods'.
_CONTAINER: Final = re.compile(
    r"[0-9A-Fa-f]{64}|(?:^|[/-])kubepods(?:$|[/.:-])|(?:^|[/-])pod[0-9A-Fa-f]{8}[-_]|(?:^|/)(?:lxc|machine)[./]",
    re.ASCII,
)


class NotRoots(SourceError):  # noqa: N818 - it reads as what it says
    """The process that answers at this port is not known to be root of the host."""


@dataclass(frozen=True, slots=True)
class Ends:
    """A connection as the other end has it: its own address and port, then ours, as ``/proc/net/tcp`` writes them."""

    port: int
    rows: tuple[str, ...]
    listening: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RootCheck:
    """Whether a connection leads to root of this host. ``flag`` is how the user names the port."""

    flag: str
    procfs: str = "/proc"

    def __call__(self, sock: socket.socket, end: float, is_wanted: Callable[[], None] = lambda: None) -> Ends:
        """Waits until this connection was accepted, to ``end`` of the monotonic clock at most; ``is_wanted`` may raise
        meanwhile. Raises NotRoots, and OSError for a connection that has ended.

        It takes some 40 ms for each 1000 processes of the machine.
        """
        ends = _ends(sock)
        self._check_holders(ends, self._wait(ends, end, is_wanted))
        return ends

    def is_likely(self, sock: socket.socket, end: float) -> None:
        """The same by the uid of the other end alone, without a search. Raises as above."""
        self._wait(_ends(sock), end, lambda: None)

    def _wait(self, ends: Ends, end: float, is_wanted: Callable[[], None]) -> int:
        end = min(end, time.monotonic() + _ACCEPTED_WITHIN)
        pause = _FIRST_PAUSE
        while not (inode := self._accepted(ends)):
            is_wanted()
            left = end - time.monotonic()
            if left <= 0:
                raise self._refusal(ends, "no process of this machine has accepted the connection")
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LAST_PAUSE)
        return inode

    def again(self, ends: Ends) -> None:
        """Checks again that only root holds the other end; one that was closed meanwhile is fine. Raises NotRoots."""
        inode = self._accepted(ends)
        if inode:
            self._check_holders(ends, inode)

    def _accepted(self, ends: Ends) -> int:
        """The inode of the other end; 0 before it was accepted, and after it was closed."""
        for table in self._tables():
            for row in ends.rows:
                at = table.find(row)
                if at >= 0:
                    uid, inode = _owner(table, at)
                    if uid != 0:
                        raise self._refusal(ends, f"it belongs to uid {uid}")
                    return inode
        return 0

    def _check_holders(self, ends: Ends, inode: int) -> None:
        inodes = {inode: False}
        for table in self._tables():
            for row in ends.listening:
                for found in re.finditer(re.escape(row), table):
                    uid, listener = _owner(table, found.start())
                    if uid == 0:  # another user's did not accept this connection: it may listen on IPv6 alone
                        inodes[listener] = False
        wanted = {f"socket:[{inode}]": inode for inode in inodes}
        own = self._link("self/ns/user")
        for pid in _processes(self.procfs):
            try:
                held = self._held(pid, wanted)
            except PermissionError:
                held = None  # it may hold it
            if held is None or held:
                why = self._why_not_root(pid, own, is_readable=held is not None)
                if why is not None:
                    unread = f"cannot read the files of process {pid} without CAP_SYS_PTRACE"
                    raise self._refusal(ends, why if held else unread)
                inodes.update(dict.fromkeys(held or (), True))
        if not inodes[inode]:
            raise self._refusal(ends, "cannot see which process holds it without CAP_SYS_PTRACE and hostPID")

    def _held(self, pid: str, wanted: dict[str, int]) -> set[int]:
        """Which of these sockets a process holds. Raises PermissionError."""
        held: set[int] = set()
        try:
            folder = os.open(f"{self.procfs}/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, ProcessLookupError):
            return held
        try:
            for name in os.listdir(folder):
                with suppress(FileNotFoundError, ProcessLookupError):
                    inode = wanted.get(os.readlink(name, dir_fd=folder))
                    if inode is not None:
                        held.add(inode)
        except (FileNotFoundError, ProcessLookupError):
            pass
        finally:
            os.close(folder)
        return held

    def _why_not_root(self, pid: str, own: str | None, *, is_readable: bool) -> str | None:
        """Why a process is not known to be root of the host; ``None`` if it is, or has ended."""
        try:
            status = _read(f"{self.procfs}/{pid}/status")
            cgroups = _read(f"{self.procfs}/{pid}/cgroup")
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError as error:
            return f"cannot read the status of process {pid}: {error.strerror}"
        fields = dict(line.partition(":")[::2] for line in status.splitlines())
        if fields.get("State", "").split()[:1] == ["Z"]:
            return None
        if set(fields.get("Uid", "").split()) != {"0"}:
            return f"process {pid} is not root's"
        if len(fields.get("NSpid", "").split()) != 1:
            return f"process {pid} is in another PID namespace"
        if is_readable and (own is None or self._link(f"{pid}/ns/user") != own):
            return f"process {pid} is in another user namespace"
        if any(_CONTAINER.search(line.split(":", 2)[-1]) for line in cgroups.splitlines()):
            return f"process {pid} is in a container"
        return None

    def _tables(self) -> Iterable[str]:
        for name in ("tcp", "tcp6"):
            try:
                yield _read(f"{self.procfs}/thread-self/net/{name}")
            except FileNotFoundError:
                continue  # a kernel without IPv6

    def _link(self, name: str) -> str | None:
        try:
            return os.readlink(f"{self.procfs}/{name}")
        except OSError:
            return None

    def _refusal(self, ends: Ends, why: str) -> NotRoots:
        what = f"port {ends.port} is not proved to be the kubelet's: {why}"
        return NotRoots(what, None, f"if it is the kubelet's, name it: {self.flag}")


def _processes(procfs: str) -> list[str]:
    return [name for name in os.listdir(procfs) if name.isdigit()]


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _owner(table: str, at: int) -> tuple[int, int]:
    """uid and inode of the row whose addresses begin here: local, remote, state, queues, timer, retransmits, uid, …"""
    fields = table[at : table.find("\n", at)].split()
    return int(fields[6]), int(fields[8])


def _ends(sock: socket.socket) -> Ends:
    ours, theirs = sock.getsockname(), sock.getpeername()
    pairs = zip(_spellings(theirs), _spellings(ours), strict=True)
    port = int(theirs[1])
    unset = ("0" * 8, "0" * 32)
    listening = [f" {address}:{port:04X} " for address in (*_addresses(theirs[0]), *unset)]
    return Ends(
        port,
        tuple(f" {their} {our} " for their, our in pairs),
        tuple(f"{row}{any_}:0000 0A " for row in listening for any_ in unset),
    )


def _spellings(address: Any) -> list[str]:
    return [f"{host}:{address[1]:04X}" for host in _addresses(address[0])]


def _addresses(host: str) -> list[str]:
    """An address as the kernel writes it: for IPv4, and as a socket has it that also takes IPv6."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, ipaddress.IPv6Address):
        return [_words(address.packed)]
    return [_words(address.packed), _words(b"\0" * 10 + b"\xff\xff" + address.packed)]


def _words(packed: bytes) -> str:
    words = (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4))
    return "".join(f"{word:08X}" for word in words)
