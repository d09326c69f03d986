"""The sources of pod data, joined with an index, on real sockets."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.servers import RawServer, answer, pod, pod_list, read_request
from tests.waiting import until
from tracer import podsources
from tracer.identity.index import Index
from tracer.podsources import PodSources
from tracer.settings import Settings


def test_a_kubelet_that_starts_again_takes_no_pod_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short lists of a kubelet that failed before leave the known pods, while those of one that did not, and those
    that still come when it has had the time to start, take them away."""
    full, empty = answer(pod_list(pod())), answer(pod_list())
    now = [full]
    requests = [0]

    def script(_: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            requests[0] += 1
            conn.sendall(now[0])

    def tell(body: bytes) -> None:
        """Waits until what is served now was told, and what is asked for after it too."""
        now[0] = body
        before = requests[0]
        until(lambda: requests[0] >= before + 3, 30, "three more requests")

    index = Index()
    with RawServer(script) as server:
        sources = PodSources(
            Settings(kubelet_read_only_port=server.port, cri="none", pods_api="none", refresh_interval=0.1),
            index,
            lock=threading.RLock(),
            drain=lambda: None,
            publish=[].extend,
            on_change=lambda: None,
            on_first=lambda: None,
            warn=[].append,
            note=[].append,
        )

        def known() -> int:
            return len(index.pod_table.pods) if index.pod_table is not None else 0

        sources.start()
        try:
            until(lambda: known() == 1, 30, "the pod")
            tell(empty)
            assert known() == 0
            tell(full)
            assert known() == 1
            tell(answer(b"", "503 Service Unavailable"))
            tell(empty)
            assert known() == 1
            monkeypatch.setattr(podsources, "_STARTING", 0)
            until(lambda: known() == 0, 30, "the pod to go")
        finally:
            sources.stop()
