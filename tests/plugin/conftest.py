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

from tests.kernel.lab import Cgroup
from tests.machine import hierarchies
from tests.node import FakePod, listing
from tests.plugin.host import Host
from tests.podtracer import COMMAND
from tests.waiting import SLOW, until
from tracer.client import Client
from tracer.errors import DaemonUnreachable
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


class Daemon:
    """``podtracer daemon`` with a node's kubelet, at a socket of its own."""

    def __init__(self, node: Node, path: Path) -> None:
        self.path = path
        self._kubelet = node.kubelet.port
        self._log = path.with_suffix(".log")
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It answers."""
        words = ["--http-address", "none", "--cri", "none", "--pods-api", "none", "--refresh-interval", "1"]
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [*COMMAND, "daemon", "--socket", self.path, "--kubelet-read-only-port", str(self._kubelet), *words],
                stderr=log,
            )
        until(self._is_ready, 60, "the daemon to be ready")

    def _is_ready(self) -> bool:
        assert self._child is not None
        assert self._child.poll() is None, self._log.read_text()
        try:
            return all(self.status()["ready"].values())
        except DaemonUnreachable:
            return False

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        with Client(str(self.path)) as client:
            return client.status()

    def signal(self, number: int) -> None:
        """Sends it a signal; one that is meant to end it is waited for."""
        assert self._child is not None
        self._child.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._child.wait(30 * SLOW)

    def end(self) -> None:
        """It is gone."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)


@pytest.fixture
def daemon(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon for the node, not started yet."""
    daemon = Daemon(node, tmp_path / "podtracer.sock")
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
