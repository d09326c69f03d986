"""The sources of pod data, joined with an index, on real sockets."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.rpc import pb_map, socket_folder
from tests.runtime import POD_UID, FakeRuntime, hex_id
from tests.servers import RawServer, answer, pod, pod_list, read_request
from tests.unit.index_lab import Lab, cid
from tests.waiting import until
from tracer import podsources
from tracer.errors import UsageError
from tracer.identity.index import Index
from tracer.model import Clock
from tracer.podsources import PodSources
from tracer.settings import Settings
from tracer.sources.state import report

CLOCK = Clock(0, 0.0)


def make_sources(
    index: Index, settings: Settings, warnings: list[str] | None = None, *, on_first: Callable[[], None] = lambda: None
) -> PodSources:
    """The sources of an index that has no kernel and no watchers; what people are told goes to ``warnings``."""
    return PodSources(
        settings,
        index,
        lock=threading.RLock(),
        drain=lambda: None,
        publish=[].extend,
        on_change=lambda: None,
        on_first=on_first,
        warn=([] if warnings is None else warnings).append,
        note=[].append,
    )


def _pods(index: Index) -> int:
    return len(index.pod_table.pods) if index.pod_table is not None else 0


def test_the_index_is_told_the_cgroup_path_that_the_runtime_reports() -> None:
    """What a runtime's verbose status says of a container's cgroup comes to the index with the container."""
    index = Index()
    path = f"/kubepods/pod{POD_UID}/{hex_id(1)}"
    with socket_folder() as folder, FakeRuntime(folder / "cri.sock") as runtime:
        container_id = runtime.add(1)
        runtime.info = pb_map(2, {"info": json.dumps({"runtimeSpec": {"linux": {"cgroupsPath": path}}})})
        sources = make_sources(index, Settings(kubelet="none", pods_api="none", cri=f"unix://{folder}/cri.sock"))
        sources.start()
        try:
            found = until(lambda: index._verdicts.runtime.get(container_id), 30, "the container")
        finally:
            sources.stop()
    assert found.cgroups_path == path


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
        kubelet_alone = {"cri": "none", "pods_api": "none", "refresh_interval": 0.1}
        sources = make_sources(index, Settings(kubelet_read_only_port=server.port, **kubelet_alone))
        sources.start()
        try:
            until(lambda: _pods(index) == 1, 30, "the pod")
            tell(empty)
            assert _pods(index) == 0
            tell(full)
            assert _pods(index) == 1
            tell(answer(b"", "503 Service Unavailable"))
            tell(empty)
            assert _pods(index) == 1
            monkeypatch.setattr(podsources, "_STARTING", 0)
            until(lambda: _pods(index) == 0, 30, "the pod to go")
        finally:
            sources.stop()


@pytest.mark.parametrize("has_cgroup", [True, False], ids=["a container has a cgroup", "no container has one"])
def test_a_kubelet_that_started_again_unseen_takes_no_live_pod_away(
    monkeypatch: pytest.MonkeyPatch, has_cgroup: bool
) -> None:
    """A kubelet that ended and began again between two requests fails for nobody: its short list, on a new connection,
    takes no pod away of which a container has a cgroup, until it has had the time to start. On the connection that was
    there before, and of pods without a cgroup, a list is believed at once."""
    container_id = cid("a")
    statuses = [{"name": "app", "image": "app:1", "containerID": f"containerd://{container_id}"}]
    whole = pod(status={"containerStatuses": statuses})
    now = [answer(pod_list(whole))]
    hang_up = [False]
    requests = [0]

    def script(_: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            conn.sendall(now[0])
            requests[0] += 1
            if hang_up[0]:
                hang_up[0] = False
                return  # as a server that ends does with a connection that is idle

    def wait_for_more() -> None:
        before = requests[0]
        until(lambda: requests[0] >= before + 3, 30, "three more requests")

    lab = Lab()
    if has_cgroup:
        lab.mkdir(f"/kubepods/besteffort/pod{whole['metadata']['uid']}/{container_id}")
    with RawServer(script) as server:
        settings = Settings(kubelet_read_only_port=server.port, cri="none", pods_api="none", refresh_interval=0.1)
        warnings: list[str] = []
        sources = make_sources(lab.index, settings, warnings)
        sources.start()
        try:
            until(lambda: _pods(lab.index) == 1, 30, "the pod")
            hang_up[0] = True
            until(lambda: not hang_up[0], 30, "the connection to end")
            now[0] = answer(pod_list())
            wait_for_more()
            assert _pods(lab.index) == int(has_cgroup)
            monkeypatch.setattr(podsources, "_STARTING", 0)
            until(lambda: _pods(lab.index) == 0, 30, "the pod to go")
            now[0] = answer(pod_list(whole))
            until(lambda: _pods(lab.index) == 1, 30, "the pod to be back")
            monkeypatch.undo()
            now[0] = answer(pod_list())
            until(lambda: _pods(lab.index) == 0, 30, "the pod to go, on the same connection")
        finally:
            sources.stop()
    assert warnings == []


def test_who_waits_for_the_first_answer_waits_for_the_kubelet_that_stands_in() -> None:
    """Where the Pods API fails at once, the first answer is the kubelet's: it is not over before that has come."""
    may_answer = threading.Event()

    def script(_: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            may_answer.wait(30)
            conn.sendall(answer(pod_list(pod())))

    with RawServer(script) as server, socket_folder() as folder:
        settings = Settings(
            kubelet_read_only_port=server.port, cri="none", pods_api=f"unix://{folder}/none.sock", refresh_interval=0.1
        )
        index, first = Index(), threading.Event()
        sources = make_sources(index, settings, on_first=first.set)
        sources.start()
        try:
            until(lambda: server.connections, 30, "the kubelet to be asked")
            until(lambda: sources.states["pods-api"].failures >= 2, 30, "the Pods API to have failed")
            assert not first.is_set()
            may_answer.set()
            assert first.wait(30)
            assert _pods(index) == 1
        finally:
            may_answer.set()
            sources.stop()


def test_a_kubelet_that_could_never_stand_in_is_told_at_the_start() -> None:
    """A node name that is none is a usage error also where the Pods API is asked and the kubelet only stands in."""
    settings = Settings(kubelet_secure_port=10250, node_name="no name", cri="none", pods_api="unix:///none.sock")
    with pytest.raises(UsageError, match="not the name of a node"):
        make_sources(Index(), settings).start()


def test_the_report_says_which_source_is_in_use_and_what_failed() -> None:
    """The report names the source that lists the pods and since when, and keeps a failure that is over."""
    now = [answer(pod_list(pod()))]

    def script(_: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            conn.sendall(now[0])

    with RawServer(script) as server:
        settings = Settings(kubelet_read_only_port=server.port, cri="none", pods_api="none", refresh_interval=0.1)
        sources = make_sources(Index(), settings)
        assert report({}, CLOCK) == {"in_use": None, "since": None, "sources": {}}
        sources.start()
        try:

            def state() -> dict[str, Any]:
                return report(sources.states, CLOCK)["sources"]["kubelet"]

            first = until(lambda: (found := state())["state"] == "ok" and found, 30, "an answer")
            whole = report(sources.states, CLOCK)
            assert (whole["in_use"], whole["since"]) == ("kubelet", first["since"])
            assert (first["error"], first["last_error"], first["last_error_at"]) == (None, None, None)
            now[0] = answer(b"", "503 Service Unavailable")
            bad = until(lambda: (found := state())["state"] == "failing" and found, 30, "a failure")
            assert report(sources.states, CLOCK)["in_use"] is None
            assert "503" in bad["error"]["what"]
            assert str(server.port) in bad["error"]["object"]
            assert bad["since"] > first["since"]
            assert bad["last_success"] >= first["last_success"]
            now[0] = answer(pod_list(pod()))
            good = until(lambda: (found := state())["state"] == "ok" and found, 30, "an answer again")
            assert (good["error"], good["last_error"]) == (None, bad["error"])
            assert good["last_error_at"] >= bad["since"]
            assert good["failures"] >= 1
            assert good["requests"] > good["failures"]
        finally:
            sources.stop()


def test_nothing_changing_costs_one_list_per_interval() -> None:
    """With 250 pods listed whole and their containers' cgroups there, lists are asked for once per interval: two never
    begin closer to one another, whatever else is done."""
    pods = [_whole(number) for number in range(250)]
    times: list[float] = []

    def script(_: RawServer, conn: socket.socket) -> None:
        while read_request(conn):
            times.append(time.monotonic())
            conn.sendall(body)

    body = answer(pod_list(*pods))
    lab = Lab()
    for each in pods:
        container_id = each["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
        lab.mkdir(f"/kubepods/besteffort/pod{each['metadata']['uid']}/{container_id}")
    with RawServer(script) as server:
        settings = Settings(kubelet_read_only_port=server.port, cri="none", pods_api="none", refresh_interval=1.0)
        sources = make_sources(lab.index, settings)
        sources.start()
        try:
            until(lambda: _pods(lab.index) == 250, 30, "the pods")
            # What was wanted before the first list came may have made a second one due.
            settled = len(times) + 1
            until(lambda: (sources.pass_wants(), len(times) >= settled + 3)[1], 30, "three more lists")
        finally:
            sources.stop()
    gaps = [after - before for before, after in itertools.pairwise(times[settled - 1 :])]
    assert min(gaps) > 0.9, gaps


def _whole(number: int) -> dict[str, Any]:
    uid = f"00000000-0000-0000-0000-{number:012d}"
    status = {"name": "app", "image": "app:1", "containerID": f"containerd://{number:064x}", "state": {"running": {}}}
    return pod(uid, status={"containerStatuses": [status]})
