"""The index and the tree of cgroups, case by case. ``test_index_properties`` holds them against a simulated node."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import hostile_suffixes
from tests.unit.index_lab import HIERARCHY, SECOND, TOP, Lab, cid, container, named, pod, told, uid
from tracer.identity.index import Rules, gone
from tracer.model import (
    CgroupEvent,
    CgroupEventKind,
    Clock,
    Event,
    Identity,
    ProcessEventKind,
    ProcessKey,
    Source,
    State,
)

A, B, C, D, P = "a", "b", "c", "d", "e"
POD_A, POD_B = f"/kubepods/pod{uid(A)}", f"/kubepods/burstable/pod{uid(B)}"
HOME_A, HOME_B = f"{POD_A}/{cid(A)}", f"{POD_B}/{cid(B)}"
PAUSE_A = f"{POD_A}/{cid(P)}"
RESOLVED_A, PENDING_A = ("resolved", None, cid(A)), ("pending", "not_listed_yet", cid(A))
SANDBOX = ("host", "sandbox", cid(P))


@pytest.fixture
def lab() -> Lab:
    """A node with nothing on it."""
    return Lab()


def _identity(event: Event | None) -> Identity:
    assert event is not None
    assert event.identity is not None
    return event.identity


# ---- containers and lists ----


def test_what_happens_in_an_incomplete_pod_is_told_once() -> None:
    """A container that is made or removed in a pod that the list does not have whole makes a list due, once; in a pod
    that is listed with the IDs of all its containers, on the host, or before any list, it does not."""
    lab = Lab()
    base = "/kubepods/besteffort/pod"
    lab.mkdir(f"{base}{uid('a')}/{cid('a')}")
    assert not lab.index.take_stir()
    lab.pods(pod("a", container("a")), pod("b", container("b"), container(None, "side")))
    for path, is_due in (
        (f"{base}{uid('a')}/{cid('a')}/nested", False),
        (f"{base}{uid('b')}/{cid('b')}", True),
        (f"{base}{uid('c')}/{cid('c')}", True),
        (f"/docker/{cid('d')}", False),
        (f"{base}{uid('a')}/{cid('e')}", True),
    ):
        lab.mkdir(path)
        assert lab.index.take_stir() == is_due, path
        assert not lab.index.take_stir()
    for path, is_due in ((f"{base}{uid('b')}/{cid('b')}", True), (f"{base}{uid('a')}/{cid('a')}", False)):
        lab.remove(path)
        assert lab.index.take_stir() == is_due, path
    lab.index.sandbox(cid("e"), lab.now)
    lab.remove(f"{base}{uid('a')}/{cid('e')}")
    assert not lab.index.take_stir()


def test_a_container_is_pending_from_its_birth_and_resolved_by_the_list_that_names_it(lab: Lab) -> None:
    """What the path tells is known at once, the rest with the list."""
    home = lab.mkdir(HOME_A)
    before = lab.who(home).workload
    assert (before.state, before.reason, before.pod_uid) == (State.PENDING, "not_listed_yet", uid(A))
    assert (before.selectors, before.pod, before.pods_from) == ((), None, None)
    lab.pods(pod(A, container(A)))
    after = lab.who(home)
    work = after.workload
    assert (work.state, work.reason, work.namespace, work.pod, work.container) == (
        State.RESOLVED,
        None,
        "shop",
        "cart-a",
        "app",
    )
    assert (work.service_account, work.image, work.node, work.settled) == ("cart", "app:1", "node-1", True)
    assert work.pods_from == "kubelet"
    assert after.pods_at == lab.now
    assert {"k8s:ns:shop", "k8s:container-name:app", "k8s:pod-label:tier:front"} <= set(work.selectors)
    assert after.cgroup is not None
    assert after.cgroup.path == HOME_A


def test_a_container_of_a_known_pod_tells_what_the_pod_tells(lab: Lab) -> None:
    """A pending container has its pod's names, labels and data age, and no selectors."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(None)))
    found = lab.who(home)
    assert (found.state, found.workload.namespace, found.workload.pod) == (State.PENDING, "shop", "cart-a")
    assert (found.workload.pods_from, found.pods_at) == ("kubelet", lab.now)
    assert (found.workload.selectors, found.workload.settled) == ((), None)


def test_every_cgroup_below_a_container_is_the_containers(lab: Lab) -> None:
    """Nested cgroups share one workload object."""
    deep = lab.mkdir(f"{HOME_A}/system.slice/x.service")
    lab.pods(pod(A, container(A)))
    assert lab.who(deep).workload is lab.who(HOME_A).workload
    assert lab.says(deep) == RESOLVED_A


def test_a_list_from_before_the_container_resolves_it_at_its_birth(lab: Lab) -> None:
    """A container that comes after the list is known at its birth, and nobody has to fetch for it."""
    lab.pods(pod(A, container(A)))
    home = lab.mkdir(HOME_A)
    event = lab.exec(7, home)
    assert event is not None
    assert event.identity is not None
    assert event.identity.state is State.RESOLVED
    assert lab.says(home) == RESOLVED_A
    second = lab.mkdir(HOME_B)
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(second) == ("resolved", None, cid(B))


