"""Pod lists: what is taken from them, what is refused, and how a container's pod is found."""

from __future__ import annotations

import contextlib
import gc
import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies
from tracer.errors import InputError
from tracer.identity.pods import PodTable, container_id, decode_pod_list, pod_has_uid
from tracer.model import Container, Owner, Pod

UID = "aaaaaaaa-0000-1111-2222-333333333333"
ID = "a1" * 32
HASH = "2732ca68f6358eba7703fb6f82a25c94"


def encoded(*items: Any, **top: Any) -> bytes:
    """A pod list of these items, as JSON."""
    return json.dumps({"kind": "PodList", "apiVersion": "v1", "items": items} | top).encode()


def one(**fields: Any) -> Pod:
    """The record of the only pod of a list, made of these fields and a UID."""
    metadata = {"uid": UID} | fields.pop("metadata", {})
    (pod,) = decode_pod_list(encoded({"metadata": metadata, **fields})).pods
    return pod


def _with_status(**fields: Any) -> dict[str, Any]:
    """A pod with one container status of these fields."""
    return {"metadata": {"uid": UID}, "status": {"containerStatuses": [fields]}}


def test_a_pod_is_read_whole() -> None:
    """Every field of the record comes from its place in core/v1, and the rest of the pod is passed over."""
    status = {"image": "i:1", "imageID": "i@sha256:1", "ready": True, "restartCount": 3}
    pod = one(
        kind="Pod",
        metadata={
            "name": "cart",
            "namespace": "shop",
            "labels": {"app": "cart", "empty": ""},
            "annotations": {"kubernetes.io/config.hash": HASH, "other": "x"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "ReplicaSet", "name": "cart-1", "uid": "o", "controller": True}
            ],
            "managedFields": [{"anything": [1.5e300, None, {"deep": []}]}],
        },
        spec={
            "serviceAccountName": "cart-sa",
            "nodeName": "node-1",
            "containers": [{"name": "app", "image": "i:1"}, {"name": "side"}],
            "initContainers": [{"name": "setup"}, {"name": "proxy", "restartPolicy": "Always"}],
            "ephemeralContainers": [{"name": "debug"}],
        },
        status={
            "containerStatuses": [
                {
                    "name": "app",
                    "containerID": f"containerd://{ID}",
                    "state": {"running": {"x": 1}},
                    "lastState": {"terminated": {"exitCode": 137, "containerID": "containerd://old"}},
                    **status,
                },
                {"name": "side", "containerID": "", "state": {"waiting": {"reason": "x"}}, **status},
            ],
            "initContainerStatuses": [
                {"name": "setup", "containerID": "cri-o://s", "state": {"terminated": {"exitCode": 0}}, **status},
                {"name": "proxy", "containerID": "cri-o://p", "state": {"running": {}}, **status},
            ],
            "ephemeralContainerStatuses": [{"name": "debug", "containerID": "docker://d", **status}],
        },
    )
    assert pod == Pod(
        uid=UID,
        namespace="shop",
        name="cart",
        service_account="cart-sa",
        node="node-1",
        labels={"app": "cart", "empty": ""},
        owners=(Owner("ReplicaSet", "cart-1", "o"),),
        containers=(
            Container("app", ID, "i:1", "i@sha256:1", "app", "running", "old", 3),
            Container("side", None, "i:1", "i@sha256:1", "app", "waiting", None, 3),
        ),
        init_containers=(
            Container("setup", "s", "i:1", "i@sha256:1", "init", "terminated", None, 3),
            Container("proxy", "p", "i:1", "i@sha256:1", "init", "running", None, 3, sidecar=True),
        ),
        ephemeral_containers=(Container("debug", "d", "i:1", "i@sha256:1", "ephemeral", None, None, 3),),
        spec=(
            Container("app", None, "i:1", "", "app"),
            Container("side", None, "", "", "app"),
            Container("setup", None, "", "", "init"),
            Container("proxy", None, "", "", "init", sidecar=True),
            Container("debug", None, "", "", "ephemeral"),
        ),
        config_hash=HASH,
    )


@pytest.mark.parametrize("empty", [{}, {"spec": None, "status": None}, {"spec": {}, "status": {}}])
def test_what_is_absent_or_null_is_empty(empty: dict[str, Any]) -> None:
    """A pod that is nothing but a UID is a pod, with empty fields."""
    assert one(**empty) == Pod(UID, "", "", "", "", {}, (), (), (), ())


def test_null_is_empty_at_every_depth() -> None:
    """Null for a text, a list, a map or a value in it reads as empty, as a Go client reads it."""
    pod = one(
        metadata={"name": None, "labels": {"a": None}, "annotations": None, "ownerReferences": None},
        spec={"nodeName": None, "containers": None},
        status={"containerStatuses": [{"name": None, "state": {"running": None}}], "initContainerStatuses": None},
    )
    unnamed = Container("", None, "", "", "app", None)
    assert pod == Pod(UID, "", "", "", "", {"a": ""}, (), (unnamed,), (), ())


