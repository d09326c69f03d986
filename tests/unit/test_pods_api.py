"""Pods from the kubelet's Pods API, over a real socket: the bytes, the calls, and the threads that make them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pods_api import ADDED, DELETED, MODIFIED, SYNCED, FakeKubelet, pod, status, stub, uid
from tests.rpc import pb, raw_server, socket_folder
from tests.waiting import until
from tracer.clock import boottime
from tracer.errors import InputError, UsageError
from tracer.model import Container, Owner, Pod
from tracer.sources import pods_source
from tracer.sources.kubelet import PodFetch
from tracer.sources.pod_bytes import decode_pod
from tracer.sources.pods_api import PodEventKind, PodsApiClient
from tracer.sources.pods_source import PodsApiSource
from tracer.sources.rpc import CallError
from tracer.sources.state import SourceState

WAIT = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as folder:
        yield folder


@pytest.fixture
def kubelet(folder: Path) -> Iterator[FakeKubelet]:
    with FakeKubelet(folder / "pods.sock") as kubelet:
        yield kubelet


@pytest.fixture
def client(folder: Path) -> Iterator[PodsApiClient]:
    with PodsApiClient(f"unix://{folder}/pods.sock") as client:
        yield client


# --- the bytes


def test_a_pod() -> None:
    """A serialised pod becomes a Pod with all that an identity is made of; what else it has is passed over."""
    assert decode_pod(pod(1)) == Pod(
        uid=uid(1),
        namespace="shop",
        name="cart-1",
        service_account="cart-account",
        node="node-1",
        labels={"app": "cart"},
        owners=(Owner("ReplicaSet", "cart", "owner-uid"),),
        containers=(Container("app", f"{1:064x}", "app:1", "app@sha256:1", "app", "running", restarts=3),),
        init_containers=(Container("first", f"{1:063x}a", "first:1", "first@sha256:1", "init", "terminated", None, 3),),
        ephemeral_containers=(
            Container("debug", None, "debug:1", "debug@sha256:1", "ephemeral", "waiting", restarts=3),
        ),
        spec=(
            Container("app", None, "app:1", "", "app"),
            Container("first", None, "first:1", "", "init"),
            Container("debug", None, "debug:1", "", "ephemeral"),
        ),
        config_hash=None,
    )


def test_a_static_pod() -> None:
    """The hash in the annotation of a static pod is kept."""
    found = decode_pod(pod(1, annotations={"kubernetes.io/config.hash": "ab" * 16}))
    assert found.config_hash == "ab" * 16


def test_without_a_state() -> None:
    """A status that says neither running, waiting nor terminated has no state."""
    assert decode_pod(pod(1, status=status("app", "", 0))).containers[0].state is None


def ended(container_id: str) -> bytes:
    """A lastState that is terminated."""
    return pb((3, pb((1, 137), (3, "Error"), (7, container_id))))


@pytest.mark.parametrize(
    ("last", "former"),
    [
        ((3, ended("containerd://old")), "old"),
        ((3, ended("")), None),
        ((3, ended("old")), None),
        ((3, pb((1, pb((1, "why"))))), None),
        ((3, b""), None),
        ((4, 0), None),
    ],
)
def test_the_instance_before(last: tuple[int, Any], former: str | None) -> None:
    """The instance before a restart is the container that lastState says has ended, if it says one."""
    found = decode_pod(pod(1, status=pb((1, "app"), last, (8, "containerd://new")))).containers[0]
    assert (found.container_id, found.former_id) == ("new", former)


@pytest.mark.parametrize(("count", "restarts"), [(0, 0), (7, 7), (2**31 - 1, 2**31 - 1), (2**64 - 1, 0), (2**63, 0)])
def test_restarts(count: int, restarts: int) -> None:
    """The count of restarts is read as the 32 bits that it has, and is never below 0."""
    assert decode_pod(pod(1, status=pb((1, "app"), (5, count)))).containers[0].restarts == restarts


@pytest.mark.parametrize("number", [2, 20])
@pytest.mark.parametrize(("policy", "keeps"), [("Always", True), ("always", False), ("OnFailure", False), ("", False)])
def test_a_sidecar(number: int, policy: str, keeps: bool) -> None:
    """An init container with the restart policy Always is a sidecar in spec and status; no app container is."""
    spec = pb((number, pb((1, "proxy"), (24, policy))), (number, pb((1, "other"))))
    listed = [(number // 20 * 2 + 8, pb((1, name))) for name in ("proxy", "other")]
    found = decode_pod(pb((2, spec), (3, pb(*listed))))
    wanted = keeps and number == 20
    assert [(each.name, each.sidecar) for each in found.spec] == [("proxy", wanted), ("other", False)]
    statuses = (*found.containers, *found.init_containers)
    assert [(each.name, each.sidecar) for each in statuses] == [("proxy", wanted), ("other", False)]


def test_an_empty_pod() -> None:
    """What is absent is empty, as for a Go client."""
    assert decode_pod(b"") == Pod("", "", "", "", "", {}, (), (), (), ())


def test_labels_of_any_text() -> None:
    """Labels may be empty, and hold whatever is UTF-8."""
    assert decode_pod(pod(1, {"": "", "é": "ß\n\0"})).labels == {"": "", "é": "ß\n\0"}


@pytest.mark.parametrize(
    "body",
    [
        b"k8s\0" + b"\xff" * 30,
        b"{}",
        pod(1)[:-1],
        pb((1, pb((1, b"\xff")))),
        pb((1, pb((11, pb((1, "a"), (2, b"\xc0\x80")))))),
        b"\x0b" * 300,
    ],
)
def test_no_pod(body: bytes) -> None:
    """Garbage, a pod cut short, and text that is no UTF-8 are refused."""
    with pytest.raises(InputError, match="this is no pod"):
        decode_pod(body)


@given(
    st.binary()
    | st.builds(lambda data, at: pod(1)[:at] + data + pod(1)[at:], st.binary(max_size=9), st.integers(0, 600))
)
def test_any_bytes(body: bytes) -> None:
    """Whatever the bytes, there is a pod or an error of ours."""
    with suppress(InputError):
        decode_pod(body)


# --- the calls


def test_list(kubelet: FakeKubelet, client: PodsApiClient) -> None:
    """A list has all pods and a time from before it was asked for; one without a UID is left out, one that cannot be
    read is named."""
    kubelet.pods = {1: pod(1), 2: pod(2, uid=""), 3: b"\xff\xff", 4: pod(4)}
    before = boottime()
    fetch = client.list_pods()
    assert before <= fetch.started <= boottime()
    assert [each.uid for each in fetch.pods.pods] == [uid(1), uid(4)]
    (skipped,) = fetch.pods.skipped
    assert skipped.startswith("item 2 is malformed")


def test_get(kubelet: FakeKubelet, client: PodsApiClient) -> None:
    """A single pod can be asked for by its UID."""
    kubelet.pods = {1: pod(1), 2: pod(2)}
    found = client.get_pod(uid(2))
    assert found is not None
    assert found.name == "cart-2"
    assert client.get_pod(uid(3)) is None


def test_watch(kubelet: FakeKubelet, client: PodsApiClient) -> None:
    """A watch tells of what there is, that this is all, and every change; events of later versions pass."""
    kubelet.pods = {1: pod(1)}
    watch = client.watch()
    events = iter(watch)
    assert [next(events).kind for _ in range(2)] == [PodEventKind.ADDED, PodEventKind.SYNCED]
    kubelet.change(MODIFIED, 1)
    kubelet.push(17, b"\xff")
    kubelet.push(ADDED, b"\xff")
    kubelet.change(DELETED, 1)
    modified, other, broken, deleted = (next(events) for _ in range(4))
    assert (modified.kind, modified.pod) == (PodEventKind.MODIFIED, decode_pod(pod(1)))
    assert (other.kind, other.pod, other.broken) == (PodEventKind.OTHER, None, None)
    assert (broken.kind, broken.pod) == (PodEventKind.ADDED, None)
    assert "this is no pod" in (broken.broken or "")
    assert deleted.kind is PodEventKind.DELETED
    assert deleted.pod is not None
    assert (deleted.pod.name, deleted.pod.namespace, deleted.pod.uid) == ("cart-1", "shop", uid(1))
    watch.cancel()
    with pytest.raises(CallError, match="cancelled"):
        next(events)


def test_endpoint() -> None:
    """An endpoint that is no socket is a mistake of whoever configured it."""
    with pytest.raises(UsageError):
        PodsApiClient("http://127.0.0.1:10255")


# --- the source


class Told:
    """What a source told, in order: ("pods" | "change" | "delete" | "ok" | "failing", what)."""

    def __init__(self) -> None:
        self.order: list[tuple[str, Any]] = []
        self.lists: list[PodFetch] = []
        self.times: list[int] = []
        self.states: list[SourceState] = []

    def pods(self, fetch: PodFetch) -> None:
        self.lists.append(fetch)
        self.order.append(("pods", sorted(each.uid for each in fetch.pods.pods)))

    def change(self, changed: Pod, at: int) -> None:
        self.times.append(at)
        self.order.append(("change", changed.uid))

    def delete(self, pod_uid: str, at: int) -> None:
        self.times.append(at)
        self.order.append(("delete", pod_uid))

    def state(self, state: SourceState) -> None:
        self.states.append(state)
        self.order.append(("ok" if state.ok else "failing", None))

    def oks(self) -> list[bool | None]:
        return [state.ok for state in self.states]

    def changes(self) -> list[tuple[str, Any]]:
        return [each for each in self.order if each[0] in ("change", "delete")]


@pytest.fixture
def told() -> Told:
    return Told()


Start = Callable[..., PodsApiSource]


@pytest.fixture
def start(folder: Path, told: Told) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(*, interval_s: float = 60.0, timeout: float = 10.0) -> PodsApiSource:
            source = PodsApiSource(
                PodsApiClient(str(folder / "pods.sock"), timeout=timeout),
                interval_s=interval_s,
                on_pods=told.pods,
                on_change=told.change,
                on_delete=told.delete,
                on_state=told.state,
            )
            source.start()
            stack.callback(source.stop)
            return source

        yield begin


def test_what_there_is(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """The first thing told is one complete list, as old as the watch, then that all is well."""
    kubelet.pods = {1: pod(1), 2: pod(2)}
    before = boottime()
    start()
    until(lambda: told.states, WAIT, "a state")
    assert told.order == [("pods", [uid(1), uid(2)]), ("ok", None)]
    assert before <= told.lists[0].started <= boottime()
    assert kubelet.calls == ["WatchPods"]


def test_no_pods(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """A node without pods is an empty list, not silence."""
    start()
    until(lambda: told.states, WAIT, "a state")
    assert told.order == [("pods", []), ("ok", None)]


def test_changes(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """Pods that come, change and go are told as that happens, with the time it came."""
    start()
    until(lambda: told.states, WAIT, "a state")
    before = boottime()
    kubelet.change(ADDED, 1)
    kubelet.change(MODIFIED, 1)
    kubelet.change(DELETED, 1)
    until(lambda: len(told.changes()) == 3, WAIT, "three changes")
    assert told.changes() == [("change", uid(1)), ("change", uid(1)), ("delete", uid(1))]
    assert before < told.times[0] <= told.times[1] <= told.times[2] <= boottime()


def test_edits_that_are_not_pushed(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """An edit of labels, which sends no event, comes with the list of the next interval; there is one per interval."""
    kubelet.pods = {1: pod(1)}
    start(interval_s=0.1)
    until(lambda: told.states, WAIT, "a state")
    kubelet.pods = {1: pod(1, {"app": "edited"})}
    until(lambda: told.lists[-1].pods.pods[0].labels == {"app": "edited"}, WAIT, "the edit")
    before = boottime()
    lists = kubelet.count("ListPods")
    until(lambda: kubelet.count("ListPods") >= lists + 5, WAIT, "five more lists")
    assert boottime() - before >= 4 * 100_000_000
    assert kubelet.count("WatchPods") == 1
    assert told.oks() == [True]


@pytest.mark.parametrize("code", [None, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
def test_a_drop(kubelet: FakeKubelet, start: Start, told: Told, code: grpc.StatusCode | None) -> None:
    """After a drop, for being too slow or for nothing, there is a new watch, and what was missed is told."""
    kubelet.pods = {1: pod(1), 2: pod(2)}
    start()
    until(lambda: told.states, WAIT, "a state")
    del kubelet.pods[1]
    kubelet.pods[3] = pod(3)
    kubelet.drop(code)
    until(lambda: len(told.states) == 3, WAIT, "a new watch")
    assert told.order[2:] == [("failing", None), ("pods", [uid(2), uid(3)]), ("ok", None)]


def test_a_restart(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """While the kubelet is away that is told once, and nothing else; then all pods are told anew."""
    kubelet.pods = {1: pod(1)}
    source = start(interval_s=0.3)
    until(lambda: told.states, WAIT, "a state")
    kubelet.server.stop()
    until(lambda: source.state.failures >= 3, WAIT, "three tries")
    lists = len(told.lists)
    assert told.oks() == [True, False]
    kubelet.pods = {2: pod(2)}
    kubelet.server.start()
    until(lambda: len(told.states) == 3, WAIT, "a good state")
    assert told.order[-2:] == [("pods", [uid(2)]), ("ok", None)]
    assert len(told.lists) >= lists + 1


def test_a_kubelet_that_is_starting(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """A kubelet that does not know its pods yet says so, which is not an empty list."""

    def refuse(method: str, context: Any) -> None:
        if kubelet.calls.count(method) < 3:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not all sources are ready")

    kubelet.before = refuse
    kubelet.pods = {1: pod(1)}
    start()
    until(lambda: len(told.states) == 2, WAIT, "a good state")
    assert told.order == [("failing", None), ("pods", [uid(1)]), ("ok", None)]


def test_drops_without_end(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """Watches that end as soon as they began are not asked for in a busy loop."""

    def refuse(method: str, context: Any) -> None:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "dropped")

    kubelet.before = refuse
    source = start()
    began = time.monotonic()
    until(lambda: source.state.failures >= 4, WAIT, "four tries")
    assert time.monotonic() - began >= 0.1 + 0.2 + 0.4
    assert told.oks() == [False]


def test_a_list_that_is_overtaken(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """What the watch tells while a list is in flight is not undone by it: the list may have been made before."""
    kubelet.pods = {1: pod(1), 2: pod(2)}
    held = threading.Event()

    def hold(method: str, context: Any) -> None:
        if method == "ListPods" and kubelet.count(method) == 1:
            kubelet.push(MODIFIED, pod(1, {"app": "newer"}))
            kubelet.push(ADDED, pod(3))
            kubelet.push(DELETED, stub(2))
            held.wait(WAIT)

    kubelet.before = hold
    start(interval_s=0.1)
    until(lambda: len(told.changes()) == 3, WAIT, "three changes")
    held.set()
    until(lambda: len(told.lists) >= 2, WAIT, "the list")
    found = {each.uid: dict(each.labels) for each in told.lists[1].pods.pods}
    assert found == {uid(1): {"app": "newer"}, uid(3): {"app": "cart"}}


def test_a_change_before_all_is_known(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """What changes while the watch still tells what there is goes into the first list."""
    kubelet.sync = False
    kubelet.pods = {1: pod(1), 2: pod(2)}
    start()
    until(lambda: kubelet.watches, WAIT, "the watch")
    kubelet.push(MODIFIED, pod(1, {"app": "newer"}))
    kubelet.push(DELETED, stub(2))
    kubelet.push(SYNCED, b"")
    until(lambda: told.states, WAIT, "a state")
    assert told.order == [("pods", [uid(1)]), ("ok", None)]
    assert told.lists[0].pods.pods[0].labels == {"app": "newer"}


def test_a_first_list_without_end(
    kubelet: FakeKubelet, start: Start, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pods than any node has are refused, before they fill the memory."""
    monkeypatch.setattr(pods_source, "MAX_FIRST", 5000)
    kubelet.pods = {number: pod(number) for number in range(20)}
    start()
    until(lambda: told.states, WAIT, "a state")
    assert told.oks() == [False]
    assert told.lists == []
    assert "more than 5000 bytes" in str(told.states[0].error)