def test_selectors_change_with_the_list_and_the_object_stays_where_nothing_did(lab: Lab) -> None:
    """A list that says the same makes no new workload, but its age is the new one."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    first = lab.who(home)
    lab.wait(1)
    lab.pods(pod(A, container(A)))
    second = lab.who(home)
    assert second.workload is first.workload
    assert second.pods_at == lab.now
    lab.pods(pod(A, container(A), labels={"tier": "back"}))
    assert "k8s:pod-label:tier:back" in lab.who(home).workload.selectors


def test_container_selectors_can_be_left_out() -> None:
    """``disable_container_selectors`` reaches the selectors."""
    lab = Lab(Rules(disable_container_selectors=True))
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    assert not [text for text in lab.who(home).workload.selectors if text.startswith("k8s:container")]


def test_without_container_selectors_the_pod_is_enough() -> None:
    """With ``disable_container_selectors`` a container that its pod does not list yet, the pause process, and what is
    nested in either have its selectors. A pod that nobody lists has none, and one that left the list is deleted."""
    lab = Lab(Rules(disable_container_selectors=True, prefix="/kubepods"))
    pause, home, other = lab.mkdir(PAUSE_A), lab.mkdir(HOME_A), lab.mkdir(HOME_B)
    forged = lab.mkdir(f"{HOME_B}/pod{uid(A)}/{cid(A)}")
    lab.pods(pod(A))
    whole = lab.who(home).workload
    assert (whole.state, whole.container, whole.container_id) == (State.RESOLVED, None, cid(A))
    assert f"k8s:pod-uid:{uid(A)}" in whole.selectors
    assert lab.who(pause).workload.selectors == whole.selectors
    assert lab.says(other) == lab.says(forged) == ("pending", "not_listed_yet", cid(B))
    lab.pods(pod(A, container(A)))
    assert lab.who(home).workload.container is not None
    lab.pods()
    assert lab.says(pause) == ("unknown", "deleted", cid(P))


def test_an_older_list_is_ignored(lab: Lab) -> None:
    """Lists that overtake each other do not take back what a newer one said."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    assert lab.pods(at=lab.now - 1) == []
    assert lab.says(home) == RESOLVED_A
    assert lab.index.pods_at == lab.now


def test_a_deleted_pod_is_unknown_and_may_come_back(lab: Lab) -> None:
    """A complete list without the pod ends the identity; its names stay for people."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.pods()
    found = lab.who(home).workload
    assert (found.state, found.reason, found.pod, found.selectors) == (State.UNKNOWN, "deleted", "cart-a", ())
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A


def test_a_pod_of_the_same_name_is_another(lab: Lab) -> None:
    """A pod made again under its name has another UID, and what ran in the old one is not in it."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.pods(pod(B, container(B), name="cart-a"))
    assert lab.says(home) == ("unknown", "deleted", cid(A))


def test_an_incomplete_list_takes_nothing_away_and_does_not_renew_what_it_lacks(lab: Lab) -> None:
    """A pod that could not be read keeps its identity, with the age of the list that had it."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    read = lab.now
    lab.wait(5)
    lab.pods(complete=False)
    assert lab.says(home) == RESOLVED_A
    assert lab.who(home).pods_at == read
    lab.wait(596)
    lab.pods(complete=False)
    assert lab.says(home) == ("unknown", "stale", cid(A))
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A


def test_a_container_that_left_its_pods_status_stays_what_it_was(lab: Lab) -> None:
    """After a restart the list has the new ID; what still runs in the old container is still it."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.pods(pod(A, container(C)))
    assert lab.says(home) == RESOLVED_A


def test_a_container_listed_in_two_pods_is_a_conflict(lab: Lab) -> None:
    """Where the path names no pod and two are listed with the ID, neither is believed."""
    home = lab.mkdir(f"/docker/{cid(A)}")
    lab.pods(pod(A, container(A)), pod(B, container(A)))
    assert lab.says(home) == ("unknown", "conflict", cid(A))
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A


