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
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pid:"):
                    pid = int(line[4:])
                    return pid if pid > 0 else None
    except OSError:
        pass
    return None


@cache
def tells_apart() -> bool:
    """Whether the inode of a pidfd is that of its process alone (pidfs, 6.9): before, all pidfds share one."""
    with pinned(os.getpid()) as own, pinned(os.getppid()) as other:
        return own is not None and other is not None and inode(own) != inode(other)