@pytest.mark.parametrize(
    ("last", "former"),
    [
        (None, None),
        ({}, None),
        ({"terminated": None}, None),
        ({"terminated": {}}, None),
        ({"terminated": {"containerID": None}}, None),
        ({"terminated": {"containerID": ""}}, None),
        ({"terminated": {"containerID": "old"}}, None),
        ({"terminated": {"containerID": "cri-o://old"}}, "old"),
        ({"running": {}, "terminated": {"containerID": "cri-o://old"}}, "old"),
        ({"waiting": {"containerID": "cri-o://old"}}, None),
    ],
)
def test_the_instance_before_is_what_the_last_state_says_ended(last: Any, former: str | None) -> None:
    """The ID of the instance before a restart is that of a terminated lastState, read as any other ID."""
    status = {"name": "app", "containerID": "cri-o://new", "lastState": last}
    (found,) = one(status={"containerStatuses": [status]}).containers
    assert (found.container_id, found.former_id) == ("new", former)


@pytest.mark.parametrize(
    ("count", "restarts"), [(None, 0), (0, 0), (5, 5), (2**31 - 1, 2**31 - 1), (-1, 0), (-(2**31), 0)]
)
def test_restarts_are_never_below_zero(count: Any, restarts: int) -> None:
    """The number of restarts is the status's own, and 0 where it says none or less."""
    (found,) = one(status={"containerStatuses": [{"name": "app", "restartCount": count}]}).containers
    assert found.restarts == restarts


@pytest.mark.parametrize("policy", [None, "", "always", "Always ", "OnFailure", "Never"])
def test_only_an_init_container_that_always_restarts_is_a_sidecar(policy: str | None) -> None:
    """The word is Always, verbatim, on an init container: no other word and no other container makes a sidecar."""
    listed = [{"name": "a"}, {"name": "b"}]
    pod = one(
        spec={
            "containers": [{"name": "a", "restartPolicy": "Always"}],
            "initContainers": [{"name": "a", "restartPolicy": policy}, {"name": "b", "restartPolicy": "Always"}],
            "ephemeralContainers": [{"name": "b", "restartPolicy": "Always"}],
        },
        status={
            "containerStatuses": listed,
            "initContainerStatuses": listed,
            "ephemeralContainerStatuses": listed,
        },
    )
    everywhere = (*pod.spec, *pod.containers, *pod.init_containers, *pod.ephemeral_containers)
    assert [(each.role, each.name) for each in everywhere if each.sidecar] == [("init", "b"), ("init", "b")]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"docker://{ID}", ID),
        (f"containerd://{ID}", ID),
        (f"cri-o://{ID}", ID),
        (f"containerd://{ID.upper()}", ID.upper()),
        (f"containerd://{ID}/x?y#z", ID),
        (f"containerd://user@{ID}", ID),
        ("", None),
        (ID, None),
        ("containerd://", None),
        (f"://{ID}", None),
        (f"containerd:{ID}", None),
        (f" containerd://{ID}", None),
    ],
)
def test_a_container_id_is_the_host_of_its_url(url: str, expected: str | None) -> None:
    """The ID is what a URL parser calls the host, verbatim; without a scheme there is none."""
    assert container_id(url) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind":"PodList","items":null}',
        b'{"kind":"PodList","items":[]}',
        b'{"kind":"PodList"}',
        b'{"kind":"List"}',
        b'{"items":null}',
        b' {"items" : [] } \n',
    ],
)
def test_an_empty_list_is_a_list(body: bytes) -> None:
    """A node without pods is answered with null, and that is no error."""
    assert decode_pod_list(body) == decode_pod_list(b'{"kind":"PodList","items":[]}')
    assert decode_pod_list(body).pods == ()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"404 page not found", "no pod list"),
        (b"<html>", "byte 0"),
        (b'{"kind":"PodList","items":[{"metadata":', "truncated"),
        (b'{"kind":"PodList","items":[{]}', "byte 28"),
        (b'{"items":[]} x', "byte 14"),
        (b'\xef\xbb\xbf{"items":[]}', "byte 0"),
        (b'{"items":[{"metadata":{"uid":"\xff"}}]}', "not UTF-8 (byte 30)"),
        (b'{"items":[{"ignored":"\xc3"}]}', "not UTF-8 (byte 22)"),
        (b"\xff\xfe{\0}\0", "not UTF-8 (byte 0)"),
        (b'{"items":[{"metadata":{"name":"\\ud800"}}]}', "not JSON"),
        (b"{}", "neither a kind nor items"),
        (b"null", "no pod list"),
        (b"[]", "no pod list"),
        (b'"PodList"', "no pod list"),
        (b'{"items":{}}', "no pod list"),
        (b'{"kind":7,"items":[]}', "no pod list"),
        (b'{"kind":"Status","message":"Unauthorized"}', "'Status'"),
        (b'{"kind":"Pod","metadata":{"uid":"u"}}', "'Pod'"),
        (b'{"kind":"NodeList","items":[{"metadata":{"uid":"u"}}]}', "'NodeList'"),
        (b'{"kind":"a\\nb"}', "'a\\nb'"),
        (b'{"items":' + b"[" * 1_000_000, "nested"),
    ],
)
def test_what_is_no_pod_list_is_refused(body: bytes, says: str) -> None:
    """A body that is no pod list is an error of one line, which says what it is and where, and what to give."""
    with pytest.raises(InputError) as caught:
        decode_pod_list(body)
    assert says in caught.value.what
    assert "\n" not in str(caught.value)
    assert caught.value.obj
    assert caught.value.hint


