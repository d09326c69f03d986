"""The container runtime and the Pods API of a real cluster, as sources of pod data."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import machine
from tests.cluster.cluster import Cluster
from tests.cluster.config import APP, CGROUP, PORTS
from tests.cluster.test_cluster import REPLICAS, WORKLOAD, listed, running
from tests.waiting import until
from tracer.identity.pods import decode_pod_list
from tracer.model import Pod
from tracer.sources.cri import CriClient, CriContainer
from tracer.sources.cri_source import CriSource
from tracer.sources.kubelet import PodFetch
from tracer.sources.pods_api import PodsApiClient
from tracer.sources.pods_source import PodsApiSource
from tracer.sources.state import SourceState

pytestmark = [pytest.mark.root, pytest.mark.cluster]

WAIT = 60.0
# An init container, a sidecar, two containers of which one has no image, and a hook that holds back the status.
VARIED = """
apiVersion: v1
kind: Pod
metadata: {name: varied, labels: {app: varied}, annotations: {note: text}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
    - {name: first, image: "localhost/app:1", imagePullPolicy: Never, command: [sh, -c, "exit 0"]}
    - {name: sidecar, image: "localhost/app:1", imagePullPolicy: Never, restartPolicy: Always}
  containers:
    - {name: app, image: "localhost/app:1", imagePullPolicy: Never}
    - {name: broken, image: "localhost/missing:1", imagePullPolicy: Never}
"""
HOOKED = """
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: app
      image: localhost/app:1
      imagePullPolicy: Never
      lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 5"]}}}
"""
SIMPLE = """
apiVersion: v1
kind: Pod
metadata: {name: simple}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: "localhost/app:1", imagePullPolicy: Never}]
"""


class Told:
    """What the sources told. Lists of states are in order; everything else by ID or UID."""

    def __init__(self) -> None:
        self.containers: dict[str, CriContainer | None] = {}
        self.sandboxes: set[str] = set()
        self.cri: list[bool | None] = []
        self.lists: list[PodFetch] = []
        self.changes: list[Pod] = []
        self.deleted: list[str] = []
        self.pods_api: list[bool | None] = []

    def container(self, container_id: str, container: CriContainer | None) -> None:
        self.containers[container_id] = container

    def cri_state(self, state: SourceState) -> None:
        if self.cri[-1:] != [state.ok]:  # failing may take several forms
            self.cri.append(state.ok)

    def pods_state(self, state: SourceState) -> None:
        if self.pods_api[-1:] != [state.ok]:
            self.pods_api.append(state.ok)

    def of(self, name: str, namespace: str) -> list[Pod]:
        """Every change told of a pod."""
        return [pod for pod in tuple(self.changes) if (pod.name, pod.namespace) == (name, namespace)]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def cri(cluster: Cluster) -> Iterator[CriClient]:
    with CriClient(f"unix://{cluster.containerd.socket}") as client:
        yield client


@pytest.fixture
def pods_api(cluster: Cluster) -> Iterator[PodsApiClient]:
    with PodsApiClient(f"unix://{cluster.pods_api}") as client:
        yield client


@pytest.fixture
def cri_source(cluster: Cluster, told: Told) -> Iterator[CriSource]:
    """A source that has told what runs; its next listing is far away."""
    source = CriSource(
        CriClient(str(cluster.containerd.socket)),
        interval_s=600,
        on_container=told.container,
        on_sandbox=told.sandboxes.add,
        on_state=told.cri_state,
    )
    source.start()
    try:
        until(lambda: told.cri, WAIT, "the runtime")
        yield source
    finally:
        source.stop()


@pytest.fixture
def watching(cluster: Cluster, told: Told) -> Iterator[Callable[[float], PodsApiSource]]:
    """Starts a source with an interval, and waits until it has told what there is."""
    sources: list[PodsApiSource] = []

    def begin(interval_s: float) -> PodsApiSource:
        source = PodsApiSource(
            PodsApiClient(str(cluster.pods_api)),
            interval_s=interval_s,
            on_pods=told.lists.append,
            on_change=lambda pod, _: told.changes.append(pod),
            on_delete=lambda uid, _: told.deleted.append(uid),
            on_state=told.pods_state,
        )
        sources.append(source)
        source.start()
        # A kubelet that has just started knows no pods yet, and says so.
        until(lambda: True in told.pods_api, WAIT, "the Pods API")
        told.pods_api.clear()
        return source

    yield begin
    for source in sources:
        source.stop()


def _container_id(status: dict[str, Any]) -> str:
    return str(status.get("containerID", "")).removeprefix("containerd://")


def _status(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """The pod's status on the kubelet's read-only port, empty while it is not listed."""
    for pod in listed(cluster, namespace):
        if pod["metadata"]["name"] == name:
            return dict(pod["status"])
    return {}


def _runs(cluster: Cluster, namespace: str, name: str, container: str = "app") -> str | None:
    """The ID of a pod's container once the kubelet lists it as running."""
    for status in _status(cluster, namespace, name).get("containerStatuses", []):
        if status["name"] == container and "running" in status["state"]:
            return _container_id(status)
    return None


