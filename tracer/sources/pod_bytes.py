"""A pod as protobuf, ``k8s.io/api/core/v1``: bytes in, a record out.

Only the fields that an identity is made of have a name here; everything else is skipped, so that pods of other
releases are read too. What is absent is empty, as it is for a Go client. Importing this imports no protobuf.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any, Final, Literal

from tracer.errors import InputError
from tracer.identity.pods import ALWAYS, CONFIG_HASH, container_id
from tracer.model import Container, Owner, Pod
from tracer.protobuf import STRING_MAP, Field, declare

_Role = Literal["app", "init", "ephemeral"]

# Numbers of k8s.io/api/core/v1/generated.proto and k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto.
_TABLE: Final = {
    "Pod": {"metadata": Field(1, "ObjectMeta"), "spec": Field(2, "PodSpec"), "status": Field(3, "PodStatus")},
    "ObjectMeta": {
        "name": Field(1),
        "namespace": Field(3),
        "uid": Field(5),
        "labels": Field(11, STRING_MAP),
        "annotations": Field(12, STRING_MAP),
        "ownerReferences": Field(13, "OwnerReference", repeated=True),
    },
    "OwnerReference": {"kind": Field(1), "name": Field(3), "uid": Field(4)},
    "PodSpec": {
        "containers": Field(2, "Container", repeated=True),
        "serviceAccountName": Field(8),
        "nodeName": Field(10),
        "initContainers": Field(20, "Container", repeated=True),
        "ephemeralContainers": Field(34, "EphemeralContainer", repeated=True),
    },
    "Container": {"name": Field(1), "image": Field(2), "restartPolicy": Field(24)},
    "EphemeralContainer": {"ephemeralContainerCommon": Field(1, "Container")},
    "PodStatus": {
        "containerStatuses": Field(8, "ContainerStatus", repeated=True),
        "initContainerStatuses": Field(10, "ContainerStatus", repeated=True),
        "ephemeralContainerStatuses": Field(13, "ContainerStatus", repeated=True),
    },
    "ContainerStatus": {
        "name": Field(1),
        "state": Field(2, "ContainerState"),
        "lastState": Field(3, "ContainerState"),
        "restartCount": Field(5, "int32"),
        "image": Field(6),
        "imageID": Field(7),
        "containerID": Field(8),
    },
    "ContainerState": {
        "waiting": Field(1, "Present"),
        "running": Field(2, "Present"),
        "terminated": Field(3, "ContainerStateTerminated"),
    },
    "ContainerStateTerminated": {"containerID": Field(7)},
    "Present": {},
}


def decode_pod(data: bytes) -> Pod:
    """The pod in ``data``, maybe without a UID. Raises InputError for what is no pod."""
    from google.protobuf.message import DecodeError

    try:
        raw = _messages().Pod.FromString(data)
    except DecodeError as error:
        raise InputError(f"this is no pod: {error}", "protobuf") from None
    meta, spec, status = raw.metadata, raw.spec, raw.status
    sidecars = {each.name for each in spec.initContainers if each.restartPolicy == ALWAYS}
    return Pod(
        uid=meta.uid,
        namespace=meta.namespace,
        name=meta.name,
        service_account=spec.serviceAccountName,
        node=spec.nodeName,
        labels=dict(meta.labels),
        owners=tuple(Owner(each.kind, each.name, each.uid) for each in meta.ownerReferences),
        containers=_containers(status.containerStatuses, "app"),
        init_containers=_containers(status.initContainerStatuses, "init", sidecars),
        ephemeral_containers=_containers(status.ephemeralContainerStatuses, "ephemeral"),
        spec=(
            *(_asked(each, "app") for each in spec.containers),
            *(_asked(each, "init") for each in spec.initContainers),
            *(_asked(each.ephemeralContainerCommon, "ephemeral") for each in spec.ephemeralContainers),
        ),
        config_hash=meta.annotations.get(CONFIG_HASH) or None,
    )


def _asked(container: Any, role: _Role) -> Container:
    sidecar = role == "init" and container.restartPolicy == ALWAYS
    return Container(container.name, None, container.image, "", role, sidecar=sidecar)


def _containers(statuses: Iterable[Any], role: _Role, sidecars: Collection[str] = ()) -> tuple[Container, ...]:
    return tuple(
        Container(
            name=each.name,
            container_id=container_id(each.containerID),
            image=each.image,
            image_id=each.imageID,
            role=role,
            state=_state(each.state),
            # Empty unless that state is the one that is there.
            former_id=container_id(each.lastState.terminated.containerID),
            restarts=max(each.restartCount, 0),
            sidecar=each.name in sidecars,
        )
        for each in statuses
    )


def _state(state: Any) -> Literal["running", "waiting", "terminated"] | None:
    if state.HasField("running"):
        return "running"
    if state.HasField("terminated"):
        return "terminated"
    return "waiting" if state.HasField("waiting") else None


@functools.cache
def _messages() -> Any:
    return declare("podtracer.core.v1", _TABLE)
