"""What every test may rely on: markers that are checked before a test starts, and ``require``."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator

import pytest

from tests.machine import hierarchies
from tests.waiting import SLOW

RUNC_TOOLS = ("runc", "busybox")
CONTAINER_TOOLS = (*RUNC_TOOLS, "containerd", "containerd-shim-runc-v2", "ctr")
CLUSTER_TOOLS = (*CONTAINER_TOOLS, "go", "openssl", "ip")
TOOLS = {
    "runc": RUNC_TOOLS,
    "crun": ("crun", "busybox"),
    "container": CONTAINER_TOOLS,
    "cluster": CLUSTER_TOOLS,
    "plugin": ("go",),
}
TIMEOUTS = {"cluster": 1800, "plugin": 600}  # seconds; the first run builds Kubernetes, or a plugin host
MOUNTED = {"v1": "cgroup", "v2": "cgroup2"}


def require(condition: object, reason: str) -> None:
    """Skip the test, saying why, unless ``condition`` is true; with ``PODTRACER_TEST_REQUIRE=1`` fail it."""
    if condition:
        return
    if os.environ.get("PODTRACER_TEST_REQUIRE") == "1":
        pytest.fail(f"{reason} (and PODTRACER_TEST_REQUIRE=1 allows no skip)", pytrace=False)
    pytest.skip(reason)


def lacking(marker: str) -> Iterator[str]:
    """Why a test with this marker cannot run here; nothing when it can."""
    if marker in ("root", "runc", "crun", "container", "cluster", "plugin") and os.geteuid() != 0:
        yield "needs root"
    if marker == "root" and importlib.util.find_spec("bcc") is None:
        yield "needs bcc (python3-bpfcc)"
    if marker in ("v1", "v2") and MOUNTED[marker] not in hierarchies().values():
        yield f"needs a {marker} hierarchy"
    if marker == "several" and len(hierarchies()) < 2:
        yield "needs several cgroup hierarchies"
    if marker == "crun" and len(set(hierarchies().values())) > 1:
        yield "needs cgroups v1 alone or v2 alone"
    if marker == "smp" and (os.cpu_count() or 1) < 2:
        yield "needs two CPUs"
    for tool in TOOLS.get(marker, ()):
        if shutil.which(tool) is None:
            yield f"needs {tool}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made, check what the test's markers ask for."""
    for marker in item.iter_markers():
        for reason in lacking(marker.name):
            require(False, reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give tests that build something first the time that this may take; all more of it where it is slow."""
    for item in items:
        for name, seconds in TIMEOUTS.items():
            if item.get_closest_marker(name) and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(seconds))
        if SLOW > 1:
            marker = item.get_closest_marker("timeout")
            usual = marker.args[0] if marker else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(usual * SLOW), append=False)
