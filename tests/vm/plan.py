"""Which kernels are booted, with which layout of cgroups and which user space, and which tests run there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]

# Marks of tests for which a layout has no place.
WITHOUT = {"unified": ("v1", "several"), "legacy": ("v2",), "hybrid": ()}

# Which tests of tests/kernel run on the developer's machine alone, and why.
LEFT_OUT = {
    "tests/kernel/test_daemon.py": "the life of a process and its commands, ten of which start for each test",
    "tests/kernel/test_doctor.py": "what it says of a good machine is taken, what it says of bad ones is tested here",
    "tests/kernel/test_demo.py": "a play to a clock, which a slow machine cannot follow",
    "tests/kernel/test_known_sockets.py": "owners of folders and who answers, no matter of the kernel",
    "tests/kernel/test_ownership.py": "ports and who holds them, no matter of the kernel",
    "tests/kernel/test_spiffe_ids.py": "a file and selectors, no matter of the kernel",
}
TAKEN_ALL_THE_SAME = ("tests/kernel/test_doctor.py::test_all_is_well_with_a_kubelet",)


@dataclass(frozen=True, slots=True)
class Case:
    """One virtual machine. ``suite`` is where the newest kernel of the ``series`` comes from, the newest of all where
    that is "newest"; ``space`` is the distribution around the project. An ``optional`` one may be impossible to be had
    for a while, which is told and is no failure."""

    series: str
    suite: str
    layout: str
    space: str
    cpus: int = 1
    pid_max: int = 32768
    optional: bool = False

    @property
    def name(self) -> str:
        """As it stands before its results."""
        return f"{self.series} {self.layout} {self.space}"


# The slowest first: two run at a time.
CASES: Sequence[Case] = (
    Case("newest", "sid", "unified", "sid", cpus=2, optional=True),
    Case("newest", "sid", "unified", "trixie"),
    Case("5.10", "bullseye-security", "unified", "bookworm"),
    Case("6.1", "bookworm-security", "legacy", "bookworm"),
    Case("6.12", "bookworm-security", "unified", "trixie", cpus=4),
    Case("6.1", "bookworm-security", "unified", "bookworm", pid_max=4194304),
)

# The one that is no virtual machine, see bare.py.
BARE = Case("user-mode", "bookworm", "without-btf", "bookworm")


def selection(layout: str, cpus: int) -> list[str]:
    """pytest's words for what runs on such a machine."""
    left_out = ["brisk", *WITHOUT[layout], *(["smp"] if cpus == 1 else [])]
    files = sorted(str(path.relative_to(PROJECT)) for path in (PROJECT / "tests/kernel").glob("test_*.py"))
    files.append("tests/container/test_layouts.py")
    return [
        *(name for name in files if name not in LEFT_OUT),
        *TAKEN_ALL_THE_SAME,
        "-m",
        " and ".join(("root", *(f"not {mark}" for mark in left_out))),
    ]