def test_pods_without_end(kubelet: FakeKubelet, start: Start, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """More pods than any node has are refused later on too; changes of those that are there, and pods that go, are
    not counted as more."""
    monkeypatch.setattr(pods_source, "MAX_FIRST", 10_000)
    kubelet.pods[1] = pod(1)
    start()
    until(lambda: told.oks() == [True], WAIT, "the first list")
    for number in range(2, 60):
        kubelet.change(MODIFIED, 1)
        kubelet.change(ADDED, number)
        kubelet.change(DELETED, number)
    kubelet.change(ADDED, 77)
    until(lambda: ("change", uid(77)) in told.order, WAIT, "the last one")
    assert told.oks() == [True]
    for number in range(100, 160):
        kubelet.change(ADDED, number)
    until(lambda: told.oks() == [True, False], WAIT, "the failure")
    error = told.states[-1].error
    assert error is not None
    assert error.what == "more than 10000 bytes of pods"


def test_a_kubelet_that_never_finishes(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """A watch that does not come to the end of what there is fails in time, and tells nothing."""
    kubelet.sync = False
    kubelet.pods = {1: pod(1)}
    start(timeout=0.3)
    until(lambda: told.states, WAIT, "a state")
    assert told.oks() == [False]
    assert told.lists == []
    assert "not all pods within 0.3 s" in str(told.states[0].error)


def test_a_list_that_hangs(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """A list that does not come ends the session, also while the watch looks alive."""

    def hang(method: str, context: Any) -> None:
        if method == "ListPods" and kubelet.count(method) == 1:
            kubelet.server.closing.wait(WAIT)

    kubelet.before = hang
    start(interval_s=0.1, timeout=0.3)
    until(lambda: told.oks() == [True, False, True], WAIT, "a good state again")
    assert str(told.states[1].error).startswith("no complete answer within 0.3 s")


def test_pods_that_cannot_be_read(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """A pod that cannot be read costs that pod: lists name it; as an event it ends the watch, so that it is missed."""
    kubelet.pods = {1: pod(1), 2: b"\xff\xff"}
    source = start()
    until(lambda: told.states, WAIT, "a state")
    assert told.order == [("pods", [uid(1)]), ("ok", None)]
    assert len(told.lists[0].pods.skipped) == len(source.state.skipped) == 1
    kubelet.push(MODIFIED, b"\xff\xff")
    until(lambda: len(told.states) == 3, WAIT, "a new watch")
    assert told.order[2:] == [("failing", None), ("pods", [uid(1)]), ("ok", None)]
    assert "an event cannot be decoded" in str(told.states[1].error)


def test_events_of_later_versions(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """Kinds of events that nobody knew of are passed over."""
    start()
    until(lambda: told.states, WAIT, "a state")
    kubelet.push(99, pod(1))
    kubelet.push(0, b"\xff")
    kubelet.push(SYNCED, b"")
    kubelet.push(ADDED, pod(5, uid=""))
    kubelet.change(ADDED, 2)
    until(lambda: told.changes(), WAIT, "a change")
    assert told.order == [("pods", []), ("ok", None), ("change", uid(2))]


@pytest.mark.parametrize("noise", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", os.urandom(1 << 16)])
def test_garbage_on_the_socket(folder: Path, start: Start, told: Told, noise: bytes) -> None:
    """What is no kubelet is told once, however often it is tried, and is never hammered."""

    def script(conn: socket.socket, closing: threading.Event) -> None:
        conn.sendall(noise)

    with raw_server(folder / "pods.sock", script) as connections:
        source = start()
        until(lambda: source.state.failures >= 4, WAIT, "four tries")
        assert told.oks() == [False]
        assert len(connections) <= 12
        source.stop()


def test_a_service_that_is_not_there(folder: Path, start: Start, told: Told) -> None:
    """A kubelet with another version of the API is told apart."""
    with FakeKubelet(folder / "pods.sock") as kubelet:
        kubelet.server.stop()
        kubelet.server._service = "v1.Pods"
        kubelet.server.start()
        source = start()
        until(lambda: told.states, WAIT, "a state")
        source.stop()
    error = told.states[0].error
    assert error is not None
    assert error.what.startswith("this service is not there")
    assert "v1alpha1" in (error.hint or "")


def test_stop_while_it_hangs(kubelet: FakeKubelet, start: Start, told: Told) -> None:
    """stop() is back within a second, whether a list hangs or the watch is silent, and nothing is told after it."""
    kubelet.before = lambda method, _: method == "ListPods" and kubelet.server.closing.wait(WAIT) and None
    source = start(interval_s=0.1, timeout=WAIT)
    until(lambda: kubelet.count("ListPods"), WAIT, "a list in flight")
    began = time.monotonic()
    source.stop()
    assert time.monotonic() - began < 1
    order = list(told.order)
    kubelet.change(ADDED, 1)
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("podtracer-pods")], WAIT, "its threads")
    assert told.order == order == [("pods", []), ("ok", None)]


def test_stop_before_anything(start: Start, told: Told, folder: Path) -> None:
    """stop() is quick when nobody ever answered."""
    with raw_server(folder / "pods.sock", lambda _, closing: closing.wait(WAIT) and None) as connections:
        source = start()
        until(lambda: connections, WAIT, "a connection")
        began = time.monotonic()
        source.stop()
        assert time.monotonic() - began < 1
    assert told.order == []


def test_a_listener_that_raises(
    kubelet: FakeKubelet, folder: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    """What a listener raises is logged, and the watch goes on."""

    def broken(changed: Pod, at: int) -> None:
        told.change(changed, at)
        raise ZeroDivisionError

    source = PodsApiSource(
        PodsApiClient(str(folder / "pods.sock")),
        on_pods=told.pods,
        on_change=broken,
        on_delete=told.delete,
        on_state=told.state,
    )
    source.start()
    try:
        until(lambda: told.states, WAIT, "a state")
        kubelet.change(ADDED, 1)
        kubelet.change(DELETED, 1)
        until(lambda: len(told.changes()) == 2, WAIT, "two changes")
    finally:
        source.stop()
    assert "a listener of pod data failed" in caplog.text