def test_a_container_listed_in_another_pod_than_its_path_names_is_a_conflict(lab: Lab) -> None:
    """The path and the list have to agree; when the list forgets the ID it is pending with a reason of its own."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(B, container(A)), pod(A, container(None)))
    assert lab.says(home) == ("unknown", "conflict", cid(A))
    lab.pods()
    assert lab.says(home) == PENDING_A
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A


def test_an_unlisted_container_is_unknown_after_the_limit(lab: Lab) -> None:
    """The limit is counted to the list, so that nothing ends while no source answers; a later list still resolves."""
    home = lab.mkdir(HOME_A)
    lab.pods()
    lab.wait(31)
    assert lab.says(home) == PENDING_A
    lab.pods()
    assert lab.says(home) == ("unknown", "not_listed", cid(A))
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A


def test_without_sources_a_container_stays_pending(lab: Lab) -> None:
    """An absent kubelet makes nobody unknown."""
    home = lab.mkdir(HOME_A)
    lab.wait(10_000)
    assert lab.says(home) == PENDING_A


def test_what_sources_told_is_not_believed_for_ever(lab: Lab) -> None:
    """After ``max_stale`` without a list identities are unknown; the next list brings them back, and says so."""
    home = lab.mkdir(HOME_A)
    other = lab.mkdir(HOME_B)
    lab.pods(pod(A, container(A)))
    lab.wait(600)
    assert lab.says(home) == RESOLVED_A
    lab.wait(1)
    assert lab.says(home) == ("unknown", "stale", cid(A))
    assert lab.says(other)[0] == "pending"
    assert lab.who(home).pods_at == 100 * SECOND
    lab.exec(7, home)
    assert told(lab.pods(pod(A, container(A)))) == [("resolved", 7)]
    assert lab.says(home) == RESOLVED_A


# ---- the pause container ----


def test_the_pause_process_is_host_when_its_pod_is_accounted_for(lab: Lab) -> None:
    """All containers of the pod are listed, running where we see them, and the one that is left is none of them."""
    pause = lab.mkdir(PAUSE_A)
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    assert lab.says(pause) == SANDBOX
    assert lab.who(pause).workload.selectors == ()


def test_the_pause_process_stays_host_through_restarts(lab: Lab) -> None:
    """What is no container of its pod does not become one when another container starts again, or the pod goes."""
    pause = lab.mkdir(PAUSE_A)
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.wait(60)
    lab.pods(pod(A, container(A, state="waiting")))
    assert lab.says(pause) == SANDBOX
    lab.pods()
    assert lab.says(pause) == SANDBOX


@pytest.mark.parametrize(
    "statuses",
    [
        pytest.param((container(None),), id="no ID yet"),
        pytest.param((container(A, state="waiting"),), id="waiting"),
        pytest.param((container(A, state="terminated"),), id="ended"),
        pytest.param((container(A), container(None, "side")), id="another has no ID"),
        pytest.param((container(A), container(None, "debug", role="ephemeral")), id="kubectl debug"),
        pytest.param((container(None), container(C, "init", role="init", state="terminated")), id="init is done"),
        pytest.param((), id="no status"),
    ],
)
def test_a_pod_that_is_not_accounted_for_has_no_sandbox(lab: Lab, statuses: tuple) -> None:  # type: ignore[type-arg]
    """As long as any container may still come, the unlisted one may be it."""
    unlisted = lab.mkdir(PAUSE_A)
    lab.mkdir(HOME_A)
    lab.pods(pod(A, *statuses))
    assert lab.says(unlisted) == ("pending", "not_listed_yet", cid(P))


def test_a_status_that_lacks_a_container_of_the_spec_is_not_complete(lab: Lab) -> None:
    """The spec names all containers there will be."""
    unlisted = lab.mkdir(PAUSE_A)
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A), spec=named("app", "side")))
    assert lab.says(unlisted)[0] == "pending"


def test_a_list_from_before_its_birth_says_nothing_of_a_container(lab: Lab) -> None:
    """Only a list fetched after the cgroup was made can lack its container for good."""
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.now += 1
    unlisted = lab.mkdir(PAUSE_A)
    assert lab.says(unlisted)[0] == "pending"
    # Neither can one that lacked the pod itself.
    lab.wait(1)
    lab.pods(complete=False)
    assert lab.says(unlisted)[0] == "pending"
    lab.pods(pod(A, container(A)))
    assert lab.says(unlisted) == SANDBOX


def test_a_restarted_container_is_no_sandbox_while_the_list_names_the_old_one(lab: Lab) -> None:
    """The old container's cgroup is removed, so the list that calls it running is late."""
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.remove(HOME_A)
    lab.wait(1)
    new = lab.mkdir(f"{POD_A}/{cid(C)}")
    for _ in range(3):
        lab.wait(6)
        lab.pods(pod(A, container(A)))
        assert lab.says(new) == ("pending", "not_listed_yet", cid(C))
    lab.pods(pod(A, container(C)))
    assert lab.says(new) == ("resolved", None, cid(C))


def test_a_listed_container_that_was_never_seen_is_believed_in_after_a_while(lab: Lab) -> None:
    """Its cgroup may have ended before we came, or be one that we cannot see."""
    pause = lab.mkdir(PAUSE_A)
    lab.pods(pod(A, container(A)))
    assert lab.says(pause)[0] == "pending"
    lab.wait(6)
    lab.pods(pod(A, container(A)))
    assert lab.says(pause) == SANDBOX


def test_a_cgroup_elsewhere_that_has_a_containers_name_does_not_account_for_it(lab: Lab) -> None:
    """A user who keeps a cgroup called like an ended container cannot make its successor a sandbox."""
    lab.mkdir(HOME_A)
    lab.delegate("/user.slice")
    lab.mkdir(f"/user.slice/{cid(A)}")
    lab.remove(HOME_A)
    lab.wait(1)
    new = lab.mkdir(f"{POD_A}/{cid(C)}")
    lab.wait(1)
    lab.pods(pod(A, container(A)))
    assert lab.says(new)[0] == "pending"


def test_a_sidecar_that_starts_again_is_no_sandbox(lab: Lab) -> None:
    """A terminated init container may be a sidecar about to restart, whose new cgroup is younger than the others."""
    lab.mkdir(HOME_A)
    lab.wait(1)
    new = lab.mkdir(f"{POD_A}/{cid(C)}")
    old = container(B, "sidecar", role="init", state="terminated")
    for _ in range(2):
        lab.wait(6)
        lab.pods(pod(A, container(A), old))
        assert lab.says(new)[0] == "pending"
    lab.pods(pod(A, container(A), container(C, "sidecar", role="init")))
    assert lab.says(new) == ("resolved", None, cid(C))


