"""An actor: makes processes whose every identity it knows, and writes it down (``lanes``) as it happens.

``python -m tracer.bench.actor PARENT FD SEED``. First line: ``{"places": [[number, folder], …], "restartable":
[number, …], "home": folder, "v2": bool}``. Then it plays until the end of its input: its processes take the PIDs of
those before them in other containers, are moved, exec, and end; from time to time a container dies, and a new one is
asked for with ``{"restart": number}`` and is where the answering line ``[number, folder]`` says.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from contextlib import suppress

from tracer.bench.children import clone, end_with, inode
from tracer.bench.lanes import COUNTS, DEAD, LANES, Lanes

_REUSES, _MOVES, _FORKS, _EXECS, _RESTARTS, _TAKEN, _ = range(len(COUNTS))
_PROGRAM = "/bin/sleep"


class Actor:
    """One actor's processes and places. ``home`` is where it stands itself, in no container."""

    def __init__(
        self, lanes: Lanes, places: dict[int, str], restartable: list[int], home: str, *, into: bool, seed: int
    ) -> None:
        self._lanes = lanes
        self._places = places
        self._restartable = restartable
        self._into = into
        self._random = random.Random(seed)  # noqa: S311, a play and no secret
        self._pids = [0] * LANES
        self._at = [DEAD] * LANES
        self._stdin = sys.stdin.buffer
        self._enter(os.getpid(), home)

    def play(self) -> None:
        """Until the end of the input."""
        choose, poll = self._random.random, select.poll()
        poll.register(self._stdin, select.POLLIN | select.POLLHUP)
        for lane in range(LANES):
            self._be_born(lane)
        rounds = 0
        while not poll.poll(0):
            lane = self._random.randrange(LANES)
            dice = choose()
            if self._at[lane] == DEAD or dice < 0.45:
                self._replace(lane)
            elif dice < 0.9:
                self._move(lane)
            elif dice < 0.97:
                self._exec(lane)
            else:
                self._die(lane)
            rounds += 1
            if rounds % 150 == 0 and not self._restart():
                break
        for lane in range(LANES):
            self._die(lane)

    # ---- what happens to a process ----

    def _be_born(self, lane: int) -> None:
        """A process for a lane that has no number yet."""
        self._lanes.begin(lane)
        self._born(lane, 0)

    def _replace(self, lane: int) -> None:
        """The process ends, and another one gets its number, in another place."""
        self._lanes.begin(lane)
        old = self._pids[lane]
        self._kill(lane)
        try:
            self._born(lane, old)
        except FileExistsError:  # somebody else on this machine was faster
            self._lanes.add(_TAKEN)
            self._born(lane, 0)
        else:
            self._lanes.add(_REUSES)

    def _born(self, lane: int, number: int) -> None:
        place = self._random.choice(tuple(self._places))
        folder = self._places[place]
        parent = os.getpid()
        into = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if self._into and self._random.random() < 0.5 else None
        try:
            pid = clone(number, into)
        finally:
            if into is not None:
                os.close(into)
        if pid == 0:
            _live(parent)
        self._lanes.add(_FORKS)
        self._pids[lane] = pid
        if into is None:
            self._enter(pid, folder)
        self._at[lane] = place
        self._lanes.end(lane, pid, inode(pid), place)

    def _move(self, lane: int) -> None:
        place = self._random.choice(tuple(self._places))
        if place == self._at[lane]:
            return
        self._lanes.begin(lane)
        pid = self._pids[lane]
        self._enter(pid, self._places[place])
        self._at[lane] = place
        self._lanes.add(_MOVES)
        self._lanes.end(lane, pid, inode(pid), place)

    def _exec(self, lane: int) -> None:
        # Who it is does not change by that, and so nobody has to be told.
        os.kill(self._pids[lane], signal.SIGUSR1)
        self._lanes.add(_EXECS)

    def _die(self, lane: int) -> None:
        if self._at[lane] != DEAD:
            self._lanes.begin(lane)
            self._kill(lane)
            self._lanes.end(lane, self._pids[lane], 0, DEAD)

    def _kill(self, lane: int) -> None:
        if self._at[lane] != DEAD:
            os.kill(self._pids[lane], signal.SIGKILL)
            os.waitpid(self._pids[lane], 0)
            self._at[lane] = DEAD

    def _enter(self, pid: int, folder: str) -> None:
        fd = os.open(f"{folder}/cgroup.procs", os.O_WRONLY)
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)

    # ---- containers ----

    def _restart(self) -> bool:
        """A container dies with everybody in it, and comes back by another ID; False when all is over."""
        place = self._random.choice(self._restartable)
        for lane in range(LANES):
            if self._at[lane] == place:
                self._die(lane)
        folder = self._places.pop(place)
        # First, as a runtime does it: the new one is made once nothing is left of the old one.
        while os.path.exists(folder):
            with suppress(OSError):
                os.rmdir(folder)
            time.sleep(0.001)
        print(json.dumps({"restart": place}), flush=True)
        line = self._stdin.readline()
        if not line:
            return False
        number, folder = json.loads(line)
        self._places[number] = folder
        self._restartable[self._restartable.index(place)] = number
        self._lanes.add(_RESTARTS)
        return True


def _live(parent: int) -> None:
    """A child's whole life: it waits, and becomes another program when told so."""
    try:
        end_with(parent)
        signal.sigwait({signal.SIGUSR1})
        os.execv(_PROGRAM, [_PROGRAM, "infinity"])  # noqa: S606, there is no shell in it
    finally:
        os._exit(1)


def main() -> None:
    """Plays."""
    parent, fd, seed = (int(word) for word in sys.argv[1:4])
    end_with(parent)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    told = json.loads(sys.stdin.buffer.readline())
    places = {int(number): folder for number, folder in told["places"]}
    Actor(Lanes(fd), places, told["restartable"], told["home"], into=told["v2"], seed=seed).play()


if __name__ == "__main__":
    main()
