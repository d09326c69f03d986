"""SPIRE's rules for finding a container, and its answers, to the last string."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import container_ids, dashed_uids, hostile_suffixes
from tracer.errors import ParityError
from tracer.identity.cgroup_path import match_strict
from tracer.identity.parity import (
    NOT_FOUND,
    TWO_PODS,
    Located,
    Outcome,
    attest,
    is_same,
    locate,
)
from tracer.identity.pods import PodTable, decode_pod_list
from tracer.identity.selectors import selectors
from tracer.model import Container, Pod, State, Workload

VECTORS = Path(__file__).parents[1] / "vectors"
FILES = json.loads((VECTORS / "cgroup.json").read_text())["cases"]
LISTS = json.loads((VECTORS / "selectors.json").read_text())

A, V, N, INNER = "a" * 64, "b" * 64, "c" * 64, "d" * 64
POD_A, POD_V = "aaaaaaaa-1111-2222-3333-444444444444", "bbbbbbbb-1111-2222-3333-444444444444"
STATIC = "0123456789abcdef0123456789abcdef"
SLICE_A = f"/kubepods.slice/kubepods-pod{POD_A.replace('-', '_')}.slice"
CGROUP_A = f"/kubepods/pod{POD_A}/{A}"


def encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def lines(*paths: str) -> bytes:
    return "".join(f"{9 - number}:x:{path}\n" for number, path in enumerate(paths)).encode()


def mounts(*roots: str) -> bytes:
    return "".join(f"1 2 0:3 {root} /sys/fs/cgroup rw shared:1 - cgroup2 c rw\n" for root in roots).encode()


@pytest.mark.parametrize("case", FILES, ids=lambda case: case["case"])
def test_recorded_files_give_the_recorded_container(case: dict[str, Any]) -> None:
    """Each recorded pair of files gives SPIRE's container and pod UID, or its error word for word."""
    want = case["want"]
    cgroup, mountinfo = encoded(case["cgroup"]), encoded(case["mountinfo"])
    if want["error"] is not None:
        with pytest.raises(ParityError) as raised:
            locate(cgroup, mountinfo, pod_uids=case["pod_uids"])
        assert raised.value.what == want["error"]
        return
    found = locate(cgroup, mountinfo, pod_uids=case["pod_uids"])
    assert (found.container_id, found.pod_uid) == (want["container_id"], want["pod_uid"])
    if "paths" in want:
        assert [line.path for line in found.taken] == want["paths"]


@pytest.mark.parametrize(
    ("path", "parity", "strict"),
    [
        (f"{SLICE_A}/cri-containerd-{A}.scope/pod{POD_V}/{V}", (POD_V, V), (POD_A, A)),
        (f"{SLICE_A}/{A}.scope/{V}", (POD_A, V), (POD_A, A)),
        (f"{CGROUP_A}/docker/{INNER}", (POD_A, INNER), (POD_A, A)),
        (f"{SLICE_A}/cri-containerd-{A}.scope/init", (POD_A, A), (POD_A, A)),
        (f"{SLICE_A}/crio-{A}.scope/container", (POD_A, A), (POD_A, A)),
        (f"{CGROUP_A} (deleted)", (POD_A, A), (POD_A, A)),
        (f"/kubepods/pod{STATIC}/{A}", (None, A), (STATIC, A)),
        (f"/kubepods.slice/crio-conmon-{A}.scope", (None, A), None),
        (f"/machine.slice/libpod-{A}.scope", (None, A), (None, A)),
        (f"/../{A}", (None, A), (None, A)),
        (f"/docker/{N}/system.slice/containerd.service", (None, N), (None, N)),
        ("/", (None, None), None),
    ],
)
def test_paths_of_every_kind_in_both_modes(
    path: str, parity: tuple[str | None, str | None], strict: tuple[str | None, str] | None
) -> None:
    """SPIRE takes the innermost container that a path names, strict mode the outermost, which the workload itself
    cannot have named."""
    found = locate(f"0::{path}\n".encode(), None)
    assert (found.pod_uid, found.container_id) == parity
    match = match_strict(path).container
    assert (match and (match.pod_uid, match.container_id)) == strict


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"0:/\n", 'contains 2 colon separated fields but expected at least 3: "0:/"'),
        (b"\n", 'contains 1 colon separated fields but expected at least 3: ""'),
        (b"0::/\n\n", 'contains 1 colon separated fields but expected at least 3: ""'),
        (b"\r\n", 'contains 1 colon separated fields but expected at least 3: ""'),
        (b'a"b\\\t\x00\x7f\xff\xc2\xa0\xc3\xa9\xf3\xa0\x81\x81\n', r'"a\"b\\\t\x00\x7f\xff\u00a0é\U000e0041"'),
    ],
)
def test_a_malformed_line_is_an_error_in_spires_words(data: bytes, what: str) -> None:
    """Fewer than three fields, a blank line among them, end it all; the line is quoted as Go quotes it."""
    with pytest.raises(ParityError) as raised:
        locate(data, None)
    assert raised.value.what.startswith("invalid cgroup entry, ")
    assert raised.value.what.endswith(what)
    assert (raised.value.code, raised.value.exit_code) == ("Internal", 1)