def test_a_finished_init_container_is_accounted_for(lab: Lab) -> None:
    """The pause process of a pod whose init container is done is the oldest of its cgroups; where births were not
    seen, a list fetched a while later tells."""
    done = container(B, "init", role="init", state="terminated")
    pause = lab.mkdir(PAUSE_A)
    lab.now += 1
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A), done))
    assert lab.says(pause) == SANDBOX
    late = Lab()
    late.scan(1, late.mkdir(PAUSE_A, told=False))
    late.scan(2, late.mkdir(HOME_A, told=False))
    late.pods(pod(A, container(A), done))
    assert late.says(PAUSE_A)[0] == "pending"
    late.wait(6)
    late.pods(pod(A, container(A), done))
    assert late.says(PAUSE_A) == SANDBOX


def test_an_annotation_makes_no_pod_of_another(lab: Lab) -> None:
    """A pod that claims a static pod's hash says nothing of that pod's containers while they are not listed."""
    hash32 = "9" * 32
    home = lab.mkdir(f"/kubepods/pod{hash32}/{cid(C)}")
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A), config_hash=hash32))
    found = lab.who(home).workload
    assert (found.state, found.pod, found.namespace) == (State.PENDING, None, None)
    lab.pods(pod(A, container(A), config_hash=hash32), pod(C, container(C), uid=hash32))
    assert lab.says(home) == ("resolved", None, cid(C))


def test_a_container_that_ended_before_the_root_was_learnt_is_still_told(lab: Lab) -> None:
    """The first container of a node may be over before any list names it."""
    lab.exec(7, lab.mkdir(HOME_A))
    lab.exit(7, lab.dirs[HOME_A])
    home = lab.remove(HOME_A)
    assert told(lab.pods(pod(A, container(A, state="terminated")))) == [("resolved", 7)]
    assert lab.says(home) == RESOLVED_A


# ---- names that change, and that are lost ----


def test_a_rename_moves_the_whole_subtree(lab: Lab) -> None:
    """Paths are made of names when they are asked for."""
    deep = lab.mkdir("/a/b/c")
    assert lab.who(deep).cgroup.path == "/a/b/c"  # type: ignore[union-attr]
    lab.rename("/a/b", "x")
    assert lab.who(deep).cgroup.path == "/a/x/c"  # type: ignore[union-attr]


def test_a_rename_counts_until_the_container_is_resolved(lab: Lab) -> None:
    """An unresolved cgroup is what its name says now, also when nobody looks before the list comes."""
    home = lab.mkdir(HOME_A)
    lab.exec(7, home)
    lab.rename(HOME_A, cid(C))
    events = lab.pods(pod(A, container(A), container(C, "side")))
    assert lab.says(home) == ("resolved", None, cid(C))
    assert told(events) == [("resolved", 7)]
    lab.rename(f"{POD_A}/{cid(C)}", "nothing")
    assert lab.says(home) == ("resolved", None, cid(C))
    other = lab.mkdir(HOME_B)
    lab.rename(HOME_B, "nothing")
    lab.pods(pod(A, container(A), container(C, "side")), pod(B, container(B)))
    assert lab.says(other)[:2] == ("host", "pod_cgroup")


def test_a_resolved_cgroup_stays_bound_until_it_is_released(lab: Lab) -> None:
    """Renames of it, of what is above, and lost names leave it what it was."""
    deep = lab.mkdir(f"{HOME_A}/inner")
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    lab.rename(HOME_A, cid(B))
    lab.rename(POD_A, f"pod{uid(B)}")
    lab.rename("/kubepods", "elsewhere")
    assert lab.says(deep) == RESOLVED_A
    lab.index.cgroups.forget_names()
    assert lab.says(deep) == RESOLVED_A
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(deep) == RESOLVED_A


def test_a_released_cgroup_is_forgotten_after_a_while_and_not_before(lab: Lab) -> None:
    """Records of its last processes may be read late."""
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    home = lab.remove(HOME_A)
    lab.wait(60)
    assert lab.says(home) == RESOLVED_A
    lab.wait(1)
    assert lab.says(home) == ("unknown", "unnamed", None)
    assert not lab.index.cgroups.entries
    assert lab.index.cgroups.named(cid(A)) == ()


def test_a_removed_cgroup_is_kept_until_its_release(lab: Lab) -> None:
    """Removal alone forgets nothing."""
    lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    home = lab.remove(HOME_A, release=False)
    lab.wait(1000)
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A


