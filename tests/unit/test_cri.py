"""Containers from the runtime, over a real socket: the calls, and the threads that make them."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rpc import Value, pb, raw_server, socket_folder
from tests.runtime import POD_UID, FakeRuntime, hex_id, labels
from tests.waiting import until
from tracer.clock import boottime
from tracer.errors import SourceError, UsageError
from tracer.sources.attempts import PAUSES
from tracer.sources.cri import CriClient, CriContainer, CriState, CriVersion, find_endpoint
from tracer.sources.cri_info import cgroups_path
from tracer.sources.cri_source import WORKERS, CriSource
from tracer.sources.rpc import CallError
from tracer.sources.state import SourceState

WAIT = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as folder:
        yield folder


@pytest.fixture
def runtime(folder: Path) -> Iterator[FakeRuntime]:
    with FakeRuntime(folder / "cri.sock") as runtime:
        yield runtime


@pytest.fixture
def client(folder: Path) -> Iterator[CriClient]:
    with CriClient(f"unix://{folder}/cri.sock") as client:
        yield client


# --- the calls


def test_container_status(runtime: FakeRuntime, client: CriClient) -> None:
    """A status has the pod from the labels, the tag, the reference that becomes the kubelet's imageID, and a time."""
    container_id = runtime.add(1, "app", attempt=3, created_at=123_456_789_012_345_678)
    before = boottime()
    found = client.container_status(container_id)
    assert found is not None
    assert before <= found.at <= boottime()
    assert found == CriContainer(
        container_id=container_id,
        name="app",
        pod_name="cart-0",
        pod_namespace="shop",
        pod_uid=POD_UID,
        attempt=3,
        image="registry/app:1",
        image_id="registry/app@sha256:12",
        state=CriState.RUNNING,
        sandbox_id=None,
        created_at=123_456_789_012_345_678,
        at=found.at,
    )


def test_no_such_container(runtime: FakeRuntime, client: CriClient) -> None:
    """NOT_FOUND is no error but an answer."""
    assert client.container_status(hex_id(1)) is None


def test_beginning_of_an_id(runtime: FakeRuntime, client: CriClient) -> None:
    """A runtime that finds containers and sandboxes by the beginning of their ID is not taken at its word."""
    container_id, sandbox_id = runtime.add(1), runtime.add_sandbox(2)
    assert client.container_status(container_id[:20]) is None
    assert client.list_sandboxes(sandbox_id[:20]) == ()


def test_list_containers(runtime: FakeRuntime, client: CriClient) -> None:
    """A listing has every container with its sandbox and state, and no image: what it calls so is a digest."""
    ids = [runtime.add(number, state=number) for number in range(5)]
    found = client.list_containers()
    assert [each.container_id for each in found] == ids
    assert {each.image for each in found} == {None}
    assert {each.image_id for each in found} == {"registry/app@sha256:12"}
    assert {each.sandbox_id for each in found} == {hex_id(9000)}
    assert [each.state.name for each in found] == ["CREATED", "RUNNING", "EXITED", "UNKNOWN", "UNKNOWN"]


def test_list_sandboxes(runtime: FakeRuntime, client: CriClient) -> None:
    """Sandboxes have their pod, and can be asked for one by one."""
    ids = [runtime.add_sandbox(1), runtime.add_sandbox(2, state=1)]
    found = client.list_sandboxes()
    assert [(each.sandbox_id, each.ready) for each in found] == [(ids[0], True), (ids[1], False)]
    assert {(each.pod_name, each.pod_namespace, each.pod_uid, each.created_at) for each in found} == {
        ("cart-0", "shop", POD_UID, 77)
    }
    assert [each.sandbox_id for each in client.list_sandboxes(ids[1])] == ids[1:]
    assert client.list_sandboxes(hex_id(3)) == ()


def test_version(runtime: FakeRuntime, client: CriClient) -> None:
    """The runtime says which it is."""
    assert client.version() == CriVersion("faked", "9.8.7", "v1")


def test_without_labels(runtime: FakeRuntime, client: CriClient) -> None:
    """A container that the kubelet did not make has a name and no pod."""
    found = client.container_status(runtime.add(1, "made-by-hand", labels={}))
    assert found is not None
    assert (found.name, found.pod_name, found.pod_namespace, found.pod_uid) == ("made-by-hand", "", "", "")


