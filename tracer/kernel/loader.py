"""Brings the programs into the kernel: compile in a child, map, attach, in that order, each once.

What this kernel can do is found by trying, never by its version; what was found stands in ``Features``. The ways that
are second best can be forced, to be tested: ``PODTRACER_FORCE=hash,procfs,starttime``.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import MissingError, PermissionMissing, TracerError, UsageError
from tracer.kernel import bpf, wire
from tracer.kernel.btf import VMLINUX
from tracer.kernel.memory import give_back
from tracer.kernel.rings import Ring
from tracer.kernel.slots import HashSlots, Slots, TableSlots

FORCEABLE = ("hash", "procfs", "starttime", "peercred")
_COMPILE_TIMEOUT = 120.0  # seconds; half a second on real machines, some under emulation
# The child is what fills a memory limit: have malloc give back what it can, and let it find modules where we do, this
# very package first, without running the site's start-up again (-S), which is 2 MB.
_CHILD_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parent.parent.parent), os.environ.get("PYTHONPATH"), *sys.path])
    ),
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
_TRACEPOINTS = {
    "fork": "sched_process_fork",
    "exec": "sched_process_exec",
    "exit": "sched_process_exit",
    "attach": "cgroup_attach_task",
    "transfer": "cgroup_transfer_tasks",
    "mkdir": "cgroup_mkdir",
    "rmdir": "cgroup_rmdir",
    "release": "cgroup_release",
    "rename": "cgroup_rename",
}
# A kernel without v1 cgroups has neither cpuset transfers nor renames.
_OPTIONAL = {"transfer", "rename"}


@dataclass(frozen=True, slots=True)
class Features:
    """Which way was taken: ``None`` stands for the first choice, else why it could not be had."""

    no_table: str | None
    no_iterator: str | None
    pidfs: bool
    missing_tracepoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HierarchyInfo:
    """A hierarchy as the kernel numbers it: ``subsys`` finds it from a task (``wire.V2`` for v2), ``root`` is the
    kernfs id of its root, 0 where that is not known."""

    subsys: int
    hierarchy: int
    root: int


@dataclass(frozen=True, slots=True)
class ScanHeader:
    """Who read the iterator: its PID namespace, and the hierarchies."""

    ns_level: int
    ns_inum: int
    hierarchies: tuple[HierarchyInfo, ...]


def forced(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The fall-backs that ``PODTRACER_FORCE`` asks for. Raises ``UsageError`` for a word it does not know."""
    words = tuple(word for word in environ.get("PODTRACER_FORCE", "").replace(" ", "").split(",") if word)
    for word in words:
        if word not in FORCEABLE:
            raise UsageError("unknown fall-back", f"PODTRACER_FORCE={word}", f"known: {', '.join(FORCEABLE)}")
    return words


