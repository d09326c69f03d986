"""The frozen records that every package speaks in. No I/O, no clock.

Times are nanoseconds of ``CLOCK_BOOTTIME``, the clock that the BPF programs stamp records with. Text that came
from the kernel is decoded as UTF-8 with ``backslashreplace``, so that a byte that is no UTF-8 reads ``\\xNN``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any, Literal, NamedTuple

Kind = Literal["container", "init", "sidecar", "ephemeral"]
"""Kinds of containers. Fixed words: other programs compare them."""


class State(StrEnum):
    """What can be said of a process. Fixed words: other programs compare them."""

    RESOLVED = "resolved"
    PENDING = "pending"
    HOST = "host"
    UNKNOWN = "unknown"
    GONE = "gone"


class Source(StrEnum):
    """How the kernel record of a process was learnt."""

    FORK = "fork"
    EXEC = "exec"
    ATTACH = "attach"
    SCAN = "scan"


class ProcessKey(NamedTuple):
    """A process: its PID in the tracer's PID namespace, and what tells it from others that had this PID.

    ``ino`` is the inode of the process's pidfd (pidfs, Linux 6.9), before that its start in boot time
    nanoseconds; 0 where neither is known.
    """

    pid: int
    ino: int


class ProcessEventKind(IntEnum):
    """Kinds of process records; the numbers are those of ``bpf/tracer.h``."""

    FORK = 1
    EXEC = 2
    EXIT = 3
    ATTACH = 4
    SCAN = 5


class ProcessEvent(NamedTuple):
    """One process record of the kernel.

    ``hierarchy`` and ``cgroup`` are where the process was when the record was made, which serves only
    processes that are gone: for a living one the slot table is asked. ``arg`` is the wait status for EXIT and
    the cgroup id left behind for ATTACH.
    """

    kind: int
    pid: int
    ppid: int
    hierarchy: int
    time: int
    start: int
    ino: int
    cgroup: int
    arg: int
    comm: bytes


class CgroupEventKind(IntEnum):
    """Kinds of cgroup records; the numbers are those of ``bpf/tracer.h``."""

    MKDIR = 1
    RMDIR = 2
    RELEASE = 3
    RENAME = 4


class CgroupEvent(NamedTuple):
    """A cgroup was born, removed, released or renamed.

    ``name`` is the cgroup's own name (no path), ``parent`` the id of the cgroup above it, ``level`` its depth
    below the hierarchy's root (0).
    """

    kind: int
    hierarchy: int
    time: int
    id: int
    parent: int
    level: int
    name: bytes


@dataclass(frozen=True, slots=True)
class ContainerRef:
    """A container as a cgroup path names it.

    ``pod_uid`` is ``None`` where the path has no pod segment; else in the form of the API (lower case as
    found, dashes for underscores; 32 hex digits for static pods).
    """

    container_id: str
    pod_uid: str | None


@dataclass(frozen=True, slots=True)
class Container:
    """A container as a pod's status lists it.

    ``container_id`` is the part behind ``scheme://``, ``None`` while the status has none. ``state`` is
    ``None`` where the status does not say. ``former_id`` is the ID of the instance before this one, as
    ``lastState`` tells it, ``restarts`` how often the kubelet says it was restarted, never below 0. ``sidecar``
    is an init container that the spec keeps running (``restartPolicy: Always``).
    """

    name: str
    container_id: str | None
    image: str
    image_id: str
    role: Literal["app", "init", "ephemeral"]
    state: Literal["running", "waiting", "terminated"] | None = None
    former_id: str | None = None
    restarts: int = 0
    sidecar: bool = False

    @property
    def kind(self) -> Kind:
        """What people call it."""
        if self.role == "app":
            return "container"
        return "sidecar" if self.sidecar else self.role


@dataclass(frozen=True, slots=True)
class Owner:
    """An owner reference of a pod."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Pod:
    """What is needed of a pod, in the words of core/v1.

    ``containers``, ``init_containers`` and ``ephemeral_containers`` are those of the *status*; ``spec`` are
    the containers of the spec (app, init, ephemeral, each in order), without IDs: they tell whether the status is
    complete, and what it will be. ``config_hash`` is the annotation ``kubernetes.io/config.hash`` of static pods.
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    node: str
    labels: Mapping[str, str]
    owners: tuple[Owner, ...]
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...]
    ephemeral_containers: tuple[Container, ...]
    spec: tuple[Container, ...] = ()
    config_hash: str | None = None

    @property
    def spec_names(self) -> tuple[str, ...]:
        """The names of all containers of the spec."""
        return tuple(container.name for container in self.spec)


@dataclass(frozen=True, slots=True)
class RuntimeContainer:
    """A container as the runtime tells it, no older than ``at``.

    ``image`` and ``image_id`` are what the kubelet will write into the pod's status. ``created_at`` (nanoseconds of
    the epoch) tells which of several by the same name is the newest. What the kubelet did not make has an empty
    ``pod_uid``. ``cgroups_path`` is the OCI spec's ``linux.cgroupsPath``, in the form of the runtime's driver (a path,
    or ``slice:prefix:id``); ``None`` if the runtime does not tell.
    """

    container_id: str
    name: str
    namespace: str
    pod: str
    pod_uid: str
    image: str
    image_id: str
    created_at: int
    at: int
    cgroups_path: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """What all processes of one container share: the answer but for the process.

    ``reason`` is a fixed word, ``reason_text`` is for people. ``selectors`` are sorted and carry their type
    (``k8s:ns:…``); empty unless resolved, and for a container that SPIRE does not attest, such as an ephemeral
    one: ``reason_text`` says why then. ``labels`` are the pod's, for filters.
    """

    state: State
    reason: str | None = None
    reason_text: str | None = None
    settled: bool | None = None
    pods_from: str | None = None
    namespace: str | None = None
    service_account: str | None = None
    pod: str | None = None
    pod_uid: str | None = None
    container: str | None = None
    container_id: str | None = None
    image: str | None = None
    node: str | None = None
    selectors: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """What the records tell of a process beside its cgroup. ``since`` is when ``source`` happened.

    ``start`` is in boot time nanoseconds. Where a client made it from a text, ``start_ns`` has what the daemon said.
    """

    ppid: int
    comm: str
    start: int
    source: Source
    since: int
    start_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where a process is: id in the tracked hierarchy, and the path, ``None`` where it is not known."""

    id: int
    path: str | None


