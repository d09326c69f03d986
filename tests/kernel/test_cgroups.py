"""What the programs tell of cgroups, and how their names are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.conftest import MakeCgroup, Run
from tests.kernel.lab import Kernel
from tests.waiting import until
from tracer.errors import MissingError
from tracer.identity.index import Index
from tracer.kernel.cgroupfs import CgroupNames, Mount, find_mounts, parse_mountinfo
from tracer.kernel.loader import HierarchyInfo
from tracer.model import CgroupEventKind, ProcessEventKind

pytestmark = pytest.mark.root
MKDIR, RMDIR, RELEASE, RENAME = CgroupEventKind


def test_a_cgroup_is_told_from_birth_to_release(kernel: Kernel, make_cgroup: MakeCgroup) -> None:
    """A birth, a removal and a release are told with the cgroup's id, its parent's and its own name, uncut."""
    parent = make_cgroup("parent")
    kernel.births()
    name = "n" * 255
    cgroup = make_cgroup(f"parent/{name}")
    # Others make and lose cgroups meanwhile.
    (birth,) = (event for event in kernel.births() if event.id == cgroup.id)
    assert (birth.kind, birth.id, birth.parent, birth.name) == (MKDIR, cgroup.id, parent.id, name.encode())
    assert birth.hierarchy == kernel.mount.info.hierarchy
    assert birth.level == parent.path.count("/") + 1
    cgroup.folder.rmdir()
    told: list[int] = []

    def released() -> bool:
        told.extend(event.kind for event in kernel.births() if event.id == cgroup.id)
        return RELEASE in told

    until(released, 10, "the release")
    assert told == [RMDIR, RELEASE]


def test_a_path_longer_than_the_kernels_buffer_is_whole(kernel: Kernel, make_cgroup: MakeCgroup) -> None:
    """A chain of names of 2,000 bytes in all, twice the kernel's shared path buffer, is built from births without a
    byte missing, and read back by id the same."""
    kernel.births()
    deep = make_cgroup("/".join("abcdefgh"[i] * 250 for i in range(8)))
    index = Index()
    index.cgroups.track(kernel.mount.info.root)
    for birth in kernel.births():
        index.cgroups.apply(birth)
    view = index.locate(deep.id)
    assert view is not None
    assert view.cgroup.path == deep.path
    names = CgroupNames(kernel.mount)
    chain = names.chain(deep.id)
    names.close()
    assert chain is not None
    assert "/" + "/".join(name for _, name in chain) == deep.path
    assert chain[-1][0] == deep.id


@pytest.mark.several
def test_births_elsewhere_are_told_only_while_asked_for(make_cgroup: MakeCgroup) -> None:
    """A birth on another hierarchy is told while all births are asked for, with that hierarchy's number."""
    with Kernel(all_births=True) as kernel:
        elsewhere = make_cgroup("elsewhere", kernel.elsewhere)
        found = [event for event in kernel.births() if event.name == elsewhere.folder.name.encode()]
        assert [event.hierarchy for event in found] == [elsewhere.mount.info.hierarchy]
        assert found[0].id == elsewhere.id
    with Kernel(all_births=False) as kernel:
        make_cgroup("elsewhere-again", kernel.elsewhere)
        assert [event for event in kernel.births() if event.name == b"elsewhere-again"] == []


@pytest.mark.v1
def test_a_rename_moves_the_subtree(make_cgroup: MakeCgroup) -> None:
    """Renaming a v1 cgroup is told, and the paths of all cgroups below it follow."""
    with Kernel(hierarchy="pids") as kernel:
        deep = make_cgroup("before/inner", "pids")
        index = Index()
        index.cgroups.track(kernel.mount.info.root)
        names = CgroupNames(kernel.mount)
        chain = names.chain(deep.id)
        assert chain is not None
        index.cgroups.learn(chain, 0)
        before = index.locate(deep.id)
        assert before is not None
        assert before.cgroup.path == deep.path
        kernel.births()
        renamed = deep.folder.parent.with_name("after")
        deep.folder.parent.rename(renamed)
        try:
            folder = renamed.stat().st_ino
            (event,) = (event for event in kernel.births() if event.id == folder)
            assert (event.kind, event.name) == (RENAME, b"after")
            index.cgroups.apply(event)
            after = index.locate(deep.id)
            assert after is not None
            assert after.cgroup.path == deep.path.replace("/before/", "/after/")
            assert names.chain(deep.id) == [*chain[:-2], (chain[-2][0], "after"), chain[-1]]
        finally:
            renamed.rename(deep.folder.parent)
            names.close()


def test_a_path_too_long_to_be_read_is_no_name(kernel: Kernel, make_cgroup: MakeCgroup) -> None:
    """Cgroups nested deeper than a path can be long, as whoever may write one can make them, have no name, and that
    is no error."""
    cgroup = make_cgroup("nested")
    fds = [os.open(cgroup.folder, os.O_RDONLY)]
    names = CgroupNames(kernel.mount)
    try:
        for _ in range(20):
            os.mkdir("n" * 250, dir_fd=fds[-1])
            fds.append(os.open("n" * 250, os.O_RDONLY, dir_fd=fds[-1]))
        assert names.chain(os.stat(fds[5]).st_ino) is not None
        assert names.chain(os.stat(fds[-1]).st_ino) is None
    finally:
        names.close()
        os.close(fds.pop())
        while fds:
            os.rmdir("n" * 250, dir_fd=fds[-1])
            os.close(fds.pop())


