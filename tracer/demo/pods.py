"""The pods of the demo as records, and the list that a kubelet would give of them. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

NODE = "demo-node"


@dataclass(eq=False, slots=True)
class Container:
    """A container of the demo.

    ``id`` and ``pid`` are those of its present or last run, ``stdin`` the descriptor that its process reads orders
    from, ``listed`` its status as the list shows it, which lags behind.
    """

    name: str
    image: str
    role: Literal["app", "init"] = "app"
    id: str = ""
    pid: int = 0
    stdin: int = -1
    restarts: int = -1
    listed: dict[str, Any] | None = None

    def status(self, state: str, **more: Any) -> dict[str, Any]:
        """What a kubelet reports of this run: ``running``, ``terminated`` or ``waiting``."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": f"docker.io/{self.image}",
            "containerID": f"containerd://{self.id}",
            "ready": state == "running",
            "restartCount": self.restarts,
            "state": {state: more},
        }


@dataclass(eq=False, slots=True)
class Pod:
    """A pod of the demo; ``owner`` is (kind, name) of what made it."""

    namespace: str
    name: str
    service_account: str
    labels: dict[str, str]
    owner: tuple[str, str]
    containers: tuple[Container, ...]
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    sandbox: Container = field(default_factory=lambda: Container("", ""))

    def to_dict(self) -> dict[str, Any]:
        """The pod as core/v1 has it, with what is listed of its containers."""
        kind, owner = self.owner
        spec: dict[str, Any] = {"nodeName": NODE, "serviceAccountName": self.service_account}
        status: dict[str, Any] = {"phase": "Running"}
        for role, named, listed in (
            ("app", "containers", "containerStatuses"),
            ("init", "initContainers", "initContainerStatuses"),
        ):
            mine = [container for container in self.containers if container.role == role]
            spec[named] = [{"name": container.name, "image": container.image} for container in mine]
            status[listed] = [container.listed for container in mine if container.listed is not None]
        owners = [
            {"apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": str(uuid.uuid5(uuid.NAMESPACE_OID, owner))}
        ]
        metadata = {
            "name": self.name,
            "namespace": self.namespace,
            "uid": self.uid,
            "labels": self.labels,
            "ownerReferences": owners,
        }
        return {"metadata": metadata, "spec": spec, "status": status}


def pod_list(pods: Iterable[Pod]) -> bytes:
    """The list as a kubelet answers it at ``/pods``, on one line."""
    body = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [pod.to_dict() for pod in pods]}
    return json.dumps(body).encode()
