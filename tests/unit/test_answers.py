"""Answers made of parts say what an identity says of itself, whatever is in it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.desk import CART, HOST
from tracer.identity.index import gone
from tracer.model import Cgroup, Clock, Event, Identity, Process, ProcessKey, Source, State, Workload
from tracer.serve.answers import Answers

NOW = Clock(7_000_000_000_000, 1_790_000_000.25)
text = st.text(max_size=8)
maybe = st.none() | text
workloads = st.builds(
    Workload, st.sampled_from(State), maybe, maybe, st.none() | st.booleans(), maybe, maybe, maybe, maybe, maybe, maybe,
    maybe, maybe, maybe, st.lists(text, max_size=3).map(tuple), st.none() | st.dictionaries(text, text, max_size=2),
)  # fmt: skip
times = st.integers(0, 8_000_000_000_000)
processes = st.builds(Process, st.integers(0, 1 << 22), text, times, st.sampled_from(Source), times)
identities = st.builds(
    Identity,
    st.builds(ProcessKey, st.integers(0, 1 << 22), st.integers(0)),
    st.integers(0, 1 << 22),
    workloads,
    st.none() | st.builds(Cgroup, st.integers(0, 1 << 63), maybe),
    st.none() | processes,
    st.none() | times,
    st.sampled_from(["strict", "parity"]),
    st.none() | st.booleans(),
    st.none() | st.lists(text, max_size=2).map(tuple),
)


@given(identities)
def test_an_answer_says_what_the_identity_says(identity: Identity) -> None:
    """Key for key, the labels only where they are asked for, in ASCII."""
    answers = Answers()
    for labels in (False, True):
        said = answers.identity(identity, NOW, labels=labels)
        assert said.isascii()
        expected: dict[str, Any] = identity.to_dict(NOW)
        if labels:
            of_pod = identity.workload.labels
            expected["labels"] = None if of_pod is None else dict(of_pod)
        assert json.loads(said) == expected


@given(identities)
def test_an_event_says_what_it_says_of_itself(identity: Identity) -> None:
    """Its own keys too, with an identity and without."""
    answers = Answers()
    for event in (
        Event("move", NOW.now, identity, {"from": "/a\u202e"}),
        Event("exit", 5, identity, {"exit_code": None, "signal": 9}),
        Event("lost", NOW.now, None, {"count": 3}),
        Event("synced", NOW.now),
    ):
        said = json.loads(answers.event(event, NOW))
        said.pop("labels", None)
        assert said == event.to_dict(NOW)


def test_parts_are_those_of_their_object_and_of_the_time() -> None:
    """What is written of one workload or process is never taken for another's; when the wall clock is set, start times
    are."""
    answers = Answers()
    for number in range(20000):
        process = Process(number, f"p{number}", 1 + number, Source.FORK, 1)
        identity = Identity(ProcessKey(number, 1), number, Workload(State.HOST, str(number)), None, process)
        said = json.loads(answers.identity(identity, NOW))
        assert (said["reason"], said["ppid"], said["comm"]) == (str(number), number, f"p{number}")
    later = Clock(NOW.now, NOW.boot + 3600)
    for clock in (NOW, later):
        assert json.loads(answers.identity(identity, clock))["start_time"] == clock.rfc3339(process.start)
    for workload in (CART, HOST, gone(1).workload):
        said = json.loads(answers.identity(Identity(ProcessKey(1, 1), 1, workload), NOW))
        assert said["selectors"] == list(workload.selectors)