@pytest.mark.parametrize("body", [b"", pb((2, "x")), b"\xff" * 9, pb((1, b"\x0a\x7f"))])
def test_an_answer_that_is_no_status(runtime: FakeRuntime, client: CriClient, body: bytes) -> None:
    """An answer without a container, or that cannot be decoded, is an error and no container."""
    runtime.statuses[hex_id(1)] = b""
    runtime.server._handlers["ContainerStatus"] = grpc.unary_unary_rpc_method_handler(lambda *_: body)
    runtime.server.stop()
    runtime.server.start()
    with pytest.raises(SourceError, match="cannot be decoded"):
        client.container_status(hex_id(1))


def info(**entries: str | bytes) -> list[tuple[int, Value]]:
    """What a verbose status adds: the entries of a map."""
    return [(2, pb((1, key), (2, value))) for key, value in entries.items()]


def spec(path: object) -> str:
    """The JSON that containerd and CRI-O give, with this ``cgroupsPath``."""
    linux = {"resources": {"unified": {"a": "b"}}, "cgroupsPath": path}
    return json.dumps({"pid": 7, "runtimeSpec": {"ociVersion": "1.0.2", "linux": linux}, "config": {"labels": {}}})


def _json_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of JSON, in which the names that are looked for occur."""
    names = st.sampled_from(["runtimeSpec", "linux", "cgroupsPath", "other"])
    return st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)


CGROUPFS = f"/kubepods/burstable/pod{POD_UID}/{hex_id(1)}"
SYSTEMD = f"kubepods-burstable-pod{POD_UID.replace('-', '_')}.slice:cri-containerd:{hex_id(1)}"


@pytest.mark.parametrize("path", [CGROUPFS, SYSTEMD, "/a b/ü"])
def test_the_cgroup_path_of_a_container(runtime: FakeRuntime, client: CriClient, path: str) -> None:
    """A status has the cgroup path of the container's OCI spec, in the runtime's own form; a listing has none."""
    container_id = runtime.add(1)
    runtime.info = info(other="{}", info=spec(path))
    found = client.container_status(container_id)
    assert found is not None
    assert found.cgroups_path == path
    assert [each.cgroups_path for each in client.list_containers()] == [None]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([], id="no-info"),
        pytest.param(info(other=spec(CGROUPFS)), id="another-key"),
        pytest.param(info(info=""), id="empty"),
        pytest.param(info(info="null"), id="null"),
        pytest.param(info(info="{}"), id="no-spec"),
        pytest.param(info(info='{"runtimeSpec": null}'), id="null-spec"),
        pytest.param(info(info='{"runtimeSpec": {"linux": []}}'), id="linux-is-a-list"),
        pytest.param(info(info=spec(None)), id="null-path"),
        pytest.param(info(info=spec("")), id="empty-path"),
        pytest.param(info(info=spec(["/a"])), id="path-is-a-list"),
        pytest.param(info(info=spec("/a\0b")), id="zero-byte"),
        pytest.param(info(info=spec("/" + "a" * 5000)), id="longer-than-a-path"),
        pytest.param(info(info=spec(CGROUPFS)[:-9]), id="cut-short"),
        pytest.param(info(info=b'{"runtimeSpec": {"linux": {"cgroupsPath": "/\xff"}}}'), id="no-utf-8"),
        pytest.param(info(info='{"x":' + "[" * 100_000), id="deep"),
        pytest.param(info(info='{"x": "' + "x" * (5 << 20) + '", ' + spec(CGROUPFS)[1:]), id="huge"),
        pytest.param([(2, b"\xff" * 9)], id="no-entry"),
        pytest.param([(2, pb((1, b"\xff"), (2, b"\xff")))], id="key-is-no-text"),
        pytest.param([(2, 7)], id="a-number"),
    ],
)
def test_a_container_without_a_cgroup_path(
    runtime: FakeRuntime, client: CriClient, answer: list[tuple[int, Value]]
) -> None:
    """Whatever else a runtime tells at length is no error: the status stands, and the cgroup path is not known."""
    container_id = runtime.add(1)
    runtime.info = answer
    found = client.container_status(container_id)
    assert found is not None
    assert (found.name, found.image, found.cgroups_path) == ("app", "registry/app:1", None)
    assert runtime.verbose == [True]


@given(st.one_of(st.binary(), st.recursive(st.none() | st.text(), _json_of).map(json.dumps).map(str.encode)))
def test_whatever_a_description_holds(text: bytes) -> None:
    """A cgroup path is read from a description, or none is, whatever bytes it has."""
    found = cgroups_path(text)
    assert found is None or (found and "\0" not in found)


def test_a_description_larger_than_an_answer_may_be(runtime: FakeRuntime, client: CriClient) -> None:
    """A container whose description is larger than an answer may be is asked for without it."""
    container_id = runtime.add(1)
    runtime.info = info(info="x" * (17 << 20))
    found = client.container_status(container_id)
    assert found is not None
    assert (found.name, found.cgroups_path) == ("app", None)
    assert runtime.verbose == [True, False]


@pytest.mark.parametrize("code", ["UNKNOWN", "INTERNAL", "INVALID_ARGUMENT"])
def test_a_runtime_that_cannot_describe_a_container(runtime: FakeRuntime, client: CriClient, code: str) -> None:
    """A container that the runtime has and cannot describe is told without its description."""
    container_id = runtime.add(1)

    def fail(_method: str, _which: str, context: Any) -> None:
        if runtime.verbose[-1]:
            context.abort(grpc.StatusCode[code], "failed to get verbose container info")

    runtime.before = fail
    found = client.container_status(container_id)
    assert found is not None
    assert (found.name, found.cgroups_path) == ("app", None)


def test_a_runtime_that_is_down_is_asked_once(runtime: FakeRuntime, client: CriClient) -> None:
    """A call that fails for the runtime's sake is not made again without the description."""
    runtime.before = lambda _method, _which, context: context.abort(grpc.StatusCode.UNAVAILABLE, "ending")
    with pytest.raises(CallError, match="no connection"):
        client.container_status(runtime.add(1))
    assert runtime.verbose == [True]


