"""Finding out, on a hybrid node, which hierarchy holds the containers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import Run
from tests.kernel.lab import Cgroup
from tests.machine import hierarchies
from tests.node import FakePod, listing
from tests.user import User
from tests.waiting import until
from tracer import Tracer
from tracer.kernel.cgroupfs import Mount
from tracer.kernel.loader import HierarchyInfo
from tracer.model import State
from tracer.scout import first_choice
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

pytestmark = [pytest.mark.root, pytest.mark.v1, pytest.mark.v2]
V1, V2 = "pids", "v2"


def _mounts() -> dict[str, Mount]:
    found = {}
    for path, kind in hierarchies().items():
        name = V2 if kind == "cgroup2" else path.name
        if name in (V1, V2):
            names = () if kind == "cgroup2" else (V1,)
            found[name] = Mount(str(path), names, HierarchyInfo(0, 0 if name == V2 else 1, 0), trusted=True)
    return found


@pytest.fixture
def cgroups() -> Iterator[list[Cgroup]]:
    """Cgroups that a test makes, removed afterwards."""
    made: list[Cgroup] = []
    yield made
    for cgroup in reversed(made):
        cgroup.remove()


def test_the_first_container_of_an_empty_node_may_be_v1_only(cgroups: list[Cgroup], lab: Run) -> None:
    """On a node without containers v2 is tracked; when the first pod's container appears on v1 alone, its process is
    never called "host" from then on, and soon is its pod's, also in the events of a watch."""
    pod = FakePod("legacy-1")
    with (
        ReplayKubelet(listing(pod)) as kubelet,
        Tracer(Settings(kubelet_read_only_port=kubelet.port)) as tracer,
    ):
        assert tracer.wait_synced(30)
        assert tracer.hierarchy == V2
        helper = lab("pause")
        with tracer.watch(snapshot=False) as watch:
            cgroup = Cgroup(_mounts()[V1], pod.cgroup())
            cgroups.append(cgroup)
            cgroup.add(helper.pid)
            seen = set()

            def resolved() -> bool:
                identity = tracer.lookup(helper.pid)
                seen.add((identity.state, identity.workload.reason))
                return identity.state is State.RESOLVED

            until(resolved, 10, "the container to be found on v1", interval=0.001)
            assert seen <= {(State.PENDING, "hierarchy"), (State.PENDING, "not_listed_yet"), (State.RESOLVED, None)}
            assert tracer.hierarchy == V1
            assert tracer.lookup(helper.pid).workload.pod == "legacy-1"
            child = lab("pause")
            cgroup.add(child.pid)
            assert tracer.lookup(child.pid).workload.pod == "legacy-1"
            moves = []
            until(
                lambda: (
                    (event := watch.next(0)) is not None
                    and event.event == "move"
                    and event.identity is not None
                    and event.identity.key.pid == child.pid
                    and (moves.append(event) or True)
                ),
                10,
                "the move on the new hierarchy",
                interval=0,
            )
            assert moves[0].identity.workload.pod == "legacy-1"
        assert tracer.lookup(os.getpid()).state is State.HOST


def test_v2_stays_when_it_holds_the_containers_too(cgroups: list[Cgroup], lab: Run) -> None:
    """A container that is on v1 and on v2, as runc makes it on a hybrid host, leaves v2 tracked."""
    pod = FakePod("hybrid-1")
    with (
        ReplayKubelet(listing(pod)) as kubelet,
        Tracer(Settings(kubelet_read_only_port=kubelet.port)) as tracer,
    ):
        assert tracer.wait_synced(30)
        helper = lab("pause")
        for name in (V1, V2):
            cgroups.append(Cgroup(_mounts()[name], pod.cgroup()))
            cgroups[-1].add(helper.pid)
        until(lambda: tracer.lookup(helper.pid).workload.pod == "hybrid-1", 10, "the container to be found")
        until(lambda: tracer.certainty == (True, False), 10, "the choice to be certain")
        assert tracer.hierarchy == V2


