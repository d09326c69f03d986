"""Containers by runc alone, on whatever hierarchies there are: also on other kernels, in virtual machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.container.pods import is_the_pods
from tests.machine import cgroup_folders
from tests.node import FakePod
from tests.podtracer import Watch
from tests.runc import Runc
from tests.waiting import until
from tracer.sources.replay import ReplayKubelet

pytestmark = [pytest.mark.root, pytest.mark.runc]


def _scope(pod: FakePod) -> str:
    """The container's cgroup as systemd names it for containerd."""
    slices = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{pod.uid.replace('-', '_')}.slice"
    return f"{slices}/cri-containerd-{pod.containers['app']}.scope"


def _lives(runc: Runc, pod: FakePod, kubelet: ReplayKubelet, cgroup: str, *, v2: bool = True) -> None:
    with Watch("--kubelet-read-only-port", kubelet.port) as watch:
        container = runc.run(
            "/bin/sh", "-c", "/bin/env true; exec /bin/sleep 1000",
            container_id=pod.containers["app"], cgroup=cgroup, v2=v2,
        )  # fmt: skip
        until(lambda: any(is_the_pods(e, pod) for e in watch.of(container.pid)), 20, "the container to be resolved")
        container.remove()
        until(lambda: [e for e in watch.of(container.pid) if e["event"] == "exit"], 20, "its exit")
        last = watch.of(container.pid)[-1]
    assert is_the_pods(last, pod)
    assert not [path for path in cgroup_folders(cgroup) if Path(path).exists()]


@pytest.mark.brisk
def test_a_container_is_its_pods_in_a_kubelets_cgroup(runc: Runc, pod: FakePod, kubelet: ReplayKubelet) -> None:
    """A container that runc puts where the cgroupfs driver has it is its pod's, watched from before its start."""
    _lives(runc, pod, kubelet, pod.cgroup())


def test_a_container_is_its_pods_in_a_scope(runc: Runc, pod: FakePod, kubelet: ReplayKubelet) -> None:
    """A container that runc puts where the systemd driver has it is its pod's, watched from before its start."""
    _lives(runc, pod, kubelet, _scope(pod))


@pytest.mark.v1
@pytest.mark.v2
def test_a_container_on_v1_alone_is_its_pods(runc: Runc, pod: FakePod, kubelet: ReplayKubelet) -> None:
    """On a hybrid host a container that is not in the v2 hierarchy is its pod's all the same."""
    _lives(runc, pod, kubelet, pod.cgroup(), v2=False)