def test_a_file_is_read_whole_before_lines_are_compared() -> None:
    """A malformed line behind two that contradict each other is what SPIRE reports, and where it is."""
    with pytest.raises(ParityError) as raised:
        locate(lines(f"/{A}", f"/{V}") + b"no\n", None)
    assert raised.value.what.startswith("invalid cgroup entry")
    assert (raised.value.file, raised.value.line, raised.value.taken) == ("cgroup", 3, ())


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_one_carriage_return_is_no_part_of_a_line(end: bytes) -> None:
    """A line ends with a line feed, or with it and one carriage return, or with the file."""
    assert locate(f"0::/{A}".encode() + end, None).container_id == A
    assert locate(b"0::/x\r\r\n", None).taken[0].path == "/x\r"


def test_only_a_line_feed_ends_a_line() -> None:
    """What Python takes for an end of line is a part of it: form feeds, other separators, a bare carriage return."""
    found = locate(f"0::/a\x0c\x1c\u2028\x85\r{A}\n".encode(), None)
    assert (len(found.taken), found.container_id) == (1, A)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_of_64_kib_is_too_long(end: bytes) -> None:
    """65,535 bytes are a line, one more is SPIRE's scanner's error, in either file."""
    line = b"0::/" + b"x" * 65531
    assert len(locate(line + end, None).taken) == 1
    for files in ((line + b"x" + end, None), (None, line + b"x" + end)):
        with pytest.raises(ParityError, match=r"bufio\.Scanner: token too long"):
            locate(*files)


def test_an_empty_segment_ends_the_search() -> None:
    """Neither the container nor the pod is looked for to the left of two slashes, or from a trailing one."""
    assert locate(lines(f"/pod{POD_A}/{A}/"), None).container_id is None
    assert locate(lines(f"/pod{POD_A}/{A}//x"), None).container_id is None
    for path in (f"/pod{POD_A}//{A}", f"/pod{POD_A}//x-{A}"):
        found = locate(lines(path), None)
        assert (found.container_id, found.pod_uid) == (A, None)


def test_in_a_segment_the_leftmost_id_wins_and_the_pod_before_it() -> None:
    """Of two IDs in a segment the left one counts, and a pod's UID only where it stands before it."""
    assert locate(lines(f"/{A}.{V}"), None).container_id == A
    assert locate(lines(f"/x-pod{POD_A.replace('-', '_')}.slice:cri-containerd:{A}"), None).pod_uid == POD_A
    assert locate(lines(f"/{A}:pod{POD_A}"), None).pod_uid is None


