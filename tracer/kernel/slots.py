"""Reading slots: which cgroup a process is in, straight from the kernel's table.

Writers store ``ino = 0``, then the rest, then ``ino``. Reading ``ino``, the rest, and ``ino`` again gives a pair that
belongs together when both are equal and not 0, since an inode never comes back. Reading in the naive order accepts
torn pairs.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple, Protocol

from tracer.kernel.bpf import HashReader
from tracer.kernel.wire import HASH_SLOT, SLOT, SLOT_COUNT

_MASK = SLOT_COUNT - 1
_PID = 0xFFFFFFFF
_RETRIES = 4
_new = tuple.__new__  # half the time of Slot(…), once for every look-up


class Slot(NamedTuple):
    """Where a process was when its slot was read. ``ino`` tells it from others of its PID."""

    ino: int
    hierarchy: int
    cgroup: int


class Slots(Protocol):
    """The table of all processes, by PID in the tracer's PID namespace."""

    kind: str

    def read(self, pid: int) -> Slot | None:
        """The process's slot, or ``None``: no such process, or one whose slot is to be repaired."""

    def sweep(self, alive: dict[int, int]) -> int:
        """Empties slots of processes that have ended unseen, given PID → inode of those alive; answers how many."""

    def close(self) -> None:
        """Unmaps what is mapped."""


class Reader(Protocol):
    """Whatever reads an element of a hash."""

    def get(self, key: int, /) -> bytes | None:
        """The value, or ``None``."""


class HashSlots:
    """Slots in a BPF hash: all of them where the table cannot be had, else those few whose PIDs collide.

    Each read is a system call that copies a value which may be reused under it; two equal copies that carry the PID
    asked for are not.
    """

    kind = "hash"

    def __init__(self, reader: Reader, *, spill: bool = False) -> None:
        self._layout = SLOT if spill else HASH_SLOT
        self._reader = reader

    @classmethod
    def of_map(cls, map_fd: int, *, spill: bool = False) -> HashSlots:
        """The slots of a loaded hash."""
        return cls(HashReader(map_fd, (SLOT if spill else HASH_SLOT).size), spill=spill)

    def read(self, pid: int) -> Slot | None:
        """See ``Slots.read``."""
        for _ in range(_RETRIES):
            first = self._reader.get(pid)
            if first is None:
                return None
            tag, ino, cgroup, *_ = self._layout.unpack(first)
            if self._reader.get(pid) == first and ino and tag & _PID == pid:
                return _new(Slot, (ino, tag >> 32, cgroup))
        return None

    def sweep(self, alive: dict[int, int]) -> int:  # noqa: ARG002
        """Nothing: an element whose process ended unseen is replaced when its PID comes back."""
        return 0

    def close(self) -> None:
        """Nothing is mapped."""


class TableSlots:
    """Slots in the mapped table, and the spill hash behind it: a read is four reads of memory."""

    kind = "table"

    def __init__(self, words: memoryview[int] | list[int], spill: HashSlots) -> None:
        self._words = words
        self._spill = spill

    @classmethod
    def mapped(cls, table_fd: int, spill_fd: int) -> TableSlots:
        """The slots of a loaded table."""
        table = mmap.mmap(table_fd, SLOT_COUNT * SLOT.size, mmap.MAP_SHARED)
        return cls(memoryview(table).cast("Q"), HashSlots.of_map(spill_fd, spill=True))

    def read(self, pid: int) -> Slot | None:
        """See ``Slots.read``."""
        words = self._words
        at = (pid & _MASK) * 3
        for _ in range(_RETRIES):
            ino = words[at + 1]
            cgroup = words[at + 2]
            tag = words[at]
            if words[at + 1] == ino and ino and tag & _PID == pid:
                return _new(Slot, (ino, tag >> 32, cgroup))
            if tag & _PID != pid:  # free, or another's: at most in the spill
                break
        return self._spill.read(pid)

    def sweep(self, alive: dict[int, int]) -> int:
        """See ``Slots.sweep``. Whoever takes the slot between the two reads is left with an empty one, which is
        repaired; it is never left with a wrong one."""
        words, emptied = self._words, 0
        for at in range(0, SLOT_COUNT * 3, 3):
            ino = words[at + 1]
            if ino and alive.get(words[at] & _PID) != ino and words[at + 1] == ino:
                words[at + 1] = 0
                emptied += 1
        return emptied

    def close(self) -> None:
        """Unmaps the table."""
        words = self._words
        if isinstance(words, memoryview):
            table = words.obj
            words.release()
            if isinstance(table, mmap.mmap):
                table.close()
