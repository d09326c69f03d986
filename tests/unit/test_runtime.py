"""The join with the container runtime: identities before the kubelet lists the container."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.index_lab import Lab, cid, container, named, pod, told, uid
from tracer.identity.runtime import MOST, Runtime
from tracer.identity.selectors import selectors
from tracer.model import RuntimeContainer

A, B, C, P = "a", "b", "c", "e"
POD = f"/kubepods/besteffort/pod{uid(A)}"
HOME, PAUSE, SIDE = f"{POD}/{cid(A)}", f"{POD}/{cid(P)}", f"{POD}/{cid(C)}"


def record(letter: str, name: str = "app", owner: str = A, **more: object) -> RuntimeContainer:
    """The runtime's word for a container of a pod."""
    made = RuntimeContainer(
        cid(letter), name, "shop", f"cart-{owner}", uid(owner), f"{name}:tag", f"sha256:{letter}", 1, 1
    )
    return replace(made, **more)  # type: ignore[arg-type]


def empty_pod(*names: str, **more: object) -> object:
    """A pod whose containers are in its spec alone, as the kubelet lists it before it wrote a status."""
    return pod(A, spec=named(*names), **more)


@pytest.fixture
def lab() -> Lab:
    """A node whose pod is listed without any status."""
    lab = Lab()
    lab.pods(empty_pod("app"))  # type: ignore[arg-type]
    return lab


def test_the_runtimes_word_resolves_a_container_at_once(lab: Lab) -> None:
    """A container that no list has is resolved as soon as the runtime tells of it, with the selectors that the
    kubelet's status will give, and whoever was announced before is told."""
    home = lab.mkdir(HOME)
    lab.fork(7, home)
    assert lab.says(home)[0] == "pending"
    events = lab.index.container(record(A), lab.now)
    assert told(events) == [("resolved", 7)]
    workload = lab.who(home).workload
    assert (workload.pods_from, workload.settled) == ("cri", True)
    assert {"k8s:sa:cart", "k8s:pod-label:tier:front", "k8s:container-name:app"} <= set(workload.selectors)
    ours = container(A, image="app:tag", image_id=f"sha256:{A}")
    assert workload.selectors == selectors(pod(A, ours), ours)


def test_the_runtime_may_be_first(lab: Lab) -> None:
    """What the runtime told before the cgroup's birth serves at its birth."""
    lab.index.container(record(A), lab.now)
    lab.mkdir(HOME)
    lab.wait(0)
    assert lab.says(HOME) == ("resolved", None, cid(A))


def test_without_the_pod_only_names_are_known() -> None:
    """Before a list has the pod, the runtime's names are filled in and the answer is pending; the list resolves it."""
    lab = Lab()
    lab.mkdir(HOME)
    lab.index.container(record(A), lab.now)
    workload = lab.who(HOME).workload
    assert (workload.state, workload.reason, workload.selectors) == ("pending", "no_pod_yet", ())
    assert (workload.namespace, workload.pod, workload.container, workload.image) == (
        "shop",
        "cart-a",
        "app",
        "app:tag",
    )
    lab.pods(empty_pod("app"))  # type: ignore[arg-type]
    assert lab.says(HOME)[0] == "resolved"


def test_the_kubelets_strings_win(lab: Lab) -> None:
    """Once the kubelet lists the container its own strings stand in the selectors, settled."""
    lab.mkdir(HOME)
    lab.index.container(record(A), lab.now)
    listed = container(A, image="other:tag")
    lab.pods(pod(A, listed), at=lab.now + 1)
    workload = lab.who(HOME).workload
    assert workload.pods_from == "kubelet"
    assert workload.selectors == selectors(pod(A, listed), listed)


def test_another_digest_is_told_and_another_tag_is_counted(lab: Lab) -> None:
    """Where the kubelet's image ID is another than the runtime's there is a sentence for the log, once; another tag of
    the same digest is counted, once. The kubelet's words stand in both cases."""
    for path in (HOME, SIDE):
        lab.mkdir(path)
    lab.index.container(record(A), lab.now)
    lab.index.container(record(C, "side"), lab.now)
    listed = pod(
        A,
        container(A, image="app:tag", image_id="sha256:other"),
        container(C, "side", image="side:another", image_id=f"sha256:{C}"),
    )
    for _ in range(3):
        lab.pods(listed)
    (sentence,) = lab.index.take_disputes()
    assert cid(A) in sentence
    assert "'sha256:other'" in sentence
    assert lab.index.take_disputes() == []
    assert lab.index.other_tags == 1
    assert "k8s:container-image:sha256:other" in lab.who(HOME).workload.selectors
    assert "k8s:container-image:side:another" in lab.who(SIDE).workload.selectors


