"""Identities and events as JSON, made of parts: what all processes of a container share, and what of a process never
changes, is written once. Gives what ``Identity.to_dict`` says, key for key.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tracer.model import Clock, Event, Identity, Process, Workload

_MOST = 8192  # parts of each kind that are kept
_NOBODY = b'"start_time":null,"start_ns":null,"ppid":null,"comm":null,"source":null,'
_encode = msgspec.json.Encoder().encode


def encode(said: object) -> bytes:
    """JSON of ASCII alone, so that nothing in it can change a terminal."""
    try:
        text = _encode(said)
    except UnicodeEncodeError:  # half a surrogate pair, which a request may have as its id
        text = b"\xff"
    return text if text.isascii() else json.dumps(said, ensure_ascii=True, separators=(",", ":")).encode()


def line(said: dict[str, Any]) -> bytes:
    """One line."""
    return encode(said) + b"\n"


class Answers:
    """Writes answers. Not for several threads at once."""

    def __init__(self) -> None:
        # By the id() of the object, which is kept beside its text, so that its id() stays its own.
        self._workloads: dict[tuple[int, bool], tuple[Workload, bytes]] = {}
        self._processes: dict[int, tuple[Process, bytes]] = {}
        self._boot = 0.0

    def identity(self, identity: Identity, now: Clock, *, labels: bool = False) -> bytes:
        """The object of an identity, with its pod's ``labels`` perhaps."""
        key, asked, workload, cgroup, process, pods_at, mode, parity, ids = identity
        if process is None:
            of_process, age = _NOBODY, b"null"
        else:
            of_process = self._of_process(process, now)
            age = b"%.1f" % max(0.0, (now.now - process.since) / 1e6)
        return b'{"pid":%b,"asked":%b,%b"age_ms":%b,"pods_age_ms":%b,"cgroup":%b,"cgroup_id":%b,%b%b}' % (
            b"%d" % key.pid if key.pid else b"null",
            b"%d" % asked if asked else b"null",
            of_process,
            age,
            b"null" if pods_at is None else b"%.1f" % max(0.0, (now.now - pods_at) / 1e6),
            b"null" if cgroup is None or cgroup.path is None else encode(cgroup.path),
            b"null" if cgroup is None else b"%d" % cgroup.id,
            self._of_workload(workload, labels),
            b'"mode":"strict","parity":null,"spiffe_ids":null'
            if mode == "strict" and parity is None and ids is None
            else encode({"mode": mode, "parity": parity, "spiffe_ids": ids})[1:-1],
        )

    def event(self, event: Event, now: Clock) -> bytes:
        """The object of an event, with the labels of its pod."""
        parts = [b'{"time":"%b","event":"%b"' % (now.rfc3339(event.time).encode(), event.event.encode())]
        if event.identity is not None:
            parts.append(self.identity(event.identity, now, labels=True)[1:-1])
        if event.extra:
            parts.append(encode(dict(event.extra))[1:-1])
        return b",".join(parts) + b"}"

    def _of_process(self, process: Process, now: Clock) -> bytes:
        if now.boot != self._boot:  # the wall clock was set
            self._processes.clear()
            self._boot = now.boot
        known = self._processes.get(id(process))
        if known is not None:
            return known[1]
        text = encode({
            "start_time": now.rfc3339(process.start) if process.start else None,
            "start_ns": process.start_ns or process.start or None,
            "ppid": process.ppid,
            "comm": process.comm,
            "source": process.source.value,
        })[1:-1]  # fmt: skip
        if len(self._processes) >= _MOST:
            self._processes.clear()
        self._processes[id(process)] = process, text + b","
        return text + b","

    def _of_workload(self, workload: Workload, labels: bool) -> bytes:
        known = self._workloads.get((id(workload), labels))
        if known is not None:
            return known[1]
        said: dict[str, Any] = {
            "state": workload.state.value,
            "reason": workload.reason,
            "reason_text": workload.reason_text,
            "settled": workload.settled,
            "pods_from": workload.pods_from,
            "namespace": workload.namespace,
            "service_account": workload.service_account,
            "pod": workload.pod,
            "pod_uid": workload.pod_uid,
            "container": workload.container,
            "kind": workload.kind,
            "container_id": workload.container_id,
            "image": workload.image,
            "node": workload.node,
            "selectors": workload.selectors,
        }
        if labels:
            said["labels"] = None if workload.labels is None else dict(workload.labels)
        text = encode(said)[1:-1] + b","
        if len(self._workloads) >= _MOST:
            self._workloads.clear()
        self._workloads[id(workload), labels] = workload, text
        return text