@pytest.mark.parametrize(
    "path",
    [f"/_{A}", f"/{A}_", f"/x{A}", f"/{A[1:]}", f"/{A}a", f"/{A[1:]}é"],
)
def test_an_id_is_64_digits_between_boundaries(path: str) -> None:
    """Letters, digits and underscores beside an ID make it none."""
    assert locate(lines(path), None).container_id is None


def test_boundaries_are_those_of_ascii() -> None:
    """A letter beyond ASCII is no word's, so an ID may stand beside it; a digit beyond ASCII is none."""
    assert locate(lines(f"/é{A}é"), None).container_id == A
    assert locate(lines(f"/{'٣' * 64}"), None).container_id is None
    assert locate(lines(f"/pod{POD_A}é/{A}"), None).pod_uid == POD_A
    assert locate(lines(f"/xpod{POD_A}/{A}"), None).pod_uid is None


def test_lines_are_merged() -> None:
    """With a UID in hand a line without one is ignored; without one, a line that has one overrides."""
    found = locate(lines("/", f"/docker/{N}", f"/docker/{N}", CGROUP_A, f"/docker/{N}", "/", CGROUP_A), None)
    assert (found.pod_uid, found.container_id, found.from_file) == (POD_A, A, "cgroup")
    assert [line.taken for line in found.taken] == [
        "nothing",
        "taken",
        "same",
        "overrides",
        "ignored",
        "nothing",
        "same",
    ]


@pytest.mark.parametrize(
    ("paths", "what"),
    [
        ([CGROUP_A, f"/pod{POD_V}/{A}"], f'multiple pod UIDs found ("{POD_A}", "{POD_V}")'),
        ([CGROUP_A, f"/pod{POD_A}/{V}"], f'multiple container IDs found ("{A}", "{V}")'),
        ([f"/docker/{N}", f"/docker/{A}"], f'multiple container IDs found ("{N}", "{A}")'),
        ([f"/docker/{N}", "/"], f'multiple container IDs found ("{N}", "")'),
    ],
)
def test_lines_that_differ_are_an_error(paths: list[str], what: str) -> None:
    """Any other difference is an error that names both; what was taken up to there is kept."""
    with pytest.raises(ParityError) as raised:
        locate(lines(*paths), mounts(f"/{A}"))
    assert (raised.value.what, raised.value.code) == (what, "FailedPrecondition")
    assert [line.taken for line in raised.value.taken] == ["taken", "conflict"]
    with pytest.raises(ParityError) as raised:
        locate(None, mounts(*(path if path != "/" else "/x" for path in paths)))
    assert (raised.value.what, raised.value.file) == (what, "mountinfo")


def test_mounts_are_asked_only_when_no_line_names_a_container() -> None:
    """A mountinfo is looked into behind a cgroup file without a container, and not else, malformed or not."""
    found = locate(b"0::/\n", b"\n" + mounts("/", CGROUP_A) + b"3 4 0:5 /x /y rw - tmpfs  rw\r\n\r\n")
    assert (found.pod_uid, found.container_id, found.from_file) == (POD_A, A, "mountinfo")
    assert [(line.file, line.number, line.taken) for line in found.taken] == [
        ("cgroup", 1, "nothing"),
        ("mountinfo", 2, "skipped"),
        ("mountinfo", 3, "taken"),
    ]
    assert locate(lines(CGROUP_A), b"malformed").container_id == A


def test_nothing_found_is_an_answer() -> None:
    """Files that are not there, or empty, name no container, and that is no error."""
    assert locate(None, None) == locate(b"", b"") == Located(None, None)


@given(st.one_of(st.none(), st.binary()), st.one_of(st.none(), st.binary()))
def test_any_bytes_give_a_container_none_or_our_error(cgroup: bytes | None, mountinfo: bytes | None) -> None:
    """Whatever the files hold, nothing else than ParityError is raised."""
    try:
        found = locate(cgroup, mountinfo)
    except ParityError:
        return
    assert (found.container_id is None) == (found.from_file is None)