def test_names_are_learnt_again_after_a_loss(lab: Lab) -> None:
    """A lost rename and a lost removal come to light, and a cgroup of unknown name is unknown, never host."""
    deep, gone_home = lab.mkdir("/a/b"), lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.dirs["/z"], lab.dirs["/z/b"] = lab.dirs.pop("/a"), lab.dirs.pop("/a/b")
    del lab.dirs[HOME_A]
    lab.index.cgroups.forget_names()
    assert lab.index.locate(deep) is None
    assert lab.index.identify(ProcessKey(1, 1), 1, HIERARCHY, deep, None).workload.reason == "unnamed"
    lab.name(deep)
    assert lab.who(deep).cgroup.path == "/z/b"  # type: ignore[union-attr]
    assert not lab.index.cgroups.entries[gone_home].live
    new = lab.mkdir(f"{POD_A}/{cid(C)}")
    lab.wait(6)
    lab.pods(pod(A, container(A)))
    assert lab.says(new)[0] == "pending"
    lab.wait(61)
    assert gone_home not in lab.index.cgroups.entries


def test_a_container_whose_names_are_read_again_is_live(lab: Lab) -> None:
    """After a loss containers that are still there go on as before, wanted or resolved."""
    home, pending = lab.mkdir(HOME_A), lab.mkdir(HOME_B)
    lab.pods(pod(A, container(A)))
    assert lab.index.take_wants() == ([cid(B)], [])
    lab.index.cgroups.forget_names()
    for each in (home, pending):
        lab.name(each)
        assert lab.index.cgroups.entries[each].live
    assert lab.index.take_wants() == ([], [])
    lab.wait(100)
    assert lab.says(home) == RESOLVED_A


def test_a_birth_that_is_told_after_its_names_were_read_sets_the_time_right(lab: Lab) -> None:
    """The record knows when; the reader of names came later. A rename in between is believed in the order told."""
    home = lab.mkdir(HOME_A, told=False)
    lab.name(home)
    born = lab.now - SECOND
    lab.now = born
    lab.cgroup_event(CgroupEventKind.MKDIR, home, lab.dirs[POD_A], "first")
    lab.cgroup_event(CgroupEventKind.RENAME, home, lab.dirs[POD_A], cid(A))
    assert lab.who(home).cgroup.path == HOME_A  # type: ignore[union-attr]
    assert lab.index.cgroups.entries[home].born == born


def test_names_that_are_no_utf8_are_escaped(lab: Lab) -> None:
    """A cgroup's name may be any bytes."""
    lab.index.cgroups.apply(CgroupEvent(CgroupEventKind.MKDIR, HIERARCHY, 0, 77, TOP, 1, b"\xff\xfe"))
    assert lab.who(77).cgroup.path == "/\\xff\\xfe"  # type: ignore[union-attr]


USER = "/user.slice/user-1000.slice/user@1000.service"


def test_what_a_user_nests_costs_no_more_than_its_names(lab: Lab) -> None:
    """A path that is longer than any is not built, since one could be made for each of thousands of cgroups; whose the
    cgroup is, its beginning says."""
    lab.delegate(USER)
    host = lab.mkdir(USER + "".join(f"/{'x' * 250}" for _ in range(20)))
    home = lab.mkdir(HOME_A)
    deep = lab.mkdir(HOME_A + "".join(f"/{'x' * 250}" for _ in range(20)))
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == lab.says(deep) == RESOLVED_A
    assert lab.says(host)[:2] == ("host", "no_container")
    for cgroup in (host, deep):
        assert lab.who(cgroup).cgroup.path is None  # type: ignore[union-attr]
    assert all(len(view.cgroup.path or "") < 4096 for view in lab.index.cgroups.views.values())


def test_of_what_a_user_made_and_removed_a_bounded_number_is_remembered(lab: Lab) -> None:
    """However many cgroups a user makes and removes within a minute; a container that was removed is remembered."""
    lab.delegate(USER)
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.remove(HOME_A)
    for number in range(6000):
        lab.mkdir(f"{USER}/{number:064x}")
        lab.remove(f"{USER}/{number:064x}")
    assert len(lab.index.cgroups.entries) <= 4097
    assert len(lab.index.cgroups.views) <= 4200
    assert lab.says(home) == RESOLVED_A


def test_what_a_user_renames_makes_nobody_elses_names_be_read_anew(lab: Lab) -> None:
    """On v1 whoever owns a cgroup renames what is in it, as often as it likes: what is known of others stays, and what
    is said of the user's follows."""
    lab.delegate(USER)
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    mine = lab.mkdir(f"{USER}/a/b")
    assert lab.who(mine).cgroup.path == f"{USER}/a/b"  # type: ignore[union-attr]
    view = lab.index.cgroups.views[home]
    lab.rename(f"{USER}/a", cid(A))
    assert lab.who(mine).cgroup.path == f"{USER}/{cid(A)}/b"  # type: ignore[union-attr]
    assert lab.says(mine)[:2] == ("unknown", "conflict")
    lab.rename(f"{USER}/{cid(A)}", "c")
    assert lab.says(mine)[:2] == ("host", "no_container")
    assert lab.index.cgroups.views[home] is view


def test_what_root_made_before_a_user_renames_it_is_read_anew(lab: Lab) -> None:
    """A cgroup that was root's when it was made, in one that was given away later."""
    inner = lab.mkdir(f"{USER}/a/{cid(B)}")
    lab.pods(pod(A, container(A)))
    lab.users.add(lab.dirs[USER])
    lab.rename(f"{USER}/a", f"pod{uid(A)}")
    assert lab.says(inner)[0] != "resolved"
    lab.mkdir(HOME_A)
    assert lab.says(HOME_A) == RESOLVED_A