def sources() -> Path:
    """Where the BPF sources are: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "bpf" if (package / "bpf").is_dir() else package.parent / "bpf"


def _compile(
    source_dir: Path, flags: Sequence[str], force: Sequence[str], btf_path: str
) -> tuple[dict[str, object], dict[str, int]]:
    """(what the child found, descriptors by name). Raises the errors that ``Programs`` documents."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    no_table = None
    if "hash" in force:
        no_table = "forced"
    elif bpf.refuses_exchange():
        no_table = "the kernel's programs have no atomic exchange"
    request = {
        "sources": str(source_dir),
        "flags": list(flags),
        "force": list(force),
        "btf": btf_path,
        "no_table": no_table,
    }
    # In memory: what is imported for a temporary file is not needed again.
    with ours, open(os.memfd_create("podtracer-compiler"), "w+b") as noise:
        with theirs:
            give_back()
            child = subprocess.Popen(
                [sys.executable, "-S", "-m", "tracer.kernel.compiler", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=noise,
                stderr=noise,
                env={**os.environ, **_CHILD_ENVIRONMENT},
            )
        try:
            ours.settimeout(_COMPILE_TIMEOUT)
            ours.send(json.dumps(request).encode())
            message, fds, _, _ = socket.recv_fds(ours, 1 << 18, 64)
        except OSError:
            message, fds = b"", []
        finally:
            if not _ended(child, 5.0):
                child.kill()
                child.wait()
        noise.seek(0)
        printed = noise.read().decode("utf-8", "backslashreplace")
    answer = json.loads(message) if message else {"error": "died", "detail": f"exit code {child.returncode}"}
    if "error" in answer:
        for fd in fds:
            os.close(fd)
        raise _failure(answer, printed)
    return answer, dict(zip(answer["names"], fds, strict=True))


def _ended(child: subprocess.Popen[bytes], timeout: float) -> bool:
    try:
        child.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _failure(answer: Mapping[str, str], printed: str) -> TracerError:
    """The error that the child's answer amounts to; what BCC printed goes along as a note for ``--debug``."""
    error: TracerError
    if answer["error"] == "known":
        return MissingError(answer["what"], answer["object"], answer["hint"])
    if answer["error"] == "bcc":
        error = MissingError(
            "the BPF compiler collection is not there",
            f"python module bcc: {answer['detail']}",
            "install the distribution's package python3-bpfcc; in a virtual environment use --system-site-packages",
        )
    elif answer["error"] == "permission":
        error = PermissionMissing(
            "the kernel refuses to load the programs", answer["detail"], "run as root, or with CAP_BPF and CAP_PERFMON"
        )
    else:
        error = MissingError(
            "the programs do not load on this kernel",
            answer["detail"],
            "run again with --debug for the compiler's and the verifier's words",
        )
    error.add_note(printed)
    return error


class Programs:
    """The programs, loaded and, once ``attach`` was called, attached; all is undone by ``close``.

    Raises ``MissingError`` without BTF, bcc or a kernel that takes the programs, ``PermissionMissing`` without the
    right to load them. ``flags`` are further compiler flags and ``source_dir`` other sources, both for tests.
    ``process_ring_pages``, a power of two, makes the ring of processes so small that it overflows, for whoever measures
    how losses are repaired.
    """

    def __init__(
        self,
        *,
        flags: Sequence[str] = (),
        source_dir: Path | None = None,
        force: Sequence[str] | None = None,
        btf_path: str = VMLINUX,
        process_ring_pages: int = wire.PROCESS_RING_PAGES,
    ) -> None:
        if process_ring_pages != wire.PROCESS_RING_PAGES:
            flags = (*flags, f"-DPROCESS_RING_PAGES={process_ring_pages}")
        words = forced() if force is None else tuple(force)
        answer, self._fds = _compile(source_dir or sources(), flags, words, btf_path)
        self.features = Features(
            no_table=_text(answer["no_table"]),
            no_iterator=_text(answer["no_iterator"]),
            pidfs=bool(answer["pidfs"]),
        )
        controllers = answer["controllers"]
        assert isinstance(controllers, dict)
        self.controllers: dict[str, int] = controllers
        self._links: list[int] = []
        self._iterator: int | None = None
        if "program:iterator" in self._fds:
            self._iterator = bpf.link_iterator(self._fds["program:iterator"])
        self._config_map = mmap.mmap(self._fds["map:settings"], mmap.PAGESIZE)
        self._tracked = memoryview(self._config_map)[:8].cast("Q")
        self._counter_map = mmap.mmap(self._fds["map:counters"], mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._counters = memoryview(self._counter_map)[: 8 * wire.COUNTER_COUNT].cast("Q")
        self.processes = Ring(self._fds["map:processes"], process_ring_pages, wire.PROCESS)
        self.cgroups = Ring(self._fds["map:cgroups"], wire.CGROUP_RING_PAGES, wire.CGROUP)
        self.slots: Slots = (
            TableSlots.mapped(self._fds["map:table"], self._fds["map:spill"])
            if "map:table" in self._fds
            else HashSlots.of_map(self._fds["map:spill"])
        )

    def configure(
        self,
        *,
        hierarchy: HierarchyInfo,
        ns_level: int,
        ns_inum: int,
        all_births: bool,
        report_unseen: bool,
        all_moves: bool = False,
    ) -> None:
        """Sets what the programs read at each event. May be called while they run: hierarchy and controller change
        in one store."""
        rest = (ns_level, ns_inum, int(all_births), int(report_unseen), 1, wire.WIRE_VERSION, int(all_moves), 0)
        struct.pack_into("<8I", self._config_map, 8, *rest)
        self._tracked[0] = hierarchy.hierarchy | hierarchy.subsys << 32

    def attach(self) -> None:
        """Attaches every hook. Raises ``MissingError`` naming a tracepoint that the kernel does not have."""
        missing = []
        for name, tracepoint in _TRACEPOINTS.items():
            try:
                self._links.append(bpf.attach_raw_tracepoint(tracepoint, self._fds[f"program:{name}"]))
            except OSError as error:
                if name not in _OPTIONAL:
                    raise MissingError(
                        "the kernel does not let a program attach",
                        f"raw tracepoint {tracepoint}: {error.strerror}",
                        "podtracer needs Linux 5.8 with cgroups and BPF",
                    ) from error
                missing.append(tracepoint)
        self.features = Features(self.features.no_table, self.features.no_iterator, self.features.pidfs, tuple(missing))

    def read_iterator(self) -> tuple[ScanHeader, list[tuple[int, ...]]] | None:
        """Runs the iterator, which writes the slots of all processes once ``configure`` was called; answers its
        header and a record for each process. ``None`` where there is no iterator."""
        if self._iterator is None:
            return None
        data = bpf.read_iterator(self._iterator)
        version, count, ns_level, ns_inum = wire.HEADER.unpack_from(data)
        assert version == wire.WIRE_VERSION, f"the programs write version {version}"
        end = wire.HEADER.size + count * wire.HIERARCHY.size
        hierarchies = tuple(
            HierarchyInfo(*fields) for fields in wire.HIERARCHY.iter_unpack(data[wire.HEADER.size : end])
        )
        return ScanHeader(ns_level, ns_inum, hierarchies), list(wire.PROCESS.iter_unpack(data[end:]))

    def counters(self) -> dict[str, int]:
        """The programs' own counts (enum counter), and ``missed``: runs that the kernel left out."""
        found = dict(zip(wire.COUNTERS, self._counters, strict=False))
        found["missed"] = sum(stats.get("recursion_misses", 0) for stats in self.stats().values())
        return found

    def lost(self) -> tuple[int, ...]:
        """The programs' own counts, in the order of ``wire.COUNTERS``: reads of memory only."""
        return tuple(self._counters[: len(wire.COUNTERS)])

    def stats(self) -> dict[str, dict[str, int]]:
        """The kernel's counts of each program, by name."""
        return {
            name.partition(":")[2]: bpf.program_stats(fd)
            for name, fd in self._fds.items()
            if name.startswith("program:")
        }

    def close(self) -> None:
        """Detaches all programs and frees the maps."""
        self._config_map_release()
        self.processes.close()
        self.cgroups.close()
        self.slots.close()
        for fd in self._links:
            os.close(fd)
        if self._iterator is not None:
            os.close(self._iterator)
        for fd in self._fds.values():
            os.close(fd)
        self._links, self._iterator, self._fds = [], None, {}

    def _config_map_release(self) -> None:
        self._tracked.release()
        self._config_map.close()
        self._counters.release()
        self._counter_map.close()


def _text(value: object) -> str | None:
    return None if value is None else str(value)
