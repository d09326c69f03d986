"""A node made by hand for the tracer's tests: pod-shaped cgroups, and the list that a kubelet would give of them."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.servers import pod_list


@dataclass
class FakePod:
    """A pod of a list: container name → container ID, ``ephemeral`` ones beside."""

    name: str
    namespace: str = "shop"
    service_account: str = "cart"
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    containers: dict[str, str] = field(default_factory=lambda: {"app": secrets.token_hex(32)})
    labels: dict[str, str] = field(default_factory=dict)
    listed: bool = True
    ephemeral: dict[str, str] = field(default_factory=dict)

    def cgroup(self, container: str = "app") -> str:
        """The container's cgroup path below the kubepods root, by the cgroupfs driver."""
        return f"/kubepods/besteffort/pod{self.uid}/{(self.containers | self.ephemeral)[container]}"

    def to_json(self) -> dict[str, Any]:
        """The pod as the kubelet lists it."""
        return {
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "uid": self.uid,
                "labels": self.labels,
            },
            "spec": {
                "serviceAccountName": self.service_account,
                "nodeName": "node-1",
                "containers": [{"name": name, "image": f"{name}:1"} for name in self.containers],
                "ephemeralContainers": [{"name": name, "image": f"{name}:1"} for name in self.ephemeral],
            },
            "status": {
                "containerStatuses": _statuses(self.containers),
                "ephemeralContainerStatuses": _statuses(self.ephemeral),
            },
        }


def _statuses(containers: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "image": f"{name}:1",
            "imageID": f"sha256:{name}",
            "containerID": f"containerd://{container}",
            "state": {"running": {}},
        }
        for name, container in containers.items()
    ]


def listing(*pods: FakePod) -> bytes:
    """The kubelet's answer that lists these pods."""
    return pod_list(*(pod.to_json() for pod in pods if pod.listed))
