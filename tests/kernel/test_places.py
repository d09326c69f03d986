"""Every shape in which clusters keep their containers, as real cgroups, followed by one tracer of a node."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import pytest

from tests.kernel.conftest import Run
from tests.kernel.lab import Cgroup
from tests.machine import hierarchies
from tests.node import FakePod, listing
from tests.waiting import until
from tracer import Tracer
from tracer.kernel.cgroupfs import Mount
from tracer.kernel.loader import HierarchyInfo
from tracer.model import Identity, State
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

pytestmark = pytest.mark.root

TOP = f"/podtracer-places-{secrets.token_hex(4)}"
SLICES = f"{TOP}/kubepods.slice/kubepods-burstable.slice"
NODE = secrets.token_hex(32)


def _slice(pod: FakePod) -> str:
    return f"kubepods-burstable-pod{pod.uid.replace('-', '_')}.slice"


def _id(pod: FakePod) -> str:
    return pod.containers["app"]


SHAPES: dict[str, Callable[[FakePod], str]] = {
    "cgroupfs": lambda pod: f"{TOP}{pod.cgroup()}",
    "systemd": lambda pod: (
        f"{TOP}/kubepods.slice/kubepods-burstable.slice/{_slice(pod)}/cri-containerd-{_id(pod)}.scope"
    ),
    "cgroup-root": lambda pod: f"{TOP}/x.slice/x-kubepods.slice/x-{_slice(pod)}/crio-{_id(pod)}.scope",
    "colon": lambda pod: f"{TOP}/system.slice/containerd.service/{_slice(pod)}:cri-containerd:{_id(pod)}",
    "colon at the top": lambda pod: f"/{_slice(pod)}:cri-containerd:{_id(pod)}",
    "below its monitor": lambda pod: (
        f"{TOP}/kubepods.slice/{_slice(pod)}/crio-conmon-{_id(pod)}.scope/crio-{_id(pod)}.scope"
    ),
    "no pod": lambda pod: f"{TOP}/docker/{_id(pod)}",
    "no pod, systemd": lambda pod: f"{TOP}/system.slice/docker-{_id(pod)}.scope",
    "nested below": lambda pod: f"{TOP}{pod.cgroup()}/init.scope",
}
STATIC = {
    "my-static-01": lambda pod: f"{TOP}/kubepods/burstable/pod{pod.uid}/{_id(pod)}",
    "static.of_mine": lambda pod: f"{TOP}/kubepods.slice/{_slice(pod)}/cri-containerd-{_id(pod)}.scope",
}
PODS = {shape: FakePod(f"pod-{number}") for number, shape in enumerate(SHAPES)}
STATICS = {uid: FakePod(f"static-{number}", uid=uid) for number, uid in enumerate(STATIC)}


@pytest.fixture(scope="module")
def kubelet() -> Iterator[ReplayKubelet]:
    """A kubelet that lists all but one."""
    with ReplayKubelet(listing(*PODS.values(), *STATICS.values())) as running:
        yield running


@pytest.fixture(scope="module")
def tracer(kubelet: ReplayKubelet) -> Iterator[Tracer]:
    """One tracer for all shapes."""
    settings = Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none", refresh_interval=0.5)
    with Tracer(settings) as running:
        assert running.wait_synced(30)
        yield running


@pytest.fixture
def contain(tracer: Tracer, lab: Run) -> Iterator[Callable[[str], int]]:
    """Puts a process into a cgroup of this path; both are gone afterwards."""
    made: list[Cgroup] = []

    def put(path: str) -> int:
        made.append(Cgroup(tracer.mount, path))
        helper = lab("pause")
        made[-1].add(helper.pid)
        return helper.pid

    yield put
    for cgroup in reversed(made):
        cgroup.remove()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_listed_container_is_its_pods_in_every_shape(
    tracer: Tracer, contain: Callable[[str], int], shape: str
) -> None:
    """Whatever driver, runtime or cgroup root made its cgroup, and whatever shapes others on the node have."""
    pid = contain(SHAPES[shape](PODS[shape]))
    until(lambda: tracer.lookup(pid).workload.pod == PODS[shape].name, 10, "the process to be its pod's")
    assert tracer.lookup(pid).state is State.RESOLVED


@pytest.mark.parametrize("uid", STATIC)
def test_a_static_pods_own_uid_is_found(tracer: Tracer, contain: Callable[[str], int], uid: str) -> None:
    """A manifest may give a static pod any UID, which is in the path as the driver writes it."""
    pid = contain(STATIC[uid](STATICS[uid]))
    until(lambda: tracer.lookup(pid).workload.pod == STATICS[uid].name, 10, "the process to be its pod's")


@pytest.mark.parametrize("shape", ["cgroupfs", "systemd", "colon", "no pod"])
def test_what_is_listed_late_is_pending_till_then(
    tracer: Tracer, kubelet: ReplayKubelet, contain: Callable[[str], int], shape: str
) -> None:
    """A container that no list has yet is never on the host, whether its path names a pod or not."""
    pod = FakePod("late-1")
    pid = contain(SHAPES[shape](pod))
    until(lambda: tracer.lookup(pid).cgroup is not None, 10, "the process to be known")
    found: list[Identity] = [tracer.lookup(pid)]
    kubelet.set_body(listing(*PODS.values(), *STATICS.values(), pod))
    until(lambda: found.append(tracer.lookup(pid)) or found[-1].state is State.RESOLVED, 20, "it to be listed")
    assert {identity.state for identity in found} <= {State.PENDING, State.RESOLVED}
    assert found[-1].workload.pod == "late-1"


def test_the_monitor_is_on_the_host(tracer: Tracer, contain: Callable[[str], int]) -> None:
    """CRI-O's monitor is no workload, also where the container is below it."""
    shape = "below its monitor"
    pid = contain(SHAPES[shape](PODS[shape]).rpartition("/")[0])
    until(lambda: tracer.lookup(pid).workload.reason == "conmon", 10, "the monitor to be told")


