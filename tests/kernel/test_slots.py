"""How a slot is written and read: torn pairs, lost updates, collisions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

from tests.kernel.conftest import MakeCgroup, Run
from tests.kernel.lab import Helper, Kernel, mutated
from tests.waiting import SLOW, until
from tracer.kernel.slots import HashSlots, Slot, TableSlots
from tracer.kernel.wire import SLOT_COUNT

PID, OTHER = 5, 5 + SLOT_COUNT  # both have the same place in the table
TAG, INO, CGROUP = 0, 1, 2
FIRST = {INO: 11, CGROUP: 100, TAG: PID}

# Stores as the programs make them, in their order, on the slot of process 11 in cgroup 100.
EXIT = [(INO, 0), (TAG, 0)]
REUSE = [*EXIT, (TAG, PID), (INO, 0), (CGROUP, 200), (TAG, PID), (INO, 22)]
COLLISION = [*EXIT, (TAG, OTHER), (INO, 0), (CGROUP, 200), (TAG, OTHER), (INO, 22)]
MOVE = [(CGROUP, 300)]
SCRIPTS = {"exit": EXIT, "reuse": REUSE, "collision": COLLISION, "move": MOVE, "move-reuse": MOVE + REUSE}


class Nothing:
    """What reads a spill hash with nothing in it."""

    def get(self, _key: int) -> None:
        return None


def _no_spill() -> HashSlots:
    return HashSlots(Nothing(), spill=True)


class Interleaved(list[int]):
    """A table whose words change between the reader's reads: store ``i`` happens before read ``schedule[i]``."""

    def __init__(self, stores: list[tuple[int, int]], schedule: tuple[int, ...]) -> None:
        super().__init__([0] * SLOT_COUNT * 3)
        self.stores = list(zip(schedule, stores, strict=True))
        self.reads = 0
        for field, value in FIRST.items():
            self[PID * 3 + field] = value

    def __getitem__(self, at: int) -> int:  # type: ignore[override]
        while self.stores and self.stores[0][0] <= self.reads:
            _, (field, value) = self.stores.pop(0)
            self[PID * 3 + field] = value
        self.reads += 1
        return super().__getitem__(at)


def _schedules(stores: int, reads: int = 6) -> Iterator[tuple[int, ...]]:
    return combinations_with_replacement(range(reads), stores)


def _naive(table: Interleaved, pid: int) -> tuple[int, int] | None:
    """The plausible order: whose slot is it, who is it, where is it."""
    if table[pid * 3 + TAG] != pid:
        return None
    ino = table[pid * 3 + INO]
    cgroup = table[pid * 3 + CGROUP]
    return (ino, cgroup) if ino else None


TRUE = {"exit": {(11, 100)}, "collision": {(11, 100)}, "move": {(11, 100), (11, 300)}}
TRUE["reuse"] = {(11, 100), (22, 200)}
TRUE["move-reuse"] = TRUE["move"] | TRUE["reuse"]