def test_at_start_the_hierarchy_with_containers_is_taken(cgroups: list[Cgroup], lab: Run) -> None:
    """A tracer that starts when a container runs on v1 alone tracks v1 from its first answer."""
    pod, helper = FakePod("earlier-1"), lab("pause")
    cgroups.append(Cgroup(_mounts()[V1], pod.cgroup()))
    cgroups[-1].add(helper.pid)
    with (
        ReplayKubelet(listing(pod)) as kubelet,
        Tracer(Settings(kubelet_read_only_port=kubelet.port)) as tracer,
    ):
        assert tracer.hierarchy == V1
        assert tracer.wait_synced(30)
        assert tracer.lookup(helper.pid).workload.pod == "earlier-1"


def test_an_empty_container_cgroup_decides_nothing(cgroups: list[Cgroup]) -> None:
    """A container's cgroup without a process, left behind by a runtime that crashed, is no reason to track v1."""
    mounts = _mounts()
    cgroups.append(Cgroup(mounts[V1], FakePod("dead-1").cgroup()))
    assert first_choice([mounts[V2], mounts[V1]]).name == V2


def test_a_pods_container_counts_more_than_any(cgroups: list[Cgroup], lab: Run) -> None:
    """With a Docker container on v2 and a pod's container on v1, v1 is taken."""
    mounts = _mounts()
    for name, path in ((V2, "/docker/" + "d" * 64), (V1, FakePod("cart-1").cgroup())):
        cgroups.append(Cgroup(mounts[name], path))
        cgroups[-1].add(lab("pause").pid)
    assert first_choice([mounts[V2], mounts[V1]]).name == V1


def test_containers_that_move_to_another_hierarchy_are_followed(cgroups: list[Cgroup], lab: Run) -> None:
    """Nothing is settled by one sighting: where the containers of a node are on v1 first and on v2 later, each is its
    pod's in its time, and a watch is told of those of which something else was said before."""
    old, new = FakePod("old-1"), FakePod("new-1")
    with (
        ReplayKubelet(listing(old, new)) as kubelet,
        Tracer(Settings(kubelet_read_only_port=kubelet.port)) as tracer,
        tracer.watch(snapshot=False) as watch,
    ):
        assert tracer.wait_synced(30)
        for pod, kind in ((old, V1), (new, V2)):
            helper = lab("pause")
            cgroup = Cgroup(_mounts()[kind], pod.cgroup())
            cgroups.append(cgroup)
            cgroup.add(helper.pid)
            until(
                lambda pid=helper.pid, pod=pod: tracer.lookup(pid).workload.pod == pod.name, 10, f"{pod.name} on {kind}"
            )
            assert tracer.hierarchy == kind
            assert tracer.lookup(os.getpid()).state is State.HOST
            until(
                lambda pid=helper.pid, pod=pod: (
                    (event := watch.next(0)) is not None
                    and event.identity is not None
                    and event.identity.key.pid == pid
                    and event.identity.workload.pod == pod.name
                    and event.identity.state is State.RESOLVED
                ),
                10,
                f"{pod.name} to be told",
                interval=0,
            )
            cgroup.remove()


@pytest.mark.parametrize("moment", ["before the start", "before the first container", "after the first container"])
def test_a_user_decides_nothing(cgroups: list[Cgroup], lab: Run, moment: str) -> None:
    """On a node whose containers are on v1, a user with a delegated subtree on v2 names cgroups after listed pods:
    it is on the host, and every container is its pod's, whenever that happens."""
    pod, victim = FakePod("real-1"), FakePod("victim-1")

    def contain(chosen: FakePod) -> int:
        cgroups.append(Cgroup(_mounts()[V1], chosen.cgroup()))
        helper = lab("pause")
        cgroups[-1].add(helper.pid)
        return helper.pid

    with User(Path(_mounts()[V2].path)) as user, ReplayKubelet(listing(pod, victim)) as kubelet:
        if moment == "before the start":
            attacker = user.enter(victim.cgroup())
        if moment == "after the first container":
            first = contain(pod)
        with Tracer(Settings(kubelet_read_only_port=kubelet.port)) as tracer:
            assert tracer.wait_synced(30)
            if moment != "before the start":
                attacker = user.enter(victim.cgroup())
            if moment != "after the first container":
                first = contain(pod)
            until(lambda: tracer.lookup(first).workload.pod == pod.name, 10, "the container to be its pod's")
            second = contain(victim)
            until(lambda: tracer.lookup(second).workload.pod == victim.name, 10, "the victim to be its own pod's")
            assert tracer.lookup(attacker).state in (State.HOST, State.UNKNOWN)
            assert tracer.hierarchy == V1
