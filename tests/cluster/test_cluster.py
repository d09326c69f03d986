"""That the cluster of the tests is a real one: what the tracer's tests on it rely on."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests import machine
from tests.cluster.cluster import Cluster, ClusterError
from tests.cluster.config import CGROUP, PORTS
from tests.waiting import until

pytestmark = pytest.mark.cluster

REPLICAS = 10
WORKLOAD = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart}
spec:
  replicas: %d
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec:
      serviceAccountName: cart
      terminationGracePeriodSeconds: 1  # with 0 the kubelet lists a pod no more before its processes have ended
      containers:
        - {name: app, image: "localhost/app:1", imagePullPolicy: Never}
"""


def listed(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    """The pods of a namespace on the kubelet's read-only port."""
    return [pod for pod in cluster.pods() if pod["metadata"]["namespace"] == namespace]


def running(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    """Those of them whose containers the kubelet says are running, with an ID."""
    return [
        pod
        for pod in listed(cluster, namespace)
        for status in pod["status"].get("containerStatuses", [])
        if "running" in status["state"] and status.get("containerID")
    ]


@pytest.fixture
def deployment(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    """The pods, all running, of a Deployment with a service account of its own."""
    cluster.apply(WORKLOAD % REPLICAS, namespace)
    return until(
        lambda: len(pods := running(cluster, namespace)) == REPLICAS and pods,
        60,
        f"{REPLICAS} running pods",
        interval=0.2,
    )


def test_the_node_is_ready(cluster: Cluster) -> None:
    """The API server's one node says of itself that it is Ready."""
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output", "json").stdout)["items"]
    assert [node["metadata"]["name"] for node in nodes] == [cluster.node]
    assert cluster.ready()


def test_the_read_only_port_lists_a_deployment(deployment: list[dict[str, Any]]) -> None:
    """Each pod of a Deployment is listed with its service account, labels, owner and container ID."""
    for pod in deployment:
        assert pod["spec"]["serviceAccountName"] == "cart"
        assert pod["metadata"]["labels"]["app"] == "cart"
        assert [owner["kind"] for owner in pod["metadata"]["ownerReferences"]] == ["ReplicaSet"]
        assert pod["status"]["containerStatuses"][0]["containerID"].startswith("containerd://")


def test_pods_are_where_the_cgroupfs_driver_puts_them(deployment: list[dict[str, Any]]) -> None:
    """Pod UID and container ID name the cgroup, in every hierarchy, and the entrypoint is in it."""
    for pod in deployment:
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        path = f"{CGROUP}/kubepods/besteffort/pod{pod['metadata']['uid']}/{container}"
        folders = machine.cgroup_folders(path)
        assert len(folders) == len(machine.hierarchies())
        pids = {tuple(folder.joinpath("cgroup.procs").read_text().split()) for folder in folders}
        assert [Path(f"/proc/{pid}/comm").read_text() for (pid,) in pids] == ["sleep\n"]


def test_a_deployment_scaled_to_nothing_leaves_nothing(
    cluster: Cluster, namespace: str, deployment: list[dict[str, Any]]
) -> None:
    """After 10 → 0 neither the kubelet's list nor the cgroups know its pods any more."""
    cluster.kubectl("--namespace", namespace, "scale", "deployment/cart", "--replicas=0")
    until(lambda: not listed(cluster, namespace), 60, "an empty list", interval=0.2)
    paths = [f"{CGROUP}/kubepods/besteffort/pod{pod['metadata']['uid']}" for pod in deployment]
    until(lambda: not any(map(machine.cgroup_folders, paths)), 60, "the pods' cgroups to go", interval=0.2)


def test_kubectl_exec_reaches_the_container(cluster: Cluster, namespace: str, deployment: list[dict[str, Any]]) -> None:
    """``kubectl exec`` runs a command in a pod, by way of the API server and the kubelet."""
    name = deployment[0]["metadata"]["name"]
    assert cluster.kubectl("--namespace", namespace, "exec", name, "--", "hostname").stdout == f"{name}\n"


def test_the_secure_port_wants_to_know_who_asks(cluster: Cluster) -> None:
    """Without a credential the kubelet's secure port answers 401."""

    context = ssl._create_unverified_context()
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(f"https://127.0.0.1:{PORTS['kubelet']}/pods", context=context, timeout=10)
    refused.value.close()


def test_the_pods_api_is_there(cluster: Cluster) -> None:
    """The kubelet serves its Pods API on a UNIX socket without being told to."""
    assert cluster.pods_api.is_socket()


def test_kubectls_message_is_in_the_error(cluster: Cluster) -> None:
    """A failing kubectl raises, with what it said."""
    with pytest.raises(ClusterError, match="NotFound"):
        cluster.kubectl("get", "pod", "no-such-pod")


def test_it_is_not_started_twice(cluster: Cluster) -> None:
    """A second ``up`` is refused, and the cluster stays."""
    with pytest.raises(ClusterError, match="is up already"):
        Cluster(cluster.folder).up()
    assert cluster.running()


def test_a_second_cluster_is_told_about_the_ports(cluster: Cluster, tmp_path: Path) -> None:
    """In another folder ``up`` says which port is in use, and leaves nothing."""
    with pytest.raises(ClusterError, match="port 12379 is in use"):
        Cluster(tmp_path / "second").up()
    assert list(tmp_path.iterdir()) == []