@pytest.mark.parametrize(
    "path",
    [
        "{top}/docker/{node}/kubelet.slice/kubelet-kubepods.slice/kubelet-{slice}/cri-containerd-{id}.scope",
        "{top}/docker/{node}/{slice}:cri-containerd:{id}",
        *(
            pytest.param(path, marks=pytest.mark.brisk)
            for path in (
                "{top}/docker/{node}/system.slice/containerd.service/{slice}:cri-containerd:{id}",
                "{top}/system.slice/docker-{node}.scope/kubelet/kubepods/burstable/pod{uid}/{id}",
            )
        ),
    ],
)
def test_a_node_that_is_a_container_has_its_pods_below_it(lab: Run, path: str) -> None:
    """KIND's and minikube's, by whatever driver, where no pod is outside of it."""
    pod = FakePod("kind-0")
    with ReplayKubelet(listing(pod)) as kubelet:
        settings = Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none")
        with Tracer(settings) as tracer:
            assert tracer.wait_synced(30)
            whole = path.format(top=TOP, node=NODE, slice=_slice(pod), id=_id(pod), uid=pod.uid)
            cgroup = Cgroup(tracer.mount, whole)
            try:
                helper = lab("pause")
                cgroup.add(helper.pid)
                until(lambda: tracer.lookup(helper.pid).workload.pod == pod.name, 10, "the process to be its pod's")
            finally:
                cgroup.remove()


@pytest.mark.v1
@pytest.mark.v2
def test_what_nobody_lists_does_not_hold_the_containers_hierarchy(lab: Run) -> None:
    """Root's own look-alike on v2, which no kubelet lists, does not keep the tracer there: the containers that one
    lists are on v1."""
    pod, other = FakePod("real-0"), FakePod("other-0")
    kinds = {kind: path for path, kind in hierarchies().items() if kind == "cgroup2" or path.name == "pids"}
    v2, v1 = kinds["cgroup2"], next(path for kind, path in kinds.items() if kind != "cgroup2")
    made: list[Cgroup] = []
    try:
        pids = []
        for folder, chosen in ((v2, other), (v1, pod)):
            made.append(Cgroup(Mount(str(folder), (), HierarchyInfo(0, 0, 0), True), f"{TOP}{chosen.cgroup()}"))
            helper = lab("pause")
            made[-1].add(helper.pid)
            pids.append(helper.pid)
        with ReplayKubelet(listing(pod)) as kubelet:
            settings = Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none")
            with Tracer(settings) as tracer:
                assert tracer.wait_synced(30)
                until(lambda: tracer.lookup(pids[1]).workload.pod == pod.name, 10, "the process to be its pod's")
                assert tracer.hierarchy == v1.name
                assert tracer.lookup(pids[0]).state is not State.RESOLVED
    finally:
        for cgroup in made:
            cgroup.remove()
