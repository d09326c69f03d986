"""Containers of every runtime wherever it may put them, followed from outside and from inside of cgroup namespaces.

Also on other kernels, in virtual machines.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.pods import is_the_pods
from tests.containers import Container
from tests.machine import CgroupsMade, cgroup_folders
from tests.node import FakePod, listing
from tests.podtracer import COMMAND
from tests.runc import CGROUPS_INSIDE, Runc, RuncContainer
from tests.waiting import SLOW, until
from tracer import Tracer, clock
from tracer.model import Event, State
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

pytestmark = pytest.mark.root


def _scope(pod: FakePod) -> str:
    slices = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{pod.uid.replace('-', '_')}.slice"
    return f"{slices}/cri-containerd-{pod.containers['app']}.scope"


# Where a container is: by the kubelet's driver, and as crun has it below what systemd made for it.
PLACES: dict[str, Callable[[FakePod], str]] = {
    "cgroupfs": FakePod.cgroup,
    "systemd": _scope,
    "below-scope": lambda pod: f"{_scope(pod)}/container",
}
ALONE = [pytest.param("runc", marks=pytest.mark.runc), pytest.param("crun", marks=pytest.mark.crun)]
RUNTIMES = [
    *ALONE,
    pytest.param("containerd-runc", marks=pytest.mark.container),
    pytest.param("containerd-crun", marks=[pytest.mark.container, pytest.mark.crun]),
]
PODS = {
    (runtime.values[0], place): FakePod(f"{runtime.values[0]}-{place}")
    for runtime in RUNTIMES
    for place in (*PLACES, "private")
}
VICTIM = FakePod("vault-0", "secrets", "vault")
# Nests cgroups of these names in each hierarchy that is mounted below a folder, and moves there. A v1 cpuset takes no
# process before it has been told its CPUs and memory nodes.
NEST = """
for at in {top} {top}/*; do
    [ -e $at/cgroup.procs ] || continue
    for name in {names}; do
        mkdir -p $at/$name
        for setting in cpuset.cpus cpuset.mems; do
            if [ -e $at/$name/$setting ]; then cat $at/$setting >$at/$name/$setting; fi
        done
        at=$at/$name
    done
    echo $$ >$at/cgroup.procs
done
exec /bin/sleep 1000
"""
Start = Callable[..., Container | RuncContainer]


@pytest.fixture(scope="session")
def crun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runc]:
    """crun alone, for the whole session."""
    with Runc(tmp_path_factory.mktemp("crun"), "crun") as runtime:
        yield runtime


@pytest.fixture(scope="module")
def kubelet() -> Iterator[ReplayKubelet]:
    """A kubelet's answer that lists all pods."""
    with ReplayKubelet(listing(*PODS.values(), VICTIM)) as running:
        yield running


@pytest.fixture(scope="module")
def tracers(kubelet: ReplayKubelet) -> Iterator[Callable[[str], Tracer]]:
    """A tracer for each root that pods are below, since a node has but one; it knows the pods before any of their
    containers is made."""
    running: dict[str, Tracer] = {}
    with contextlib.ExitStack() as stack:

        def tracer(path: str) -> Tracer:
            root = path.split("/")[1]
            if root not in running:
                settings = Settings(kubelet_read_only_port=kubelet.port, cri="none", pods_api="none")
                running[root] = stack.enter_context(Tracer(settings))
                assert running[root].wait_synced(30)
            return running[root]

        yield tracer


@pytest.fixture
def start(request: pytest.FixtureRequest, runtime: str) -> Iterator[Start]:
    """Starts containers by the runtime that the test asks for, and removes them."""
    started: list[Container | RuncContainer] = []
    made = CgroupsMade()
    maker: Any = request.getfixturevalue(runtime.partition("-")[0])
    options = {"options": ("--runc-binary", "crun")} if runtime == "containerd-crun" else {}

    def run(*args: str, cgroup: str, **words: Any) -> Container | RuncContainer:
        made.about_to_make(cgroup)  # the next test may have another runtime, which would not know who made the parents
        started.append(maker.run(*args, cgroup=cgroup, **options, **words))
        return started[-1]

    yield run
    for container in started:
        container.remove()
    made.remove()


def _is_the_pods(tracer: Tracer, pid: int, pod: FakePod) -> bool:
    return is_the_pods(tracer.lookup(pid).to_dict(clock.read()), pod)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_container_is_its_pods_wherever_it_is_put(
    tracers: Callable[[str], Tracer], start: Start, runtime: str, place: str
) -> None:
    """Its entrypoint, what that has executed, and what is started in it later are its pod's, in each event and look-up,
    until its end."""
    pod = PODS[runtime, place]
    path = PLACES[place](pod)
    tracer = tracers(path)
    events: list[Event] = []
    with tracer.watch(snapshot=False) as watch:
        script = "/bin/env true; exec /bin/sleep 1000"
        container = start("/bin/sh", "-c", script, container_id=pod.containers["app"], cgroup=path)
        assert cgroup_folders(path)
        until(lambda: _is_the_pods(tracer, container.pid, pod), 20, "the entrypoint to be resolved")
        later = container.spawn("/bin/sleep", "1000")
        assert _is_the_pods(tracer, later, pod)
        container.kill()

        def ended() -> bool:
            while (event := watch.next(0)) is not None:
                events.append(event)
            last = [event for event in events if event.identity and event.identity.key.pid == container.pid]
            return bool(last) and last[-1].event == "exit"

        until(ended, 20, "the entrypoint's exit to be told")
    named = {event.identity.workload.pod for event in events if event.identity and event.identity.workload.pod}
    assert named == {pod.name}
    mine = [e for e in events if e.identity and e.identity.key.pid == container.pid and e.event in ("exec", "exit")]
    # The runtime itself, that it is before, may exec in the cgroup before it is the container's.
    assert [event.identity.process.comm for event in mine[-3:] if event.identity and event.identity.process] == [
        "sh",
        "sleep",
        "sleep",
    ]
    assert all(event.identity and is_the_pods(event.identity.to_dict(clock.read()), pod) for event in mine[-3:])


@pytest.mark.parametrize("runtime", ALONE)
def test_a_private_cgroup_namespace_hides_nothing(
    tracers: Callable[[str], Tracer], start: Start, runtime: str, kubelet: ReplayKubelet
) -> None:
    """A container that sees its own cgroups as the root, and in them makes one called as another pod's container, and
    moves there, is its own pod's: for a tracer outside, and for one that runs in the container's cgroup namespace."""
    pod = PODS[runtime, "private"]
    tracer = tracers(_scope(pod))
    names = f"pod{VICTIM.uid}", VICTIM.containers["app"]
    script = NEST.format(top=CGROUPS_INSIDE, names=" ".join(names))
    container = start("/bin/sh", "-c", script, container_id=pod.containers["app"], cgroup=_scope(pod), own_cgroups=True)
    comm = Path(f"/proc/{container.pid}/comm")
    until(lambda: comm.read_text() == "sleep\n", 20, "the container to have moved")
    nested = "/".join(names)
    assert f"{_scope(pod)}/{nested}\n" in Path(f"/proc/{container.pid}/cgroup").read_text()
    until(lambda: _is_the_pods(tracer, container.pid, pod), 20, "the container to be resolved")
    inside = ("nsenter", f"--cgroup=/proc/{container.pid}/ns/cgroup")
    seen = subprocess.run([*inside, "cat", f"/proc/{container.pid}/cgroup"], capture_output=True, text=True, check=True)
    assert f":/{nested}\n" in seen.stdout
    code, identity = _lookup(kubelet, container.pid, before=inside)
    assert (code, is_the_pods(identity, pod)) == (0, True)


@pytest.mark.v2
@pytest.mark.runc
@pytest.mark.parametrize("runtime", ["runc"])
@pytest.mark.parametrize("way", ["", pytest.param("procfs", marks=pytest.mark.brisk)])
def test_the_mount_of_a_private_cgroup_namespace_names_nobody(
    start: Start, kubelet: ReplayKubelet, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer that has only the cgroup file system as a private cgroup namespace has it mounted cannot tell whose a
    process is, in that namespace and outside, and says so: "unknown", exit 75, never "host" and never a pod."""
    monkeypatch.setenv("PODTRACER_FORCE", way)
    pod = PODS["runc", "private"]
    container = start(container_id=pod.containers["app"], cgroup=_scope(pod), own_cgroups=True)
    script = f'mount -t cgroup2 none {tmp_path} && exec "$@"'
    enter = ("nsenter", f"--cgroup=/proc/{container.pid}/ns/cgroup", "unshare", "--mount")
    code, identity = _lookup(
        kubelet, container.pid, "--cgroupfs", str(tmp_path), before=(*enter, "sh", "-c", script, "sh")
    )
    assert (code, identity["state"], identity["reason"]) == (75, State.UNKNOWN, "unnamed")
    assert (identity["pod"], identity["selectors"]) == (None, [])


def _lookup(kubelet: ReplayKubelet, pid: int, *words: str, before: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """The exit code and the identity that a command of its own gives, run behind ``before``."""
    asked = ("--standalone", "--kubelet-read-only-port", str(kubelet.port), "--cri", "none", "--pods-api", "none")
    done = subprocess.run(
        [*before, *COMMAND, "lookup", "-o", "json", *asked, *words, str(pid)],
        capture_output=True, text=True, timeout=60 * SLOW, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)
