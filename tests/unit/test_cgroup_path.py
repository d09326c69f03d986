"""The strict rule: which container a cgroup path belongs to."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies
from tracer.identity.cgroup_path import Outer, PathMatch, match_strict
from tracer.model import ContainerRef

A = "a1" * 32  # a container, and its pod
POD_A = "aaaaaaaa-0000-1111-2222-333333333333"
V = "b2" * 32  # a victim of the first
POD_V = "bbbbbbbb-4444-5555-6666-777777777777"
N = "c3" * 32  # a KIND node
STATIC = "2732ca68f6358eba7703fb6f82a25c94"

SLICE_A = f"kubepods-besteffort-pod{POD_A.replace('-', '_')}.slice"
SLICE_V = f"kubepods-burstable-pod{POD_V.replace('-', '_')}.slice"
SYSTEMD_A = f"/kubepods.slice/kubepods-besteffort.slice/{SLICE_A}"
KUBELET_A = f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-{SLICE_A}"


def found(match: PathMatch) -> tuple[str | None, str | None]:
    """The pod UID and the container ID of a match."""
    return (match.container.pod_uid, match.container.container_id) if match.container else (None, None)


@pytest.mark.parametrize(
    ("path", "root", "depth"),
    [
        (f"/kubepods/pod{POD_A}/{A}", "/kubepods", 2),
        (f"/kubepods/burstable/pod{POD_A}/{A}", "/kubepods", 3),
        (f"/kubepods/besteffort/pod{POD_A}/{A}", "/kubepods", 3),
        (f"/kubepods/besteffort/pod{POD_A}/crio-{A}", "/kubepods", 3),
        (f"/kubepods/besteffort/pod{POD_A}/crio-{A}.scope", "/kubepods", 3),
        (f"/kubepods/kubepods/besteffort/pod{POD_A}/{A}", "/kubepods/kubepods", 4),
        (f"{SYSTEMD_A}/cri-containerd-{A}.scope", "/kubepods.slice", 3),
        (f"{SYSTEMD_A}/crio-{A}.scope", "/kubepods.slice", 3),
        (f"{SYSTEMD_A}/docker-{A}.scope", "/kubepods.slice", 3),
        (f"{SYSTEMD_A}/crio-{A}.scope/container", "/kubepods.slice", 3),
        (f"{SYSTEMD_A}/crio-{A}.scope/exec", "/kubepods.slice", 3),
        (f"{SYSTEMD_A}/cri-containerd-{A}.scope/init", "/kubepods.slice", 3),
        (f"{SYSTEMD_A}/cri-containerd-{A}.scope/system.slice/docker-{V}.scope", "/kubepods.slice", 3),
        (f"{SYSTEMD_A}/{A} (deleted)", "/kubepods.slice", 3),
        (f"{SYSTEMD_A}:cri-containerd:{A}", "/kubepods.slice", 2),
        (f"{SYSTEMD_A}:cri-containerd:{A}/init", "/kubepods.slice", 2),
        (f"/{SLICE_A}:cri-containerd:{A}", "/", 0),
        (
            f"/system.slice/containerd.service/{SLICE_A}:cri-containerd:{A}",
            "/system.slice/containerd.service",
            2,
        ),
        (
            f"/kubepods.slice/kubepods-pod{POD_A.replace('-', '_')}.slice/docker-{A}.scope",
            "/kubepods.slice",
            2,
        ),
        (f"/kubepods.slice/kubepods-pod{POD_A}.slice/docker-{A}.scope", "/kubepods.slice", 2),
        (f"/{KUBELET_A}/cri-containerd-{A}.scope", "/kubelet.slice/kubelet-kubepods.slice", 4),
        (
            f"/docker/{N}/{KUBELET_A}/cri-containerd-{A}.scope",
            f"/docker/{N}/kubelet.slice/kubelet-kubepods.slice",
            6,
        ),
        (
            f"/system.slice/docker-{N}.scope/{KUBELET_A}/cri-containerd-{A}.scope",
            f"/system.slice/docker-{N}.scope/kubelet.slice/kubelet-kubepods.slice",
            6,
        ),
        (f"/docker/{N}/kubelet/kubepods/pod{POD_A}/{A}", f"/docker/{N}/kubelet/kubepods", 5),
        (f"/docker/{N}/kubepods/besteffort/pod{POD_A}/{A}", f"/docker/{N}/kubepods", 5),
        (f"/ptnode/kubepods/besteffort/pod{POD_A}/{A}", "/ptnode/kubepods", 4),
    ],
)
def test_every_form_that_drivers_and_runtimes_make_names_its_pod_and_container(
    path: str, root: str, depth: int
) -> None:
    """Each form of path gives pod, container, the container's own segment and the place of the pod, given or not; what
    is above a given one is not looked at."""
    expected = PathMatch(ContainerRef(A, POD_A), depth, True, root, POD_A, None)
    assert replace(match_strict(path), outer=None) == expected
    assert match_strict(path, root) == expected


@pytest.mark.parametrize(
    "below",
    [
        f"{SLICE_V}/cri-containerd-{V}.scope",
        f"pod{POD_V}/{V}",
        f"kubepods/pod{POD_V}/{V}",
        f"kubepods.slice/{SLICE_V}/{V}",
        f"{SLICE_V}:cri-containerd:{V}",
        V,
        f"docker/{V}",
        f"crio-conmon-{V}.scope",
        f"../pod{POD_V}/{V}",
    ],
)
@pytest.mark.parametrize(
    "own",
    [f"{SYSTEMD_A}/cri-containerd-{A}.scope", f"/kubepods/pod{POD_A}/{A}", f"/{SLICE_A}:cri-containerd:{A}"],
)
def test_a_nested_cgroup_cannot_pass_for_another_pod(own: str, below: str) -> None:
    """Whatever a container nests below its own cgroup, the answer stays the container's own."""
    assert match_strict(f"{own}/{below}") == match_strict(own)
    assert found(match_strict(own)) == (POD_A, A)