def test_without_cri(folder: Path) -> None:
    """A socket without runtime.v1 says which release is needed."""
    with FakeRuntime(folder / "cri.sock") as runtime, CriClient(str(folder / "cri.sock")) as client:
        runtime.server.stop()
        runtime.server._service = "runtime.v1alpha2.RuntimeService"
        runtime.server.start()
        with pytest.raises(CallError, match="this service is not there") as caught:
            client.version()
    assert "runtime.v1" in (caught.value.hint or "")


def test_a_listing_too_long(runtime: FakeRuntime, client: CriClient) -> None:
    """A listing of gigabytes is refused at its head: 16 MiB are what the kubelet takes too."""
    runtime.listed["x"] = pb((1, "x" * (17 << 20)))
    with pytest.raises(CallError) as caught:
        client.list_containers()
    assert caught.value.code == "RESOURCE_EXHAUSTED"


def test_find_endpoint(folder: Path) -> None:
    """The first path with a socket counts; files, folders and nothing at all do not."""
    (folder / "file").touch()
    paths = [str(folder / name) for name in ("none", "file", ".", "one", "two")]
    assert find_endpoint(paths) is None
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        two.bind(paths[4])
        assert find_endpoint(paths) == paths[4]
        one.bind(paths[3])
        assert find_endpoint(paths) == paths[3]


def test_endpoint() -> None:
    """An endpoint that is no socket is a mistake of whoever configured it."""
    with pytest.raises(UsageError):
        CriClient("tcp://127.0.0.1:1")


# --- the source


class Told:
    """What a source told, in order."""

    def __init__(self) -> None:
        self.containers: dict[str, list[CriContainer | None]] = {}
        self.sandboxes: list[str] = []
        self.states: list[SourceState] = []
        self.order: list[str] = []

    def container(self, container_id: str, container: CriContainer | None) -> None:
        self.containers.setdefault(container_id, []).append(container)
        self.order.append(container_id)

    def sandbox(self, sandbox_id: str) -> None:
        self.sandboxes.append(sandbox_id)
        self.order.append(sandbox_id)

    def state(self, state: SourceState) -> None:
        self.states.append(state)
        self.order.append(f"ok={state.ok}")

    def oks(self) -> list[bool | None]:
        return [state.ok for state in self.states]


@pytest.fixture
def told() -> Told:
    return Told()


Start = Callable[..., CriSource]


