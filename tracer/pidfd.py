"""Pinning a process by a descriptor, so that its number cannot become another's meanwhile."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def pinned(pid: int) -> Iterator[int | None]:
    """A pidfd of the process, ``None`` where there is none; closed at the end of the block."""
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:  # ESRCH; EINVAL for a thread's ID, ENOENT for one since 6.x
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # which says nothing of the process
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def alive(fd: int) -> bool:
    """Whether the process has not ended: a pidfd is readable from then on."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return not poll.poll(0)


def inode(fd: int) -> int:
    """The inode that tells the process from all others, on kernels with pidfs (6.9)."""
    return os.fstat(fd).st_ino


def number(fd: int) -> int | None:
    """The PID behind a pidfd in our PID namespace; ``None`` when it has ended or is not visible here."""
    try:
        found = numbers(fd)
    except OSError:
        return None
    return found[0] if found and found[0] > 0 else None


def numbers(fd: int) -> tuple[int, ...] | None:
    """The PIDs of the process behind a pidfd, in our PID namespace first (-1 when it has ended, 0 when it is not
    visible here), then in each one further in down to its own (``NSpid``, Linux 5.5). So a single number above 0 is
    that of a process of our own PID namespace. ``None`` for a descriptor that is not a pidfd. Raises ``OSError`` if
    fdinfo cannot be read.

    Never touches the file behind the descriptor: its sender could block us there."""
    found: tuple[int, ...] | None = None
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, values = line.partition(":")
            if name == "Pid" or (name == "NSpid" and found is not None):
                found = tuple(map(int, values.split()))
    return found or None


def of(pid: int) -> int:
    """A new pidfd of the process, by a thread's number too, as ``/proc`` has it. Raises ``OSError``:
    ``ProcessLookupError`` where there is no such process here."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        leader = _leader(pid)
        if leader is None or leader == pid:
            raise
    fd = os.pidfd_open(leader)
    if _leader(pid) != leader:  # the thread has ended, and another may have its number
        os.close(fd)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return fd


def whereabouts() -> tuple[int, int]:
    """What tells the calling process from the one that it was forked from: its number, and the inode of the PID
    namespace in which that is its number."""
    try:
        return os.getpid(), os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return os.getpid(), 0


def is_own(pid: int) -> bool:
    """Whether this is the number of the calling process, or of one of its threads."""
    return pid == os.getpid() or (proc_counts_alike() and os.path.exists(f"/proc/self/task/{pid}"))


def proc_counts_alike() -> bool:
    """Whether ``/proc`` belongs to our PID namespace. After ``unshare --pid`` it may still be the outer one, with other
    numbers."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return any(line.split() == ["NSpid:", str(os.getpid())] for line in file)
    except OSError:
        return False


def _leader(tid: int) -> int | None:
    if not proc_counts_alike():
        return None
    try:
        with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line[5:]) for line in file if line.startswith("Tgid:")), None)
    except OSError:
        return None


@cache
def tells_apart() -> bool:
    """Whether the inode of a pidfd is that of its process alone (pidfs, 6.9): before, all pidfds share one."""
    with pinned(os.getpid()) as own, pinned(os.getppid()) as other:
        return own is not None and other is not None and inode(own) != inode(other)