@pytest.mark.parametrize("pad", ["", "x"])
@pytest.mark.parametrize("nth", [0, 32_000, 33_000, 66_000])
def test_the_position_of_a_bad_byte_is_right_in_a_long_list(pad: str, nth: int) -> None:
    """A byte that is no UTF-8 is found where it stands, also after a character that two pieces share."""
    body = encoded({"metadata": {"uid": UID, "name": pad + "é" * 90_000}}).replace(b"\\u00e9", "é".encode())
    assert decode_pod_list(body).pods[0].name == pad + "é" * 90_000
    at = body.index("é".encode()) + 2 * nth
    with pytest.raises(InputError, match=rf"\(byte {at}\)"):
        decode_pod_list(body[:at] + b"\xff" + body[at + 1 :])


def test_a_list_cut_anywhere_is_refused() -> None:
    """No prefix of a list passes for the list."""
    body = encoded({"metadata": {"uid": UID, "name": "é", "labels": {"a": "b"}}, "status": {}})
    for end in range(len(body)):
        with pytest.raises(InputError):
            decode_pod_list(body[:end])


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"metadata": {"uid": UID, "name": "bad", "labels": {"a": 1}}}, "item 1 ('bad') is malformed: "),
        ({"metadata": {"uid": 5, "name": "bad"}}, "item 1 ('bad') is malformed: "),
        ({"metadata": {"uid": UID, "name": "bad"}, "status": {"containerStatuses": {}}}, "containerStatuses"),
        (_with_status(restartCount="3"), "restartCount"),
        (_with_status(restartCount=1.5), "restartCount"),
        (_with_status(restartCount=True), "restartCount"),
        (_with_status(restartCount=2**31), "restartCount"),
        (_with_status(restartCount=-(2**31) - 1), "restartCount"),
        (_with_status(restartCount=10**400), "malformed"),
        (_with_status(lastState=[]), "lastState"),
        (_with_status(lastState={"terminated": "x"}), "lastState"),
        (_with_status(lastState={"terminated": {"containerID": 5}}), "containerID"),
        ({"metadata": {"uid": UID}, "spec": {"initContainers": [{"restartPolicy": 1}]}}, "restartPolicy"),
        ({"metadata": {"uid": UID, "name": {}}}, "item 1 is malformed: "),
        ({"metadata": []}, "item 1 is malformed: "),
        ("pod", "item 1 is malformed: "),
        (None, "item 1 is malformed: "),
        ({"kind": "Service", "metadata": {"uid": UID, "name": "web"}}, "item 1 ('web') is a 'Service', no pod"),
        ({"metadata": {"uid": UID, "name": "a\nb", "labels": []}}, "('a\\nb')"),
    ],
)
def test_one_bad_item_costs_one_pod(item: Any, says: str) -> None:
    """An item that is no pod is passed over with a line that names it; the pods around it are used."""
    first, last = ({"metadata": {"uid": uid}} for uid in ("first", "last"))
    result = decode_pod_list(encoded(first, item, last))
    assert [pod.uid for pod in result.pods] == ["first", "last"]
    (sentence,) = result.skipped
    assert says in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("metadata", [None, {}, {"uid": None}, {"uid": "", "name": "mirror"}])
def test_a_pod_without_a_uid_is_passed_over_silently(metadata: Any) -> None:
    """A pod without a UID is neither used nor reported."""
    result = decode_pod_list(encoded({"metadata": metadata}))
    assert (result.pods, result.skipped) == ((), ())