@pytest.fixture
def start(folder: Path, told: Told) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(*, interval_s: float = 60.0, timeout: float = 10.0) -> CriSource:
            source = CriSource(
                CriClient(str(folder / "cri.sock"), timeout=timeout),
                interval_s=interval_s,
                on_container=told.container,
                on_sandbox=told.sandbox,
                on_state=told.state,
            )
            source.start()
            stack.callback(source.stop)
            return source

        yield begin


def test_what_runs_already(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """At the start every container that has not ended is told with its tag, and every sandbox; then it is good."""
    ids = [runtime.add(number, f"c{number}") for number in range(20)]
    sandbox_id = runtime.add_sandbox(500)
    start()
    until(lambda: told.states, WAIT, "a state")
    assert told.oks() == [True]
    assert told.order[-1] == "ok=True"
    assert sorted(told.containers) == ids
    assert all(len(each) == 1 and each[0] and each[0].image == "registry/app:1" for each in told.containers.values())
    assert told.sandboxes == [sandbox_id]
    assert runtime.most_at_once <= WORKERS


def test_what_has_ended(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """Of what has ended the newest of each name in a pod is told, since the pod's status has it, and no older one."""
    runtime.add(1, "init", state=2, created_at=1)
    newest = runtime.add(2, "init", state=2, created_at=2)
    runtime.add(3, "app", state=2, created_at=3)
    runs = runtime.add(4, "app", state=1, created_at=4)
    other = runtime.add(5, "app", state=2, created_at=1, labels=labels("app", "another-pod"))
    start()
    until(lambda: told.states, WAIT, "a state")
    assert sorted(told.containers) == [newest, runs, other]


def test_a_container_is_wanted(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """A container that is wanted is asked for once, by its ID, and told."""
    source = start()
    until(lambda: told.states, WAIT, "a state")
    container_id = runtime.add(1)
    source.want(container_id)
    until(lambda: told.containers, WAIT, "the container")
    (found,) = told.containers[container_id]
    assert found is not None
    assert found.name == "app"
    assert runtime.count("ContainerStatus") == 1


def test_not_there_yet(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """NOT_FOUND is tried again, later each time, until the container is there."""
    source = start()
    until(lambda: told.states, WAIT, "a state")

    def appear(method: str, which: str, context: Any) -> None:
        if method == "ContainerStatus" and runtime.count(method) == 6:
            runtime.add(1)

    runtime.before = appear
    source.want(hex_id(1))
    until(lambda: told.containers, WAIT, "the container")
    assert [each is not None for each in told.containers[hex_id(1)]] == [True]
    times = [when for when, call in zip(runtime.times, runtime.calls, strict=True) if call[0] == "ContainerStatus"]
    assert len(times) == 6
    for (before, after), pause in zip(pairwise(times), PAUSES, strict=False):
        assert after - before >= pause / 1e9


def test_never_there(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """What does not come is given up, told so, and asked for again when it is wanted again."""
    source = start()
    until(lambda: told.states, WAIT, "a state")
    source.want(hex_id(1))
    until(lambda: told.containers, WAIT, "giving up")
    assert told.containers[hex_id(1)] == [None]
    assert runtime.count("ContainerStatus") == len(PAUSES) + 1
    assert told.oks() == [True]
    runtime.add(1)
    source.want(hex_id(1))
    until(lambda: len(told.containers[hex_id(1)]) == 2, WAIT, "the container")
    assert told.containers[hex_id(1)][1] is not None


def test_settled(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """What became known otherwise is asked for no more, and not told."""
    source = start()
    until(lambda: told.states, WAIT, "a state")
    source.want(hex_id(1))
    until(lambda: runtime.count("ContainerStatus") >= 2, WAIT, "two tries")
    source.settle(hex_id(1))
    source.want(runtime.add(2))
    until(lambda: told.containers, WAIT, "the other")
    assert list(told.containers) == [hex_id(2)]


def test_the_next_container_of_a_followed_pod(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """A container that is made in a pod that is followed is told without having been wanted, one of another pod is not;
    when all are there, or some time has passed, nobody looks any more."""
    first = runtime.add(1)
    source = start()
    until(lambda: told.oks() == [True], WAIT, "the listing")
    source.follow(POD_UID)
    until(lambda: runtime.count("ListContainers") >= 4, WAIT, "the pod to be listed")
    other = runtime.add(2, "app", labels=labels("app", "another"))
    ended = runtime.add(3, "app", state=2)
    second = runtime.add(4, "side")
    until(lambda: second in told.containers, WAIT, "the second container")
    source.leave(POD_UID)
    assert (other in told.containers, ended in told.containers) == (False, False)
    assert (len(told.containers[first]), len(told.containers[second])) == (1, 1)
    assert runtime.count("ContainerStatus", first) == 1


def test_a_followed_pod_of_a_runtime_that_fails(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """While the runtime is away nobody follows, and nothing is said of it but that it is away."""
    source = start(interval_s=0.2)
    until(lambda: told.oks() == [True], WAIT, "the listing")
    runtime.server.stop()
    source.follow(POD_UID)
    until(lambda: told.oks() == [True, False], WAIT, "the failure")
    runtime.server.start()
    until(lambda: told.oks() == [True, False, True], WAIT, "the runtime to be back")


def test_a_sandbox(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """A sandbox that is wanted is told as one, also when it is listed late; it is no container."""
    source = start()
    until(lambda: told.states, WAIT, "a state")
    source.want(runtime.add_sandbox(1))
    until(lambda: told.sandboxes == [hex_id(1)], WAIT, "the first sandbox")

    def appear(method: str, which: str, context: Any) -> None:
        if which == hex_id(2) and runtime.count("ContainerStatus", hex_id(2)) == 4:
            runtime.add_sandbox(2)

    runtime.before = appear
    source.want(hex_id(2))
    until(lambda: told.sandboxes == [hex_id(1), hex_id(2)], WAIT, "the second sandbox")
    assert told.containers == {}


def test_the_listing_is_renewed(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """What nobody wanted is told with the next listing, each once."""
    known = runtime.add(1)
    start(interval_s=0.05)
    until(lambda: told.states, WAIT, "a state")
    new, sandbox_id = runtime.add(2), runtime.add_sandbox(3)
    until(lambda: new in told.containers and told.sandboxes, WAIT, "the new ones")
    listings = runtime.count("ListContainers")
    until(lambda: runtime.count("ListContainers") >= listings + 3, WAIT, "three more listings")
    assert {each: len(times) for each, times in told.containers.items()} == {known: 1, new: 1}
    assert told.sandboxes == [sandbox_id]
    assert told.oks() == [True]


def test_given_up_then_listed(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """A container that was given up, and turns up in a listing later, is told then."""
    source = start(interval_s=0.1)
    until(lambda: told.states, WAIT, "a state")
    source.want(hex_id(1))
    until(lambda: told.containers, WAIT, "giving up")
    runtime.add(1)
    until(lambda: len(told.containers[hex_id(1)]) == 2, WAIT, "the container")


def test_a_restart(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """While the runtime is away that is told once; what was wanted meanwhile is told when it is back."""
    source = start(interval_s=0.2)
    until(lambda: told.states, WAIT, "a state")
    runtime.server.stop()
    until(lambda: len(told.states) == 2, WAIT, "failing")
    source.want(hex_id(1))
    runtime.add(1)
    until(lambda: source.state.failures >= 3, WAIT, "three tries")
    runtime.server.start()
    until(lambda: hex_id(1) in told.containers and len(told.states) == 3, WAIT, "the container")
    assert told.oks() == [True, False, True]
    error = told.states[1].error
    assert error is not None
    assert error.what.startswith("no connection")
    assert told.containers[hex_id(1)][-1] is not None


def test_a_runtime_that_is_not_there(start: Start, told: Told) -> None:
    """Without a runtime the source says so once and tries at growing intervals; wanting does not make it faster."""
    source = start()
    until(lambda: told.states, WAIT, "a state")
    for number in range(100):
        source.want(hex_id(number))
    until(lambda: source.state.failures >= 3, WAIT, "three tries")
    assert told.oks() == [False]
    assert told.containers == {}


def test_a_runtime_that_hangs(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """A call without an answer ends at its deadline; then there is one state, and only the listing is asked for."""
    source = start(timeout=0.3)
    until(lambda: told.states, WAIT, "a state")
    runtime.before = lambda *_: runtime.server.closing.wait(WAIT) and None
    for number in range(50):
        source.want(hex_id(number))
    until(lambda: source.state.failures >= 2, WAIT, "two failures")
    assert told.oks() == [True, False]
    error = told.states[1].error
    assert error is not None
    assert error.what == "no complete answer within 0.3 s"
    assert runtime.count("ContainerStatus") <= WORKERS
    for number in range(50):
        runtime.add(number)
    runtime.before = None
    until(lambda: len(told.containers) == 50, WAIT, "all containers")
    until(lambda: told.oks() == [True, False, True], WAIT, "a good state")


def test_one_container_that_fails(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """A container for which the runtime fails is given up after three tries, and the others are told."""
    bad, good = runtime.add(1), runtime.add(2)

    def fail(method: str, which: str, context: Any) -> None:
        if which == bad:
            context.abort(grpc.StatusCode.UNKNOWN, "broken task")

    runtime.before = fail
    start(interval_s=0.3)
    until(lambda: told.oks()[-1:] == [True] and bad in told.containers, WAIT, "a good state")
    assert told.containers[bad] == [None]
    assert [each is not None for each in told.containers[good]] == [True]
    assert runtime.count("ContainerStatus", bad) == 6  # verbose and plain each time
    assert told.oks() == [False, True]
    listings = runtime.count("ListContainers")
    until(lambda: runtime.count("ListContainers") >= listings + 2, WAIT, "two more listings")
    assert told.oks() == [False, True]


@pytest.mark.parametrize("noise", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", os.urandom(1 << 16)])
def test_garbage_on_the_socket(folder: Path, start: Start, told: Told, noise: bytes) -> None:
    """What is no runtime is told once, however often it is tried, and is never hammered."""

    def script(conn: socket.socket, closing: threading.Event) -> None:
        conn.sendall(noise)

    with raw_server(folder / "cri.sock", script) as connections:
        source = start()
        until(lambda: source.state.failures >= 4, WAIT, "four tries")
        assert told.oks() == [False]
        assert len(connections) <= 12
        source.stop()


def test_stop_while_it_hangs(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """stop() is back within a second while calls hang, and nothing is told after it."""
    source = start(timeout=WAIT)
    until(lambda: told.states, WAIT, "a state")
    runtime.before = lambda *_: runtime.server.closing.wait(WAIT) and None
    for number in range(9):
        source.want(hex_id(number))
    until(lambda: runtime.count("ContainerStatus") == WORKERS, WAIT, "calls in flight")
    began = time.monotonic()
    source.stop()
    assert time.monotonic() - began < 1
    assert told.oks() == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("podtracer-cri")]


def test_a_listener_that_raises(
    runtime: FakeRuntime, folder: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    """What a listener raises is logged, and the threads go on."""

    def broken(container_id: str, container: CriContainer | None) -> None:
        told.container(container_id, container)
        raise ZeroDivisionError

    source = CriSource(
        CriClient(str(folder / "cri.sock")), on_container=broken, on_sandbox=told.sandbox, on_state=told.state
    )
    runtime.add(1)
    source.start()
    try:
        until(lambda: told.states, WAIT, "a state")
        source.want(runtime.add(2))
        until(lambda: len(told.containers) == 2, WAIT, "both containers")
    finally:
        source.stop()
    assert "a listener of pod data failed" in caplog.text


def test_never_at_the_same_time(runtime: FakeRuntime, folder: Path) -> None:
    """Listeners are called one at a time, and may call the source."""
    inside, most, seen = 0, 0, set()

    def enter(container_id: str, container: CriContainer | None) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        seen.add(container_id)
        source.settle(container_id)
        time.sleep(0.001)
        inside -= 1

    source = CriSource(
        CriClient(str(folder / "cri.sock")), on_container=enter, on_sandbox=lambda _: None, on_state=lambda _: None
    )
    for number in range(40):
        runtime.add(number)
    source.start()
    try:
        until(lambda: len(seen) == 40, WAIT, "all containers")
    finally:
        source.stop()
    assert most == 1


def test_read_calls_only(runtime: FakeRuntime, start: Start, told: Told) -> None:
    """Nothing but the four calls that read is ever made."""
    with CriClient(str(runtime.server.path)) as client:
        client.version()
    source = start(interval_s=0.05)
    source.want(runtime.add(1))
    source.want(hex_id(2))
    until(lambda: len(told.containers) == 2, WAIT, "both")
    assert {method for method, _ in runtime.calls} == {"Version", "ContainerStatus", "ListContainers", "ListPodSandbox"}
