"""Selectors: the same set that SPIRE's attestor gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tracer.identity.pods import PodTable, decode_pod_list
from tracer.identity.selectors import selectors
from tracer.model import Container, Owner, Pod

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "selectors.json").read_text())

APP = Container("app", "1", "i:1", "docker-pullable://i@sha256:1", "app")
POD = Pod("u", "ns", "p", "sa", "n", {}, (), (APP,), (), ())
ALWAYS = {
    "k8s:sa:sa",
    "k8s:ns:ns",
    "k8s:node-name:n",
    "k8s:pod-uid:u",
    "k8s:pod-name:p",
    "k8s:pod-image-count:1",
    "k8s:pod-init-image-count:0",
    "k8s:pod-image:i:1",
    "k8s:pod-image:docker-pullable://i@sha256:1",
}


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["case"])
def test_a_recorded_pod_list_gives_the_recorded_selectors(case: dict[str, Any]) -> None:
    """From the list's bytes to the selectors, each recorded case gives its own set, sorted."""
    table = PodTable.build(decode_pod_list(json.dumps(VECTORS["lists"][case["list"]]).encode()).pods)
    if case["disable_container_selectors"]:
        pod, container = table.by_uid[case["pod_uid"]], None
        for listed, found in table.find(case["container_id"]):
            assert listed is pod
            container = found
    else:
        ((pod, container),) = table.find(case["container_id"])
        assert case["pod_uid"] in (None, pod.uid)
    given = selectors(pod, container, disable_container_selectors=case["disable_container_selectors"])
    assert list(given) == case["selectors"]


def test_a_pod_alone_gives_the_pods_selectors() -> None:
    """Without a container, nothing of a container is said."""
    assert set(selectors(POD, None)) == ALWAYS


def test_a_container_adds_its_name_and_images() -> None:
    """The matched container adds its name, image and image ID, verbatim."""
    assert set(selectors(POD, APP)) == ALWAYS | {
        "k8s:container-name:app",
        "k8s:container-image:i:1",
        "k8s:container-image:docker-pullable://i@sha256:1",
    }


def test_container_selectors_can_be_left_out() -> None:
    """``disable_container_selectors`` gives what the pod alone gives."""
    assert selectors(POD, APP, disable_container_selectors=True) == selectors(POD, None)


def test_an_empty_pod_still_says_what_is_always_said() -> None:
    """Empty values give selectors with nothing after the last colon, and counts of zero."""
    assert selectors(Pod("", "", "", "", "", {}, (), (), (), ()), None) == (
        "k8s:node-name:",
        "k8s:ns:",
        "k8s:pod-image-count:0",
        "k8s:pod-init-image-count:0",
        "k8s:pod-name:",
        "k8s:pod-uid:",
        "k8s:sa:",
    )


def test_an_empty_image_id_is_a_selector() -> None:
    """A status without an image ID gives a literal empty image, of pod and container."""
    fresh = replace(APP, image_id="")
    given = selectors(replace(POD, containers=(fresh,)), fresh)
    assert {"k8s:pod-image:", "k8s:pod-image:i:1", "k8s:container-image:"} <= set(given)


def test_images_are_a_set_and_counts_are_not() -> None:
    """Two containers of one image count as two and give its selectors once."""
    given = selectors(replace(POD, containers=(APP, replace(APP, name="twin", container_id="2"))), None)
    assert "k8s:pod-image-count:2" in given
    assert given.count("k8s:pod-image:i:1") == 1


def test_init_containers_have_selectors_of_their_own() -> None:
    """Images of init containers are told apart from those of app containers."""
    init = Container("init", "2", "j:1", "j@sha256:2", "init")
    added = set(selectors(replace(POD, init_containers=(init,)), None)) - ALWAYS
    assert added == {"k8s:pod-init-image-count:1", "k8s:pod-init-image:j:1", "k8s:pod-init-image:j@sha256:2"}


def test_ephemeral_containers_count_for_nothing_in_the_pod() -> None:
    """A debug container changes no selector of its pod, but has its own container selectors."""
    debug = Container("debug", "3", "busybox", "busybox@sha256:3", "ephemeral")
    pod = replace(POD, ephemeral_containers=(debug,))
    assert selectors(pod, None) == selectors(POD, None)
    assert "k8s:container-name:debug" in selectors(pod, debug)


def test_labels_and_owners_are_verbatim() -> None:
    """Every label and every owner gives its selectors, whatever characters are in them."""
    pod = replace(
        POD,
        labels={"app.kubernetes.io/name": "cart", "empty": "", "a:b": "c:d"},
        owners=(Owner("ReplicaSet", "cart-1", "o1"), Owner("Job", "", "")),
    )
    assert set(selectors(pod, None)) - ALWAYS == {
        "k8s:pod-label:app.kubernetes.io/name:cart",
        "k8s:pod-label:empty:",
        "k8s:pod-label:a:b:c:d",
        "k8s:pod-owner:ReplicaSet:cart-1",
        "k8s:pod-owner-uid:ReplicaSet:o1",
        "k8s:pod-owner:Job:",
        "k8s:pod-owner-uid:Job:",
    }


def test_namespace_labels_are_added_when_given() -> None:
    """Labels of the namespace give ``ns-label``; none given, or an empty map, gives none."""
    given = selectors(POD, None, namespace_labels={"team": "shop", "empty": ""})
    assert set(given) - ALWAYS == {"k8s:ns-label:team:shop", "k8s:ns-label:empty:"}
    assert selectors(POD, None, namespace_labels={}) == selectors(POD, None)


def test_selectors_are_sorted_and_unique() -> None:
    """The answer is in one order, each selector once, however the pod lists things."""
    pod = replace(POD, containers=(replace(APP, image="z"), replace(APP, image="a"), replace(APP, image="i:1")))
    given = selectors(pod, APP)
    assert list(given) == sorted(set(given))