def test_a_static_pods_uid_has_no_dashes() -> None:
    """A static pod's UID, 32 hexadecimal digits, is answered as it stands in both drivers' names."""
    assert found(match_strict(f"/kubepods/burstable/pod{STATIC}/{A}")) == (STATIC, A)
    assert found(match_strict(f"/kubepods.slice/kubepods-pod{STATIC}.slice/crio-{A}.scope")) == (STATIC, A)


def test_hexadecimal_digits_keep_their_case() -> None:
    """Upper-case digits are accepted and kept: IDs are compared with regard to case."""
    match = match_strict(f"/kubepods/pod{POD_A.upper()}/{A.upper()}")
    assert found(match) == (POD_A.upper(), A.upper())


def test_only_what_follows_the_last_colon_of_a_pod_segment_is_the_container() -> None:
    """Of several IDs in one pod segment the one after the last colon is answered."""
    assert found(match_strict(f"{SYSTEMD_A}:{V}:cri-containerd:{A}")) == (POD_A, A)
    assert found(match_strict(f"{SYSTEMD_A}:{V}:cri-containerd")) == (None, None)


def test_an_id_ends_where_ascii_words_end() -> None:
    """Letters beyond ASCII bound an ID as punctuation does; a letter, digit or underscore makes it none."""
    assert found(match_strict(f"/kubepods/pod{POD_A}/é{A}é")) == (POD_A, A)
    for leaf in (f"{A}_", f"x{A}", f"{A}0", A[1:], f"\\xe9{A}"):
        assert found(match_strict(f"/kubepods/pod{POD_A}/{leaf}")) == (None, None)


@pytest.mark.parametrize(
    ("path", "outer"),
    [
        (f"/docker/{N}/kubelet/kubepods/pod{POD_A}/{A}", Outer(N, 1, f"/docker/{N}")),
        (f"/system.slice/docker-{N}.scope/{KUBELET_A}/{A}", Outer(N, 1, f"/system.slice/docker-{N}.scope")),
        (f"/docker/{N}/{SLICE_A}:cri-containerd:{A}", Outer(N, 1, f"/docker/{N}")),
        (f"/docker/{N}/system.slice/containerd.service/{SLICE_A}:cri-containerd:{A}", Outer(N, 1, f"/docker/{N}")),
        (f"/docker/{N}/x/{V}/kubepods/pod{POD_A}/{A}", Outer(N, 1, f"/docker/{N}/x/{V}")),
        (f"/docker/{N}/pod{POD_A}/{A}", Outer(N, 1, f"/docker/{N}")),
        (
            f"/x/crio-conmon-{N}.scope/crio-{N}.scope/pod{POD_A}/{A}",
            Outer(N, 2, f"/x/crio-conmon-{N}.scope/crio-{N}.scope"),
        ),
        (f"/kubepods/pod{POD_A}/{A}", None),
    ],
)
def test_a_pod_below_a_container_says_below_which(path: str, outer: Outer | None) -> None:
    """The outermost container that may have named a pod's cgroup is told, and the path down to the innermost."""
    assert found(match_strict(path)) == (POD_A, A)
    assert match_strict(path).outer == outer