@given(
    st.lists(
        st.sampled_from([b":", b"/", b"\n", b"\r", b" ", b"-", b"0:x:", b"pod", b"..", A.encode(), POD_A.encode(),
                         b"1 2 3 ", b"4 5 6 - cgroup2 ", b"- cgroup", b"\xff", b"_", b"a"]),
        max_size=40,
    ).map(b"".join)
)  # fmt: skip
def test_any_pieces_give_a_container_none_or_our_error(data: bytes) -> None:
    """Files made of what the rules look for raise nothing else either."""
    for files in ((data, None), (None, data), (data, data)):
        try:
            found = locate(*files)
        except ParityError:
            continue
        assert found.container_id in (None, A)


@given(dashed_uids, container_ids, hostile_suffixes)
def test_strict_mode_is_not_moved_by_what_parity_follows(uid: str, container: str, suffix: str) -> None:
    """Whatever a workload nests below its own cgroup, strict mode answers with its own container."""
    path = f"/kubepods/pod{uid}/{container}{suffix}"
    match = match_strict(path).container
    assert match is not None
    assert (match.pod_uid, match.container_id) == (uid, container)


def seconds(data: bytes) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        try:
            locate(data, None)
            locate(b"", data)
        except ParityError:
            pass
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize(
    "line",
    [
        b"0::" + b"/" + b"a" * 65000,
        b"0::" + b"/a" * 32000,
        b"0::/" + b"-a" * 32000,
        b"0::/" + (b"a" * 63 + b"-") * 1000,
        b"0::/" + b"pod" * 20000,
        b"0::/" + (b"pod" + POD_A[:-1].encode() + b"-") * 1000,
        b"0::/" + f"/pod{POD_A[:-1]}".encode() * 1500 + f"/{A}".encode(),
        b"0::/x",
        b"1 2 3 /x 5 6" + b" a" * 30000 + b" - cgroup2 c",
        b"1 2 3 " + b"/a" * 30000 + b" 5 6 - cgroup2 c",
    ],
)
def test_time_grows_with_the_size_alone(line: bytes) -> None:
    """Twice the hostile text takes at most three times as long, in processor time."""
    one = (line + b"\n") * (1_000_000 // (len(line) + 1))
    for _ in range(3):  # another process may have had the cache in one of them
        small, large = seconds(one), seconds(one + one)
        if large <= 3 * small:
            return
    assert large <= 3 * small


# ---- what a pod list makes of it ----

APP = Container("app", A, "i:1", "i@sha256:1", "app")
OTHER = Container("other", V, "j:1", "j@sha256:1", "app")
POD = Pod(POD_A, "shop", "cart", "sa", "node", {}, (), (APP,), (), ())


def test_no_container_is_an_answer_without_selectors() -> None:
    """A process of no container gets no selectors, and no error."""
    assert attest(Located(None, None), PodTable.build([POD])) == Outcome()


@pytest.mark.parametrize("case", LISTS["cases"], ids=lambda case: case["case"])
def test_recorded_lists_give_the_recorded_selectors(case: dict[str, Any]) -> None:
    """Each recorded list and container give SPIRE's set of selectors, with its flags."""
    table = PodTable.build(decode_pod_list(json.dumps(LISTS["lists"][case["list"]]).encode()).pods)
    located = Located(case["pod_uid"], case["container_id"])
    outcome = attest(located, table, disable_container_selectors=case["disable_container_selectors"])
    assert (outcome.error, list(outcome.selectors)) == (None, case["selectors"])


def test_with_a_pod_uid_only_that_pod_is_examined() -> None:
    """A container listed in another pod than the one the path names is not found, nor one whose case differs."""
    table = PodTable.build([POD])
    assert attest(Located(POD_A, A), table).pod == POD
    assert attest(Located(None, A), table).container == APP
    for located in (Located(POD_V, A), Located(POD_A.upper(), A), Located(POD_A, A.upper()), Located(None, V)):
        outcome = attest(located, table)
        assert (outcome.error, outcome.code, outcome.selectors) == (NOT_FOUND, "DeadlineExceeded", ())


def test_two_pods_with_one_container_are_an_error_unless_the_pod_is_known() -> None:
    """Two pods that list the same ID are SPIRE's internal error; with a pod UID there is only one."""
    table = PodTable.build([POD, replace(POD, uid=POD_V)])
    outcome = attest(Located(None, A), table)
    assert (outcome.error, outcome.code, outcome.selectors) == (TWO_PODS, "Internal", ())
    assert attest(Located(POD_V, A), table).error is None


def test_app_containers_come_before_init_containers_and_ephemeral_ones_never() -> None:
    """An ID listed twice is the app container's; one of an ephemeral container alone is not found."""
    twice = replace(POD, init_containers=(replace(OTHER, container_id=A, role="init"),))
    assert attest(Located(POD_A, A), PodTable.build([twice])).container == APP
    sidecar = replace(POD, containers=(OTHER,), init_containers=(replace(APP, role="init"),))
    assert "k8s:container-name:app" in attest(Located(None, A), PodTable.build([sidecar])).selectors
    debug = replace(POD, containers=(), ephemeral_containers=(replace(APP, role="ephemeral"),))
    assert attest(Located(POD_A, A), PodTable.build([debug])).error == NOT_FOUND


def test_without_container_selectors_a_known_pod_is_enough() -> None:
    """With disable_container_selectors a process of the pod that the path names gets the pod's selectors, listed or
    not; without a pod UID its container has to be found."""
    table = PodTable.build([POD])
    for container in (A, V):
        outcome = attest(Located(POD_A, container), table, disable_container_selectors=True)
        assert outcome.selectors == selectors(POD, None)
    assert attest(Located(None, A), table, disable_container_selectors=True).selectors == selectors(POD, None)
    assert attest(Located(None, V), table, disable_container_selectors=True).error == NOT_FOUND
    assert attest(Located(POD_V, A), table, disable_container_selectors=True).error == NOT_FOUND


@given(st.permutations([POD, replace(POD, uid=POD_V, containers=(OTHER,)), replace(POD, uid="c", containers=())]))
def test_the_order_of_pods_never_matters(pods: list[Pod]) -> None:
    """However a list is ordered, the answers are the same."""
    table = PodTable.build(pods)
    assert attest(Located(None, A), table).pod == POD
    assert attest(Located(POD_A, V), table).error == NOT_FOUND


@pytest.mark.parametrize(
    ("workload", "located", "same"),
    [
        (Workload(State.RESOLVED, container_id=A, pod_uid=POD_A), Located(POD_A, A), True),
        (Workload(State.RESOLVED, container_id=A, pod_uid=POD_A), Located(None, A), True),
        (Workload(State.RESOLVED, container_id=A, pod_uid=POD_A), Located(POD_V, A), False),
        (Workload(State.PENDING, container_id=A, pod_uid=POD_A), Located(POD_V, V), False),
        (Workload(State.PENDING, container_id=A, pod_uid=POD_A), Located(None, None), False),
        (Workload(State.HOST), Located(None, None), True),
        (Workload(State.HOST), Located(None, A), False),
        (Workload(State.HOST, container_id=A), Located(None, A), True),
        (Workload(State.UNKNOWN), Located(None, A), None),
        (Workload(State.PENDING), Located(None, None), None),
        (Workload(State.HOST), ParityError("x", "Internal", "cgroup", 1), False),
    ],
)
def test_strict_and_parity_are_the_same_when_they_name_the_same_container(
    workload: Workload, located: Located | ParityError, same: bool | None
) -> None:
    """The same ID, in the same pod where SPIRE names one; what strict mode does not know is not compared."""
    assert is_same(workload, located) is same
