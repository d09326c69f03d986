"""A kubelet's Pods API for tests: a real socket, and the pods and events that it is told to have."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc

from tests.rpc import RpcServer, Value, pb, pb_map

ADDED, MODIFIED, DELETED, SYNCED = 1, 2, 3, 4


def uid(number: int) -> str:
    """A pod's UID."""
    return f"00000000-0000-0000-0000-{number:012d}"


def status(name: str, container_id: str = "", state: int = 2) -> bytes:
    """A ContainerStatus; ``state`` is 1 waiting, 2 running, 3 terminated, 0 none."""
    states: list[tuple[int, Value]] = [(2, pb((state, pb((1, "since")))))] if state else []
    url = f"containerd://{container_id}" if container_id else ""
    return pb((1, name), *states, (4, 1), (5, 3), (6, f"{name}:1"), (7, f"{name}@sha256:1"), (8, url), (9, 1))


def pod(number: int, labels: Mapping[str, str] | None = None, **more: Any) -> bytes:
    """A serialised pod, with fields that nobody asked for among those that count."""
    meta = pb(
        (1, f"cart-{number}"),
        (2, "generated-"),
        (3, "shop"),
        (4, ""),
        (5, more.get("uid", uid(number))),
        (6, "12"),
        (8, pb((1, 1700000000))),
        *pb_map(11, {"app": "cart"} if labels is None else labels),
        *pb_map(12, more.get("annotations", {"note": "x" * 50})),
        (13, pb((5, "apps/v1"), (1, "ReplicaSet"), (3, "cart"), (4, "owner-uid"), (6, 1), (7, 1))),
        (17, pb((1, "manager"))),
    )
    spec = pb(
        (1, pb((1, "volume"))),
        (2, pb((1, "app"), (2, "app:1"), (3, "sh"), (20, "/dev/log"))),
        (3, "Always"),
        (8, "cart-account"),
        (10, "node-1"),
        (20, pb((1, "first"), (2, "first:1"))),
        (34, pb((1, pb((1, "debug"), (2, "debug:1"))), (2, "app"))),
    )
    state = pb(
        (1, "Running"),
        (8, more.get("status", status("app", f"{number:064x}"))),
        (9, "Burstable"),
        (10, status("first", f"{number:063x}a", 3)),
        (13, status("debug", "", 1)),
    )
    return pb((1, meta), (2, spec), (3, state), (15, "later"))


def stub(number: int) -> bytes:
    """What DELETED carries: name, namespace and UID."""
    return pb((1, pb((1, f"cart-{number}"), (2, ""), (3, "shop"), (5, uid(number)))), (2, b""), (3, b""))


class FakeKubelet:
    """``v1alpha1.Pods`` on a socket. A watch begins with ``pods`` and SYNCED, then has what ``push`` gives.

    ``before(method, context)`` runs in front of each call; ``sync`` says whether SYNCED is sent.
    """

    def __init__(self, path: Path) -> None:
        self.pods: dict[int, bytes] = {}
        self.calls: list[str] = []
        self.before: Callable[[str, Any], None] | None = None
        self.sync = True
        self._watches: list[queue.Queue[bytes | Exception]] = []
        self._lock = threading.Lock()
        unary = {"ListPods": self._list, "GetPod": self._get}
        self.server = RpcServer(path, "v1alpha1.Pods", unary, {"WatchPods": self._watch})

    def __enter__(self) -> FakeKubelet:
        self.server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.stop()

    def push(self, kind: int, body: bytes) -> None:
        """Send an event to every watch."""
        with self._lock:
            for watch in self._watches:
                watch.put(pb((1, kind), (2, body), (7, "later")))

    def change(self, kind: int, number: int, body: bytes | None = None) -> None:
        """Change what is there, and send the event."""
        if kind == DELETED:
            self.pods.pop(number, None)
            self.push(kind, stub(number))
        else:
            self.pods[number] = pod(number) if body is None else body
            self.push(kind, self.pods[number])

    def drop(self, code: grpc.StatusCode | None = None) -> None:
        """End every watch: with a status, or as if all was well."""
        with self._lock:
            for watch in self._watches:
                watch.put(_Drop(code))

    def count(self, method: str) -> int:
        """How often a method was called."""
        return self.calls.count(method)

    @property
    def watches(self) -> int:
        """How many watches there are."""
        return len(self._watches)

    def _called(self, method: str, context: Any) -> None:
        self.calls.append(method)
        if self.before is not None:
            self.before(method, context)

    def _list(self, _request: bytes, context: Any) -> bytes:
        self._called("ListPods", context)
        return pb(*((1, body) for body in self.pods.values()))

    def _get(self, request: bytes, context: Any) -> bytes:
        self._called("GetPod", context)
        for body in self.pods.values():
            if request[2:] in body:
                return pb((1, body))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such pod")
        raise AssertionError

    def _watch(self, _request: bytes, context: Any) -> Iterator[bytes]:
        self._called("WatchPods", context)
        events: queue.Queue[bytes | Exception] = queue.Queue()
        with self._lock:
            first = [pb((1, ADDED), (2, body)) for body in self.pods.values()]
            self._watches.append(events)
        closing = self.server.closing
        try:
            yield from first
            if self.sync:
                yield pb((1, SYNCED))
            while context.is_active() and not closing.is_set():
                try:
                    event = events.get(timeout=0.02)
                except queue.Empty:
                    continue
                if isinstance(event, _Drop):
                    if event.code is not None:
                        context.abort(event.code, "dropped")
                    return
                assert isinstance(event, bytes)
                yield event
        finally:
            with self._lock:
                self._watches.remove(events)


class _Drop(Exception):  # noqa: N818 - it travels through a queue, nobody raises it
    def __init__(self, code: grpc.StatusCode | None) -> None:
        super().__init__(code)
        self.code = code