@pytest.mark.parametrize(
    ("segment", "uid"),
    [
        ("podmy-static-01", "my-static-01"),
        ("podstatic.v1", "static.v1"),
        ("podx", "x"),
        ("pod" + "é" * 3, "é" * 3),
        (f"pod{POD_A}x", f"{POD_A}x"),
        ("kubepods-podmy_static_01.slice", "my-static-01"),
        ("kubepods-burstable-podmy_static_01.slice", "my-static-01"),
        ("kubepods-besteffort-podpod_1.slice", "pod-1"),
        ("kubelet-kubepods-burstable-podmy_static_01.slice", "my-static-01"),
        (f"kubepods-pod{STATIC}0.slice", f"{STATIC}0"),
        ("kubepods-burstable-podmy_static_01.slice:cri-containerd", "my-static-01"),
    ],
)
def test_below_kubepods_a_pods_uid_is_any_text(segment: str, uid: str) -> None:
    """A static pod's manifest may name its own UID, which both drivers write into the pod's segment."""
    for above in (
        "/kubepods",
        "/kubepods/burstable",
        "/x/kubepods/besteffort",
        "/kubelet.slice/kubelet-kubepods.slice",
    ):
        assert found(match_strict(f"{above}/{segment}/{A}")) == (uid, A)
    assert found(match_strict(f"/own/{segment}/{A}", "/own")) == (uid, A)


@pytest.mark.parametrize("above", ["", "/besteffort", "/system.slice", "/kubepods2/burstable", "/kubepods/burstable/x"])
def test_elsewhere_a_pods_uid_is_a_uuid_or_a_digest(above: str) -> None:
    """A cgroup called pod-something outside of kubepods names no pod."""
    assert found(match_strict(f"{above}/podmy-static-01/{A}")) == (None, A)
    assert found(match_strict(f"{above}/pod{STATIC}/{A}")) == (STATIC, A)


@pytest.mark.parametrize(
    ("path", "pod", "depth"),
    [
        (f"{SYSTEMD_A}/crio-conmon-{A}.scope/crio-{A}.scope", POD_A, 4),
        (f"{SYSTEMD_A}/crio-conmon-{A}.scope/crio-{A}.scope/container/x", POD_A, 4),
        (f"/kubepods/pod{POD_A}/crio-conmon-{A}/{A}", POD_A, 3),
        (f"/machine.slice/libpod-conmon-{A}.scope/libpod-{A}.scope", None, 2),
    ],
)
def test_a_container_below_its_own_monitor_is_found(path: str, pod: str | None, depth: int) -> None:
    """Old releases of CRI-O put the container's cgroup below that of its monitor, which has the same ID."""
    match = match_strict(path)
    assert (found(match), match.depth) == ((pod, A), depth)


@pytest.mark.parametrize(
    "below", ["", f"/crio-{V}.scope", f"/x/crio-{A}.scope", f"/crio-conmon-{A}.scope", f"/crio-conmon-{A}.scope/{A}"]
)
def test_a_monitor_is_no_container_whatever_is_below_it(below: str) -> None:
    """Only the same ID directly below a monitor's cgroup is its container."""
    match = match_strict(f"{SYSTEMD_A}/crio-conmon-{A}.scope{below}")
    assert (found(match), match.why) == ((None, None), "conmon")


@pytest.mark.parametrize("leaf", ["crio-conmon-{}", "crio-conmon-{}.scope", "conmon-{}.scope"])
def test_conmon_is_not_the_workload(leaf: str) -> None:
    """The monitor's cgroup carries the container's ID and is not the container."""
    match = match_strict(f"{SYSTEMD_A}/{leaf.format(A)}/pod{POD_V}/{V}")
    assert match == PathMatch(None, None, False, "/kubepods.slice", POD_A, "conmon")