def test_a_sandbox_is_host_at_once(lab: Lab) -> None:
    """The runtime's word that an ID is a sandbox makes its process "host", for good."""
    lab.mkdir(PAUSE)
    lab.index.sandbox(cid(P), lab.now)
    assert lab.says(PAUSE)[:2] == ("host", "sandbox")
    lab.pods(pod(A, container(A)), at=lab.now + 1)
    assert lab.says(PAUSE)[:2] == ("host", "sandbox")


def test_a_record_of_another_pod_is_a_conflict(lab: Lab) -> None:
    """A cgroup that names another pod than the runtime's record is nobody's."""
    lab.mkdir(HOME)
    lab.index.container(record(A, owner=B), lab.now)
    assert lab.says(HOME)[:2] == ("unknown", "conflict")


def test_a_container_of_no_pod_says_nothing(lab: Lab) -> None:
    """A record without a pod, of a container that the kubelet did not make, resolves nothing."""
    lab.mkdir(HOME)
    lab.index.container(record(A, pod_uid="", pod="", namespace=""), lab.now)
    assert lab.says(HOME)[0] == "pending"


def test_a_pod_that_left_the_list_is_no_longer_resolved(lab: Lab) -> None:
    """A container that the runtime still has is not resolved any more once a newer list lacks its pod."""
    lab.mkdir(HOME)
    lab.index.container(record(A), lab.now)
    assert lab.says(HOME)[0] == "resolved"
    lab.pods(at=lab.now + 1)
    assert lab.says(HOME)[:2] == ("unknown", "deleted")


def test_settled_waits_for_every_app_container() -> None:
    """With two app containers the first is resolved but not settled: the second's image is the spec's, without an ID,
    until the runtime has it; then both are settled with the same images."""
    lab = Lab()
    lab.pods(empty_pod("app", "side"))  # type: ignore[arg-type]
    lab.mkdir(HOME)
    lab.index.container(record(A), lab.now)
    first = lab.who(HOME).workload
    assert (first.state, first.settled) == ("resolved", False)
    assert {"k8s:pod-image-count:2", "k8s:pod-image:side:1", "k8s:pod-image:"} <= set(first.selectors)
    lab.mkdir(SIDE)
    lab.index.container(record(C, "side"), lab.now)
    both = [lab.who(path).workload for path in (HOME, SIDE)]
    assert [workload.settled for workload in both] == [True, True]
    for workload in both:
        assert {"k8s:pod-image:app:tag", "k8s:pod-image:side:tag", f"k8s:pod-image:sha256:{C}"} <= set(
            workload.selectors
        )
        assert "k8s:pod-image:" not in workload.selectors


def test_a_pod_is_followed_while_its_containers_come_up(lab: Lab) -> None:
    """Each container that comes up while others of its pod are to come has the pod followed, until they are there, or
    the container is gone."""
    lab.pods(pod(A, spec=named("app", "side", "last")))
    lab.mkdir(HOME)
    assert lab.index.take_unsettled() == (set(), set())
    lab.index.container(record(A), lab.now)
    assert lab.index.take_unsettled() == ({uid(A)}, set())
    assert lab.index.take_unsettled() == (set(), set())
    lab.mkdir(SIDE)
    lab.index.container(record(C, "side"), lab.now)
    assert lab.index.take_unsettled() == ({uid(A)}, set())
    lab.index.container(record(B, "last"), lab.now)
    assert lab.index.take_unsettled() == (set(), {uid(A)})
    lab.pods(pod(A, spec=named("app", "side", "more", "last")))
    assert lab.index.take_unsettled() == ({uid(A)}, set())
    for path in (HOME, SIDE):
        lab.remove(path)
    assert lab.index.take_unsettled() == (set(), {uid(A)})


def test_an_init_container_is_settled_with_those_before_it() -> None:
    """An init container waits for the init containers up to it, not for those after it nor for app containers."""
    init = tuple(replace(each, role="init") for each in named("one", "two"))
    owner = pod(A, spec=(*named("app"), *init))
    runtime = Runtime()
    runtime.take(record(B, "one"))
    assert runtime.is_settled(owner, runtime.container_of(owner, record(B, "one")))
    runtime.take(record(C, "two"))
    assert runtime.is_settled(owner, runtime.container_of(owner, record(C, "two")))
    assert not runtime.is_settled(owner, container(A))


