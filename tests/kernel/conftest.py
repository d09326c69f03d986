"""Fixtures of the kernel tests: the helper program, the programs attached, and cgroups that go away again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.lab import Cgroup, Helper, Kernel, compile_lab

Run = Callable[..., Helper]
MakeCgroup = Callable[..., Cgroup]


@pytest.fixture(scope="session")
def lab_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helper program."""
    return compile_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def lab(lab_binary: Path) -> Iterator[Run]:
    """Starts the helper program; whatever was started ends with the test."""
    started: list[Helper] = []

    def run(*words: str | int) -> Helper:
        helper = Helper(lab_binary, *words)
        started.append(helper)
        return helper

    yield run
    for helper in started:
        helper.finish()


@pytest.fixture(scope="session")
def attached() -> Iterator[Kernel]:
    """The programs, attached and following the best hierarchy, v2 if it is there, for all tests."""
    with Kernel() as kernel:
        yield kernel


@pytest.fixture
def kernel(attached: Kernel) -> Kernel:
    """The programs, attached, with all that earlier tests made of news read."""
    attached.records()
    attached.births()
    return attached


@pytest.fixture
def make_cgroup(kernel: Kernel) -> Iterator[MakeCgroup]:
    """Makes cgroups below one of the test's own, by relative path; ``hierarchy`` as in ``Kernel.mounts``, else the one
    that is followed."""
    top = f"/podtracer-test-{os.getpid()}"
    made: list[Cgroup] = []

    def make(name: str, hierarchy: str | None = None) -> Cgroup:
        mount = kernel.mounts[hierarchy] if hierarchy else kernel.mount
        cgroup = Cgroup(mount, f"{top}/{name}")
        made.append(cgroup)
        return cgroup

    yield make
    for cgroup in reversed(made):
        cgroup.remove()
