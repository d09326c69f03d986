"""A user who wants to be another's pod: owns a delegated subtree of cgroups, and calls what is in it like containers.

``python -m tracer.bench.user PARENT FD SEED``, as root, which it gives up. First line: ``{"uid": N, "folders": [folder,
…], "v2": bool, "first": number, "names": [[pod UID, container ID], …]}``: a delegated folder of each hierarchy, that of
the pods first; and the number of the place that stands for the first of ``FORMS``, on which the others follow, and
``init``. It answers ``true`` once all its processes are there. Each further line is another list of names, as pods come
and go. Until the end of its input it makes cgroups of all forms after these names, has processes enter and leave them
and end there, and removes them; what its processes are is written down (``lanes``) as an actor's is.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from tracer.bench.children import clone, end_with, inode
from tracer.bench.lanes import COUNTS, LANES, Lanes

UID = 65534  # "nobody", who is on every machine
_MOVES, _FORKS, _NAMES = (COUNTS.index(name) for name in ("moves", "forks", "names"))
_LEFT = 72  # names that stay, in all hierarchies together, before the oldest is removed
# Seconds in which it makes names, and in which it only enters those that are there, in turn: the birth of a cgroup has
# the tracer read all records at once, and they are to be lost as well.
_TURN = 0.25
_EMPTY = 2  # names that nobody enters, for each act
_PAUSE = 0.0005  # seconds between two acts: the others are to get their turn on a machine of two processors
_FOREIGN = "d" * 64  # the ID of a container that no list has


def _slice(uid: str) -> str:
    return f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"


def _cgroupfs(uid: str, container: str) -> str:
    return f"kubepods/burstable/pod{uid}/{container}"


FORMS: dict[str, Callable[[str, str], str]] = {
    "cgroupfs": _cgroupfs,
    "systemd": lambda uid, container: (
        f"kubepods.slice/kubepods-burstable.slice/{_slice(uid)}/cri-containerd-{container}.scope"
    ),
    "colon": lambda uid, container: f"{_slice(uid)}:cri-containerd:{container}",
    "ID alone": lambda _, container: container,
    "below a container": lambda uid, container: f"docker/{_FOREIGN}/{_cgroupfs(uid, container)}",
    "below a monitor": lambda _, container: f"crio-conmon-{container}.scope/crio-{container}.scope",
}
"""The path of a container's cgroup, by the pod's UID and the container's ID, as kubelets and runtimes write it."""


class User:
    """The user's processes and cgroups. ``folders`` are those that it owns, that beside the pods first; ``into`` says
    whether processes can be born in the cgroups of that one."""

    def __init__(
        self, lanes: Lanes, folders: list[str], first: int, names: list[list[str]], *, into: bool, seed: int
    ) -> None:
        self._lanes = lanes
        self._folders = folders
        self._into = into
        self._first = first
        self._names = names
        self._random = random.Random(seed)  # noqa: S311, a play and no secret
        self._pids = [0] * LANES
        self._made: deque[tuple[int, int, str]] = deque()
        self._stdin = sys.stdin.buffer

    def play(self) -> None:
        """Until the end of the input."""
        poll = select.poll()
        poll.register(self._stdin, select.POLLIN | select.POLLHUP)
        for lane in range(LANES):
            self._replace(lane)
        print("true", flush=True)
        while True:
            if poll.poll(0):
                line = self._stdin.readline()
                if not line:
                    break
                self._names = json.loads(line)
            lane = self._random.randrange(LANES)
            if self._random.random() < 0.2:
                self._replace(lane)
            else:
                self._move(lane)
            for _ in range(0 if _is_calm() else _EMPTY):
                self._make(self._random.randrange(len(self._folders)), self._random.choice(self._names))
            self._remove_oldest()
            time.sleep(_PAUSE)
        for pid in self._pids:
            _end(pid)

    def _replace(self, lane: int) -> None:
        """The process ends, and another one takes its part in another cgroup: born there, or moved there."""
        self._lanes.begin(lane)
        if self._pids[lane]:
            _end(self._pids[lane])
        form, folder = self._choose(lane)
        into = None
        if self._into and self._random.random() < 0.5:
            into = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        parent = os.getpid()
        pid = clone(0, into)
        if pid == 0:
            _live(parent)
        if into is None:
            _enter(pid, folder)
        else:
            os.close(into)
        self._pids[lane] = pid
        self._enter_others(lane)
        self._lanes.add(_FORKS)
        self._lanes.end(lane, pid, inode(pid), self._first + form)

    def _move(self, lane: int) -> None:
        form, folder = self._choose(lane)
        pid = self._pids[lane]
        self._lanes.begin(lane)
        _enter(pid, folder)
        if not _is_calm():
            self._enter_others(lane)
        self._lanes.add(_MOVES)
        self._lanes.end(lane, pid, inode(pid), self._first + form)

    def _choose(self, lane: int) -> tuple[int, str]:
        """A cgroup beside the pods for a process: (form, folder). Where there is another hierarchy, every other process
        is in none that is called like a container."""
        if lane % 2 and len(self._folders) > 1:
            return len(FORMS), f"{self._folders[0]}/init"
        made = [(form, folder) for which, form, folder in self._made if which == 0] if _is_calm() else []
        return self._random.choice(made) if made else self._make(0, self._random.choice(self._names))

    def _enter_others(self, lane: int) -> None:
        """In every other hierarchy each process is in another container, so to speak: there seem to be more of them
        than beside the pods."""
        for which in range(1, len(self._folders)):
            _enter(self._pids[lane], self._make(which, self._names[lane % len(self._names)])[1])

    def _make(self, which: int, name: list[str]) -> tuple[int, str]:
        """A cgroup of this hierarchy that is called like this container, made where it is not there: (form, folder)."""
        form = self._random.randrange(len(FORMS))
        folder = f"{self._folders[which]}/{tuple(FORMS.values())[form](*name)}"
        if not os.path.isdir(folder):
            os.makedirs(folder)
            self._made.append((which, form, folder))
            self._lanes.add(_NAMES)
        return form, folder

    def _remove_oldest(self) -> None:
        for _ in range(len(self._made) - _LEFT):
            name = self._made.popleft()
            try:
                os.rmdir(name[2])
            except OSError:
                self._made.append(name)  # somebody is in it
                continue
            above = os.path.dirname(name[2])
            with suppress(OSError):  # until one is in use
                while above != self._folders[name[0]]:
                    os.rmdir(above)
                    above = os.path.dirname(above)


def _is_calm() -> bool:
    return time.monotonic() // _TURN % 2 == 1


def _enter(pid: int, folder: str) -> None:
    fd = os.open(f"{folder}/cgroup.procs", os.O_WRONLY)
    try:
        os.write(fd, str(pid).encode())
    finally:
        os.close(fd)


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _live(parent: int) -> None:
    """A child's whole life: it waits."""
    try:
        end_with(parent)
        while True:
            signal.pause()
    finally:
        os._exit(1)


def main() -> None:
    """Plays, as the user."""
    parent, fd, seed = (int(word) for word in sys.argv[1:4])
    end_with(parent)
    told = json.loads(sys.stdin.buffer.readline())
    for folder in told["folders"]:
        _enter(os.getpid(), f"{folder}/init")
    os.setgroups([])
    os.setresgid(*3 * (told["uid"],))
    os.setresuid(*3 * (told["uid"],))
    end_with(parent)  # anew: the kernel forgets it with the user
    User(Lanes(fd), told["folders"], told["first"], told["names"], into=told["v2"], seed=seed).play()


if __name__ == "__main__":
    main()
