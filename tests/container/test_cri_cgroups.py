"""The cgroup path that a real containerd reports over CRI, in the forms of both drivers."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests import machine
from tests.cluster import config
from tests.containers import APP, ContainerdDaemon
from tests.rpc import Value, pb, pb_map, read_strings
from tests.runtime import labels
from tests.waiting import SLOW
from tracer.sources.cri import CriClient

pytestmark = pytest.mark.container

NODE_NETWORK = pb((1, 2))  # NamespaceOption.network: that of the node, for which no network plugin is needed
Create = Callable[[str], str]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerdDaemon]:
    """A containerd with its CRI plugin, and the images of a pause and of an app."""
    folder = tmp_path_factory.mktemp("cri")
    containerd = ContainerdDaemon(folder, config.CONTAINERD)
    try:
        containerd.start()
        containerd.add_image(config.PAUSE)
        containerd.add_image(APP)
        yield containerd
    finally:
        containerd.stop()


@pytest.fixture
def create(runtime: ContainerdDaemon) -> Iterator[Create]:
    """Starts a container of a pod of its own whose cgroup is below the one given, and returns its ID."""
    made = machine.CgroupsMade()
    sandboxes: list[str] = []
    with grpc.insecure_channel(f"unix:{runtime.socket}") as channel:

        def call(method: str, *fields: tuple[int, Value]) -> bytes:
            rpc = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
            answer: bytes = rpc(pb(*fields), timeout=60 * SLOW)
            return answer

        def create(cgroup: str) -> str:
            pod_uid = str(uuid.uuid4())
            made.about_to_make(cgroup)
            linux = pb((1, cgroup), (2, pb((1, NODE_NETWORK))))
            sandbox = pb((1, pb((1, "cart-0"), (2, pod_uid), (3, "shop"))), (8, linux))
            sandboxes.append(read_strings(call("RunPodSandbox", (1, sandbox)))[1])
            container = pb((1, pb((1, "app"))), (2, pb((1, APP))), *pb_map(9, labels("app", pod_uid)))
            created = call("CreateContainer", (1, sandboxes[-1]), (2, container), (3, sandbox))
            container_id = read_strings(created)[1]
            call("StartContainer", (1, container_id))
            return container_id

        yield create
        for sandbox_id in sandboxes:
            call("StopPodSandbox", (1, sandbox_id))
            call("RemovePodSandbox", (1, sandbox_id))
    made.remove()


def test_a_cgroup_path_is_where_the_container_is(runtime: ContainerdDaemon, create: Create) -> None:
    """With the cgroupfs driver the runtime reports the path that the container's process has in every hierarchy."""
    parent = f"/kubepods/burstable/pod{uuid.uuid4()}"
    container_id = create(parent)
    with CriClient(str(runtime.socket)) as client:
        found = client.container_status(container_id)
    assert found is not None
    assert found.cgroups_path == f"{parent}/{container_id}"
    (pid,) = [
        int(line.split()[1]) for line in runtime.ctr("tasks", "ls").stdout.splitlines() if line.startswith(container_id)
    ]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert {line.split(":", 2)[2] for line in lines} == {found.cgroups_path}


def test_a_slice_is_reported_with_prefix_and_id(runtime: ContainerdDaemon, create: Create) -> None:
    """With the systemd driver's slices the runtime reports the slice's name alone, its prefix and the container."""
    slice_ = f"kubepods-burstable-pod{str(uuid.uuid4()).replace('-', '_')}.slice"
    container_id = create(f"/kubepods.slice/kubepods-burstable.slice/{slice_}")
    with CriClient(str(runtime.socket)) as client:
        found = client.container_status(container_id)
    assert found is not None
    assert found.cgroups_path == f"{slice_}:cri-containerd:{container_id}"