@pytest.mark.parametrize("leaf", ["libpod-conmon-{}.scope", "crio-conmon-{}.scope"])
def test_conmon_outside_pods_is_no_container_either(leaf: str) -> None:
    """A monitor's cgroup without any pod is no container."""
    assert match_strict(f"/machine.slice/{leaf.format(A)}") == PathMatch(None, None, False, None, None, "conmon")


@pytest.mark.parametrize("below", ["", "/", "/init", f"/system.slice/pod{POD_V}/{V}", f"/{A}0", f"/x{A}"])
def test_a_pods_own_cgroup_holds_no_container(below: str) -> None:
    """A pod segment without a container's ID directly below names the pod and no container, ever."""
    match = match_strict(f"/kubepods/pod{POD_A}{below}")
    assert match == PathMatch(None, None, False, "/kubepods", POD_A, "pod_cgroup")


@pytest.mark.parametrize(
    ("path", "depth"),
    [
        (f"/docker/{A}", 1),
        (f"/docker/{A}/docker/{V}/system.slice/containerd.service", 1),
        (f"/system.slice/docker-{A}.scope", 1),
        (f"/machine.slice/libpod-{A}.scope/container", 1),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope", 4),
        (f"/system.slice/cri-containerd-{A}.scope", 1),
        (f"/../{A}", 1),
        (f"/../crio-{A}.scope", 1),
        (f"/{A}", 0),
        (A, 0),
    ],
)
def test_without_a_pod_segment_the_outermost_id_is_the_container(path: str, depth: int) -> None:
    """Outside all pods the outermost ID is answered, marked as below no pod, whatever the root."""
    expected = PathMatch(ContainerRef(A, None), depth, False, None, None, None)
    assert match_strict(path) == expected
    assert match_strict(path, "/kubepods") == expected


def test_a_pod_with_a_uid_of_its_own_hides_what_is_below_it() -> None:
    """Whatever a pod's UID is, its container cannot have another pod below it."""
    odd = f"/kubepods/burstable/podmy-own-uid/{A}"
    assert match_strict(odd) == PathMatch(ContainerRef(A, "my-own-uid"), 3, True, "/kubepods", "my-own-uid", None)
    assert match_strict(f"{odd}/pod{POD_V}/{V}") == match_strict(odd)
    assert match_strict(f"{odd}/kubepods/pod{POD_V}/{V}") == match_strict(odd)


@pytest.mark.parametrize("path", ["/", "", "/user.slice", "/kubepods", "/kubepods/burstable", "/../..", "//", "\0"])
def test_a_path_without_names_that_say_anything_is_no_container(path: str) -> None:
    """Neither a pod nor an ID: no container, and the word for it."""
    match = match_strict(path)
    assert (match.container, match.pod_uid, match.why) == (None, None, "no_container")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (f"/something/pod{POD_A}/{A}", "/something"),
        (f"/pod{POD_A}/{A}", "/"),
        (f"/../../burstable/pod{POD_A}/{A}", "/../.."),
        (f"/pod{POD_A}/{A}/kubepods/pod{POD_V}/{V}", "/"),
        (f"/system.slice/x-pod{POD_A}.slice:cri-containerd:{A}", "/system.slice"),
    ],
)
def test_a_pod_segment_may_stand_anywhere(path: str, place: str) -> None:
    """A path says where a pod is, but not whether that is a place of this node."""
    assert (found(match_strict(path)), match_strict(path).root) == ((POD_A, A), place)


@pytest.mark.parametrize(
    ("path", "root"),
    [
        (f"/docker/{N}/kubepods/pod{POD_A}/{A}", "/kubepods"),
        (f"/kubepods2/pod{POD_A}/{A}", "/kubepods"),
        (f"/ptnode/kubepods/pod{POD_A}/{A}", "/kubepods"),
        (f"/kubepods/pod{POD_A}/{A}", "/ptnode/kubepods"),
        (f"/kubepods/pod{POD_A}/{A}", f"/kubepods/pod{POD_A}/{A}/kubelet/kubepods"),
    ],
)
def test_a_pod_segment_outside_the_given_prefix_is_no_pod_of_this_node(path: str, root: str) -> None:
    """Where the operator says where pods are, a pod segment elsewhere counts for nothing."""
    assert match_strict(path, root) == PathMatch(None, None, False, None, None, "outside_root")


