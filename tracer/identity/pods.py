"""Pods from the kubelet's list: JSON in, records out, and the table that finds a container's pod.

The fields are those of core/v1 that an identity is made of; everything else is passed over without being
built. A field that is absent or null is empty, as it is for a Go client. Each pod is decoded by itself, so
that one that cannot be read costs one pod, not the node.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from tracer.errors import InputError
from tracer.identity import core_v1
from tracer.model import Container, Owner, Pod, State, Workload

CONFIG_HASH = "kubernetes.io/config.hash"
ALWAYS = "Always"
"""The restart policy that makes an init container a sidecar: it runs beside the app containers."""

_OBJ = "pod list"
_HINT = "give what the kubelet answers at /pods, or `kubectl get pods -A -o json` prints"
# The scheme and the host of a URL.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)", re.ASCII)

_list_decoder = msgspec.json.Decoder(core_v1.List)
_pod_decoder = msgspec.json.Decoder(core_v1.Pod)
_name_decoder = msgspec.json.Decoder(core_v1.PodName)


@dataclass(frozen=True, slots=True)
class PodList:
    """The pods of a list, and a sentence for each item that could not be used.

    Pods without a UID are in neither: SPIRE passes over them too.
    """

    pods: tuple[Pod, ...]
    skipped: tuple[str, ...]


def decode_pod_list(body: bytes) -> PodList:
    """The pods of ``body``, the JSON of a ``v1.PodList`` or a ``v1.List`` of pods; ``body`` is not kept.

    Raises ``InputError`` when the body is no such list: not JSON, cut short, not UTF-8, of another shape or
    kind. ``items`` may be null, which is how the kubelet writes an empty list.
    """
    _require_utf8(body)
    try:
        top = _list_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InputError(f"this is no pod list: {error}", _OBJ, _HINT) from None
    except msgspec.DecodeError as error:
        raise InputError(f"this is not JSON: {error}, of {len(body)} bytes", _OBJ, _HINT) from None
    except RecursionError:
        raise InputError("this JSON is nested too deeply to be a pod list", _OBJ, _HINT) from None
    if top.kind not in (None, "", "PodList", "List"):
        raise InputError(f"this is a {top.kind[:64]!r}, no pod list", _OBJ, _HINT)
    if top.items is msgspec.UNSET and not top.kind:
        raise InputError("this JSON object has neither a kind nor items", _OBJ, _HINT)
    pods: list[Pod] = []
    skipped: list[str] = []
    for index, raw in enumerate(top.items or ()):
        try:
            item = _pod_decoder.decode(raw)
        except (msgspec.DecodeError, RecursionError) as error:
            skipped.append(f"{_which(index, raw)} is malformed: {error}")
            continue
        if item.kind not in (None, "", "Pod"):
            skipped.append(f"{_which(index, raw)} is a {item.kind[:64]!r}, no pod")
        elif item.metadata is not None and item.metadata.uid:
            pods.append(_pod(item, item.metadata, item.metadata.uid))
    return PodList(tuple(pods), tuple(skipped))


def _require_utf8(body: bytes) -> None:
    # msgspec does not look inside the strings that it passes over. In pieces: a list may have megabytes.
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view, size = memoryview(body), 1 << 16
    for start in range(0, len(body), size):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(view[start : start + size], final=start + size >= len(body))
        except UnicodeDecodeError as error:
            raise InputError(f"this is not UTF-8 (byte {start - held + error.start})", _OBJ, _HINT) from None


def _which(index: int, raw: msgspec.Raw) -> str:
    try:
        name = _name_decoder.decode(raw).metadata.name
    except (msgspec.DecodeError, RecursionError):
        name = None
    return f"item {index} ({name[:253]!r})" if name else f"item {index}"


def _pod(item: core_v1.Pod, meta: core_v1.Metadata, uid: str) -> Pod:
    spec = item.spec or core_v1.Spec()
    status = item.status or core_v1.Status()
    named: tuple[tuple[list[core_v1.Named] | None, Literal["app", "init", "ephemeral"]], ...] = (
        (spec.containers, "app"),
        (spec.init_containers, "init"),
        (spec.ephemeral_containers, "ephemeral"),
    )
    sidecars = {entry.name or "" for entry in spec.init_containers or () if entry.restart_policy == ALWAYS}
    return Pod(
        uid=uid,
        namespace=meta.namespace or "",
        name=meta.name or "",
        service_account=spec.service_account_name or "",
        node=spec.node_name or "",
        labels={key: value or "" for key, value in (meta.labels or {}).items()},
        owners=tuple(Owner(o.kind or "", o.name or "", o.uid or "") for o in meta.owner_references or ()),
        containers=_containers(status.container_statuses, "app"),
        init_containers=_containers(status.init_container_statuses, "init", sidecars),
        ephemeral_containers=_containers(status.ephemeral_container_statuses, "ephemeral"),
        spec=tuple(
            Container(
                entry.name or "",
                None,
                entry.image or "",
                "",
                role,
                sidecar=role == "init" and entry.restart_policy == ALWAYS,
            )
            for entries, role in named
            for entry in entries or ()
        ),
        config_hash=(meta.annotations or {}).get(CONFIG_HASH) or None,
    )


def _containers(
    statuses: list[core_v1.ContainerStatus] | None,
    role: Literal["app", "init", "ephemeral"],
    sidecars: Collection[str] = (),
) -> tuple[Container, ...]:
    return tuple(
        Container(
            name=status.name or "",
            container_id=container_id(status.container_id or ""),
            image=status.image or "",
            image_id=status.image_id or "",
            role=role,
            state=_state(status.state),
            former_id=_former_id(status.last_state),
            restarts=max(status.restart_count or 0, 0),
            sidecar=(status.name or "") in sidecars,
        )
        for status in statuses or ()
    )


def _state(state: core_v1.State | None) -> Literal["running", "waiting", "terminated"] | None:
    if state is None:
        return None
    if state.running is not None:
        return "running"
    if state.terminated is not None:
        return "terminated"
    return "waiting" if state.waiting is not None else None


def _former_id(last: core_v1.State | None) -> str | None:
    ended = last.terminated if last is not None else None
    return container_id(ended.container_id or "") if ended is not None else None


def container_id(url: str) -> str | None:
    """The ID in a status's ``containerID`` (``containerd://<id>``): its host, verbatim; ``None`` without."""
    found = _URL.match(url)
    return (found[1].rpartition("@")[2] or None) if found else None