def test_a_correction_is_told_of_processes_whose_names_were_to_be_read_again(lab: Lab) -> None:
    """That some other cgroup was renamed keeps nobody from being told that what was said was wrong."""
    home = lab.mkdir(HOME_A)
    nested = lab.mkdir(f"{HOME_A}/inner")
    lab.pods(pod(A, container(A)))
    lab.exec(7, home)
    lab.exec(8, nested)
    lab.mkdir("/some/where")
    lab.rename("/some", "any")
    lab.mkdir(f"/kubepods.slice/kubepods-pod{uid(A).replace('-', '_')}.slice/cri-containerd-{cid(A)}.scope")
    events = lab.wait(0.01)
    assert sorted(event.identity.key.pid for event in events if event.event == "move" and event.identity) == [7, 8]


def test_who_starts_while_another_hierarchy_is_being_tracked_is_told_of(lab: Lab) -> None:
    """A process whose record is taken in between is announced as pending, and is told again once it is resolved."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    before = lab.index.told()
    lab.index.hierarchy = HIERARCHY + 1
    event = lab.exec(7, home)
    assert event is not None
    assert event.identity is not None
    assert event.identity.workload.reason == "hierarchy"
    lab.index.hierarchy = HIERARCHY
    assert told(lab.index.retold(before, lab.now)) == [("resolved", 7)]
    assert lab.index.decided(lab.now) == []


def test_a_circle_of_names_ends(lab: Lab) -> None:
    """Lost records cannot make the tree turn for ever."""
    lab.cgroup_event(CgroupEventKind.MKDIR, 50, 51, "a")
    lab.cgroup_event(CgroupEventKind.MKDIR, 51, 50, "b")
    assert lab.index.locate(50) is None


@settings(max_examples=60, deadline=None)
@given(suffix=hostile_suffixes, mine=st.booleans(), victim=st.booleans(), late=st.booleans())
def test_nested_names_never_make_a_victim(suffix: str, mine: bool, victim: bool, late: bool) -> None:
    """Whatever a container nests below itself, and whichever containers sources know: it is itself, or pending."""
    lab = Lab()
    lab.mkdir(HOME_B)
    below = f"{HOME_A}/pod{uid(B)}/{cid(B)}{suffix}".replace("//", "/_/").rstrip("/")
    if not late:
        lab.mkdir(below)
    lab.pods(*([pod(A, container(A))] if mine else []), *([pod(B, container(B))] if victim else []))
    if late:
        lab.mkdir(below)
        lab.wait(0.01)
    for path in [path for path in lab.dirs if path.startswith(HOME_A)]:
        assert lab.says(path) == (RESOLVED_A if mine else PENDING_A)


# ---- processes ----


def test_records_become_events_with_who_and_when(lab: Lab) -> None:
    """Each kind of record has its event, source and time."""
    home, host = lab.mkdir(HOME_A), lab.mkdir("/system.slice")
    lab.pods(pod(A, container(A)))
    lab.now += 5
    fork = lab.fork(7, home)
    assert fork is not None
    assert (fork.event, fork.time, _identity(fork).key) == ("fork", lab.now, ProcessKey(7, 70))
    process = _identity(fork).process
    assert process is not None
    assert (process.source, process.since, process.comm, process.ppid) == (Source.FORK, lab.now, "sh", 1)
    lab.now += 5
    executed = lab.exec(7, home, comm=b"ng\xffinx", start=0)
    process = _identity(executed).process
    assert process is not None
    assert (process.source, process.comm) == (Source.EXEC, "ng\\xffinx")
    assert process.start == lab.now - 5
    moved = lab.move(7, home, host)
    assert moved is not None
    assert (moved.event, moved.extra) == ("move", {"from": HOME_A})
    assert _identity(moved).state is State.HOST
    exited = lab.exit(7, host, arg=3 << 8)
    assert exited is not None
    assert (exited.event, exited.extra) == ("exit", {"exit_code": 3, "signal": None})
    assert 7 not in lab.index.processes


def test_ages_are_counted_when_asked(lab: Lab) -> None:
    """The age of the record and of the pod data are those of the moment of asking."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    event = lab.exec(7, home)
    lab.now += 2 * SECOND
    told = _identity(event).to_dict(Clock(lab.now, 0.0))
    assert (told["age_ms"], told["pods_age_ms"], told["source"]) == (2000.0, 2000.0, "exec")


@pytest.mark.parametrize(
    ("status", "extra"),
    [
        (0, {"exit_code": 0, "signal": None}),
        (9, {"exit_code": None, "signal": 9}),
        (0x8B, {"exit_code": None, "signal": 11}),
        (255 << 8, {"exit_code": 255, "signal": None}),
    ],
)
def test_an_exit_tells_its_code_or_its_signal(lab: Lab, status: int, extra: dict[str, int | None]) -> None:
    """A wait status has one or the other; a core dump's bit is neither."""
    event = lab.exit(7, TOP, arg=status)
    assert event is not None
    assert event.extra == extra


