"""The container runtime, asked over CRI (``runtime.v1.RuntimeService``): four calls, all of which only read.

A runtime's socket is full control of the node. So it is asked for nothing else, and ``--cri none`` never opens it.

Labels that the kubelet gives each container name its pod. Image names come from ``ContainerStatus`` alone: a
listing has the image's digest where a status has its tag. So does the cgroup path that the runtime made, of the
verbose answer.

Importing this module imports neither grpc nor protobuf; the first call does.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from tracer.clock import boottime
from tracer.protobuf import STRING_MAP, Field, declare
from tracer.sources.cri_info import cgroups_path
from tracer.sources.rpc import CallError, Channel, Service, socket_path

ENDPOINTS: Final = (
    "/run/containerd/containerd.sock",
    "/var/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/var/run/cri-dockerd.sock",
)
"""Where runtimes have their sockets: containerd, CRI-O, k3s, k0s, microk8s, cri-dockerd."""

TIMEOUT: Final = 5.0
_POD_NAME, _POD_NAMESPACE, _POD_UID, _NAME = (
    "io.kubernetes.pod.name",
    "io.kubernetes.pod.namespace",
    "io.kubernetes.pod.uid",
    "io.kubernetes.container.name",
)

_SERVICE: Final = Service(
    "runtime.v1.RuntimeService",
    "is this really a container runtime's socket?",
    {
        "UNAVAILABLE": "is the container runtime running? it may be starting or ending",
        "DEADLINE_EXCEEDED": "the container runtime is overloaded or hangs; see its log",
        "UNIMPLEMENTED": "CRI runtime.v1 is needed: containerd 1.6 or later with its CRI plugin, or CRI-O 1.23",
        "RESOURCE_EXHAUSTED": "is this really a container runtime's socket?",
    },
    max_message=16 << 20,  # the kubelet takes no more either
)

# How a runtime fails that has the container and cannot describe it at length.
_VERBOSE_ONLY: Final = frozenset({"UNKNOWN", "INTERNAL", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})

# Numbers of k8s.io/cri-api, pkg/apis/runtime/v1/api.proto.
_TABLE: Final = {
    "VersionRequest": {"version": Field(1)},
    "VersionResponse": {"runtime_name": Field(2), "runtime_version": Field(3), "runtime_api_version": Field(4)},
    "ContainerStatusRequest": {"container_id": Field(1), "verbose": Field(2, "bool")},
    # A map of strings on the wire. What is in it is free text, and none of it may spoil the status beside it.
    "ContainerStatusResponse": {"status": Field(1, "ContainerStatus"), "info": Field(2, "bytes", repeated=True)},
    "InfoEntry": {"key": Field(1, "bytes"), "value": Field(2, "bytes")},
    "ContainerStatus": {
        "id": Field(1),
        "metadata": Field(2, "ContainerMetadata"),
        "state": Field(3, "int32"),
        "created_at": Field(4, "int64"),
        "image": Field(8, "ImageSpec"),
        "image_ref": Field(9),
        "labels": Field(12, STRING_MAP),
    },
    "ContainerMetadata": {"name": Field(1), "attempt": Field(2, "uint32")},
    "ImageSpec": {"image": Field(1)},
    "ListContainersRequest": {"filter": Field(1, "ContainerFilter")},
    "ContainerFilter": {"label_selector": Field(4, STRING_MAP)},
    "ListContainersResponse": {"containers": Field(1, "Container", repeated=True)},
    "Container": {
        "id": Field(1),
        "pod_sandbox_id": Field(2),
        "metadata": Field(3, "ContainerMetadata"),
        "image_ref": Field(5),
        "state": Field(6, "int32"),
        "created_at": Field(7, "int64"),
        "labels": Field(8, STRING_MAP),
    },
    "ListPodSandboxRequest": {"filter": Field(1, "PodSandboxFilter")},
    "PodSandboxFilter": {"id": Field(1)},
    "ListPodSandboxResponse": {"items": Field(1, "PodSandbox", repeated=True)},
    "PodSandbox": {
        "id": Field(1),
        "metadata": Field(2, "PodSandboxMetadata"),
        "state": Field(3, "int32"),
        "created_at": Field(4, "int64"),
    },
    "PodSandboxMetadata": {"name": Field(1), "uid": Field(2), "namespace": Field(3)},
}


class CriState(IntEnum):
    """The state of a container; a number that no release knew of yet is ``UNKNOWN``."""

    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3

    @classmethod
    def _missing_(cls, value: object) -> CriState:  # noqa: ARG003
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class CriContainer:
    """A container as the runtime tells it, no older than ``at`` (boot time nanoseconds).

    ``image`` is ``ContainerStatus.image.image``, the tag; ``None`` from a listing, which does not have it.
    ``image_id`` is ``image_ref``, which becomes the kubelet's ``imageID``. ``sandbox_id`` is ``None`` from a status,
    which does not have it. ``attempt`` counts restarts; ``created_at`` is nanoseconds of the epoch. What the kubelet
    did not make has no pod: the three are empty. ``cgroups_path`` is the OCI spec's ``linux.cgroupsPath``, in the form
    of the runtime's driver (``/kubepods/pod<uid>/<id>``, ``kubepods-pod<uid>.slice:cri-containerd:<id>``); ``None``
    from a listing, and from a runtime that does not tell.
    """

    container_id: str
    name: str
    pod_name: str
    pod_namespace: str
    pod_uid: str
    attempt: int
    image: str | None
    image_id: str
    state: CriState
    sandbox_id: str | None
    created_at: int
    at: int
    cgroups_path: str | None = None


@dataclass(frozen=True, slots=True)
class CriSandbox:
    """A pod's sandbox, whose process is the pause process; ``ready`` while it runs."""

    sandbox_id: str
    pod_name: str
    pod_namespace: str
    pod_uid: str
    ready: bool
    created_at: int


