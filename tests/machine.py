"""What tests start and make on a machine, and how all of it is removed again.

Whatever may outlive the Python process that made it (daemons, mounts, cgroups) is found again from files or
from the kernel, so that a later process can clean up after a crash.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import until


@dataclass(frozen=True, slots=True)
class Process:
    """A process by PID and start time (clock ticks since boot): a reused PID is never taken for it."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this PID now. Raises ``ProcessLookupError``."""
        return cls(pid, _stat(pid)[1])

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            state, start_time = _stat(self.pid)
        except ProcessLookupError:
            return False
        return start_time == self.start_time and state not in "ZX"

    def signal(self, number: int) -> None:
        """Send a signal to this process, or to nobody when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)  # from here on the PID cannot become another process under our hands
            try:
                if self.alive():
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start time from ``/proc/PID/stat``; the name before them may hold any character."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])


def end(processes: Iterable[Process], *, grace: float = 10) -> None:
    """SIGTERM to all processes, after ``grace`` seconds SIGKILL to what is left; none is alive on return."""
    left = [process for process in processes if process.alive()]
    for process in left:
        process.signal(signal.SIGTERM if grace else signal.SIGKILL)
    deadline = time.monotonic() + grace
    while left := [process for process in left if process.alive()]:
        if time.monotonic() >= deadline:
            for process in left:
                process.signal(signal.SIGKILL)
            until(lambda: not any(process.alive() for process in left), 10, f"the end of {left} after SIGKILL")
        time.sleep(0.01)


class Daemons:
    """Daemons that run on without us: ``FOLDER/NAME.pid`` says which process, ``NAME.log`` what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        """Where a daemon's output is."""
        return self.folder / f"{name}.log"

    def start(self, name: str, argv: Sequence[str | Path]) -> Process:
        """Start a daemon in a session of its own, so that a terminal's Ctrl-C is not for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        process = Process.of(child.pid)
        self._children[name] = child
        (self.folder / f"{name}.pid").write_text(f"{process.pid} {process.start_time}\n")
        return process

    def recorded(self) -> dict[str, Process]:
        """Every daemon with a record, alive or not."""
        found = {}
        for record in sorted(self.folder.glob("*.pid")):
            with contextlib.suppress(ValueError):  # cut short by a crash while it was written
                pid, start_time = record.read_text().split()
                found[record.stem] = Process(int(pid), int(start_time))
        return found

    def alive(self, name: str) -> bool:
        """Whether the daemon of this name runs."""
        process = self.recorded().get(name)
        return process is not None and process.alive()

    def stop(self, *names: str, grace: float = 10) -> None:
        """End the daemons of these names together (``grace`` as of ``end``), and forget them."""
        recorded = self.recorded()
        end([recorded[name] for name in names if name in recorded], grace=grace)
        for name in names:
            if child := self._children.pop(name, None):
                child.wait()
            (self.folder / f"{name}.pid").unlink(missing_ok=True)


def processes_with_argument(argument: str | Path) -> list[Process]:
    """Every process that has exactly this argument on its command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                process = Process.of(int(folder.name))
                if os.fsencode(argument) in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.append(process)
    return found


def mounts() -> list[tuple[Path, str]]:
    """Every mount of this mount namespace as (mount point, file system type), in the order they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        point = fields[4].encode().decode("unicode_escape")  # space, tab, newline and backslash are octal
        found.append((Path(point), fields[fields.index("-") + 1]))
    return found


def unmount_below(folder: Path) -> None:
    """Unmount everything below a folder, the newest first."""
    folder = folder.resolve()
    for point, _ in reversed(mounts()):
        if point.is_relative_to(folder):
            subprocess.run(["umount", "--no-mtab", "--lazy", point], check=True)


def hierarchies() -> dict[Path, str]:
    """The cgroup file systems mounted here: mount point → ``cgroup`` (v1) or ``cgroup2``."""
    return {point: kind for point, kind in mounts() if kind in ("cgroup", "cgroup2")}


def cgroup_folders(path: str) -> list[Path]:
    """The folders of the cgroup ``path`` (``/a/b``) in those hierarchies that have it."""
    return [folder for root in hierarchies() if (folder := root / path.lstrip("/")).is_dir()]


def make_cgroup(path: str) -> None:
    """Make the cgroup ``/name`` in every hierarchy, fit to hold others.

    A v1 cpuset takes no process before it has been told its CPUs and memory nodes; in v2 the root has to hand
    its controllers down.
    """
    for root, kind in hierarchies().items():
        folder = root / path.lstrip("/")
        folder.mkdir(exist_ok=True)
        if kind == "cgroup2":
            for controller in (root / "cgroup.controllers").read_text().split():
                (root / "cgroup.subtree_control").write_text(f"+{controller}")
        for name in ("cpuset.cpus", "cpuset.mems"):
            if kind == "cgroup" and (folder / name).exists():
                (folder / name).write_text((root / name).read_text())


def kill_cgroup(path: str) -> None:
    """Kill every process in a cgroup, and below it, in any hierarchy; done when none is left."""

    def kill_all() -> bool:
        processes = [process for folder in cgroup_folders(path) for process in _processes_below(folder)]
        for process in processes:
            process.signal(signal.SIGKILL)
        return not processes

    until(kill_all, 30, f"the processes of cgroup {path} to die")


def _processes_below(folder: Path) -> list[Process]:
    found = []
    for directory, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):  # a cgroup that has been removed meanwhile
            for pid in Path(directory, "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    found.append(Process.of(int(pid)))
    return found


def remove_cgroup(path: str) -> None:
    """Kill what is in a cgroup, then remove it and all below it from every hierarchy."""
    kill_cgroup(path)
    for folder in cgroup_folders(path):
        for directory, _, _ in os.walk(folder, topdown=False):
            until(lambda directory=directory: _rmdir(Path(directory)), 10, f"cgroup {directory} to be removable")


def _rmdir(folder: Path) -> bool:
    """Remove a cgroup, if the kernel lets us: for an instant after its last process has died it does not."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


class CgroupsMade:
    """Remembers which of the cgroups that a test asks for were not there, and removes just those."""

    def __init__(self) -> None:
        self._made: dict[Path, None] = {}

    def about_to_make(self, path: str) -> None:
        """Note, before anyone makes the cgroup ``path``, which of it and its parents are missing where."""
        for root in hierarchies():
            folder = root / path.lstrip("/")
            for each in (*reversed(folder.relative_to(root).parents[:-1]), folder.relative_to(root)):
                if not (root / each).exists():
                    self._made[root / each] = None

    def remove(self) -> None:
        """Remove them, the deepest first; what others use by now stays."""
        for folder in sorted(self._made, key=lambda folder: len(folder.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._made.clear()
