"""Processes on order: with a wanted number, in a wanted cgroup, and none that outlives who made it.

For programs of one thread with little imported: a child made here shares its parent's Python and may do no more than
wait, exec or end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

_CLONE3 = 435  # the same on every architecture that got its system calls together
_INTO_CGROUP = 0x200000000
_PR_SET_PDEATHSIG = 1
# struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
# cgroup
_ARGUMENTS = struct.Struct("<11Q")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def clone(number: int = 0, cgroup: int | None = None) -> int:
    """Forks: the child's PID, and 0 in the child. ``number`` is the PID that it gets in this PID namespace, 0 for any;
    ``cgroup`` a descriptor of the folder of the v2 cgroup that it is born in.

    Raises ``FileExistsError`` where the number is another's, ``PermissionError`` where numbers may not be chosen.
    """
    wanted = ctypes.c_int32(number)
    arguments = _ARGUMENTS.pack(
        *(_INTO_CGROUP if cgroup is not None else 0, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0),
        *(ctypes.addressof(wanted) if number else 0, 1 if number else 0, cgroup or 0),
    )
    pid: int = _libc.syscall(_CLONE3, arguments, ctypes.c_size_t(_ARGUMENTS.size))
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "clone3")
    return pid


def end_with(parent: int) -> None:
    """Has this process killed when its parent ends; at once where that has happened already."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def inode(pid: int) -> int:
    """The inode of the pidfd of a child, which tells it from all others on kernels with pidfs."""
    fd = os.pidfd_open(pid)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)
