"""Mounted cgroup hierarchies: which there are, and a cgroup's name chain by its id.

``open_by_handle_at`` opens a cgroup by its id (file handle type 0xfe, FILEID_KERNFS, kernel commit 33c5ac9175195),
without walking the tree. On a mount of a private cgroup namespace it opens cgroups outside of it as well, whose path
then reads "/" without an error: a mount is trusted only when its root directory is the hierarchy's own root.

By a path a cgroup is found with openat2(2), which never leaves the mount: what lies on another one, mounted over a
cgroup or the whole tree, has inodes too, which are no cgroup's ids.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tracer.errors import MissingError
from tracer.kernel import wire
from tracer.kernel.loader import HierarchyInfo

_O_PATH = 0o10000000
_FILEID_KERNFS = 0xFE
_INITIAL_CGROUP_NAMESPACE = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO
# Where v1 and BTF name a controller differently.
_V1_NAMES = {"blkio": "io"}
# Asked in this order where nothing else decides.
_PREFERENCE = ("pids", "memory", "cpu")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.syscall.restype = ctypes.c_long
_OPENAT2 = 437  # on every architecture
_RESOLVE = 0x01 | 0x04 | 0x08  # RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH


class _Handle(ctypes.Structure):
    _layout_ = "ms"  # what _pack_ means; from Python 3.14 on it has to be said
    _pack_ = 4
    _fields_ = (("size", ctypes.c_uint32), ("type", ctypes.c_int32), ("id", ctypes.c_uint64))


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy. ``trusted``: its root directory is the hierarchy's root, so that paths on it are whole."""

    path: str
    controllers: tuple[str, ...]
    info: HierarchyInfo
    trusted: bool

    @property
    def name(self) -> str:
        """``v2``, or the controllers of a v1 hierarchy."""
        return ",".join(self.controllers) or "v2"


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(text: str, below: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(mount point, root, options) of each cgroup mount at or below a folder; ``("v2",)`` as options of v2.

    See proc_pid_mountinfo(5): the fields before and after a separate "-".
    """
    for line in text.splitlines():
        fields = line.split(" ")
        if "-" not in fields[6:]:
            continue
        kind_at = fields.index("-", 6) + 1
        if len(fields) < kind_at + 3 or fields[kind_at] not in ("cgroup", "cgroup2"):
            continue
        point = _unescape(fields[4])
        if point != below and not point.startswith(below.rstrip("/") + "/"):
            continue
        options = ("v2",) if fields[kind_at] == "cgroup2" else tuple(fields[kind_at + 2].split(","))
        yield point, _unescape(fields[3]), options


def is_initial(procfs: str) -> bool:
    """Whether we are in the initial cgroup namespace, in which ``/proc`` shows whole paths."""
    return os.stat(os.path.join(procfs, "self/ns/cgroup")).st_ino == _INITIAL_CGROUP_NAMESPACE


def _visible(text: str) -> dict[str, str]:
    """The line of mountinfo of what is seen at each mount point: of several the one that was mounted last."""
    lines = (line for line in text.splitlines() if line.count(" ") > 5)
    return {_unescape(line.split(" ")[4]): line for line in lines}


def find_mounts(
    cgroupfs: str,
    procfs: str,
    controllers: Mapping[str, int],
    hierarchies: Sequence[HierarchyInfo] | None,
) -> list[Mount]:
    """The mounts that can be tracked, best first. Raises ``MissingError`` where there is none.

    ``controllers`` is the kernel's numbering; ``hierarchies`` what the iterator told, ``None`` without it: then the
    numbers come from ``/proc/self/cgroup``, and a mount is trusted in the initial cgroup namespace.
    """
    try:
        text = Path(procfs, "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise MissingError(
            f"procfs cannot be read: {error.strerror}", procfs, "name its place with --procfs"
        ) from error
    told = {info.subsys: info for info in hierarchies or _from_procfs(procfs, controllers)}
    initial = is_initial(procfs)
    found: dict[int, Mount] = {}
    visible = _visible(text)
    for point, root, options in parse_mountinfo(text, cgroupfs):
        if options == ("v2",):
            names: tuple[str, ...] = ()
            subsys = wire.V2
        else:
            names = tuple(name for name in options if _V1_NAMES.get(name, name) in controllers)
            if not names:
                continue  # name=systemd has no controller by which a task's cgroup could be found
            subsys = controllers[_V1_NAMES.get(names[0], names[0])]
        info = told.get(subsys)
        if info is None or (subsys != wire.V2 and info.hierarchy == 0):
            continue
        try:
            seen = os.stat(point)
        except OSError:
            continue
        shown = visible[point]
        device = f"{os.major(seen.st_dev)}:{os.minor(seen.st_dev)}"
        if device != shown.split(" ")[2] or (point, root, options) not in parse_mountinfo(shown, point):
            continue  # another mount lies over it, or over what it is in: its inodes are no ids of this hierarchy
        inode = seen.st_ino
        trusted = inode == info.root if info.root else initial and root == "/"
        mount = Mount(point, names, HierarchyInfo(info.subsys, info.hierarchy, info.root or inode), trusted)
        if info.hierarchy not in found or (trusted and not found[info.hierarchy].trusted):
            found[info.hierarchy] = mount
    if not found:
        raise MissingError("no cgroup hierarchy is mounted", cgroupfs, "mount one, or name its place with --cgroupfs")
    return sorted(found.values(), key=_rank)


def _rank(mount: Mount) -> tuple[int, str]:
    if not mount.controllers:
        return -1, ""
    places = [_PREFERENCE.index(name) for name in mount.controllers if name in _PREFERENCE]
    return min(places, default=len(_PREFERENCE)), mount.name


def _from_procfs(procfs: str, controllers: Mapping[str, int]) -> Iterator[HierarchyInfo]:
    for line in Path(procfs, "self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        number, names, _ = line.split(":", 2)
        if not names:
            yield HierarchyInfo(wire.V2, 0, 0)
        for name in names.split(","):
            subsys = controllers.get(_V1_NAMES.get(name, name))
            if subsys is not None:
                yield HierarchyInfo(subsys, int(number), 0)


class CgroupNames:
    """Name chains of the cgroups of one mount, by id. Needs CAP_DAC_READ_SEARCH."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self._fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._handle = _Handle(8, _FILEID_KERNFS, 0)

    def _open(self, cgroup: int) -> int:
        """A descriptor of the cgroup's directory, for its path and attributes alone; -1 where it is removed."""
        self._handle.id = cgroup
        fd: int = _libc.open_by_handle_at(self._fd, ctypes.addressof(self._handle), _O_PATH | os.O_CLOEXEC)
        return fd

    def attributes(self, cgroup: int) -> tuple[int, int] | None:
        """(user ID of the owner, mode) of a cgroup's directory; ``None`` where it is removed."""
        fd = self._open(cgroup)
        if fd < 0:
            return None
        try:
            found = os.fstat(fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        return found.st_uid, found.st_mode

    def _path(self, cgroup: int) -> str | None:
        fd = self._open(cgroup)
        if fd < 0:
            return None  # ESTALE
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return None  # ENAMETOOLONG: who may write a cgroup can nest it deeper than a path can be long
        finally:
            os.close(fd)

    def chain(self, cgroup: int) -> list[tuple[int, str]] | None:
        """(id, name) of each cgroup from below the root down to this one; empty for the root itself.

        ``None`` where it cannot be told: removed, a path of more than 4,095 bytes, or a mount whose paths are not to be
        trusted. Names are decoded as everywhere (``backslashreplace``).
        """
        if not self.mount.trusted:
            return None
        if cgroup == self.mount.info.root:
            return []
        path = self._path(cgroup)
        base = self.mount.path.rstrip("/") + "/"
        if path is None or not path.startswith(base):
            return None
        links, at = [], base
        try:
            for name in path[len(base) :].split("/"):
                at += name
                links.append((os.stat(at).st_ino, readable(os.fsencode(name))))
                at += "/"
        except OSError:
            return None  # removed or renamed meanwhile
        return links if links[-1][0] == cgroup else None

    def find(self, path: str) -> int | None:
        """The id of the cgroup with this path from the root, as ``/proc`` has it; ``None`` where there is none, where
        another mount lies on the way, and on a mount whose paths are not to be trusted."""
        if not self.mount.trusted:
            return None
        how = _How(_O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE)
        name = os.fsencode(path.strip("/") or ".")
        fd = _libc.syscall(_OPENAT2, self._fd, name, ctypes.addressof(how), ctypes.sizeof(how))
        if fd < 0:
            return None
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def path(self, cgroup: int) -> str | None:
        """The path of a cgroup from the root, as ``/proc`` has it; ``None`` where it cannot be told."""
        if cgroup == self.mount.info.root:
            return "/" if self.mount.trusted else None
        opened, base = self._path(cgroup), self.mount.path.rstrip("/")
        if opened is None or not opened.startswith(base + "/"):
            return None
        path = opened[len(base) :]
        return path if self.find(path) == cgroup else None

    def close(self) -> None:
        """Closes the mount."""
        os.close(self._fd)


class Ownership:
    """Whether the cgroups above a container's belong to root, and nobody else may write them, in one hierarchy: then
    nobody but root can have made what is below them. ``prefix`` is the operator's word (``--cgroup-prefix``): what is
    above it is not looked at, and below it its own owner counts as root does.

    Attributes are read each time: a directory may be given away after it was made, as systemd delegates a subtree, but
    then it is given away before anything is made in it. What was read last is kept for directories that are removed.
    """

    _MOST = 4096

    def __init__(self, names: CgroupNames, prefix: str | None = None) -> None:
        self._names = names
        self._prefix = prefix
        self._above = None if prefix is None else len(_segments(prefix))
        self._kept: dict[int, tuple[int, int]] = {}

    def guards(self, cgroups: Sequence[int]) -> bool | None:
        """Whether this is so of the root and of these cgroups, from below the root downwards; ``None`` where it cannot
        be told, as of a cgroup that was removed before it was first looked at."""
        return _are_roots([self._names.mount.info.root, *cgroups], self._above, self._read)

    def is_writable(self, cgroup: int) -> bool:
        """Whether others may make cgroups in this one, by itself alone; False where it is removed."""
        found = self._names.attributes(cgroup)
        if found is None or not _is_others(found, {0}):
            return False
        top = self._names.find(self._prefix) if self._prefix is not None else None
        owner = self._names.attributes(top) if top is not None else None
        return owner is None or _is_others(found, {0, owner[0]})

    def _read(self, cgroup: int) -> tuple[int, int] | None:
        found = self._names.attributes(cgroup)
        if found is None:
            return self._kept.get(cgroup)
        self._kept.pop(cgroup, None)
        self._kept[cgroup] = found
        if len(self._kept) > self._MOST:
            del self._kept[next(iter(self._kept))]
        return found


def guards_path(mount: Mount, path: str, prefix: str | None = None) -> bool | None:
    """The same of all cgroups above the one with this path, by their paths: for hierarchies that are not tracked."""

    def read(folder: str) -> tuple[int, int] | None:
        try:
            found = os.lstat(folder)
        except (OSError, ValueError):
            return None
        return found.st_uid, found.st_mode

    folders = [mount.path.rstrip("/")]
    for name in _segments(path)[:-1]:
        folders.append(f"{folders[-1]}/{name}")
    return _are_roots(folders, None if prefix is None else len(_segments(prefix)), read)


_Directory = TypeVar("_Directory")


def _are_roots(
    directories: Sequence[_Directory], above: int | None, read: Callable[[_Directory], tuple[int, int] | None]
) -> bool | None:
    """``directories`` from the hierarchy's root downwards; the one at ``above`` is the prefix, where there is one."""
    owners = {0}
    for depth, directory in enumerate(directories):
        if above is not None and depth < above:
            continue
        found = read(directory)
        if found is None:
            return None
        if depth == above:
            owners.add(found[0])
        if _is_others(found, owners):
            return False
    return True


def _is_others(found: tuple[int, int], owners: set[int]) -> bool:
    """Whether others than these may write a directory with this owner and mode."""
    uid, mode = found
    return uid not in owners or bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def is_populated(folder: str) -> bool:
    """Whether a process is in the cgroup or in one below it: v2 tells; on v1 one level below is looked at."""
    try:
        events = Path(folder, "cgroup.events").read_bytes()
    except OSError:
        events = b""
    if events:
        return b"populated 1" in events
    try:
        if Path(folder, "cgroup.procs").read_bytes().strip():
            return True
        with os.scandir(folder) as inside:
            return any(
                entry.is_dir(follow_symlinks=False) and Path(entry.path, "cgroup.procs").read_bytes().strip()
                for entry in inside
            )
    except OSError:
        return False


def readable(name: bytes) -> str:
    """A cgroup's name or a process's as text; bytes that are no UTF-8 read ``\\xNN``."""
    return name.decode("utf-8", "backslashreplace")


def walk(mount: Mount) -> Iterator[tuple[str, bool]]:
    """(path below the mount, whether a process is in it) of every cgroup of a hierarchy."""
    for folder, _, _ in os.walk(mount.path):
        try:
            populated = bool(Path(folder, "cgroup.procs").read_bytes().strip())
        except OSError:
            populated = False
        yield folder[len(mount.path.rstrip("/")) :] or "/", populated
