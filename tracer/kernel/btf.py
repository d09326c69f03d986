"""Struct offsets, sizes and enum values of the running kernel, read from its BTF.

The programs are compiled with these as ``-D`` macros, so that no kernel struct is ever read through a header: the
headers of another kernel compile just as well and read the wrong bytes, silently.

Format: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import contextlib
import struct
from array import array
from collections.abc import Mapping

from tracer.errors import MissingError

VMLINUX = "/sys/kernel/btf/vmlinux"

_MAGIC = 0xEB9F
_STRUCT, _UNION, _ENUM, _ENUM64 = 4, 5, 6, 19
_MODIFIERS = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type_tag
# u32 words that follow the three of every type: fixed, and for each of its vlen members.
_FIXED = {1: 1, 3: 3, 14: 1, 17: 1}
_EACH = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}


class Btf:
    """The type information of a kernel; ``raw`` is the content of ``/sys/kernel/btf/vmlinux``."""

    def __init__(self, raw: bytes) -> None:
        try:
            magic, _, _, header, type_off, type_len, str_off, str_len = struct.unpack_from("<HBBIIIII", raw)
        except struct.error:
            magic = 0
        if magic != _MAGIC:
            raise MissingError("the kernel's BTF cannot be read", VMLINUX, "it is no BTF of this byte order")
        self._strings = raw[header + str_off : header + str_off + str_len]
        self._words = array("I", raw[header + type_off : header + type_off + type_len])
        self._starts, self._named = self._walk()

    def _walk(self) -> tuple[array[int], dict[int, int]]:
        """Where each type starts, and which struct, union or enum has a name (by the name's offset)."""
        words, starts = self._words, array("I", [0])
        named: dict[int, int] = {}
        fixed = [_FIXED.get(kind, 0) + 3 for kind in range(32)]
        each = [_EACH.get(kind, 0) for kind in range(32)]
        at, end = 0, len(words)
        append = starts.append
        while at < end:
            append(at)
            info = words[at + 1]
            kind = info >> 24 & 31
            if kind in (_STRUCT, _UNION, _ENUM, _ENUM64) and words[at]:
                named.setdefault(words[at], len(starts) - 1)
            at += fixed[kind] + each[kind] * (info & 0xFFFF)
        return starts, named

    def _text(self, offset: int) -> bytes:
        return self._strings[offset : self._strings.index(b"\0", offset)]

    def _find(self, name: str) -> int:
        offset = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        if not offset or offset not in self._named:
            raise KeyError(name)
        return self._named[offset]

    def _resolve(self, type_id: int) -> tuple[int, int]:
        """(start, kind) of the type behind typedefs and qualifiers."""
        while True:
            at = self._starts[type_id]
            kind = self._words[at + 1] >> 24 & 31
            if kind not in _MODIFIERS:
                return at, kind
            type_id = self._words[at + 2]

    def _member(self, at: int, name: bytes) -> tuple[int, int] | None:
        """(bit offset, type) of a member, looked for in anonymous members too."""
        info = self._words[at + 1]
        for first in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            name_off, type_id, bits = self._words[first : first + 3]
            if info >> 31:  # the upper byte is a bit field's size
                bits &= 0xFFFFFF
            if name_off:
                if self._text(name_off) == name:
                    return bits, type_id
                continue
            inner, kind = self._resolve(type_id)
            if kind in (_STRUCT, _UNION) and (found := self._member(inner, name)):
                return bits + found[0], found[1]
        return None

    def offset(self, struct_name: str, path: str) -> int:
        """Byte offset of a member; ``path`` may be dotted. Raises ``KeyError`` where there is none."""
        at, total = self._starts[self._find(struct_name)], 0
        for part in path.split("."):
            found = self._member(at, part.encode())
            if found is None:
                raise KeyError(f"{struct_name}.{path}")
            total += found[0]
            at, _ = self._resolve(found[1])
        return total // 8

    def size(self, struct_name: str) -> int:
        """Size of a struct in bytes."""
        return self._words[self._starts[self._find(struct_name)] + 2]

    def enum(self, name: str) -> dict[str, int]:
        """The values of an enum by name."""
        at = self._starts[self._find(name)]
        members = range(at + 3, at + 3 + 2 * (self._words[at + 1] & 0xFFFF), 2)
        return {self._text(self._words[m]).decode(): self._words[m + 1] for m in members}


# Macro → struct and member; the first spelling that this kernel knows is taken.
_OFFSETS: dict[str, tuple[tuple[str, str], ...]] = {
    "O_TASK_PID": (("task_struct", "pid"),),
    "O_TASK_TGID": (("task_struct", "tgid"),),
    "O_TASK_FLAGS": (("task_struct", "flags"),),
    "O_TASK_COMM": (("task_struct", "comm"),),
    "O_TASK_SIGNAL": (("task_struct", "signal"),),
    "O_TASK_CGROUPS": (("task_struct", "cgroups"),),
    "O_TASK_EXIT_CODE": (("task_struct", "exit_code"),),
    "O_TASK_REAL_PARENT": (("task_struct", "real_parent"),),
    "O_TASK_GROUP_LEADER": (("task_struct", "group_leader"),),
    "O_TASK_START_BOOTTIME": (("task_struct", "start_boottime"), ("task_struct", "real_start_time")),
    "O_SIGNAL_LIVE": (("signal_struct", "live"),),
    "O_SIGNAL_PIDS": (("signal_struct", "pids"),),
    "O_SIGNAL_GROUP_EXIT_CODE": (("signal_struct", "group_exit_code"),),
    "O_PID_LEVEL": (("pid", "level"),),
    "O_PID_NUMBERS": (("pid", "numbers"),),
    "O_UPID_NR": (("upid", "nr"),),
    "O_UPID_NS": (("upid", "ns"),),
    "O_PID_NAMESPACE_INUM": (("pid_namespace", "ns.inum"),),
    "O_CSS_SET_DFL_CGRP": (("css_set", "dfl_cgrp"),),
    "O_CSS_SET_SUBSYS": (("css_set", "subsys"),),
    "O_CSS_CGROUP": (("cgroup_subsys_state", "cgroup"),),
    "O_CGROUP_KN": (("cgroup", "kn"),),
    "O_CGROUP_ROOT": (("cgroup", "root"),),
    "O_CGROUP_LEVEL": (("cgroup", "level"),),
    "O_CGROUP_ROOT_HIERARCHY_ID": (("cgroup_root", "hierarchy_id"),),
    "O_CGROUP_ROOT_CGRP": (("cgroup_root", "cgrp"),),
    "O_KERNFS_NODE_ID": (("kernfs_node", "id"),),
    "O_KERNFS_NODE_NAME": (("kernfs_node", "name"),),
    # Renamed in 6.15 by commit 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent.").
    "O_KERNFS_NODE_PARENT": (("kernfs_node", "parent"), ("kernfs_node", "__parent")),
}
# pidfs: the inode of a process's pidfd, since 6.9.
_PIDFS = ("pid", "ino")


def read(path: str = VMLINUX) -> Btf:
    """The running kernel's BTF. Raises ``MissingError`` where there is none."""
    try:
        with open(path, "rb") as file:
            return Btf(file.read())
    except OSError as error:
        raise MissingError(
            "the kernel's type information (BTF) is not there",
            f"{path}: {error.strerror}",
            "podtracer needs a kernel built with CONFIG_DEBUG_INFO_BTF, as all common distributions' are",
        ) from error


def controllers(btf: Btf) -> dict[str, int]:
    """Controller → its number in ``enum cgroup_subsys_id`` (the lines of /proc/cgroups are another order)."""
    values = btf.enum("cgroup_subsys_id")
    return {name[: -len("_cgrp_id")]: n for name, n in values.items() if name.endswith("_cgrp_id")}


def macros(btf: Btf) -> dict[str, int]:
    """The ``-D`` macros for ``bpf/tracer.bpf.c``; ``O_PID_INO`` only where the kernel has pidfs.

    Raises ``MissingError`` naming the member that this kernel does not have.
    """
    found = {}
    for macro, spellings in _OFFSETS.items():
        for struct_name, member in spellings:
            try:
                found[macro] = btf.offset(struct_name, member)
                break
            except KeyError:
                continue
        else:
            raise MissingError(
                "this kernel's structures are not as expected",
                f"{spellings[0][0]}.{spellings[0][1]} is missing from its BTF",
                "please report the kernel version",
            )
    with contextlib.suppress(KeyError):  # before pidfs
        found["O_PID_INO"] = btf.offset(*_PIDFS)
    found["S_UPID"] = btf.size("upid")
    found["PIDTYPE_TGID"] = btf.enum("pid_type")["PIDTYPE_TGID"]
    found["SUBSYS_COUNT"] = btf.enum("cgroup_subsys_id")["CGROUP_SUBSYS_COUNT"]
    return found


def flags(values: Mapping[str, int]) -> list[str]:
    """Macros as compiler flags."""
    return [f"-D{name}={value}" for name, value in values.items()]
