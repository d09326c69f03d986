"""The few bpf(2) commands that are needed once the programs are loaded, by ctypes: BCC is not in this process."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from contextlib import suppress

_NUMBER = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 0)
_MAP_LOOKUP_ELEM, _PROG_LOAD, _RAW_TRACEPOINT_OPEN, _LINK_CREATE, _ENABLE_STATS, _ITER_CREATE = 1, 5, 17, 28, 32, 33
_SOCKET_FILTER, _TRACE_ITER = 1, 28
_STATS_RUN_TIME = 0

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _syscall(_NUMBER, command, ctypes.addressof(buffer), len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


# (code, registers, offset, immediate) of: *(u64 *)(r10 - 8) = r1 = 0; r1 = xchg(r10 - 8, r1); r0 = 0; exit
_EXCHANGE = ((0xB7, 1, 0, 0), (0x7B, 0x1A, -8, 0), (0xDB, 0x1A, -8, 0xE1), (0xB7, 0, 0, 0), (0x95, 0, 0, 0))


def refuses_exchange() -> bool:
    """Whether the verifier refuses an atomic exchange, as it does before commit 5ffa25502b5a (5.12). Tried with a
    program of five instructions; any other failure is for whoever loads the real ones to find."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        # Before 5.11 all of a user's maps and programs count as locked memory, so that a second tracer finds no room.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        _load_exchange()
    except OSError as error:
        return error.errno == errno.EINVAL
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    return False


def _load_exchange() -> None:
    program = ctypes.create_string_buffer(b"".join(struct.pack("<BBhi", *words) for words in _EXCHANGE))
    license_ = ctypes.create_string_buffer(b"GPL")
    addresses = (ctypes.addressof(program), ctypes.addressof(license_))
    os.close(_bpf(_PROG_LOAD, struct.pack("<IIQQIIQII", _SOCKET_FILTER, len(_EXCHANGE), *addresses, 0, 0, 0, 0, 0)))


def attach_raw_tracepoint(name: str, program: int) -> int:
    """Attaches a program, answers the link's descriptor. Raises ``OSError`` (ENOENT: no such tracepoint)."""
    text = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QII", ctypes.addressof(text), program, 0))


def link_iterator(program: int) -> int:
    """A link of an iterator program, from which ``read_iterator`` reads."""
    return _bpf(_LINK_CREATE, struct.pack("<IIIIQII", program, 0, _TRACE_ITER, 0, 0, 0, 0))


def read_iterator(link: int) -> bytes:
    """Runs the iterator once, from first to last, and answers all it wrote."""
    fd = _bpf(_ITER_CREATE, struct.pack("<II", link, 0))
    chunks = []
    try:
        while chunk := os.read(fd, 1 << 16):
            chunks.append(chunk)
    finally:
        os.close(fd)
    return b"".join(chunks)


def enable_stats() -> int:
    """Has the kernel count each program's runs and their time until the descriptor that is answered is closed."""
    return _bpf(_ENABLE_STATS, struct.pack("<I", _STATS_RUN_TIME))


def program_stats(program: int) -> dict[str, int]:
    """The kernel's counts of a program: ``run_time_ns``, ``run_cnt``, ``recursion_misses``, as far as it has them."""
    found = {}
    with open(f"/proc/self/fdinfo/{program}", encoding="ascii") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key in ("run_time_ns", "run_cnt", "recursion_misses", "prog_id"):
                found[key] = int(value)
    return found


class HashReader:
    """Reads one element of a BPF hash at a time: a system call of about 1.5 µs."""

    def __init__(self, map_fd: int, value_size: int) -> None:
        self._key = ctypes.c_uint32()
        self._value = ctypes.create_string_buffer(value_size)
        self._attributes = ctypes.create_string_buffer(
            struct.pack("<IIQQQ", map_fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), 0)
        )
        self._address = ctypes.addressof(self._attributes)

    def get(self, key: int) -> bytes | None:
        """The value, or ``None``. Not for several threads at once."""
        self._key.value = key
        if _syscall(_NUMBER, _MAP_LOOKUP_ELEM, self._address, 32) < 0:
            return None
        return self._value.raw