@dataclass(frozen=True, slots=True)
class Clock:
    """A reading of both clocks: ``now`` in boot time nanoseconds, ``boot`` the epoch second of boot."""

    now: int
    boot: float

    def rfc3339(self, time: int) -> str:
        """``time`` (boot time nanoseconds) as RFC 3339 in UTC with milliseconds."""
        at = datetime.fromtimestamp(self.boot + time / 1e9, UTC)
        return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


GONE = Workload(State.GONE, "gone", "no process has this PID now")


class Identity(NamedTuple):
    """Who a process is. ``asked`` is the number that was asked for, a thread's ID perhaps.

    A tuple, since one is made for every look-up: a frozen dataclass takes three times as long to make.

    ``pods_at`` is when the pod data behind the answer was fetched. Ages are computed when asked for.
    """

    key: ProcessKey
    asked: int
    workload: Workload
    cgroup: Cgroup | None = None
    process: Process | None = None
    pods_at: int | None = None
    mode: Literal["strict", "parity"] = "strict"
    parity: bool | None = None
    spiffe_ids: tuple[str, ...] | None = None

    @property
    def state(self) -> State:
        """The state of the workload, the answer in one word."""
        return self.workload.state

    def to_dict(self, clock: Clock) -> dict[str, Any]:
        """The answer as it is written as JSON: every key is always there, unknown is ``None``."""
        w, p, c = self.workload, self.process, self.cgroup
        return {
            "pid": self.key.pid or None,
            "asked": self.asked or None,
            "start_time": clock.rfc3339(p.start) if p and p.start else None,
            "start_ns": (p.start_ns or p.start or None) if p else None,
            "ppid": p.ppid if p else None,
            "comm": p.comm if p else None,
            "state": w.state.value,
            "reason": w.reason,
            "reason_text": w.reason_text,
            "settled": w.settled,
            "source": p.source.value if p else None,
            "age_ms": max(0.0, round((clock.now - p.since) / 1e6, 1)) if p else None,
            "pods_from": w.pods_from,
            "pods_age_ms": max(0.0, round((clock.now - self.pods_at) / 1e6, 1)) if self.pods_at is not None else None,
            "namespace": w.namespace,
            "service_account": w.service_account,
            "pod": w.pod,
            "pod_uid": w.pod_uid,
            "container": w.container,
            "kind": w.kind,
            "container_id": w.container_id,
            "image": w.image,
            "node": w.node,
            "cgroup": c.path if c else None,
            "cgroup_id": c.id if c else None,
            "mode": self.mode,
            "parity": self.parity,
            "spiffe_ids": None if self.spiffe_ids is None else list(self.spiffe_ids),
            "selectors": list(w.selectors),
        }


@dataclass(frozen=True, slots=True)
class Event:
    """One event of ``watch``: about a process, or (``synced``, ``lost``) about the stream itself."""

    event: Literal["snapshot", "exec", "fork", "move", "exit", "resolved", "synced", "lost"]
    time: int
    identity: Identity | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self, clock: Clock) -> dict[str, Any]:
        """The event as it is written as JSON: the identity with ``time`` and ``event``, and its own keys."""
        head: dict[str, Any] = {"time": clock.rfc3339(self.time), "event": self.event}
        if self.identity is not None:
            head.update(self.identity.to_dict(clock))
        head.update(self.extra)
        return head
