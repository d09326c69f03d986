"""What kernel tests work with: awkward processes, cgroups that go away again, and the programs attached."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.waiting import SLOW, until
from tracer.kernel import bpf, cgroupfs, procfs
from tracer.kernel.cgroupfs import Mount
from tracer.kernel.loader import Programs, sources
from tracer.kernel.slots import Slot, TableSlots
from tracer.model import CgroupEvent, ProcessEvent

BINARY = Path(__file__).with_name("lab.c")
BPF_MAP_DELETE_ELEM = 3


def compile_lab(folder: Path) -> Path:
    """The helper program, statically linked so that it starts fast and runs in any container.

    Where there is no compiler ``PODTRACER_TEST_LAB`` names one that was made elsewhere.
    """
    if made := os.environ.get("PODTRACER_TEST_LAB"):
        return Path(made)
    out = folder / "lab"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-static", "-pthread", "-o", out, BINARY], check=True, timeout=60)
    return out


class Helper:
    """One run of the helper program; ends with its standard input."""

    def __init__(self, binary: Path, *words: str | int) -> None:
        self._child = subprocess.Popen(
            [binary, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._child.pid

    def number(self) -> int:
        """The next number that it prints."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line, f"the helper ended with {self._child.wait()} before it said anything"
        return int(line)

    def finish(self) -> int:
        """Lets it end, and its children with it; its exit status."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            return self._child.wait(20 * SLOW)
        finally:
            if self._child.returncode is None:
                self._child.send_signal(signal.SIGKILL)
                self._child.wait()
            self._child.stdout.close()

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


class Cgroup:
    """A cgroup of one hierarchy, removed with all below it."""

    def __init__(self, mount: Mount, path: str) -> None:
        self.mount = mount
        self.path = path
        self.folder = Path(mount.path + path)
        self._made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        self.folder.mkdir(parents=True)
        self.id = self.folder.stat().st_ino

    @property
    def procs(self) -> Path:
        """The file that a PID is written to."""
        return self.folder / "cgroup.procs"

    def add(self, pid: int) -> None:
        """Moves a process here."""
        self.procs.write_text(str(pid))

    def remove(self) -> None:
        """Kills what is left in it and removes it, and the parents that were made for it."""
        if self.folder.exists():
            for folder, _, _ in os.walk(self.folder, topdown=False):
                self._empty(Path(folder))
                until(lambda folder=folder: _rmdir(Path(folder)), 10, f"{folder} to be removable")
        for folder in self._made[1:]:
            with contextlib.suppress(OSError):
                folder.rmdir()

    @staticmethod
    def _empty(folder: Path) -> None:
        if (kill := folder / "cgroup.kill").exists():
            kill.write_text("1")  # finds a process whose leader is dead as well, which cgroup.procs does not list
            return
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


class Kernel:
    """The programs, attached to one hierarchy, without index: slots and records as the kernel gives them."""

    def __init__(
        self,
        *,
        flags: Sequence[str] = (),
        source_dir: Path | None = None,
        force: Sequence[str] = (),
        hierarchy: str | None = None,
        all_births: bool = False,
        all_moves: bool = False,
    ) -> None:
        self.programs = Programs(flags=flags, source_dir=source_dir, force=force)
        found = self.programs.read_iterator()
        header = found[0] if found else None
        self.mounts = {
            mount.name: mount
            for mount in cgroupfs.find_mounts(
                "/sys/fs/cgroup", "/proc", self.programs.controllers, header.hierarchies if header else None
            )
        }
        # The best first, as the tracer takes it; what else there is comes after.
        self.mount = self.mounts[hierarchy] if hierarchy else next(iter(self.mounts.values()))
        self.elsewhere = next((name for name, mount in self.mounts.items() if mount is not self.mount), None)
        self.programs.configure(
            hierarchy=self.mount.info,
            ns_level=0,
            ns_inum=0,
            all_births=all_births,
            report_unseen=header is None,
            all_moves=all_moves,
        )
        self.programs.attach()

    def scan(self) -> list[ProcessEvent]:
        """Runs the iterator."""
        found = self.programs.read_iterator()
        assert found is not None
        return [ProcessEvent._make(record) for record in found[1]]

    def slot(self, pid: int) -> Slot | None:
        """The process's slot."""
        return self.programs.slots.read(pid)

    def tells(self, ino: int, pid: int) -> bool:
        """Whether this is what tells the process from all others that had its PID."""
        return tells(ino, pid, pidfs=self.programs.features.pidfs)

    def records(self, pid: int | None = None) -> list[ProcessEvent]:
        """The unread records, of one PID perhaps."""
        events = [ProcessEvent._make(record) for record in self.programs.processes.drain()]
        return [event for event in events if pid is None or event.pid == pid]

    def births(self) -> list[CgroupEvent]:
        """The unread cgroup records."""
        return [CgroupEvent._make((*r[:-2], r[-1][: r[-2]])) for r in self.programs.cgroups.drain()]

    def close(self) -> None:
        """Detaches everything."""
        self.programs.close()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mutated(folder: Path, *changes: tuple[str, str]) -> Path:
    """The BPF sources with some text replaced: the plausible version that a test has to tell from the right one."""
    copy = folder / "bpf"
    shutil.copytree(sources(), copy)
    program = copy / "tracer.bpf.c"
    text = program.read_text()
    for old, new in changes:
        assert text.count(old) == 1, f"found {text.count(old)} times: {old}"
        text = text.replace(old, new)
    program.write_text(text)
    return copy


def tells(ino: int, pid: int, *, pidfs: bool) -> bool:
    """Whether the number tells the living process from others of its PID: its pidfd's inode, or, before pidfs, its
    start time, which ``/proc`` has to the tick."""
    if pidfs:
        return ino == pidfd_inode(pid)
    seen = procfs.stat("/proc", pid)
    return seen is not None and seen.start <= ino < seen.start + 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def empty_slot(programs: Programs, pid: int) -> None:
    """Leaves a living process without a slot, as a lost update of a full table does."""
    if isinstance(programs.slots, TableSlots):
        # A sweep that believes everyone alive but this one empties just its slot.
        found = programs.read_iterator()
        assert found is not None
        assert programs.slots.sweep({record[1]: record[6] for record in found[1] if record[1] != pid}) >= 1
    else:
        key = ctypes.c_uint32(pid)
        bpf._bpf(BPF_MAP_DELETE_ELEM, struct.pack("<IIQ", programs._fds["map:spill"], 0, ctypes.addressof(key)))


def pidfd_inode(pid: int) -> int:
    """The inode of the process's pidfd."""
    fd = os.pidfd_open(pid)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)
