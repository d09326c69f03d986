"""What an actor's processes truly are, in memory that the one who checks reads while it changes.

A lane is one number of a process. Its words: a turn that is odd while something changes and even while all stays as it
is; the PID; the inode of its pidfd; and its place, the number under which both sides know where it is. Whoever reads
the same even turn before and after a look-up knows that the whole look-up was about this process in this place.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

LANES = 24  # of each actor
_WORDS = 4
DEAD = 0  # the place of a process that has ended and whose number waits to be taken again
COUNTS = ("reuses", "moves", "forks", "execs", "restarts", "taken", "names")
_SIZE = mmap.PAGESIZE


class Truth(NamedTuple):
    """A lane as it was read: ``turn`` is even when it stood still."""

    turn: int
    pid: int
    inode: int
    place: int


class Lanes:
    """The lanes of one actor. Only the actor writes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._words = memoryview(mmap.mmap(fd, _SIZE)).cast("Q")

    @classmethod
    def make(cls) -> Lanes:
        """New ones, whose descriptor an actor is given."""
        fd = os.memfd_create("podtracer-lanes")
        os.ftruncate(fd, _SIZE)
        return cls(fd)

    def read(self, lane: int) -> Truth:
        """The lane now; what it says belongs together when ``turn`` is even and the next reading has it too."""
        words, at = self._words, lane * _WORDS
        turn = words[at]
        return Truth(turn, words[at + 1], words[at + 2], words[at + 3])

    def turn(self, lane: int) -> int:
        """The turn alone."""
        return self._words[lane * _WORDS]

    def begin(self, lane: int) -> None:
        """From now on it changes."""
        self._words[lane * _WORDS] += 1

    def end(self, lane: int, pid: int, inode: int, place: int) -> None:
        """It has become this, and stays so."""
        words, at = self._words, lane * _WORDS
        words[at + 1], words[at + 2], words[at + 3] = pid, inode, place
        words[at] += 1

    def add(self, what: int) -> None:
        """Counts one more of ``COUNTS``."""
        self._words[LANES * _WORDS + what] += 1

    def counts(self) -> dict[str, int]:
        """What was done so far."""
        start = LANES * _WORDS
        return dict(zip(COUNTS, self._words[start : start + len(COUNTS)], strict=True))
