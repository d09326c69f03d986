"""What the programs tell of processes that are born, exec and end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import MakeCgroup, Run
from tests.kernel.lab import Kernel
from tests.waiting import until
from tracer.model import ProcessEvent, ProcessEventKind

pytestmark = pytest.mark.root
FORK, EXEC, EXIT, ATTACH, SCAN = ProcessEventKind


def _collect(kernel: Kernel, done: Callable[[list[ProcessEvent]], bool], what: str) -> list[ProcessEvent]:
    events: list[ProcessEvent] = []

    def enough() -> bool:
        events.extend(kernel.records())
        return done(events)

    until(enough, 10, what)
    return events


def _kinds(events: list[ProcessEvent], pid: int) -> list[int]:
    return [event.kind for event in events if event.pid == pid]


def test_a_process_is_told_from_fork_to_exit(kernel: Kernel) -> None:
    """fork, exec and exit each give one record, all with what tells the process from others of its PID, its
    parent and status."""
    child = subprocess.Popen(["/bin/sh", "-c", "read x; exit 7"], stdin=subprocess.PIPE)
    slot = kernel.slot(child.pid)
    assert slot is not None
    assert kernel.tells(slot.ino, child.pid)
    child.communicate(b"\n", timeout=10)
    events = _collect(kernel, lambda e: EXIT in _kinds(e, child.pid), "the exit record")
    mine = [event for event in events if event.pid == child.pid]
    assert [event.kind for event in mine] == [FORK, EXEC, EXIT]
    assert {event.ino for event in mine} == {slot.ino}
    assert {event.ppid for event in mine} == {os.getpid()}
    assert mine[1].comm.partition(b"\0")[0] == b"sh"  # old kernels leave what was there behind the end
    assert mine[2].arg == 7 << 8
    assert mine[0].time < mine[1].time < mine[2].time


def test_a_slot_is_there_from_fork_to_exit(kernel: Kernel, lab: Run) -> None:
    """A living process has a slot with what tells it from others; once it was waited for there is none."""
    helper = lab("pause")
    slot = kernel.slot(helper.pid)
    assert slot is not None
    assert kernel.tells(slot.ino, helper.pid)
    assert slot.hierarchy == kernel.mount.info.hierarchy
    helper.finish()
    assert kernel.slot(helper.pid) is None


def test_a_vforked_child_is_told_like_any_other(kernel: Kernel, lab: Run) -> None:
    """A child of vfork has a fork record and an exec record, and a slot."""
    helper = lab("vfork")
    pid = helper.number()
    events = _collect(kernel, lambda e: EXEC in _kinds(e, pid), "the vforked child's exec")
    assert _kinds(events, pid) == [FORK, EXEC]
    slot = kernel.slot(pid)
    assert slot is not None
    assert kernel.tells(slot.ino, pid)


@pytest.mark.v2
def test_a_child_born_into_a_cgroup_is_there_from_its_first_record(
    kernel: Kernel, make_cgroup: MakeCgroup, lab: Run
) -> None:
    """With CLONE_INTO_CGROUP no attach is told, so the fork record itself has the child's cgroup, not the parent's."""
    cgroup = make_cgroup("born-here")
    helper = lab("into-cgroup", str(cgroup.folder))
    pid = helper.number()
    events = _collect(kernel, lambda e: FORK in _kinds(e, pid), "the child's fork")
    mine = [event for event in events if event.pid == pid]
    assert [(event.kind, event.cgroup) for event in mine] == [(FORK, cgroup.id)]
    slot = kernel.slot(pid)
    assert slot is not None
    assert slot.cgroup == cgroup.id


def test_a_thread_is_no_process(kernel: Kernel, lab: Run) -> None:
    """A new thread gives no record and no slot."""
    helper = lab("thread")
    assert helper.number() == helper.pid
    threads = [int(name) for name in os.listdir(f"/proc/{helper.pid}/task") if int(name) != helper.pid]
    assert threads
    tids = {event.pid for event in kernel.records()}
    for tid in threads:
        assert tid not in tids
        assert kernel.slot(tid) is None


def test_an_exec_by_a_thread_keeps_the_process(kernel: Kernel, lab: Run) -> None:
    """When a thread that is not the leader execs, the process keeps its PID, its inode and its slot."""
    helper = lab("thread-exec")
    events = _collect(kernel, lambda e: _kinds(e, helper.pid).count(EXEC) == 2, "the thread's exec")
    assert _kinds(events, helper.pid) == [FORK, EXEC, EXEC]
    slot = kernel.slot(helper.pid)
    assert slot is not None
    assert {event.ino for event in events if event.pid == helper.pid} == {slot.ino}
    assert kernel.tells(slot.ino, helper.pid)


def test_a_dead_leader_is_no_exit(kernel: Kernel, lab: Run) -> None:
    """While a thread lives the process lives: its slot stays, and the exit is told once, when the last thread ends."""
    helper = lab("dead-leader")
    until(lambda: Path(f"/proc/{helper.pid}/stat").read_text().split()[2] == "Z", 10, "the leader's end")
    assert kernel.slot(helper.pid) is not None
    assert EXIT not in _kinds(kernel.records(), helper.pid)
    helper.finish()
    assert _kinds(kernel.records(), helper.pid) == [EXIT]
    assert kernel.slot(helper.pid) is None


def test_threads_that_end_together_are_one_exit(kernel: Kernel, lab: Run) -> None:
    """Of 17 threads that end at the same time one alone tells the exit, in each of 100 processes."""
    kernel.records()
    pids = []
    for _ in range(100):
        helper = lab("many-threads")
        helper.finish()
        pids.append(helper.pid)
    exits = [event.pid for event in kernel.records() if event.kind == EXIT and event.pid in pids]
    assert sorted(exits) == sorted(pids)


def test_a_signal_is_in_the_status(kernel: Kernel) -> None:
    """A process that was killed ends with the signal's number as its status."""
    child = subprocess.Popen(["/bin/sleep", "100"])
    child.kill()
    child.wait()
    exits = [event for event in kernel.records(child.pid) if event.kind == EXIT]
    assert [event.arg & 0x7F for event in exits] == [9]