# --- CRI


def test_the_runtime_has_a_deployment(cluster: Cluster, namespace: str, cri: CriClient) -> None:
    """Each container of a Deployment is in the runtime's listing, and its status has the pod, the image by its tag
    and the reference, the same strings as the kubelet lists."""
    cluster.apply(WORKLOAD % REPLICAS, namespace)
    pods = until(lambda: len(found := running(cluster, namespace)) == REPLICAS and found, WAIT, "the pods")
    assert cri.version().name == "containerd"
    of_runtime = {each.container_id: each for each in cri.list_containers()}
    sandboxes = {each.pod_uid: each for each in cri.list_sandboxes() if each.ready}
    for pod in pods:
        meta, status = pod["metadata"], pod["status"]["containerStatuses"][0]
        container = of_runtime[_container_id(status)]
        assert container.image is None
        assert (container.pod_name, container.pod_uid) == (meta["name"], meta["uid"])
        assert container.sandbox_id == sandboxes[meta["uid"]].sandbox_id
        found = cri.container_status(container.container_id)
        assert found is not None
        assert (found.image, found.image_id) == (status["image"], status["imageID"]) == (APP, container.image_id)
        assert (found.name, found.pod_name, found.pod_namespace, found.pod_uid) == (
            "app",
            meta["name"],
            namespace,
            meta["uid"],
        )
        assert len(cri.list_containers(meta["uid"])) == 1


def test_the_runtime_is_before_the_kubelet(cluster: Cluster, namespace: str, cri: CriClient) -> None:
    """While a postStart hook holds back the pod's status, the runtime has name, pod and images of the container; they
    are those that the kubelet lists later."""
    cluster.apply(HOOKED, namespace)
    container = until(
        lambda: next((each for each in cri.list_containers() if each.pod_namespace == namespace), None),
        WAIT,
        "the container in the runtime",
    )
    found = cri.container_status(container.container_id)
    statuses = _status(cluster, namespace, "hooked").get("containerStatuses", [])
    assert not any(map(_container_id, statuses))
    assert found is not None
    assert (found.name, found.pod_name) == ("app", "hooked")
    assert until(lambda: _runs(cluster, namespace, "hooked"), WAIT, "the kubelet") == found.container_id
    (status,) = _status(cluster, namespace, "hooked")["containerStatuses"]
    assert (found.image, found.image_id) == (status["image"], status["imageID"])


def test_every_cgroup_of_a_pod_is_known(cluster: Cluster, namespace: str, cri_source: CriSource, told: Told) -> None:
    """Each cgroup of a new pod, wanted when it is made and never again, is told as a container or as the sandbox."""
    uid: list[str] = []
    made: list[str] = []

    def cgroups() -> list[str]:
        if not uid:
            uid.extend(pod["metadata"]["uid"] for pod in listed(cluster, namespace))
            return []
        folders = machine.cgroup_folders(f"{CGROUP}/kubepods/besteffort/pod{uid[0]}")
        for name in {name for folder in folders for name in os.listdir(folder) if len(name) == 64}:
            if name not in made:
                made.append(name)
                cri_source.want(name)
        return made

    cluster.apply(SIMPLE, namespace)
    until(lambda: len(cgroups()) == 2, WAIT, "both cgroups", interval=0.001)
    until(lambda: made[0] in told.sandboxes and made[1] in told.containers, WAIT, "both")
    assert made[1] not in told.sandboxes
    assert made[0] not in told.containers
    container = told.containers[made[1]]
    assert container is not None
    assert (container.name, container.pod_name, container.pod_uid) == ("app", "simple", uid[0])
    assert container.image == APP


def test_containerd_restarted(cluster: Cluster, namespace: str, cri_source: CriSource, told: Told) -> None:
    """A runtime that was away is asked again, and what was wanted meanwhile is told."""
    cluster.apply(SIMPLE, namespace)
    container_id = until(lambda: _runs(cluster, namespace, "simple"), WAIT, "the pod")
    cluster.stop("containerd")
    try:
        cri_source.want(container_id)
        until(lambda: told.cri == [True, False], WAIT, "failing")
    finally:
        cluster.start("containerd")
    until(lambda: told.cri == [True, False, True], WAIT, "the runtime")
    until(lambda: told.containers.get(container_id), WAIT, "the container")


# --- Pods API