@pytest.mark.parametrize(
    "text", ["", "a:b", "é", "💠", '"\\/\b', "a\nb", "\x00", " x ", "docker-pullable://i@sha256:1"]
)
def test_strings_are_verbatim(text: str) -> None:
    """No text is trimmed, folded or normalised, whatever is in it."""
    pod = one(metadata={"labels": {text: text}}, status={"containerStatuses": [{"image": text, "imageID": text}]})
    assert pod.labels == {text: text}
    assert (pod.containers[0].image, pod.containers[0].image_id) == (text, text)


@settings(deadline=None)
@given(st.binary() | st.text().map(str.encode) | st.binary().map(lambda b: b'{"items":[' + b + b"]}"))
def test_any_bytes_are_a_list_or_an_input_error(body: bytes) -> None:
    """No body gives any exception but InputError."""
    with contextlib.suppress(InputError):
        decode_pod_list(body)


def test_a_decoded_list_does_not_hold_the_body() -> None:
    """The records of a list of megabytes keep kilobytes: neither the body nor views of it live on."""
    body = encoded(*({"metadata": {"uid": f"u{i}"}, "ignored": "x" * 100_000} for i in range(30)))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = decode_pod_list(bytes(bytearray(body)))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(result.pods) == 30
    assert after - before < len(body) / 20


def container(container_id: str | None, role: Any = "app", name: str = "c") -> Container:
    """A container with this ID."""
    return Container(name, container_id, "i", "i@1", role)


BARE = Pod(UID, "ns", "p", "sa", "n", {}, (), (), (), ())


def test_a_table_finds_containers_of_every_role() -> None:
    """App, init and ephemeral containers are found by ID, with their pod; an absent ID finds nothing."""
    app, init, debug = container("1"), container("2", "init"), container("3", "ephemeral")
    pod = replace(BARE, containers=(app, container(None)), init_containers=(init,), ephemeral_containers=(debug,))
    table = PodTable.build([pod])
    assert [table.find(i) for i in "123"] == [((pod, app),), ((pod, init),), ((pod, debug),)]
    assert (table.find("4"), table.find(""), table.find("None")) == ((), (), ())
    assert (table.pods, dict(table.by_uid)) == ((pod,), {UID: pod})


def test_a_table_shows_a_container_that_two_pods_list() -> None:
    """One ID in two pods gives both, so that the caller can see the conflict."""
    ours, theirs = (replace(BARE, uid=uid, containers=(container("1"),)) for uid in ("u1", "u2"))
    assert [pod.uid for pod, _ in PodTable.build([ours, theirs]).find("1")] == ["u1", "u2"]


def test_of_two_pods_with_one_uid_the_last_counts() -> None:
    """A UID that is listed twice is one pod, and no conflict."""
    old, new = (replace(BARE, name=name, containers=(container("1"),)) for name in ("old", "new"))
    table = PodTable.build(iter([old, new]))
    assert table.pods == (new,)
    assert table.find("1") == ((new, new.containers[0]),)


def test_a_table_compares_ids_with_regard_to_case() -> None:
    """An ID in other letters is another ID."""
    table = PodTable.build([replace(BARE, containers=(container("ab"),))])
    assert table.find("AB") == ()


@pytest.mark.parametrize(
    ("uid", "config_hash", "path_uid", "expected"),
    [
        (UID, None, UID, True),
        (UID, None, UID.upper(), True),
        (UID, None, UID.replace("-", ""), True),
        (HASH, HASH, HASH, True),
        (UID, HASH, HASH, True),
        (UID, HASH.upper(), HASH, True),
        (UID, None, HASH, False),
        (UID, None, UID[:-1], False),
        (UID, None, "", False),
        (UID, "", "", False),
        ("", None, "", False),
    ],
)
def test_a_path_uid_is_the_pods_uid_or_its_hash(
    uid: str, config_hash: str | None, path_uid: str, expected: bool
) -> None:
    """Dashes and case do not count, and a static pod is known by the hash of its manifest too."""
    assert pod_has_uid(replace(BARE, uid=uid, config_hash=config_hash), path_uid) is expected


def test_an_annotation_cannot_claim_another_pods_uid() -> None:
    """A pod that carries another pod's UID as its config hash is not that pod."""
    other = "bbbbbbbb-4444-5555-6666-777777777777"
    assert not pod_has_uid(replace(BARE, config_hash=other), other)
    assert not pod_has_uid(replace(BARE, config_hash=other.replace("-", "")), other)


@settings(deadline=None)
@given(uid=strategies.pod_uids)
def test_a_pod_has_the_uid_that_its_path_names(uid: str) -> None:
    """Any UID, written as in a path, belongs to its own pod and to no other."""
    assert pod_has_uid(replace(BARE, uid=uid), uid)
    assert not pod_has_uid(replace(BARE, uid=uid), uid[:-1] + ("0" if uid[-1] != "0" else "1"))
