"""The main job on a real cluster: who starts and ends, and as which workload."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.config import PORTS
from tests.cluster.test_cluster import REPLICAS, WORKLOAD, listed, running
from tests.podtracer import Watch, podtracer
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.cluster]


def _containers(pods: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Container ID → (pod name, pod UID), as the kubelet lists them."""
    return {
        status["containerID"].partition("://")[2]: (pod["metadata"]["name"], pod["metadata"]["uid"])
        for pod in pods
        for status in pod["status"]["containerStatuses"]
    }


def test_a_deployment_comes_and_goes(cluster: Cluster, namespace: str) -> None:
    """While a Deployment goes from 0 to 10 and back to 0, each entrypoint's exec and exit is shown, and each with the
    namespace, service account, pod and container that the kubelet lists for its container ID; pause processes are on
    the host, and nobody is ever shown as another pod."""
    cluster.apply(WORKLOAD % 0, namespace)
    with Watch("--kubelet-read-only-port", PORTS["kubelet read-only"]) as watch:
        cluster.kubectl("scale", "deployment/cart", f"--replicas={REPLICAS}", "--namespace", namespace)
        pods = until(
            lambda: len(found := running(cluster, namespace)) == REPLICAS and found, 120, "the pods", interval=0.2
        )
        containers = _containers(pods)
        assert len(containers) == REPLICAS

        def named(*kinds: str) -> dict[str, list[dict[str, Any]]]:
            """Events of these kinds by container ID, of processes that were resolved by then or later."""
            found: dict[str, list[dict[str, Any]]] = {}
            for event in tuple(watch.events):
                if event["event"] in kinds and event.get("container_id") in containers:
                    found.setdefault(event["container_id"], []).append(event)
            return found

        def all_known() -> bool:
            known = {
                e["pid"] for events in named("resolved", "exec").values() for e in events if e["state"] == "resolved"
            }
            execs = {e["pid"] for events in named("exec").values() for e in events if e["comm"] == "sleep"}
            return len(execs) == REPLICAS and execs <= known

        until(all_known, 60, "every entrypoint to be resolved")
        entrypoints = {cid: [e for e in events if e["comm"] == "sleep"] for cid, events in named("exec").items()}
        looked_up = podtracer(
            "lookup", "--standalone", "--kubelet-read-only-port", PORTS["kubelet read-only"], "-o", "json",
            *(events[0]["pid"] for events in entrypoints.values()),
        )  # fmt: skip
        cluster.kubectl("scale", "deployment/cart", "--replicas=0", "--namespace", namespace)
        until(lambda: not listed(cluster, namespace), 120, "the pods to go", interval=0.2)
        until(
            lambda: all(
                any(e["event"] == "exit" for e in watch.of(events[0]["pid"])) for events in entrypoints.values()
            ),
            60,
            "every entrypoint's exit",
        )
        events = tuple(watch.events)
    assert looked_up.returncode == 0
    identities = [json.loads(line) for line in looked_up.stdout.splitlines()]
    assert {identity["container_id"] for identity in identities} == containers.keys()
    resolved = [event for event in events if event.get("state") == "resolved" and event["namespace"] == namespace]
    for identity in resolved + identities:
        pod, uid = containers[identity["container_id"]]
        assert (identity["pod"], identity["pod_uid"]) == (pod, uid)
        assert (identity["service_account"], identity["container"], identity["node"]) == ("cart", "app", cluster.node)
        assert f"k8s:pod-uid:{uid}" in identity["selectors"]
    for events_of_one in entrypoints.values():
        exits = [event for event in events if event["event"] == "exit" and event["pid"] == events_of_one[0]["pid"]]
        assert [event["state"] for event in exits] == ["resolved"]
    pauses = [e for e in events if e.get("reason") == "sandbox"]
    assert all(event["state"] == "host" for event in pauses)
    foreign = {e["pod"] for e in events if e.get("container_id") in containers and e.get("pod")}
    assert foreign == {pod for pod, _ in containers.values()}