def test_the_bytes_say_what_the_json_says(cluster: Cluster, namespace: str, pods_api: PodsApiClient) -> None:
    """Pods of every shape, decoded from the Pods API, equal those decoded from the kubelet's JSON, field by field."""
    cluster.static_pods.joinpath("static.yaml").write_text(SIMPLE.replace("simple", "static"))
    try:
        cluster.apply(VARIED, namespace)
        cluster.apply(WORKLOAD % 2, namespace)
        until(lambda: _runs(cluster, namespace, "varied"), WAIT, "the pod")
        cluster.kubectl("--namespace", namespace, "debug", "varied", f"--image={APP}", "--image-pull-policy=Never")

        def same() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORTS['kubelet read-only']}/pods", timeout=10) as response:
                json_pods = decode_pod_list(response.read()).pods
            proto_pods = pods_api.list_pods().pods.pods
            by_uid = {pod.uid: pod for pod in json_pods}
            varied = [pod for pod in json_pods if (pod.namespace, pod.name) == (namespace, "varied")]
            assert {pod.uid: pod for pod in proto_pods} == by_uid
            assert [c.state for pod in varied for c in pod.ephemeral_containers] == ["running"]
            assert [c.state for pod in varied for c in pod.init_containers] == ["terminated", "running"]
            assert [c.state for pod in varied for c in pod.containers] == ["running", "waiting"]
            assert sum(1 for pod in json_pods if pod.config_hash) == 1
            assert sum(1 for pod in json_pods if pod.owners and pod.namespace == namespace) == 2
            return all(pods_api.get_pod(pod.uid) == pod for pod in json_pods)

        until(same, WAIT, "the same pods", interval=0.2)
    finally:
        cluster.static_pods.joinpath("static.yaml").unlink()
        until(lambda: not any(pod["metadata"]["name"].startswith("static") for pod in cluster.pods()), WAIT, "its end")


def test_a_pod_comes_and_goes(
    cluster: Cluster, namespace: str, watching: Callable[[float], PodsApiSource], told: Told
) -> None:
    """The watch tells of a pod that is added, gets the status of its container, and is deleted."""
    watching(600)
    cluster.apply(SIMPLE, namespace)
    until(
        lambda: any(each.state == "running" for pod in told.of("simple", namespace) for each in pod.containers),
        WAIT,
        "a running container",
    )
    changes = told.of("simple", namespace)
    assert len({pod.uid for pod in changes}) == 1
    assert [each.container_id for each in changes[0].containers] in ([], [None])
    assert [each.name for each in changes[0].spec] == ["app"]
    assert changes[-1].containers[0].container_id == until(
        lambda: _runs(cluster, namespace, "simple"), WAIT, "the kubelet's list"
    )
    cluster.kubectl("--namespace", namespace, "delete", "pod", "simple")
    until(lambda: changes[0].uid in told.deleted, WAIT, "the deletion")
    assert len(told.lists) == 1


def test_an_edited_label(
    cluster: Cluster, namespace: str, watching: Callable[[float], PodsApiSource], told: Told
) -> None:
    """An edit of labels is not pushed; the list of the next interval has it."""

    def edit(label: str) -> None:
        cluster.kubectl("--namespace", namespace, "label", "pod", "simple", f"{label}=yes")

        def has_it() -> bool:
            return any(label in pod.labels for pod in told.lists[-1].pods.pods if pod.namespace == namespace)

        until(has_it, WAIT, "the label in a list")

    cluster.apply(SIMPLE, namespace)
    until(lambda: _runs(cluster, namespace, "simple"), WAIT, "the pod")
    watching(1.0)
    # With the first edit the kubelet also sets the pod's status once more, which is pushed.
    edit("first")
    edit("second")
    assert not [pod for pod in told.of("simple", namespace) if "second" in pod.labels]


def test_the_kubelet_restarted(
    cluster: Cluster, namespace: str, watching: Callable[[float], PodsApiSource], told: Told
) -> None:
    """After a restart of the kubelet the stream comes back by itself, and no list on the way lacks a pod that runs."""
    cluster.apply(SIMPLE, namespace)
    until(lambda: _runs(cluster, namespace, "simple"), WAIT, "the pod")
    watching(1.0)
    cluster.stop("kubelet")
    try:
        until(lambda: told.pods_api == [False], WAIT, "failing")
    finally:
        cluster.start("kubelet")
    until(lambda: told.pods_api == [False, True], WAIT, "the stream")
    lists = len(told.lists)
    until(lambda: len(told.lists) >= lists + 2, WAIT, "two more lists")
    assert all(any(pod.namespace == namespace for pod in each.pods.pods) for each in told.lists)
    cluster.kubectl("--namespace", namespace, "delete", "pod", "simple")
    until(lambda: told.deleted, WAIT, "the deletion")
    until(cluster.ready, WAIT, "the node", interval=0.2)
