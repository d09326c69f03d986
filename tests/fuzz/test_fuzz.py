"""Fuzzing, for a bounded time: what comes from outside ends in an answer or in one of our errors, nothing else.

Real-looking input is made by a grammar and then damaged at random places, which gets deeper than random bytes do.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable

import pytest

from tracer.errors import InputError, ParityError
from tracer.identity import entries, parity
from tracer.identity.cgroup_path import match_strict
from tracer.identity.pods import PodTable, decode_pod_list
from tracer.identity.selectors import selectors

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("PODTRACER_FUZZ_SECONDS", "5"))
PIECES = (
    *("kubepods", "kubepods.slice", "burstable", "pod", ".scope", ".slice", "cri-containerd-", "crio-conmon-"),
    *("docker-", ":", ":cri-containerd:", "..", "", "0::/", "11:cpuset:", "\\040", "- cgroup2 cgroup2 rw"),
    *("\r", "\0", "\n", "é", "a" * 64, "f" * 64, "0" * 32, " (deleted)"),
    *("00000000-1111-2222-3333-444444444444", "00000000_1111_2222_3333_444444444444"),
)
POD = {
    "kind": "PodList",
    "items": [
        {
            "metadata": {"name": "a", "namespace": "b", "uid": "c", "labels": {"x": "y"}, "annotations": {"k": "v"},
                         "ownerReferences": [{"kind": "K", "name": "n", "uid": "u"}]},
            "spec": {"serviceAccountName": "s", "nodeName": "n", "containers": [{"name": "app", "image": "i"}]},
            "status": {"containerStatuses": [{"name": "app", "containerID": "containerd://" + "a" * 64, "image": "i",
                                              "imageID": "d", "state": {"running": {}}}]},
        }
    ],
}  # fmt: skip
ENTRIES = {"entries": [{"id": "1", "spiffe_id": {"trust_domain": "td", "path": "/x"}, "expires_at": "0",
                        "parent_id": {"trust_domain": "td", "path": "/p"},
                        "selectors": [{"type": "k8s", "value": "ns:x"}]}], "next_page_token": ""}  # fmt: skip
JSON_PIECES = (
    b"null",
    b"{}",
    b"[]",
    b'"',
    b"1e999",
    b"-1",
    b"true",
    b"\xff",
    b"\\ud800",
    b"}" * 9,
    b"[" * 2000,
    b",",
    b":",
)


def _damaged(whole: bytes, rng: random.Random, pieces: tuple[bytes, ...]) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(0, 12)] = rng.choice((rng.choice(pieces), rng.randbytes(3), b""))
    return bytes(data)


def _path(rng: random.Random) -> str:
    return "/" + "/".join(
        "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(1, 9))
    )


def _fuzz(once: Callable[[random.Random], None]) -> None:
    """Runs it with one seed after another until the time is over; a failure names the seed."""
    end, seed = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        seed += 1
        try:
            once(random.Random(seed))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert seed > 100


def test_any_path_has_an_answer() -> None:
    """Whatever a cgroup is called, the strict rule answers, and a container that it names is a hex ID of the path."""

    def once(rng: random.Random) -> None:
        path = _path(rng)
        found = match_strict(path, rng.choice((None, "/kubepods", "/", _path(rng))))
        if found.container is not None:
            assert found.container.container_id in path
            assert len(found.container.container_id) == 64

    _fuzz(once)


def test_any_cgroup_and_mountinfo_files_end_in_an_answer_or_in_spires_error() -> None:
    """SPIRE's rules on any two files give a container, none, or SPIRE's error."""

    def once(rng: random.Random) -> None:
        files = ["\n".join(_path(rng) for _ in range(rng.randrange(4))).encode() for _ in range(2)]
        try:
            found = parity.locate(*files)
        except ParityError:
            return
        assert found.container_id is None or len(found.container_id) == 64

    _fuzz(once)


def test_any_pod_list_ends_in_pods_or_in_one_error() -> None:
    """A damaged pod list gives pods whose selectors can be computed, or an input error."""
    whole = json.dumps(POD).encode()

    def once(rng: random.Random) -> None:
        try:
            found = decode_pod_list(_damaged(whole, rng, JSON_PIECES))
        except InputError:
            return
        for pod in PodTable.build(found.pods).pods:
            for container in (None, *pod.containers):
                assert selectors(pod, container)

    _fuzz(once)


def test_any_entries_end_in_entries_or_in_one_error() -> None:
    """A damaged list of registration entries gives entries that can be matched, or an input error."""
    whole = json.dumps(ENTRIES).encode()

    def once(rng: random.Random) -> None:
        try:
            found = entries.decode(_damaged(whole, rng, JSON_PIECES))
        except InputError:
            return
        found.report(("k8s:ns:x",), None, None, 0.0).to_dict()

    _fuzz(once)
