"""A BPF ring buffer read through its own mapping: what is there is decoded in one go, without a call per record.

Layout (kernel/bpf/ringbuf.c): a page with the consumer's position, a page with the producer's, then the data, mapped
twice in a row so that a record that wraps around is contiguous. Positions only grow. Each record has a header of
8 bytes, a u32 length whose two upper bits say busy and discarded.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

_BUSY = 1 << 31
_LENGTH = (1 << 30) - 1
_HEADER = struct.Struct("<II")


class Ring:
    """One ring of fixed-size records.

    ``record`` is the layout of a record without its header; ``pages`` the size that the map was made with. The
    consumer's position is advanced after a batch was decoded, so that the kernel cannot overwrite what is read. One
    thread drains at a time; any may look whether there is something.
    """

    def __init__(self, fd: int, pages: int, record: struct.Struct) -> None:
        page = mmap.PAGESIZE
        self.fd = fd
        self._size = pages * 4096
        self._mask = self._size - 1
        self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._consumer_map)[:8].cast("Q")
        self._producer = memoryview(self._producer_map)[:8].cast("Q")
        self._data = memoryview(self._producer_map)[page:]
        self._words = self._data.cast("I")
        self._taken = self._consumer[0]  # up to here records were decoded; the consumer's position follows
        # Records are padded to 8 bytes; the header is decoded along.
        self._layout = struct.Struct(f"<2I{record.format[1:]}{-record.size % 8}x")

    def pending(self) -> bool:
        """Whether anything is unread, or not let go of yet: two reads of memory."""
        return self._producer[0] != self._consumer[0]

    def unread(self) -> int:
        """How many records are unread, or not let go of yet."""
        return (self._producer[0] - self._consumer[0]) // self._layout.size

    def names(self, number: int, field: int, newest: int) -> bool:
        """Whether one of the ``newest`` unread records has this number in a 4-byte field, the ``field``-th 4 bytes of
        its layout: reads of memory only."""
        stride = self._layout.size
        producer, consumer = self._producer[0], self._consumer[0]
        at = max(consumer, producer - newest * stride)
        first = ((at & self._mask) + _HEADER.size) // 4 + field
        return number in self._words[first : first + (producer - at) // 4 : stride // 4]

    def drain(self, at_most: int = 1 << 20, *, hold: bool = False) -> list[tuple[Any, ...]]:
        """Up to ``at_most`` records in order, each the tuple of its layout, and each given once.

        With ``hold`` they stay ``pending``, as who looks on from another thread sees it, until ``let_go``: what was
        read and has not been acted on is no less news than what is unread.
        """
        stride = self._layout.size
        at = self._taken
        there = min((self._producer[0] - at) // stride, at_most)
        if there <= 0:
            return []
        start = at & self._mask
        records: list[tuple[Any, ...]] = []
        append = records.append
        with self._data[start : start + there * stride] as batch:
            for length, _, *fields in self._layout.iter_unpack(batch):
                if length & _BUSY:  # a program is still writing it, and so the rest is not due either
                    break
                append(tuple(fields))
        self._taken = at + len(records) * stride
        if not hold:
            self.let_go()
        return records

    def let_go(self) -> None:
        """Gives the room of all that was drained back to the kernel, which may write over it from now on."""
        self._consumer[0] = self._taken

    def close(self) -> None:
        """Unmaps the ring; the descriptor belongs to whoever opened it."""
        for view in (self._words, self._consumer, self._producer, self._data):
            view.release()
        self._consumer_map.close()
        self._producer_map.close()