@dataclass(frozen=True, slots=True)
class PodTable:
    """An immutable index of a pod list. Of several pods with one UID the last counts, as for SPIRE."""

    pods: tuple[Pod, ...]
    by_uid: Mapping[str, Pod]
    _by_container: Mapping[str, tuple[tuple[Pod, Container], ...]]
    # By UIDs without dashes and case, as drivers may write them; None if two pods have the same.
    _by_plain_uid: Mapping[str, Pod | None]

    @classmethod
    def build(cls, pods: Iterable[Pod]) -> PodTable:
        """The table of ``pods``."""
        by_uid = {pod.uid: pod for pod in pods}
        by_container: dict[str, tuple[tuple[Pod, Container], ...]] = {}
        by_plain: dict[str, Pod | None] = {}
        for pod in by_uid.values():
            plain = _plain(pod.uid)
            by_plain[plain] = None if plain in by_plain else pod
            for container in (*pod.containers, *pod.init_containers, *pod.ephemeral_containers):
                if container.container_id is not None:
                    entries = by_container.get(container.container_id, ())
                    by_container[container.container_id] = (*entries, (pod, container))
        return cls(tuple(by_uid.values()), by_uid, by_container, by_plain)

    def pod_of(self, path_uid: str) -> Pod | None:
        """The pod whose ``metadata.uid`` is the one that a cgroup path names, in whatever driver's form."""
        return self.by_uid.get(path_uid) or self._by_plain_uid.get(_plain(path_uid))

    def find(self, container_id: str) -> tuple[tuple[Pod, Container], ...]:
        """Every listing of this container ID; within a pod app, init, then ephemeral containers.

        Case counts. Entries of different pods are a conflict, which is the caller's to report.
        """
        return self._by_container.get(container_id, ())


def pod_has_uid(pod: Pod, path_uid: str) -> bool:
    """Whether a cgroup path's pod UID is this pod's: its ``metadata.uid``, or a static pod's ``config.hash``.

    Dashes and case do not count. The hash is compared with UIDs without dashes only: it is an annotation, and
    whoever writes one must not pass for the pod whose UID they wrote.
    """
    wanted = _plain(path_uid)
    if not wanted:
        return False
    if wanted == _plain(pod.uid):
        return True
    return "-" not in path_uid and pod.config_hash is not None and wanted == pod.config_hash.lower()


def same_uid(one: str, other: str) -> bool:
    """Whether two pod UIDs are the same, apart from case and dashes, for which systemd's slices have underscores."""
    return _plain(one) == _plain(other)


def _plain(uid: str) -> str:
    return uid.replace("-", "").replace("_", "").lower()


def resolved(
    pod: Pod,
    container: Container | None,
    container_id: str | None,
    selectors: tuple[str, ...],
    *,
    source: str | None,
    settled: bool,
    why_not: str | None = None,
) -> Workload:
    """The workload of a container of this pod; ``container`` is ``None`` where the pod is enough. ``why_not``
    says why there are no selectors."""
    return Workload(
        State.RESOLVED,
        reason_text=why_not,
        settled=settled,
        pods_from=source,
        namespace=pod.namespace,
        service_account=pod.service_account,
        pod=pod.name,
        pod_uid=pod.uid,
        container=container.name if container else None,
        container_id=container_id,
        image=container.image if container else None,
        node=pod.node,
        selectors=selectors,
        labels=pod.labels,
        kind=container.kind if container else None,
    )