@dataclass(frozen=True, slots=True)
class CriVersion:
    """What the runtime says of itself: ``containerd``, ``2.1.0``, and the API's ``v1``."""

    name: str
    version: str
    api_version: str


def find_endpoint(candidates: Iterable[str]) -> str | None:
    """The first of these paths at which there is a socket. It is looked at, not opened."""
    for path in candidates:
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                return path
        except (OSError, ValueError):
            continue
    return None


class CriClient:
    """Calls to one runtime, from any thread; each ends after ``timeout`` seconds.

    ``endpoint`` is ``unix:///run/x.sock`` or a path: else UsageError. All calls raise ``CallError``, a SourceError
    with a gRPC status.
    """

    def __init__(self, endpoint: str, *, timeout: float = TIMEOUT) -> None:
        self._channel = Channel(socket_path(endpoint, "cri"), _SERVICE)
        self._timeout = timeout
        self.url = self._channel.url

    def __enter__(self) -> CriClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the calls in flight, with an error in the threads that wait for them; later ones fail too."""
        self._channel.close()

    def version(self) -> CriVersion:
        """Which runtime this is."""
        m = _messages()
        answer = self._call("Version", m.VersionRequest(), m.VersionResponse)
        return CriVersion(answer.runtime_name, answer.runtime_version, answer.runtime_api_version)

    def container_status(self, container_id: str) -> CriContainer | None:
        """The container with exactly this ID; ``None`` when the runtime has none (a sandbox is none)."""
        at = boottime()
        try:
            answer = self._status(container_id)
        except CallError as error:
            if error.code == "NOT_FOUND":
                return None
            raise
        if not answer.HasField("status"):
            raise self._channel.garbage("a status without a container")
        status = answer.status
        # Runtimes also find containers by the beginning of their ID.
        if status.id != container_id:
            return None
        return _container(status, at, image=status.image.image, cgroups=_cgroups_path(answer.info))

    def _status(self, container_id: str) -> Any:
        """The verbose status, or the plain one from a runtime that has no verbose one, or one too large."""
        m = _messages()
        try:
            request = m.ContainerStatusRequest(container_id=container_id, verbose=True)
            return self._call("ContainerStatus", request, m.ContainerStatusResponse)
        except CallError as error:
            if error.code not in _VERBOSE_ONLY:
                raise
        request = m.ContainerStatusRequest(container_id=container_id)
        return self._call("ContainerStatus", request, m.ContainerStatusResponse)

    def list_containers(self, pod_uid: str | None = None) -> tuple[CriContainer, ...]:
        """All containers, also those created only and those that have ended; of one pod, if told so."""
        m = _messages()
        request = m.ListContainersRequest()
        if pod_uid is not None:
            request.filter.label_selector[_POD_UID] = pod_uid
        at = boottime()
        answer = self._call("ListContainers", request, m.ListContainersResponse)
        return tuple(_container(each, at, sandbox_id=each.pod_sandbox_id) for each in answer.containers)

    def list_sandboxes(self, sandbox_id: str | None = None) -> tuple[CriSandbox, ...]:
        """All sandboxes, or the one with exactly this ID."""
        m = _messages()
        request = m.ListPodSandboxRequest()
        if sandbox_id is not None:
            request.filter.id = sandbox_id
        answer = self._call("ListPodSandbox", request, m.ListPodSandboxResponse)
        return tuple(
            CriSandbox(
                sandbox_id=each.id,
                pod_name=each.metadata.name,
                pod_namespace=each.metadata.namespace,
                pod_uid=each.metadata.uid,
                ready=each.state == 0,
                created_at=each.created_at,
            )
            for each in answer.items
            if sandbox_id is None or each.id == sandbox_id
        )

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        return self._channel.call(method, request, answer, self._timeout)


def _container(
    raw: Any, at: int, *, image: str | None = None, sandbox_id: str | None = None, cgroups: str | None = None
) -> CriContainer:
    """From a ContainerStatus or a listed Container, whose common fields have the same names."""
    # Not []: that would make an entry.
    labels = raw.labels
    return CriContainer(
        container_id=raw.id,
        name=labels.get(_NAME) or raw.metadata.name,
        pod_name=labels.get(_POD_NAME, ""),
        pod_namespace=labels.get(_POD_NAMESPACE, ""),
        pod_uid=labels.get(_POD_UID, ""),
        attempt=raw.metadata.attempt,
        image=image,
        image_id=raw.image_ref,
        state=CriState(raw.state),
        sandbox_id=sandbox_id,
        created_at=raw.created_at,
        at=at,
        cgroups_path=cgroups,
    )


def _cgroups_path(entries: Iterable[bytes]) -> str | None:
    """From the entries of the map ``info``, of which a later one stands for an earlier one."""
    from google.protobuf.message import DecodeError

    found: bytes | None = None
    for raw in entries:
        try:
            entry = _messages().InfoEntry.FromString(raw)
        except DecodeError:
            continue
        if entry.key == b"info":
            found = entry.value
    return None if found is None else cgroups_path(found)


@functools.cache
def _messages() -> Any:
    return declare("podtracer.runtime.v1", _TABLE)
