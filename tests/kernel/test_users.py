"""A real user with a delegated subtree of the tracked hierarchy, who names cgroups after listed containers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.conftest import Run
from tests.kernel.lab import Cgroup
from tests.node import FakePod, listing
from tests.user import User
from tests.waiting import until
from tracer import Tracer
from tracer.kernel.cgroupfs import CgroupNames, Ownership
from tracer.model import State
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

pytestmark = pytest.mark.root


def _slice(pod: FakePod) -> str:
    return f"kubepods-burstable-pod{pod.uid.replace('-', '_')}.slice"


FORMS: dict[str, Callable[[FakePod], str]] = {
    "cgroupfs": FakePod.cgroup,
    "systemd": lambda pod: f"/kubepods.slice/{_slice(pod)}/cri-containerd-{pod.containers['app']}.scope",
    "colon": lambda pod: f"/{_slice(pod)}:cri-containerd:{pod.containers['app']}",
    "id alone": lambda pod: f"/{pod.containers['app']}",
    "below a container": lambda pod: f"/docker/{'d' * 64}{pod.cgroup()}",
    "below a monitor": lambda pod: f"/crio-conmon-{pod.containers['app']}.scope/crio-{pod.containers['app']}.scope",
}


@pytest.mark.parametrize(
    ("form", "is_late"),
    [
        ("cgroupfs", True),
        ("id alone", False),
        *(
            pytest.param(form, is_late, marks=pytest.mark.brisk)
            for form in FORMS
            for is_late in (False, True)
            if (form, is_late) not in (("cgroupfs", True), ("id alone", False))
        ),
    ],
)
def test_a_users_cgroup_is_nobodys_container(lab: Run, form: str, is_late: bool) -> None:
    """While the kubelet lists containers that have no cgroup (yet, or any more), a user who names its own after one
    stays a conflict; each container is its pod's as soon as it is there, and its end changes nothing for the user."""
    pods = [FakePod(f"web-{number}") for number in range(3)]
    victim = pods[0]
    made: list[Cgroup] = []
    with ReplayKubelet(listing(*pods)) as kubelet:
        settings = Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none")
        with Tracer(settings) as tracer, User(Path(tracer.mount.path)) as user:
            if not is_late:
                attacker = user.enter(FORMS[form](victim))
            assert tracer.wait_synced(30)
            if is_late:
                attacker = user.enter(FORMS[form](victim))

            def says() -> tuple[State, str | None, str | None]:
                workload = tracer.lookup(attacker).workload
                return workload.state, workload.reason, workload.pod

            until(lambda: says() == (State.UNKNOWN, "conflict", None), 10, "the user to be a conflict")
            try:
                for pod in pods:
                    made.append(Cgroup(tracer.mount, pod.cgroup()))
                    helper = lab("pause")
                    made[-1].add(helper.pid)
                    until(lambda pid=helper.pid, pod=pod: tracer.lookup(pid).workload.pod == pod.name, 10, pod.name)
                    assert says() == (State.UNKNOWN, "conflict", None)
            finally:
                for cgroup in made:
                    cgroup.remove()
            assert says() == (State.UNKNOWN, "conflict", None)


def test_a_users_start_before_the_tracer_teaches_it_nothing(lab: Run) -> None:
    """The same where the user was there before, and its names are all that there is."""
    pod = FakePod("web-1")
    with ReplayKubelet(listing(pod)) as kubelet:
        settings = Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none")
        with Tracer(settings) as first:
            mount = first.mount
        with User(Path(mount.path)) as user:
            attackers = [user.enter(form(pod)) for form in FORMS.values()]
            with Tracer(settings) as tracer:
                assert tracer.wait_synced(30)
                assert {tracer.lookup(pid).state for pid in attackers} <= {State.UNKNOWN, State.HOST}
                cgroup = Cgroup(mount, pod.cgroup())
                try:
                    helper = lab("pause")
                    cgroup.add(helper.pid)
                    until(lambda: tracer.lookup(helper.pid).workload.pod == pod.name, 10, "the container")
                    assert State.RESOLVED not in {tracer.lookup(pid).state for pid in attackers}
                finally:
                    cgroup.remove()


def test_what_a_user_makes_is_not_looked_at_before_somebody_asks(lab: Run) -> None:
    """Cgroups in a directory that a user may write are told of in any number; a process in one is found all the same,
    and so is what a user made in a directory of another's that all may write."""
    with (
        Tracer(Settings(cri="none", pods_api="none", kubelet="none")) as tracer,
        User(Path(tracer.mount.path)) as user,
    ):
        names = CgroupNames(tracer.mount)
        ownership = Ownership(names)
        mine = os.stat(user.folder).st_ino
        slice_ = os.stat(user.folder.parent).st_ino
        assert ownership.is_writable(mine)
        assert not ownership.is_writable(slice_)
        os.chmod(user.folder.parent, 0o777)
        assert ownership.is_writable(slice_)
        os.chmod(user.folder.parent, 0o755)
        below = str(user.folder)[len(tracer.mount.path) :]
        assert not Ownership(names, below).is_writable(mine)
        names.close()
        pid = user.enter(f"/{'d' * 64}")
        assert tracer.lookup(pid).workload.reason == "not_a_pod"


def test_below_a_prefix_its_owner_is_believed_and_nobody_elsewhere() -> None:
    """On a rootless node the operator names the place: what its owner makes there is a pod's, and nothing else is, be
    it the same user's beside it."""
    pods = [FakePod(f"rootless-{number}") for number in range(3)]
    with ReplayKubelet(listing(*pods)) as kubelet:
        asked = Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none")
        with Tracer(asked) as first:
            mount = first.mount
        with User(Path(mount.path)) as user:
            place = f"{user.folder}/node".removeprefix(mount.path.rstrip("/"))
            within = user.enter(f"/node{pods[0].cgroup()}")
            beside = user.enter(pods[1].cgroup())
            with Tracer(replace(asked, cgroup_prefix=f"{place}/kubepods")) as tracer:
                assert tracer.wait_synced(30)
                until(lambda: tracer.lookup(within).workload.pod == pods[0].name, 10, "the process to be its pod's")
                late = user.enter(f"/node{pods[2].cgroup()}")
                until(lambda: tracer.lookup(late).workload.pod == pods[2].name, 10, "a new one to be its pod's")
                assert tracer.lookup(beside).state is State.HOST
