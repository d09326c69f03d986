"""``podtracer doctor`` on a real node."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.config import PORTS
from tests.cluster.test_cluster import WORKLOAD, running
from tests.podtracer import podtracer
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.cluster]


def _doctor(cluster: Cluster, *words: str | int) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code and the checks by name, with the flags that name the cluster's sockets and further words."""
    done = podtracer(
        "doctor", "-o", "json", "--kubelet-read-only-port", PORTS["kubelet read-only"],
        "--cri", f"unix://{cluster.containerd.socket}", "--pods-api", f"unix://{cluster.pods_api}", *words,
    )  # fmt: skip
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["ok"] == (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in answer["checks"]}


def test_a_real_node_is_all_green(cluster: Cluster, namespace: str) -> None:
    """On a node with kubelet, Pods API and containerd every check is ok, and says what answers."""
    cluster.apply(WORKLOAD % 1, namespace)
    until(lambda: running(cluster, namespace), 120, "the pod", interval=0.2)
    code, checks = _doctor(cluster)
    assert (code, [check for check in checks.values() if check["state"] != "ok"]) == (0, [])
    assert str(PORTS["kubelet read-only"]) in checks["kubelet"]["found"]
    assert " pod" in checks["kubelet"]["found"]
    assert " pod" in checks["pods-api"]["found"]
    assert "containerd" in checks["cri"]["found"]
    assert checks["source"]["found"].startswith("pods come from pods-api")
    assert checks["hierarchy"]["found"].endswith("certain")
    assert checks["namespace-labels"]["found"] == "not asked for"


def test_the_kubelet_alone_is_green_too(cluster: Cluster) -> None:
    """Without runtime and Pods API, as asked for, the pods come from the kubelet."""
    code, checks = _doctor(cluster, "--cri", "none", "--pods-api", "none")
    assert (code, [check for check in checks.values() if check["state"] != "ok"]) == (0, [])
    assert checks["source"]["found"].startswith("pods come from kubelet")


def test_sockets_that_are_not_there_are_named(cluster: Cluster) -> None:
    """Sockets that nobody has made are warnings that name them, and the kubelet stands in."""
    code, checks = _doctor(cluster, "--cri", "unix:///none/cri.sock", "--pods-api", "unix:///none/pods.sock")
    assert code == 0
    assert (checks["cri"]["state"], checks["pods-api"]["state"]) == ("warn", "warn")
    assert "/none/cri.sock" in checks["cri"]["found"]
    assert "/none/pods.sock" in checks["pods-api"]["found"]
    assert checks["source"]["found"].startswith("pods come from kubelet")


def test_a_port_that_refuses_us_fails(cluster: Cluster) -> None:
    """A kubelet that is there but answers 401 is a failure with what to do, unless the Pods API tells the pods."""
    secure = (
        "--kubelet-secure-port",
        PORTS["kubelet"],
        "--skip-kubelet-verification",
        "--use-anonymous-authentication",
    )
    sockets = ("--cri", "none", "--pods-api")
    for pods_api, state in (("none", "fail"), (f"unix://{cluster.pods_api}", "warn")):
        done = podtracer("doctor", "-o", "json", *secure, *sockets, pods_api)
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert (checks["kubelet"]["state"], done.returncode) == (state, int(state == "fail"))
        assert "401" in checks["kubelet"]["found"]
        assert checks["kubelet"]["hint"]