def test_a_removed_cgroup_has_no_name(kernel: Kernel, make_cgroup: MakeCgroup) -> None:
    """Asking for the name of a removed cgroup's id answers none, never another cgroup's name."""
    cgroup = make_cgroup("short-lived")
    names = CgroupNames(kernel.mount)
    assert names.chain(cgroup.id) is not None
    cgroup.folder.rmdir()
    assert names.chain(cgroup.id) is None
    names.close()


def test_without_procfs_its_place_is_asked_for(tmp_path: Path) -> None:
    """A folder that is no procfs is told as what is missing, not as an internal error."""
    with pytest.raises(MissingError, match="procfs cannot be read: No such file or directory") as raised:
        find_mounts("/sys/fs/cgroup", str(tmp_path), {}, None)
    assert (raised.value.obj, raised.value.hint) == (str(tmp_path), "name its place with --procfs")


def test_a_mount_that_is_not_the_root_tells_no_names(kernel: Kernel, make_cgroup: MakeCgroup) -> None:
    """On a mount whose root is not the hierarchy's, as in a private cgroup namespace, no id has a name, rather than
    that every foreign id reads "/"."""
    cgroup = make_cgroup("inside")
    mount = Mount(str(cgroup.folder), (), HierarchyInfo(0xFFFFFFFF, 0, kernel.mount.info.root), trusted=False)
    names = CgroupNames(mount)
    assert names.chain(kernel.mount.info.root) is None
    assert names.chain(cgroup.id) is None
    names.close()


def test_mountinfo_names_what_is_mounted_below_a_folder() -> None:
    """Of mountinfo's lines the cgroup mounts at or below the folder are taken, with escapes resolved."""
    text = (
        "30 25 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
        "31 25 0:27 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 25 0:28 /x /elsewhere rw - cgroup2 cgroup2 rw\n"
        "33 25 0:29 / /sys/fs/cgroupish rw - cgroup2 cgroup2 rw\n"
        "broken line\n"
        "34 25 0:30 / /proc rw - proc proc rw\n"
    )
    assert list(parse_mountinfo(text, "/sys/fs/cgroup")) == [
        ("/sys/fs/cgroup/unified", "/", ("v2",)),
        ("/sys/fs/cgroup/a b", "/", ("rw", "cpu", "cpuacct")),
    ]


def test_a_move_is_told_by_whoever_makes_it(kernel: Kernel, make_cgroup: MakeCgroup, lab: Run) -> None:
    """A process moved by another one is in its new cgroup at once, and the record names mover's target and the cgroup
    left behind."""
    here, there = make_cgroup("here"), make_cgroup("there")
    helper = lab("pause")
    here.add(helper.pid)
    kernel.records()
    there.add(helper.pid)
    slot = kernel.slot(helper.pid)
    assert slot is not None
    assert slot.cgroup == there.id
    moves = [event for event in kernel.records(helper.pid) if event.kind == ProcessEventKind.ATTACH]
    assert [(event.arg, event.cgroup) for event in moves] == [(here.id, there.id)]


def test_a_process_with_a_dead_leader_moves(kernel: Kernel, make_cgroup: MakeCgroup, lab: Run) -> None:
    """Moving a process whose leader has ended moves its slot, although the leader itself stays behind."""
    cgroup = make_cgroup("for-threads")
    helper = lab("dead-leader")
    until(lambda: Path(f"/proc/{helper.pid}/stat").read_text().split()[2] == "Z", 10, "the leader's end")
    cgroup.add(helper.pid)
    (thread,) = {int(name) for name in os.listdir(f"/proc/{helper.pid}/task")} - {helper.pid}
    assert f"{cgroup.path}\n" in Path(f"/proc/{helper.pid}/task/{thread}/cgroup").read_text()
    slot = kernel.slot(helper.pid)
    assert slot is not None
    assert slot.cgroup == cgroup.id


@pytest.mark.several
def test_moves_elsewhere_are_told_only_while_asked_for(make_cgroup: MakeCgroup, lab: Run) -> None:
    """A move on another hierarchy is no news, unless all moves are asked for: then it is told with that hierarchy's
    number, and leaves the slot as it was."""
    helper = lab("pause")
    with Kernel() as kernel:
        elsewhere = make_cgroup("elsewhere", kernel.elsewhere)
        kernel.scan()
        elsewhere.add(helper.pid)
        assert kernel.records(helper.pid) == []
    with Kernel(all_moves=True) as kernel:
        elsewhere = make_cgroup("elsewhere-again", kernel.elsewhere)
        kernel.scan()
        before = kernel.slot(helper.pid)
        elsewhere.add(helper.pid)
        (move,) = kernel.records(helper.pid)
        assert (move.kind, move.hierarchy, move.cgroup) == (
            ProcessEventKind.ATTACH,
            elsewhere.mount.info.hierarchy,
            elsewhere.id,
        )
        assert kernel.slot(helper.pid) == before