def test_an_exit_of_a_process_nobody_knew_is_told_once(lab: Lab) -> None:
    """Two threads that end together may both report it, and nothing that comes later brings the process back."""
    home = lab.mkdir(HOME_A)
    assert lab.exit(7, home) is not None
    assert lab.exit(7, home) is None
    for kind in (ProcessEventKind.FORK, ProcessEventKind.EXEC, ProcessEventKind.SCAN):
        assert lab.tell(kind, 7, home) is None
    assert 7 not in lab.index.processes


def test_a_reused_pid_is_another_process(lab: Lab) -> None:
    """The new holder takes the number over, and a late exit of the old one does not end it."""
    home = lab.mkdir(HOME_A)
    lab.exec(7, home, ino=1)
    lab.fork(7, home, ino=2)
    assert lab.index.processes[7].key == ProcessKey(7, 2)
    assert lab.exit(7, home, ino=1) is not None
    assert lab.index.processes[7].key == ProcessKey(7, 2)


def test_records_that_a_scan_was_ahead_of_do_not_bring_the_old_holder_back(lab: Lab) -> None:
    """The scan saw who has the number now; older records are of whoever had it before, and are told as that."""
    home = lab.mkdir(HOME_A)
    old = lab.now
    lab.now += SECOND
    lab.scan(7, home, ino=2)
    late = [lab.fork(7, home, ino=1, time=old), lab.exec(7, home, ino=1, time=old)]
    assert told(late) == [("fork", 7), ("exec", 7)]
    assert lab.index.processes[7].key == ProcessKey(7, 2)
    lab.exit(7, home, ino=1, time=old)
    assert lab.index.processes[7].key == ProcessKey(7, 2)


def test_a_scan_tells_of_a_process_once(lab: Lab) -> None:
    """The first meeting is an event; later ones set right where the process is, and keep its source."""
    home, host = lab.mkdir(HOME_A), lab.mkdir("/host")
    event = lab.scan(7, home)
    assert told([event]) == [("snapshot", 7)]
    lab.now += 5
    assert lab.scan(7, host) is None
    known = lab.index.processes[7]
    assert (known.cgroup, known.process.since) == (host, lab.now - 5)


def test_records_older_than_the_scan_keep_the_name_it_saw(lab: Lab) -> None:
    """A fork's record that was read late does not take the name of the program away."""
    lab.now += 10
    lab.scan(7, TOP, comm=b"nginx")
    lab.fork(7, TOP, comm=b"sh", time=lab.now - 5)
    process = lab.index.processes[7].process
    assert (process.comm, process.source, process.since) == ("nginx", Source.FORK, lab.now - 5)
    lab.exec(7, TOP, comm=b"perl", time=lab.now + 5)
    assert lab.index.processes[7].process.comm == "perl"


def test_reconciling_ends_what_the_scan_did_not_find(lab: Lab) -> None:
    """Known before the scan and not found: over. Younger than the scan, or found: not."""
    home = lab.mkdir(HOME_A)
    for pid in (1, 2, 3):
        lab.fork(pid, home)
    lab.now += SECOND
    lab.fork(4, home)
    events = lab.index.reconcile({2: 20, 3: 31}, lab.now)
    assert told(events) == [("exit", 1), ("exit", 3)]
    assert events[0].extra == {"exit_code": None, "signal": None}
    assert sorted(lab.index.processes) == [2, 4]
    assert lab.exit(1, home) is None


def test_nobody_watching_makes_no_events(lab: Lab) -> None:
    """The table is kept all the same."""
    lab.index.watched = False
    home = lab.mkdir(HOME_A)
    assert lab.exec(7, home) is None
    assert lab.pods(pod(A, container(A))) == []
    assert 7 in lab.index.processes
    assert lab.exit(7, home) is None


def test_a_pending_process_is_told_again_when_it_is_resolved(lab: Lab) -> None:
    """Each process once, with its newest record, also when it has ended by then."""
    home = lab.mkdir(f"{HOME_A}/x")
    lab.fork(7, home)
    lab.exec(7, home, comm=b"nginx")
    lab.fork(8, home)
    lab.exit(8, home)
    events = lab.pods(pod(A, container(A)))
    assert sorted(told(events)) == [("resolved", 7), ("resolved", 8)]
    found = next(event.identity for event in events if _identity(event).key.pid == 7)
    assert found is not None
    assert found.process is not None
    assert (found.state, found.process.comm, found.pods_at) == (State.RESOLVED, "nginx", lab.now)
    assert found.cgroup is not None
    assert found.cgroup.path == f"{HOME_A}/x"
    assert lab.pods(pod(A, container(A))) == []


def test_a_snapshot_of_a_pending_process_is_told_again_too(lab: Lab) -> None:
    """Whoever starts to watch before the first list came sees everyone come true."""
    lab.index.watched = False
    lab.scan(7, lab.mkdir(HOME_A))
    assert told(lab.index.snapshot(lab.now)) == [("snapshot", 7)]
    lab.index.watched = True
    assert told(lab.pods(pod(A, container(A)))) == [("resolved", 7)]


@pytest.mark.parametrize("how", ["record", "scan", "ended"])
def test_a_process_that_left_is_not_told_as_what_it_left(lab: Lab, how: str) -> None:
    """Where it is counts: the container it was moved out of says nothing of it any more."""
    home, host = lab.mkdir(HOME_A), lab.mkdir("/host")
    lab.fork(7, home)
    if how == "scan":
        lab.scan(7, host)
    else:
        lab.move(7, home, host)
    if how == "ended":
        lab.exit(7, host)
    assert lab.pods(pod(A, container(A))) == []


