"""The fields of core/v1 that an identity is made of, as msgspec decodes them from JSON.

Everything else in a pod is passed over without being built. What a Go client takes for empty, absent or null,
is ``None`` here.
"""

from __future__ import annotations

from typing import Annotated

import msgspec


class Owner(msgspec.Struct):
    kind: str | None = None
    name: str | None = None
    uid: str | None = None


class Metadata(msgspec.Struct, rename="camel"):
    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    labels: dict[str, str | None] | None = None
    annotations: dict[str, str | None] | None = None
    owner_references: list[Owner] | None = None


class Named(msgspec.Struct, rename="camel"):
    name: str | None = None
    image: str | None = None
    restart_policy: str | None = None


class Spec(msgspec.Struct, rename="camel"):
    service_account_name: str | None = None
    node_name: str | None = None
    containers: list[Named] | None = None
    init_containers: list[Named] | None = None
    ephemeral_containers: list[Named] | None = None


class Present(msgspec.Struct):
    """Any object; that it is there is all that counts."""


class Terminated(msgspec.Struct):
    container_id: str | None = msgspec.field(default=None, name="containerID")


class State(msgspec.Struct):
    running: Present | None = None
    waiting: Present | None = None
    terminated: Terminated | None = None


# An int32 for a Go client, which refuses what is none.
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class ContainerStatus(msgspec.Struct):
    name: str | None = None
    image: str | None = None
    image_id: str | None = msgspec.field(default=None, name="imageID")
    container_id: str | None = msgspec.field(default=None, name="containerID")
    state: State | None = None
    last_state: State | None = msgspec.field(default=None, name="lastState")
    restart_count: Int32 | None = msgspec.field(default=None, name="restartCount")


class Status(msgspec.Struct, rename="camel"):
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    ephemeral_container_statuses: list[ContainerStatus] | None = None


class Pod(msgspec.Struct):
    kind: str | None = None
    metadata: Metadata | None = None
    spec: Spec | None = None
    status: Status | None = None


class PodName(msgspec.Struct):
    """What is left to name a pod by when the whole of it cannot be read."""

    metadata: Named


class List(msgspec.Struct):
    kind: str | None = None
    items: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