@pytest.mark.parametrize("root", ["/outer", "/outer/", "outer", "/"])
def test_a_given_root_needs_no_kubepods_in_its_name(root: str) -> None:
    """A configured root holds pods whatever it is called, however its slashes are written."""
    match = match_strict(f"/outer/pod{POD_A}/{A}/kubepods/pod{POD_V}/{V}", root)
    assert (found(match), match.root, match.depth) == ((POD_A, A), "/" + root.strip("/"), 2)


def test_a_node_nested_in_another_clusters_pod_is_read_below_its_given_root() -> None:
    """With the inner root given, the inner pod is the answer; without it, the outer one."""
    root = f"/kubepods/pod{POD_A}/{A}/kubelet/kubepods"
    assert found(match_strict(f"{root}/pod{POD_V}/{V}", root)) == (POD_V, V)
    assert found(match_strict(f"{root}/pod{POD_V}/{V}")) == (POD_A, A)


@pytest.mark.parametrize(
    "segment",
    [
        f"pod{POD_A}x",
        f"xpod{POD_A}",
        f"pod{POD_A[:-1]}",
        f"pod{POD_A}\n",
        f"pod{POD_A[:-1]}g",
        f"pod{POD_A[:-1]}١",
        "pod",
        f"kubepods-pod{POD_A}",
        f"kubepodspod{POD_A}.slice",
        "kubepods-pod.slice",
    ],
)
def test_a_segment_that_only_resembles_a_pods_is_none(segment: str) -> None:
    """Outside of kubepods a pod segment is one of the two exact forms, in ASCII digits, without a tail."""
    assert match_strict(f"/pods/{segment}/{A}").pod_uid is None


@settings(deadline=None)
@given(
    path=st.text() | strategies.hostile_suffixes,
    root=st.none() | st.text() | st.sampled_from(strategies.ROOTS),
)
def test_no_path_raises(path: str, root: str | None) -> None:
    """Any text is a path: exactly one of container and reason is answered, at a segment that has the ID."""
    match = match_strict(path, root)
    assert (match.container is None) == (match.why is not None) == (match.depth is None)
    if match.container is not None and match.depth is not None:
        assert match.container.container_id in path.removeprefix("/").split("/")[match.depth]
        assert match.below_pod == (match.container.pod_uid is not None)


@settings(deadline=None)
@given(
    root=st.sampled_from(strategies.ROOTS),
    qos=st.sampled_from(["", "/burstable", "/kubepods-besteffort.slice"]),
    uid=strategies.pod_uids,
    systemd=st.booleans(),
    container=strategies.container_ids,
    leaf=strategies.leaf_forms,
    suffix=strategies.hostile_suffixes,
    learnt=st.booleans(),
)
def test_the_answer_is_the_outermost_container_whatever_is_below(
    root: str, qos: str, uid: str, systemd: bool, container: str, leaf: str, suffix: str, learnt: bool
) -> None:
    """No suffix, with other pods' names in it or not, changes the answer for a container's own path."""
    path = f"{root}{qos}/{strategies.pod_segment(uid, systemd)}/{leaf.format(container)}"
    match = match_strict(path + suffix, root if learnt else None)
    assert replace(match, outer=None) == PathMatch(
        ContainerRef(container, uid), path.count("/") - 1, True, root, uid, None
    )


@pytest.mark.parametrize(
    "unit",
    ["/", "a", "-a", "pod", "/pod", "/kubepods-pod", "f" * 63 + "-", "/" + "f" * 63, ":", "-pod.slice", "a_"],
)
def test_the_time_grows_with_the_length_of_the_path_and_no_faster(unit: str) -> None:
    """Twice the length takes at most three times as long, for names made to be slow."""
    paths = ["/kubepods/" + unit * (size // len(unit)) + ".slice" for size in (1_000_000, 2_000_000)]
    once, twice = (min(times) for times in zip(*([cpu_time(path) for path in paths] for _ in range(5)), strict=True))
    # A few milliseconds are what a busy machine may add to a measurement of nearly nothing.
    assert twice <= 3 * once + 0.005


def cpu_time(path: str) -> float:
    """The seconds of processor time that one match takes."""
    start = time.process_time()
    match_strict(path)
    return time.process_time() - start
