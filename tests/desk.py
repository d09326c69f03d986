"""A desk of identities made by hand, for what the socket does with them; its peers are real processes."""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from tracer import clock
from tracer.identity.index import gone
from tracer.model import Cgroup, Event, Identity, Process, ProcessKey, Source, State, Workload
from tracer.pidfd import inode, number, pinned

CART = Workload(
    State.RESOLVED,
    settled=True,
    pods_from="kubelet",
    namespace="shop",
    service_account="cart",
    pod="cart-7d9f",
    pod_uid="6f2a",
    container="app",
    container_id="ab" * 32,
    image="cart:1",
    node="node-1",
    selectors=("k8s:container-name:app", "k8s:ns:shop", "k8s:pod-label:app:cart", "k8s:sa:cart"),
    labels={"app": "cart"},
)
HOST = Workload(State.HOST, "no_container", "its cgroup belongs to no container")
PENDING = Workload(State.PENDING, "not_listed_yet", "no source lists this container yet", container_id="ab" * 32)


class FakeStream:
    """A watch that gives what is put into it."""

    def __init__(self, desk: FakeDesk, on_event: Callable[[], None]) -> None:
        self.events: deque[Event] = deque()
        self.on_event = on_event
        self.is_closed = False
        self._desk = desk

    def next(self, timeout: float | None = None) -> Event | None:  # noqa: ARG002
        return self.events.popleft() if self.events else None

    def close(self) -> None:
        self.is_closed = True
        self._desk.streams.remove(self)


class FakeDesk:
    """``workloads`` says who each PID is, ``containers`` each container; whoever lives and is not named is a host
    process. ``wanted`` counts what is looked for."""

    pidfs = True

    def __init__(self) -> None:
        self.workloads: dict[int, Workload] = {}
        self.containers: dict[str, Workload] = {}
        self.made_up: set[int] = set()  # PIDs that no process has
        self.wanted: Counter[str] = Counter()
        self.streams: list[FakeStream] = []
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def identity(self, pid: int, workload: Workload, ino: int) -> Identity:
        now = clock.boottime()
        process = Process(1, "cart", 5_000_000_000, Source.EXEC, now - 5_000_000_000)
        return Identity(ProcessKey(pid, ino), pid, workload, Cgroup(4711, "/kubepods/x"), process, now - 1_000_000)

    def lookup(self, pid: int, **how: Any) -> Identity:
        if how:
            self.asked.append(how)
        if pid in self.made_up:
            return self.identity(pid, self.workloads[pid], pid + 1000)
        with pinned(pid) as fd:
            if fd is None:
                return gone(pid)
            return self.identity(pid, self.workloads.get(pid, HOST), inode(fd))

    def lookup_pidfd(self, fd: int, **how: Any) -> Identity:
        pid = number(fd)
        return gone(0) if pid is None else self.lookup(pid, **how)

    def lookup_container(self, container_id: str, pod_uid: str | None = None, **_how: Any) -> Identity:
        workload = self.containers.get(container_id, PENDING)
        if pod_uid is not None and workload.pod_uid not in (None, pod_uid):
            workload = PENDING
        return Identity(ProcessKey(0, 0), 0, workload)

    def mark(self, pid: int) -> object:
        return self.lookup(pid).key, self.workloads.get(pid, HOST)

    def want(self, container_id: str) -> None:
        self.wanted[container_id] += 1

    def unwant(self, container_id: str) -> None:
        self.wanted[container_id] -= 1

    def pids(self) -> list[int]:
        return sorted({*self.workloads, os.getpid()})

    def watch(self, *, snapshot: bool, parity: bool, on_event: Callable[[], None]) -> FakeStream:
        stream = FakeStream(self, on_event)
        stream.events.append(Event("synced", clock.boottime(), None, {"snapshot": snapshot, "parity": parity}))
        self.streams.append(stream)
        on_event()
        return stream

    def explain_record(self, pid: int, *, of_itself: bool = False) -> dict[str, Any]:
        return {"pid": pid, "steps": ["its own"] if of_itself else []}