def test_the_newest_of_a_name_is_foreseen() -> None:
    """After a restart the pod's image is that of the newest container by the name, in whatever order they are told."""
    old, new = record(A, image_id="old", created_at=1), record(B, image_id="new", created_at=2)
    for order in ((old, new), (new, old)):
        runtime = Runtime()
        for each in order:
            runtime.take(each)
        (status,) = runtime.foresee(pod(A, spec=named("app"))).containers
        assert (status.container_id, status.image_id) == (cid(B), "new")


def test_the_kubelets_own_entry_stands_where_the_runtime_has_none() -> None:
    """A container that the runtime does not know any more keeps what the kubelet's status says of it."""
    runtime = Runtime()
    runtime.take(record(A))
    owner = pod(A, container(A), container(C, "side"))
    foreseen = {each.name: each.image_id for each in runtime.foresee(owner).containers}
    assert foreseen == {"app": f"sha256:{A}", "side": "sha256:side"}


def test_a_name_that_the_spec_lacks_is_of_no_kind_yet() -> None:
    """A container added to a running pod has no kind before the spec has it, and does not count for the images."""
    runtime = Runtime()
    debug = record(C, "debugger")
    runtime.take(debug)
    owner = pod(A, spec=named("app"))
    assert runtime.container_of(owner, debug) is None
    assert [each.name for each in runtime.foresee(owner).containers] == ["app"]


def test_a_pushed_pod_changes_selectors_and_a_pushed_end_ends_it(lab: Lab) -> None:
    """A pod that a source pushes is believed at once, an older one is not, and its end unresolves its containers."""
    lab.mkdir(HOME)
    lab.index.container(record(A), lab.now)
    lab.index.pod_changed(empty_pod("app", labels={"tier": "back"}), lab.now + 5, lab.now)  # type: ignore[arg-type]
    assert "k8s:pod-label:tier:back" in lab.who(HOME).workload.selectors
    lab.index.pod_changed(empty_pod("app"), lab.now + 1, lab.now)  # type: ignore[arg-type]
    assert "k8s:pod-label:tier:back" in lab.who(HOME).workload.selectors
    lab.index.pod_deleted(uid(A), lab.now + 6, lab.now)
    assert lab.says(HOME)[:2] == ("unknown", "deleted")


def test_forgetting_leaves_no_trace() -> None:
    """A runtime that forgot all it was told is as if it was told nothing."""
    runtime = Runtime()
    runtime.take(record(A))
    runtime.take(record(B))
    runtime.take_sandbox(cid(P), 1)
    for letter in (A, B, P):
        runtime.forget(cid(letter))
    assert not runtime
    assert runtime.get(cid(A)) is None
    assert runtime.foresee(pod(A, spec=named("app"))).containers == named("app")


def test_the_word_for_a_container_without_a_cgroup_is_not_kept_for_ever(lab: Lab) -> None:
    """Records of containers whose cgroups are gone are dropped after some minutes; those of live ones stay."""
    lab.mkdir(HOME)
    for letter in (A, C):
        lab.index.container(record(letter, at=lab.now), lab.now)
    lab.mkdir(PAUSE)
    for letter in (P, B):
        lab.index.sandbox(cid(letter), lab.now)
    lab.wait(400)
    lab.pods(empty_pod("app"))  # type: ignore[arg-type]
    runtime = lab.index._verdicts.runtime
    assert runtime.get(cid(A)) is not None
    assert runtime.get(cid(C)) is None
    assert set(runtime.sandboxes) == {cid(P)}


def test_what_a_runtime_tells_without_end_is_bounded() -> None:
    """A runtime that tells of ever more containers and sandboxes has the first of them forgotten."""
    runtime = Runtime()
    for number in range(MOST + 10):
        runtime.take(record(A, container_id=str(number), pod_uid=str(number)))
        runtime.take_sandbox(str(number), number)
    assert [runtime.get(str(number)) is None for number in (0, 9, 10, MOST + 9)] == [True, True, False, False]
    assert (len(runtime._records), len(runtime._by_pod), len(runtime.sandboxes)) == (MOST, MOST, MOST)