@pytest.fixture(scope="module")
def blank() -> list[int]:
    """Made once: the table is large."""
    return [0] * SLOT_COUNT * 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_reader_never_takes_a_torn_pair(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the writer's stores fall between the reader's reads, the answer is a pair that was true, or none."""
    monkeypatch.setattr("tests.kernel.test_slots.SLOT_COUNT", 2 * PID)  # a short list does for one slot
    for schedule in _schedules(len(SCRIPTS[script])):
        slot = TableSlots(Interleaved(SCRIPTS[script], schedule), _no_spill()).read(PID)
        assert slot is None or (slot.ino, slot.cgroup) in TRUE[script], schedule


def test_the_naive_order_takes_torn_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: reading tag, inode and cgroup once each mixes two processes under some schedule."""
    monkeypatch.setattr("tests.kernel.test_slots.SLOT_COUNT", 2 * PID)
    torn = [
        answer
        for script, stores in SCRIPTS.items()
        for schedule in _schedules(len(stores))
        if (answer := _naive(Interleaved(stores, schedule), PID)) and answer not in TRUE[script]
    ]
    assert (11, 200) in torn


def test_a_sweep_empties_only_who_is_not_alive() -> None:
    """A sweep empties the slots of processes that have ended unseen, and leaves those of the living as they are."""
    words = [0] * SLOT_COUNT * 3
    words[15:18] = [5, 11, 100]
    words[18:21] = [6, 12, 100]
    slots = TableSlots(words, _no_spill())
    assert slots.sweep({6: 12}) == 1
    assert slots.read(5) is None
    assert slots.read(6) == Slot(12, 0, 100)


ROUNDS = 2000 if SLOW == 1 else 500
DELAY = 3000  # turns of a clock read: some 70 µs between reading a task's cgroup and storing it
NO_SECOND_READ = (
    "		if (again == cgroup && TAG(tracked, pid) == tag)\n			return cgroup;",
    "		if (again || 1)\n			return cgroup;",
)


def _wrong_for_ever(kernel: Kernel, binary: Path, procs: Path, cgroup: int, rounds: int) -> int:
    """How many of ``rounds`` processes that exec'd while they were moved have a slot that says otherwise."""
    helper = Helper(binary, "race", str(procs), rounds)
    try:
        pids = []
        while pid := helper.number():
            pids.append(pid)
        assert len(pids) == rounds

        def execed() -> bool:
            return all(Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"lab\0sleep") for pid in pids)

        until(execed, 30, "every child's exec")
        kernel.records()
        slots = [kernel.slot(pid) for pid in pids]
        assert all("/raced\n" in Path(f"/proc/{pid}/cgroup").read_text() for pid in pids)
        return sum(slot is None or slot.cgroup != cgroup for slot in slots)
    finally:
        helper.finish()


@pytest.mark.root
@pytest.mark.smp
def test_a_move_is_never_lost_to_an_exec(make_cgroup: MakeCgroup, lab_binary: Path) -> None:
    """Of many processes that were moved while a delayed exec program was about to store their old cgroup, every one
    has its new cgroup in its slot."""
    cgroup = make_cgroup("raced")
    with Kernel(flags=[f"-DTRACER_TEST_DELAY={DELAY}"]) as kernel:
        assert _wrong_for_ever(kernel, lab_binary, cgroup.procs, cgroup.id, ROUNDS) == 0


@pytest.mark.root
@pytest.mark.smp
@pytest.mark.brisk
def test_the_race_is_lost_without_the_second_read(make_cgroup: MakeCgroup, lab_binary: Path, tmp_path: Path) -> None:
    """The test above can fail: programs that store once, without reading again, leave wrong slots for ever."""
    cgroup = make_cgroup("raced")
    source = mutated(tmp_path, NO_SECOND_READ)
    with Kernel(flags=[f"-DTRACER_TEST_DELAY={DELAY}"], source_dir=source) as kernel:
        assert _wrong_for_ever(kernel, lab_binary, cgroup.procs, cgroup.id, ROUNDS) > 0


@pytest.fixture
def large_pids() -> Iterator[None]:
    """PIDs up to 4,194,304, as systemd has them."""
    path = Path("/proc/sys/kernel/pid_max")
    before = path.read_text()
    path.write_text("4194304")
    yield
    path.write_text(before)


@pytest.mark.root
@pytest.mark.usefixtures("large_pids")
def test_pids_that_collide_have_slots_of_their_own(kernel: Kernel, lab: Run) -> None:
    """Of three processes with the same place in the table each has its own slot, whichever ends first."""
    first = 900_000 + os.getpid() % 1000
    pids = [first, first + SLOT_COUNT, first + 2 * SLOT_COUNT]
    helpers = [lab("with-pid", pid) for pid in pids]
    assert [helper.number() for helper in helpers] == pids

    def told() -> list[int]:
        found = {pid: kernel.slot(pid) for pid in pids}
        return [pid for pid, slot in found.items() if slot is not None and kernel.tells(slot.ino, pid)]

    def right(living: list[int]) -> bool:
        assert told() == living, kernel.programs.counters()
        return sum(kernel.slot(pid) is not None for pid in pids) == len(living)

    assert right(pids)
    if kernel.programs.slots.kind == "table":
        assert kernel.programs.counters()["spilled"] >= 2
    helpers[0].finish()
    assert right(pids[1:])
    helpers[0] = lab("with-pid", pids[0])
    helpers[0].number()
    assert right(pids)
    helpers[1].finish()
    helpers[0].finish()
    assert right(pids[2:])
