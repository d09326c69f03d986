"""Fixtures of the plugin's tests: processes in pod-shaped cgroups, and the kubelet that lists their pods."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.kernel.lab import Cgroup
from tests.machine import hierarchies
from tests.node import FakePod, listing
from tests.plugin.host import Host
from tests.waiting import until
from tracer.sources.replay import ReplayKubelet


@dataclass
class Node:
    """Pods that come and go; ``kubelet`` lists those whose ``listed`` is true, once ``publish`` was called."""

    kubelet: ReplayKubelet
    pods: list[FakePod]
    _made: list[Cgroup]
    _children: list[subprocess.Popen[bytes]]

    def run(self, pod: FakePod, container: str = "app", below: str = "") -> int:
        """The PID of a process in a container of this pod, in every hierarchy that a runtime puts it into; ``below`` is
        a cgroup below the container's own."""
        child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
        self._children.append(child)
        if pod not in self.pods:
            self.pods.append(pod)
        for path, kind in hierarchies().items():
            if kind == "cgroup2" or path.name in ("pids", "memory", "cpu"):
                mount: Any = SimpleNamespace(path=str(path))
                cgroup = Cgroup(mount, pod.cgroup(container) + below)
                self._made.append(cgroup)
                cgroup.add(child.pid)
        return child.pid

    def publish(self) -> None:
        """The kubelet lists the pods as they are now."""
        self.kubelet.set_body(listing(*self.pods))

    def remove(self) -> None:
        """Nothing of it is left."""
        for child in self._children:
            child.kill()
            child.wait()
        for cgroup in reversed(self._made):
            cgroup.remove()


class Rolled:
    """The daemon of a node, which is started, ended and started again, always at the same socket."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.path = folder / "podtracer.sock"
        self._kubelet = node.kubelet.port
        self._running: list[Daemon] = []

    def start(self, *more: str) -> None:
        """It is ready; ``more`` are flags of its own."""
        words = ("--http-address", "none", "--cri", "none", "--pods-api", "none", "--refresh-interval", "1")
        daemon = Daemon(self.path.parent, "--kubelet-read-only-port", self._kubelet, *words, *more)
        self._running.append(daemon)
        daemon.__enter__()
        until(lambda: all(daemon.status()["ready"].values()), 60, "the daemon to be ready")

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return self._running[-1].status()

    def signal(self, number: int) -> None:
        """Sends it a signal; one that ends it is waited for."""
        if number == signal.SIGKILL:
            self._running[-1].end(number)
        else:
            self._running[-1].child.send_signal(number)

    def end(self) -> None:
        """It is gone."""
        for daemon in self._running:
            if daemon.child.poll() is None:
                daemon.child.send_signal(signal.SIGCONT)
            daemon.__exit__()


@pytest.fixture
def daemon(node: Node, tmp_path: Path) -> Iterator[Rolled]:
    """A daemon for the node, not started yet."""
    daemon = Rolled(node, tmp_path)
    try:
        yield daemon
    finally:
        daemon.end()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host whose plugin has its socket below the test's folder."""
    with Host(environ={"TMPDIR": str(tmp_path)}) as running:
        running.init()
        yield running


@pytest.fixture
def node() -> Iterator[Node]:
    """A node without pods."""
    with ReplayKubelet(listing()) as kubelet:
        node = Node(kubelet, [], [], [])
        try:
            yield node
        finally:
            node.remove()
