"""Pods of the bench: as many as wanted, each as long in the kubelet's list as wanted."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from tracer.demo.pods import NODE, Container, Pod

_NAMESPACES = ("shop", "payments", "batch", "search", "kube-system")


def make_pods(count: int, containers: int = 1) -> list[Pod]:
    """Pods with running containers, that a Deployment or the like made."""
    return [make_pod(number, containers) for number in range(count)]


def make_pod(number: int, containers: int = 1) -> Pod:
    """The pod of this number; its UID is new each time."""
    app, template = f"app-{number}", f"{number:08x}f9"
    made = tuple(
        Container(f"main-{n}" if n else "main", f"registry.example/{app}:{n + 1}.4.2") for n in range(containers)
    )
    for container in made:
        restart(container)
    labels = {"app": app, "tier": "backend", "pod-template-hash": template}
    namespace = _NAMESPACES[number % len(_NAMESPACES)]
    return Pod(namespace, f"{app}-{template}-x{number}", app, labels, ("ReplicaSet", f"{app}-{template}"), made)


def restart(container: Container) -> None:
    """The container runs anew, by another ID."""
    container.id = secrets.token_hex(32)
    container.restarts += 1
    container.listed = container.status("running", startedAt="2026-01-02T03:04:05Z")


def pod_list(pods: Sequence[Pod], size: int = 0) -> bytes:
    """The list as a kubelet answers it, each pod ``size`` bytes long at least, filled with what real ones hold."""
    items = [_padded(pod.to_dict(), size) for pod in pods]
    return json.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}).encode()


def _padded(item: dict[str, Any], size: int) -> dict[str, Any]:
    """The item with environment, mounts, conditions and managed fields, as many as it takes."""
    left = size - len(json.dumps(item))
    main = item["spec"]["containers"][0]
    environment: list[Any] = []
    mounts: list[Any] = []
    fields: dict[str, Any] = {}
    number = 0
    while left > 0:
        more: list[tuple[Any, Any]] = [
            (environment, {"name": f"SERVICE_{number}_HOST", "value": f"10.96.{number % 256}.17"}),
            (mounts, {"name": f"config-{number}", "mountPath": f"/etc/service/{number}", "readOnly": True}),
            (fields, (f'k:{{"name":"SERVICE_{number}_HOST"}}', {".": {}, "f:name": {}, "f:value": {}})),
        ]
        into, what = more[number % 3]
        if isinstance(into, dict):
            into[what[0]] = what[1]
            left -= len(json.dumps(what))
        else:
            into.append(what)
            left -= len(json.dumps(what)) + 2
        number += 1
    if number:
        main["env"], main["volumeMounts"] = environment, mounts
        item["metadata"]["managedFields"] = [
            {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:spec": fields}}
        ]
    return item


__all__ = ["NODE", "Container", "Pod", "make_pod", "make_pods", "pod_list", "restart"]
