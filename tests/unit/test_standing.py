"""The checks of where podtracer runs, in places made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer import standing
from tracer.errors import MissingError, PermissionMissing
from tracer.kernel.viewpoint import whole
from tracer.standing import Check

THREE = "CapEff:\t000000c000000004\n"
WITH_PTRACE = "CapEff:\t000000c000080004\n"
names = st.lists(st.text(alphabet="abc", min_size=1, max_size=2), max_size=4)


@pytest.mark.parametrize(
    ("shown", "own", "at", "path"),
    [
        ("/", "/", "/kubepods/pod1/us", "/kubepods/pod1/us"),
        ("/sub", "/", "/kubepods/pod1/us", "/kubepods/pod1/us/sub"),
        ("/..", "/", "/kubepods/pod1/us", "/kubepods/pod1"),
        ("/../them", "/", "/kubepods/pod1/us", "/kubepods/pod1/them"),
        ("/../../..", "/", "/kubepods/pod1/us", "/"),
        ("/../../../system.slice", "/", "/kubepods/pod1/us", "/system.slice"),
        ("/../../../..", "/", "/kubepods/pod1/us", None),
        ("/", "/in", "/us/in", "/us"),
        ("/x", "/in", "/us/in", "/us/x"),
        ("/..", "/in", "/us/in", "/"),
        ("/..", "/..", "/", "/"),
        ("/../x", "/../y", "/y", "/x"),
        ("/", "/..", "/", None),
        ("/x", "/../y", "/y", None),
        ("/x", "/in", "/us/out", None),
        ("/..us", "/", "/a", "/a/..us"),
    ],
)
def test_a_path_of_a_private_cgroup_namespace_is_made_whole(shown: str, own: str, at: str, path: str | None) -> None:
    """Our own place says where the namespace's root is, and what lies beside and above it; where it does not, nothing
    is made up."""
    assert whole(shown, own, at) == path


@given(root=names, ours=names, theirs=names)
def test_every_cgroup_has_its_own_path_or_none(root: list[str], ours: list[str], theirs: list[str]) -> None:
    """However we and they stand to the namespace's root, a path is the true one or is not told; while we are below the
    root it is told of everyone."""

    def shown(place: list[str]) -> str:
        common = next((at for at, (one, two) in enumerate(zip(root, place, strict=False)) if one != two), None)
        common = min(len(root), len(place)) if common is None else common
        return "/" + "/".join([".."] * (len(root) - common) + place[common:])

    path = whole(shown(theirs), shown(ours), "/" + "/".join(ours))
    if ours[: len(root)] == root:
        assert path == "/" + "/".join(theirs)
    else:
        assert path in (None, "/" + "/".join(theirs))


def test_a_procfs_of_another_pid_namespace_fails(tmp_path: Path) -> None:
    """The procfs that knows us by our number is ours; another one, and a folder that is none, is told."""
    assert standing.procfs_of("/proc").state == "ok"
    (tmp_path / "self").symlink_to(str(os.getpid() + 1))
    check = standing.procfs_of(str(tmp_path))
    assert check.state == "fail"
    assert str(os.getpid() + 1) in check.found
    with pytest.raises(MissingError, match="procfs cannot be read"):
        standing.procfs_of(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("inum", "offsets", "state"),
    [
        (0xEFFFFFFA, "monotonic 0 0\nboottime 0 0\n", "ok"),
        (4026532000, "monotonic 0 0\nboottime 0 0\n", "ok"),
        (4026532000, "monotonic 7 0\nboottime 0 0\n", "ok"),
        (4026532000, "monotonic 0 0\nboottime 86400 0\n", "fail"),
        (4026532000, "monotonic 0 0\nboottime -1 0\n", "fail"),
        (4026532000, "monotonic 0 0\nboottime 0 5\n", "fail"),
    ],
)
def test_a_boot_time_that_is_not_the_machines_fails(inum: int, offsets: str, state: str) -> None:
    """A time namespace with another boot time fails; one whose boot time is the machine's does not."""
    assert standing.time_namespace(inum, offsets).state == state


def test_what_may_not_be_read_is_told_by_the_capability_it_takes(tmp_path: Path) -> None:
    """Without CAP_SYS_PTRACE there is a warning; where files of init cannot be read, as with hidepid, parity mode
    fails, since it answers by them."""
    init = tmp_path / "1"
    init.mkdir()
    for name in ("cgroup", "mountinfo"):
        assert [standing.reading(str(tmp_path), THREE, parity=parity).state for parity in (False, True)] == [
            "warn",
            "fail",
        ]
        (init / name).write_text("0::/\n")
    for parity in (False, True):
        check = standing.reading(str(tmp_path), THREE, parity=parity)
        assert (check.state, "CAP_SYS_PTRACE" in f"{check.found} {check.hint}") == ("warn", True)
        assert standing.reading(str(tmp_path), WITH_PTRACE, parity=parity).state == "ok"


def test_what_fails_is_raised_in_the_same_words() -> None:
    """The first check that fails is the error, with its hint; a warning is not an error."""
    standing.require([Check("a", "ok", "well"), Check("b", "warn", "slow", "hurry")])
    with pytest.raises(MissingError) as raised:
        standing.require([Check("a", "warn", "slow"), Check("b", "fail", "blind", "open"), Check("c", "fail", "deaf")])
    assert (str(raised.value), raised.value.hint, raised.value.exit_code) == ("blind", "open", 69)
    with pytest.raises(PermissionMissing):
        standing.require([Check("reading", "fail", "closed", "ask")])


def test_a_namespace_that_cannot_see_pods_fails_and_says_why() -> None:
    """In the initial PID namespace no process is hidden; in another one the check has the reason."""
    assert standing.pid_namespace(4026532000, 0, "it is one pod's").state == "ok"
    check = standing.pid_namespace(4026532000, 1, "it is one pod's")
    assert (check.state, "it is one pod's" in check.found) == ("fail", True)
    assert "hostPID" in str(check.hint)