def test_the_iterator_finds_what_ran_before(kernel: Kernel, lab: Run) -> None:
    """A scan has every living process once: a dead leader's with its threads' cgroup, no zombie, no thread."""
    dead_leader, zombie, plain = lab("dead-leader"), lab("zombie"), lab("pause")
    until(lambda: Path(f"/proc/{dead_leader.pid}/stat").read_text().split()[2] == "Z", 10, "the leader's end")
    corpse = zombie.number()
    found = {event.pid: event for event in kernel.scan()}
    assert {dead_leader.pid, zombie.pid, plain.pid, os.getpid()} <= found.keys()
    assert corpse not in found
    assert kernel.slot(corpse) is None
    for pid in (dead_leader.pid, plain.pid):
        assert kernel.tells(found[pid].ino, pid)
        slot = kernel.slot(pid)
        assert slot is not None
        assert slot.ino == found[pid].ino
    threads = {int(name) for name in os.listdir(f"/proc/{dead_leader.pid}/task")}
    assert found.keys() & threads == {dead_leader.pid}


@pytest.mark.v1
def test_a_dead_leader_is_where_its_threads_are(make_cgroup: MakeCgroup, lab: Run) -> None:
    """A process whose leader is dead is found by a scan in the cgroup that its threads were moved to, on v1 too,
    where /proc says "/" of the leader."""
    with Kernel(hierarchy="pids") as kernel:
        cgroup = make_cgroup("threads-only", "pids")
        helper = lab("dead-leader")
        until(lambda: Path(f"/proc/{helper.pid}/stat").read_text().split()[2] == "Z", 10, "the leader's end")
        (thread,) = {int(name) for name in os.listdir(f"/proc/{helper.pid}/task")} - {helper.pid}
        cgroup.folder.joinpath("tasks").write_text(str(thread))
        found = {event.pid: event for event in kernel.scan()}
        assert found[helper.pid].cgroup == cgroup.id
        slot = kernel.slot(helper.pid)
        assert slot is not None
        assert slot.cgroup == cgroup.id
        helper.finish()
