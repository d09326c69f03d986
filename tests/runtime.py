"""A container runtime for tests: CRI on a real socket, with the containers that it is told to have."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from tests.rpc import RpcServer, Value, pb, pb_map, read_strings

VERBOSE = pb((2, 1))
POD_UID = "11111111-2222-3333-4444-555555555555"


def hex_id(number: int) -> str:
    """A container ID: 64 hexadecimal digits."""
    return f"{number:064x}"


def labels(name: str, pod_uid: str = POD_UID) -> dict[str, str]:
    """The labels that the kubelet gives a container."""
    return {
        "io.kubernetes.container.name": name,
        "io.kubernetes.pod.name": "cart-0",
        "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.pod.uid": pod_uid,
    }


class FakeRuntime:
    """``RuntimeService`` on a socket. ``calls`` has (method, ID or "") of each call, ``times`` when it came.

    ``before(method, id, context)`` runs in front of each call: it may hang, abort, or change what is there. ``info`` is
    what a verbose status adds, as (number, value); ``verbose`` tells of each status whether it was to be one.
    """

    def __init__(self, path: Path) -> None:
        self.statuses: dict[str, bytes] = {}
        self.listed: dict[str, bytes] = {}
        self.sandboxes: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.times: list[float] = []
        self.info: list[tuple[int, Value]] = pb_map(2, {"info": "{}"})
        self.verbose: list[bool] = []
        self.before: Callable[[str, str, Any], None] | None = None
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        methods = {
            "Version": self._version,
            "ContainerStatus": self._status,
            "ListContainers": self._list,
            "ListPodSandbox": self._list_sandboxes,
        }
        self.server = RpcServer(
            path, "runtime.v1.RuntimeService", {name: self._wrapped(name, m) for name, m in methods.items()}
        )

    def __enter__(self) -> FakeRuntime:
        self.server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.stop()

    def add(
        self, number: int, name: str = "app", *, state: int = 1, attempt: int = 0, created_at: int = 0, **more: Any
    ) -> str:
        """A container, listed and with a status; returns its ID."""
        container_id = hex_id(number)
        common: list[tuple[int, Value]] = [(1, container_id)]
        meta = pb((1, name), (2, attempt))
        named = more.get("labels", labels(name))
        self.statuses[container_id] = pb(
            *common,
            (2, meta),
            (3, state),
            (4, created_at),
            (8, pb((1, "registry/app:1"), (2, pb((1, "later"))))),
            (9, "registry/app@sha256:12"),
            *pb_map(12, named),
            (14, pb((1, "/mnt"))),
            (17, "sha256:34"),
        )
        self.listed[container_id] = pb(
            *common,
            (2, hex_id(9000)),
            (3, meta),
            (4, pb((1, "sha256:34"))),
            (5, "registry/app@sha256:12"),
            (6, state),
            (7, created_at),
            *pb_map(8, named),
            *pb_map(9, {"note": "x" * 100}),
        )
        return container_id

    def add_sandbox(self, number: int, *, state: int = 0) -> str:
        """A sandbox; returns its ID."""
        sandbox_id = hex_id(number)
        meta = pb((1, "cart-0"), (2, POD_UID), (3, "shop"), (4, 2))
        self.sandboxes[sandbox_id] = pb((1, sandbox_id), (2, meta), (3, state), (4, 77), (7, "runc"))
        return sandbox_id

    def count(self, method: str, container_id: str = "") -> int:
        """How often this was asked; without an ID of whatever container."""
        return sum(1 for call in self.calls if call[0] == method and container_id in ("", call[1]))

    def _wrapped(self, method: str, answer: Callable[[str, Any], bytes]) -> Callable[[bytes, Any], bytes]:
        def handle(request: bytes, context: Any) -> bytes:
            which = ""
            if request:
                # The ID of a status, or of the filter of a list of sandboxes.
                which = read_strings(request)[1]
                if method == "ListPodSandbox":
                    which = read_strings(which.encode())[1]
            with self._lock:
                self.calls.append((method, which))
                self.times.append(time.monotonic())
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
            try:
                if method == "ContainerStatus":
                    self.verbose.append(request.endswith(VERBOSE))
                if self.before is not None:
                    self.before(method, which, context)
                return answer(which, context)
            finally:
                with self._lock:
                    self._now -= 1

        return handle

    def _version(self, _which: str, _context: Any) -> bytes:
        return pb((1, "0.1.0"), (2, "faked"), (3, "9.8.7"), (4, "v1"))

    def _status(self, which: str, context: Any) -> bytes:
        for container_id, status in self.statuses.items():
            if container_id.startswith(which):
                return pb((1, status), *(self.info if self.verbose[-1] else ()))
        context.abort(grpc.StatusCode.NOT_FOUND, f"container {which!r} not found")
        raise AssertionError

    def _list(self, _which: str, _context: Any) -> bytes:
        return pb(*((1, each) for each in self.listed.values()))

    def _list_sandboxes(self, which: str, _context: Any) -> bytes:
        return pb(*((1, each) for sandbox_id, each in self.sandboxes.items() if sandbox_id.startswith(which)))