def test_a_move_found_by_a_scan_into_a_known_container_is_told(lab: Lab) -> None:
    """A pending process whose move was lost has come true all the same."""
    pending, home = lab.mkdir(HOME_B), lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.fork(7, pending)
    lab.scan(7, home)
    assert told(lab.wait(0.05)) == [("resolved", 7)]
    assert lab.pods(pod(A, container(A)), pod(B, container(B))) == []


def test_a_fork_bomb_in_a_pending_container_is_bounded(lab: Lab) -> None:
    """Of those that wait the newest are kept."""
    home = lab.mkdir(HOME_A)
    for pid in range(1, 5001):
        lab.fork(pid, home)
    events = lab.pods(pod(A, container(A)))
    assert len(events) == 4096
    assert _identity(events[-1]).key.pid == 5000


# ---- wants ----


def test_a_container_is_wanted_from_its_birth_until_a_list_has_it(lab: Lab) -> None:
    """Each is told once."""
    lab.mkdir(HOME_A)
    assert lab.index.take_wants() == ([cid(A)], [])
    assert lab.index.take_wants() == ([], [])
    lab.pods(pod(A, container(A)))
    assert lab.index.take_wants() == ([], [cid(A)])


@pytest.mark.parametrize("end", ["removed", "renamed", "not listed", "other hierarchy"])
def test_a_container_is_wanted_no_more_whatever_ends_it(lab: Lab, end: str) -> None:
    """No ID is fetched for for ever."""
    lab.mkdir(HOME_A)
    assert lab.index.take_wants() == ([cid(A)], [])
    if end == "removed":
        lab.remove(HOME_A)
    elif end == "renamed":
        lab.rename(HOME_A, "nothing")
    elif end == "not listed":
        lab.wait(31)
        lab.pods()
    else:
        lab.index.cgroups.track(TOP)
    assert cid(A) in lab.index.take_wants()[1]


def test_a_name_that_stands_twice_is_wanted_while_either_is(lab: Lab) -> None:
    """A second cgroup of the same name that is removed does not end the wait for the first."""
    lab.mkdir(HOME_A)
    lab.mkdir(f"{POD_B}/{cid(A)}")
    assert lab.index.take_wants() == ([cid(A)], [])
    lab.remove(f"{POD_B}/{cid(A)}")
    assert lab.index.take_wants() == ([], [])


# ---- hierarchies ----


def test_a_slot_of_another_hierarchy_is_pending(lab: Lab) -> None:
    """Until the scan after a switch is over, slots carry the old one's number."""
    lab.mkdir(HOME_A)
    found = lab.who(HOME_A, hierarchy=HIERARCHY + 1)
    assert (found.state, found.workload.reason, found.cgroup) == (State.PENDING, "hierarchy", None)


def test_nobody_is_host_while_the_hierarchy_is_uncertain(lab: Lab) -> None:
    """Host becomes pending; what is known of pods' containers stays."""
    host, docker, home, pause = (lab.mkdir(path) for path in ("/x", f"/docker/{cid(D)}", HOME_A, PAUSE_A))
    lab.pods(pod(A, container(A)))
    lab.wait(6)
    lab.pods(pod(A, container(A)))
    assert [lab.says(cgroup)[0] for cgroup in (host, docker, pause)] == ["host"] * 3
    lab.index.uncertain = True
    for cgroup in (host, docker, pause):
        assert lab.says(cgroup)[:2] == ("pending", "hierarchy")
    assert lab.says(home) == RESOLVED_A


def test_a_switch_starts_anew_and_tells_who_came_true(lab: Lab) -> None:
    """Those who were announced meanwhile and still live are looked at again where they are now."""
    host = lab.mkdir("/x")
    lab.index.uncertain = True
    for pid in (7, 8, 9):
        lab.fork(pid, host)
    lab.exit(8, host)
    lab.pods(pod(A, container(A)))
    lab.index.hierarchy = HIERARCHY + 1
    lab.index.cgroups.track(TOP)
    lab.dirs = {"": TOP}
    home = lab.mkdir(HOME_A)
    lab.scan(7, home, hierarchy=HIERARCHY + 1)
    lab.wait(0.01)
    assert told(lab.index.decided(lab.now)) == [("resolved", 7)]
    assert not lab.index.uncertain
    found = lab.index.identify(ProcessKey(9, 90), 9, HIERARCHY, host, None)
    assert found.workload.reason == "hierarchy"


def test_a_move_in_another_hierarchy_has_no_path_here(lab: Lab) -> None:
    """Ids are unique in their hierarchy only."""
    home = lab.mkdir(HOME_A)
    event = lab.tell(ProcessEventKind.ATTACH, 7, home, hierarchy=HIERARCHY + 1, arg=home)
    assert event is not None
    assert event.extra == {"from": None}


def test_a_number_that_nobody_has_is_gone() -> None:
    """``gone`` has no container and no process."""
    found = gone(5)
    assert (found.state, found.key, found.cgroup, found.process) == (State.GONE, ProcessKey(5, 0), None, None)
