"""Who may ask about whom."""

from __future__ import annotations

import pytest

from tests.desk import CART, HOST, PENDING
from tracer.identity.index import gone
from tracer.model import Identity, ProcessKey, State, Workload
from tracer.serve.access import Access, why_not

GROUP = 4000
SETS = (frozenset({"k8s:ns:spire", "k8s:sa:agent"}), frozenset(CART.selectors))


def _peer(workload: Workload) -> Identity:
    return Identity(ProcessKey(1, 2), 1, workload)


@pytest.mark.parametrize(
    ("workload", "uid", "gids", "may"),
    [
        (HOST, 0, (), True),
        (HOST, 1000, (), False),
        (HOST, 1000, (GROUP,), True),
        (HOST, 1000, (GROUP + 1,), False),
        (Workload(State.HOST, "conmon"), 0, (GROUP,), False),
        (Workload(State.HOST, "not_a_pod"), 0, (GROUP,), False),
        (Workload(State.HOST, "a_reason_of_a_later_release"), 0, (GROUP,), False),
        (Workload(State.HOST, "sandbox"), 0, (GROUP,), False),
        (Workload(State.HOST, "pod_cgroup"), 0, (GROUP,), False),
        (Workload(State.HOST, "outside_root"), 0, (GROUP,), False),
        (PENDING, 0, (GROUP,), False),
        (Workload(State.UNKNOWN, "conflict"), 0, (GROUP,), False),
        (gone(1).workload, 0, (GROUP,), False),
        (CART, 0, (GROUP,), True),
        (Workload(State.RESOLVED, selectors=CART.selectors[1:]), 0, (GROUP,), False),
        (Workload(State.RESOLVED, pod=CART.pod, kind="ephemeral"), 0, (GROUP,), False),
        (Workload(State.RESOLVED, selectors=("k8s:ns:spire", "k8s:sa:agent", "k8s:x:y")), 1000, (), True),
    ],
)
def test_who_may_ask_about_others(workload: Workload, uid: int, gids: tuple[int, ...], may: bool) -> None:
    """Root of the host, members of the group on the host, and pods with all selectors of one set; nobody in whose
    cgroup anything of a container was seen, be it Docker's or a pod's."""
    assert Access(GROUP, SETS).may_ask_about_others(_peer(workload), uid, frozenset(gids)) is may


def test_without_a_group_nobody_is_in_it() -> None:
    """Where this machine does not have the socket's group, only root and the pods named may ask."""
    assert not Access().may_ask_about_others(_peer(HOST), 1000, frozenset({0, GROUP}))


@pytest.mark.parametrize(
    "workload",
    [
        HOST,
        CART,
        PENDING,
        Workload(State.HOST, "sandbox"),
        Workload(State.HOST, "not_a_pod"),
        Workload(State.UNKNOWN),
        gone(1).workload,
    ],
)
def test_a_refusal_says_why_and_what_to_do(workload: Workload) -> None:
    """Each kind of peer that may not is told something."""
    message, hint = why_not(_peer(workload))
    assert message
    assert hint


def test_root_whom_its_namespaces_give_away_is_not_called_an_ordinary_user() -> None:
    """A peer that only its namespaces keep from asking gets an error that names namespaces and containers."""
    assert "namespaces" in why_not(_peer(HOST), would_be=True)[0]
    assert "ordinary user" in why_not(_peer(HOST))[0]
