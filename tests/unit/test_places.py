"""Where containers live and which cgroups are evidence, case by case: forged names, several places, static pods."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.index_lab import TOP, Lab, cid, container, pod, told, uid
from tests.unit.test_runtime import record
from tracer.identity.index import Rules
from tracer.identity.places import agreement
from tracer.model import State

A, B, C, D, P = "a", "b", "c", "d", "e"
POD_A, POD_B = f"/kubepods/pod{uid(A)}", f"/kubepods/burstable/pod{uid(B)}"
HOME_A, HOME_B = f"{POD_A}/{cid(A)}", f"{POD_B}/{cid(B)}"
RESOLVED_A, PENDING_A = ("resolved", None, cid(A)), ("pending", "not_listed_yet", cid(A))
# As systemd delegates it to whoever logs in.
USER = "/user.slice/user-1000.slice/user@1000.service"


@pytest.fixture
def lab() -> Lab:
    """A node with nothing on it."""
    return Lab()


# ---- outside of pods ----


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/", "no_container"),
        ("/system.slice/sshd.service", "no_container"),
        (f"{POD_A}", "pod_cgroup"),
        (f"{POD_A}/crio-conmon-{cid(A)}.scope", "conmon"),
        (f"{USER}/pod{uid(D)}/{cid(D)}", "outside_root"),
        (f"{USER}/libpod-{cid(D)}.scope", "not_a_pod"),
    ],
)
def test_what_is_in_no_pods_container_is_host(lab: Lab, path: str, reason: str) -> None:
    """Host processes, monitors, and what an ordinary user may have made are host at once, and nobody fetches for
    them."""
    lab.delegate(USER)
    cgroup = lab.mkdir(path) if path != "/" else TOP
    assert lab.says(cgroup)[:2] == ("host", reason)
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    lab.wait(100)
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(cgroup)[:2] == ("host", reason)
    assert lab.index.take_wants() == ([], [])


@pytest.mark.parametrize("path", [f"/docker/{cid(D)}", f"/machine.slice/libpod-{cid(D)}.scope/container"])
def test_a_container_below_no_pod_is_pending_until_no_list_names_it(lab: Lab, path: str) -> None:
    """It may be a pod's of a runtime that names none: it is host when lists have passed it over for long enough."""
    cgroup = lab.mkdir(path)
    assert lab.says(cgroup) == ("pending", "not_listed_yet", cid(D))
    assert lab.index.take_wants() == ([cid(D)], [])
    lab.wait(100)
    assert lab.says(cgroup) == ("pending", "not_listed_yet", cid(D))
    lab.pods()
    assert lab.says(cgroup) == ("host", "not_a_pod", cid(D))
    lab.pods(pod(D, container(D)))
    assert lab.says(cgroup) == ("resolved", None, cid(D))


def test_on_a_node_with_pods_a_container_outside_of_them_is_pending_for_a_moment_only(lab: Lab) -> None:
    """Where listed containers are below pods, one elsewhere is given the time that a kubelet's status lags; one that
    ran before is given none."""
    older = lab.mkdir(f"/docker/{cid(C)}", told=False)
    lab.mkdir(HOME_A)
    lab.scan(1, older)
    lab.pods(pod(A, container(A)))
    new = lab.mkdir(f"/docker/{cid(D)}")
    assert lab.says(older) == ("host", "not_a_pod", cid(C))
    assert lab.says(new) == ("pending", "not_listed_yet", cid(D))
    lab.wait(4)
    lab.pods(pod(A, container(A)))
    assert lab.says(new) == ("pending", "not_listed_yet", cid(D))
    lab.wait(2)
    lab.pods(pod(A, container(A)))
    assert lab.says(new) == ("host", "not_a_pod", cid(D))


def test_where_pods_have_no_cgroups_a_new_container_has_all_attempts(lab: Lab) -> None:
    """Beside a listed container of no pod's cgroup, another one is pending for as long as any."""
    lab.mkdir(f"/docker/{cid(A)}")
    lab.mkdir(HOME_B)
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    new = lab.mkdir(f"/docker/{cid(D)}")
    lab.wait(29)
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(new) == ("pending", "not_listed_yet", cid(D))
    lab.wait(2)
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(new) == ("host", "not_a_pod", cid(D))


def test_a_listed_container_below_no_pod_segment_is_resolved(lab: Lab) -> None:
    """A kubelet without cgroups per pod: the outermost ID counts when a source knows it."""
    home = lab.mkdir(f"/docker/{cid(A)}")
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A
    assert lab.says(lab.mkdir(f"/docker/{cid(A)}/x")) == RESOLVED_A
    for below in (f"pod{uid(B)}/{cid(B)}", f"kubepods/pod{uid(B)}/{cid(B)}", cid(B)):
        assert lab.says(lab.mkdir(f"/docker/{cid(A)}/{below}")) == RESOLVED_A
    nested = lab.mkdir(f"/docker/{cid(D)}/{cid(A)}")
    assert lab.says(nested) == ("pending", "not_listed_yet", cid(D))
    lab.pods()
    assert lab.says(home) == ("unknown", "deleted", cid(A))


def test_what_a_container_nests_while_it_is_not_listed_yet_is_pending_with_it(lab: Lab) -> None:
    """A container of no pod's cgroup can make the names of others before any list has its own: it is nobody till
    then."""
    lab.mkdir(f"/docker/{cid(B)}")
    lab.pods(pod(B, container(B)), pod(C, container(C)))
    lab.mkdir(f"/docker/{cid(A)}")
    nested = lab.mkdir(f"/docker/{cid(A)}/kubepods/pod{uid(C)}/{cid(C)}")
    assert lab.says(nested)[0] == "pending"
    lab.pods(pod(A, container(A)), pod(B, container(B)), pod(C, container(C)))
    assert lab.says(nested) == RESOLVED_A


# ---- who may have made a name ----


@pytest.mark.parametrize(
    "name",
    [
        f"kubepods/besteffort/pod{uid(A)}/{cid(A)}",
        f"kubepods.slice/kubepods-pod{uid(A).replace('-', '_')}.slice/cri-containerd-{cid(A)}.scope",
        f"kubepods-besteffort-pod{uid(A).replace('-', '_')}.slice:cri-containerd:{cid(A)}",
        f"pod{uid(A)}/{cid(A)}",
        cid(A),
        f"libpod-{cid(A)}.scope/container",
        f"crio-conmon-{cid(A)}.scope/crio-{cid(A)}.scope",
        f"docker/{cid(D)}/kubepods/pod{uid(A)}/{cid(A)}",
    ],
)
@pytest.mark.parametrize("order", [*itertools.permutations(("forged", "real", "list"))])
def test_a_user_is_nobody_by_whatever_name_and_whenever_it_is_made(order: tuple[str, ...], name: str) -> None:
    """An ordinary user's cgroup is never the container's whose name it has, and takes nothing from it."""
    lab = Lab()
    lab.delegate(USER)
    forged = f"{USER}/{name}"
    for step in order:
        if step == "list":
            lab.pods(pod(A, container(A)), pod(B, container(B)))
        else:
            lab.exec(1 if step == "forged" else 2, lab.mkdir(forged if step == "forged" else HOME_A))
        lab.wait(0.01)
        if forged in lab.dirs:
            assert lab.says(forged)[0] != "resolved"
    assert lab.says(forged)[:2] == ("unknown", "conflict")
    assert lab.says(HOME_A) == RESOLVED_A
    assert lab.says(lab.mkdir(HOME_B)) == ("resolved", None, cid(B))
    lab.pods(pod(A, container(A), container(C, "side")), pod(B, container(B)))
    assert lab.says(lab.mkdir(f"{POD_A}/{cid(C)}")) == ("resolved", None, cid(C))
    by_id = lab.index.identify_container(lab.who(TOP), cid(A), None, lab.now)
    assert by_id.state is State.RESOLVED
    lab.remove(HOME_A)
    lab.pods(pod(B, container(B)))
    assert lab.says(forged)[0] in ("host", "unknown")


def test_a_directory_given_away_later_guards_nothing_that_is_made_then(lab: Lab) -> None:
    """systemd makes a user's subtree as root and gives it away: what is made before that is root's, and no more."""
    first = lab.mkdir(f"{USER}/kubepods/pod{uid(A)}/{cid(A)}")
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(first) == RESOLVED_A
    lab.users.add(lab.dirs[USER])
    assert lab.says(lab.mkdir(f"{USER}/kubepods/pod{uid(B)}/{cid(B)}")) == ("unknown", "conflict", cid(B))


def test_a_cgroup_whose_owners_cannot_be_read_is_pending(lab: Lab) -> None:
    """A cgroup is pending while it is not known who may have named it, and in the end unknown."""
    lab.index.cgroups.guard = lambda _cgroups: None
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == ("pending", "not_listed_yet", cid(A))
    lab.wait(31)
    lab.pods(pod(A, container(A)))
    assert lab.says(home)[:2] == ("unknown", "not_listed")
    lab.index.cgroups.guard = lambda _cgroups: True
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A


def test_two_cgroups_of_one_container_are_a_conflict_while_both_are_there(lab: Lab) -> None:
    """Of two cgroups of root with one ID neither is the container; those who saw the first resolved get an event."""
    home = lab.mkdir(HOME_A)
    lab.pods(pod(A, container(A)))
    lab.exec(7, home)
    other = lab.mkdir(f"/kubepods.slice/kubepods-pod{uid(A).replace('-', '_')}.slice/cri-containerd-{cid(A)}.scope")
    assert [(event.event, event.extra.get("corrected")) for event in lab.wait(0.01)] == [("move", True)]
    for cgroup in (home, other):
        assert lab.says(cgroup) == ("unknown", "conflict", cid(A))
    lab.remove(HOME_A)
    lab.pods(pod(A, container(A)))
    assert lab.says(other) == RESOLVED_A


def test_the_path_that_the_runtime_reports_decides_between_two(lab: Lab) -> None:
    """Of two cgroups of one container the one that the runtime says it made is the container's."""
    home, other = lab.mkdir(f"/here{HOME_A}"), lab.mkdir(f"/elsewhere{HOME_A}")
    lab.pods(pod(A, container(A)))
    assert lab.says(home)[:2] == ("unknown", "conflict")
    lab.index.container(record(A, cgroups_path=f"/here{HOME_A}"), lab.now)
    assert lab.says(home) == RESOLVED_A
    assert lab.says(other)[:2] == ("unknown", "conflict")


@pytest.mark.parametrize("other", [f"/system.slice/{cid(A)}", f"/elsewhere/pod{uid(A)}/{cid(A)}"])
def test_a_name_below_the_kubelets_counts_before_one_elsewhere(lab: Lab, other: str) -> None:
    """Of two cgroups of one container the one in its pod, below what the kubelet calls kubepods, is the container's."""
    home = lab.mkdir(HOME_A)
    lab.mkdir(other)
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A
    assert lab.says(other)[:2] == ("unknown", "conflict")


# ---- places ----


def test_a_node_may_have_several_places_and_they_may_change(lab: Lab) -> None:
    """One runtime handler without the systemd driver, or another cgroup driver from some day on: each place counts."""
    a, b = (each.replace("-", "_") for each in (uid(A), uid(B)))
    homes = {
        A: f"/kubepods.slice/kubepods-pod{a}.slice/cri-containerd-{cid(A)}.scope",
        B: f"/system.slice/containerd.service/kubepods-burstable-pod{b}.slice:cri-containerd:{cid(B)}",
        C: f"/kubepods/burstable/pod{uid(C)}/{cid(C)}",
        D: f"/docker/{cid(D)}",
    }
    lab.pods(*(pod(letter, container(letter)) for letter in homes))
    for letter, home in homes.items():
        assert lab.says(lab.mkdir(home)) == ("resolved", None, cid(letter))
    lab.remove(homes[A])
    lab.wait(100)
    lab.pods(*(pod(letter, container(letter)) for letter in homes))
    for letter in (B, C, D):
        assert lab.says(homes[letter]) == ("resolved", None, cid(letter))


def test_a_static_pods_own_uid_is_its_pods_in_both_drivers_names(lab: Lab) -> None:
    """A UID of any text: pending before the list, resolved with it."""
    static = [pod(letter, container(letter), uid=f"my-static-{letter}") for letter in (A, B)]
    homes = [
        lab.mkdir(f"/kubepods/burstable/podmy-static-{A}/{cid(A)}"),
        lab.mkdir(f"/kubepods.slice/kubepods-podmy_static_{B}.slice/cri-containerd-{cid(B)}.scope"),
    ]
    assert [lab.says(home)[:2] for home in homes] == [("pending", "not_listed_yet")] * 2
    lab.pods(*static)
    assert [lab.says(home) for home in homes] == [("resolved", None, cid(A)), ("resolved", None, cid(B))]


@pytest.mark.parametrize("odd", ["a:b c\u00e9%x", ":", "kubepods", "x.slice", f"a:{'b' * 63}"])
def test_a_static_pods_uid_may_be_any_text(lab: Lab, odd: str) -> None:
    """Whatever a manifest says, in the name that the kubelet's cgroupfs driver gives it."""
    home = lab.mkdir(f"/kubepods/burstable/pod{odd}/{cid(A)}")
    lab.pods(pod(A, container(A), uid=odd))
    assert lab.says(home) == RESOLVED_A


def test_a_container_below_its_monitor_is_its_pods(lab: Lab) -> None:
    """As old releases of CRI-O have it; the monitor is on the host."""
    monitor = f"{POD_A}/crio-conmon-{cid(A)}.scope"
    home = lab.mkdir(f"{monitor}/crio-{cid(A)}.scope")
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A
    assert lab.says(monitor)[:2] == ("host", "conmon")


@pytest.mark.parametrize("order", [*itertools.permutations(("spoof", "real", "list"))])
def test_a_tree_inside_a_container_is_not_the_nodes_where_the_node_has_its_own(order: tuple[str, ...]) -> None:
    """A kubepods tree inside a Docker container never passes for the node's, whichever is scanned first; where it was
    the only one for a while, as in KIND, what was told is corrected."""
    lab = Lab()
    fake = f"/docker/{cid(D)}/kubepods/pod{uid(A)}/{cid(A)}"
    for step in order:
        if step == "list":
            lab.pods(pod(A, container(A)), pod(B, container(B)))
        else:
            lab.scan(1 if step == "spoof" else 2, lab.mkdir(fake if step == "spoof" else HOME_A, told=False))
        if fake in lab.dirs and order != ("spoof", "list", "real"):
            assert lab.says(fake)[0] != "resolved"
    events = lab.wait(0.1)
    assert lab.says(fake)[0] != "resolved"
    assert lab.says(HOME_A) == RESOLVED_A
    if order == ("spoof", "list", "real"):
        assert ("move", 1) in told(events)
    lab.wait(40)
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(fake) == ("unknown", "conflict", cid(A))
    again = lab.mkdir(f"/docker/{cid(D)}/kubepods/pod{uid(C)}/{cid(C)}")
    assert lab.says(again)[:2] == ("host", "outside_root")


@pytest.mark.parametrize(
    "box",
    [
        "/lxc/box",
        "/lxc.payload.box",
        "/lxc.payload/box",
        "/machine/box",
        "/machine.slice/systemd-nspawn@box.service/payload",
        "/machine.slice/machine-box.scope",
        "/machine.slice/box.scope/payload",
        "/user.slice/systemd-nspawn@box.service",
        "/system.slice/machine-box.scope",
    ],
)
@pytest.mark.parametrize("form", [f"kubepods/pod{uid(A)}/{cid(A)}", cid(A), f"docker/{cid(D)}/pod{uid(A)}/{cid(A)}"])
def test_what_is_in_a_container_with_a_name_is_not_the_nodes(box: str, form: str) -> None:
    """Root in a container of LXC or systemd-nspawn is root by its number, and names its cgroups after listed pods."""
    lab = Lab()
    lab.mkdir(HOME_B)
    fake = lab.mkdir(f"{box}/{form}")
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(fake)[:2] == ("unknown", "conflict")
    assert lab.says(lab.mkdir(HOME_A)) == RESOLVED_A
    assert lab.says(fake)[:2] == ("unknown", "conflict")


@pytest.mark.parametrize(
    "own", [None, "/lxc/box/system.slice/podtracer.service", f"/lxc/box/kubepods/pod{uid(P)}/{cid(P)}"]
)
@pytest.mark.parametrize("form", ["kubepods/pod{uid}/{id}", "docker/{id}"])
def test_a_node_may_be_a_container_with_a_name(lab: Lab, own: str | None, form: str) -> None:
    """As a node in LXC is: its pods are below it, where nothing is outside or the tracer is in it."""
    lab.index.cgroups.own = own
    homes = {each: lab.mkdir(f"/lxc/box/{form.format(uid=uid(each), id=cid(each))}") for each in (A, B)}
    other = lab.mkdir(f"/lxc/other/{form.format(uid=uid(C), id=cid(C))}")
    lab.pods(*(pod(each, container(each)) for each in homes))
    for each, home in homes.items():
        assert lab.says(home) == ("resolved", None, cid(each))
    assert lab.says(other)[0] != "resolved"


@pytest.mark.parametrize(
    "path", [f"/machine.slice/libpod-{cid(A)}.scope", f"/machine.slice/libpod-{cid(A)}.scope/container"]
)
def test_a_container_of_podman_is_called_by_its_id(lab: Lab, path: str) -> None:
    """It is in machine.slice too, and no container with a name."""
    home = lab.mkdir(path)
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A


def test_the_kubelets_own_place_counts_before_one_further_down(lab: Lab) -> None:
    """Root in a container that nothing shows to be one may copy a pod's names, and takes no identity away by it."""
    home, fake = lab.mkdir(HOME_A), lab.mkdir(f"/default/box{HOME_A}")
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A
    assert lab.says(fake)[:2] == ("unknown", "conflict")


def test_a_container_that_a_list_calls_ended_shows_no_place_inside_another(lab: Lab) -> None:
    """A list that says a container has ended is no proof that the nested cgroup called like it is a pod's."""
    fake = lab.mkdir(f"/docker/{cid(D)}/kubepods/pod{uid(A)}/{cid(A)}")
    lab.pods(pod(A, container(A, state="terminated")))
    assert lab.says(fake) == PENDING_A
    lab.mkdir(HOME_B)
    lab.pods(pod(A, container(A, state="terminated")), pod(B, container(B)))
    assert lab.says(fake)[0] != "resolved"


def test_a_container_that_ended_shows_the_place_too(lab: Lab) -> None:
    """Between the end of the node's own container and the next list, its forged name is no better than it was."""
    fake = lab.mkdir(f"/docker/{cid(D)}/kubepods/pod{uid(A)}/{cid(A)}")
    lab.mkdir(HOME_A)
    lab.remove(HOME_A)
    lab.pods(pod(A, container(A)))
    assert lab.says(fake)[0] != "resolved"


@pytest.mark.parametrize(
    "form",
    [
        "kubelet/kubepods/pod{uid}/{id}",
        "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{uid_}.slice/cri-containerd-{id}.scope",
        "kubepods-burstable-pod{uid_}.slice:cri-containerd:{id}",
        "system.slice/containerd.service/kubepods-pod{uid_}.slice:cri-containerd:{id}",
    ],
)
def test_a_place_inside_a_container_counts_where_it_is_the_only_one(lab: Lab, form: str) -> None:
    """KIND's and minikube's nodes are containers, and their pods are below them, by whatever driver."""

    def path(node: str, letter: str) -> str:
        names = form.format(uid=uid(letter), uid_=uid(letter).replace("-", "_"), id=cid(letter))
        return f"/docker/{cid(node)}/{names}"

    home = lab.mkdir(path(D, A))
    other = lab.mkdir(path(C, B))
    assert lab.says(home)[0] == "pending"
    lab.pods(pod(A, container(A)))
    assert lab.says(home) == RESOLVED_A
    assert lab.says(other)[0] != "resolved"
    assert lab.says(lab.mkdir(path(D, B)))[:2] == ("pending", "not_listed_yet")


def test_of_two_containers_that_may_be_the_node_neither_is(lab: Lab) -> None:
    """Where listed containers seem to be in two of them, the operator has to say which; nested deeper is no second."""
    home = lab.mkdir(f"/docker/{cid(D)}/kubepods/pod{uid(A)}/{cid(A)}")
    deeper = lab.mkdir(f"/docker/{cid(D)}/docker/{cid(P)}/kubepods/pod{uid(B)}/{cid(B)}")
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(home) == RESOLVED_A
    assert lab.says(deeper)[0] != "resolved"
    other = lab.mkdir(f"/docker/{cid(C)}/kubepods/pod{uid(B)}/{cid(B)}")
    lab.wait(40)
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(home)[:2] == ("unknown", "conflict")
    assert lab.says(other)[:2] == ("unknown", "conflict")


@pytest.mark.parametrize(
    "own",
    [
        f"/docker/{cid(D)}/init.scope",
        f"/docker/{cid(D)}/kubelet/kubepods/pod{uid(P)}/{cid(P)}",
    ],
)
def test_the_node_is_the_container_that_the_tracer_runs_in(lab: Lab, own: str) -> None:
    """In a node of KIND, as a pod of it or beside the kubelet, no other container can pass for the node."""
    lab.index.cgroups.own = own
    other = lab.mkdir(f"/docker/{cid(C)}/kubepods/pod{uid(B)}/{cid(B)}")
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(other)[0] != "resolved"
    home = lab.mkdir(f"/docker/{cid(D)}/kubelet/kubepods/pod{uid(A)}/{cid(A)}")
    assert lab.says(home) == RESOLVED_A
    assert lab.says(lab.mkdir(f"/docker/{cid(D)}/docker/{cid(C)}/kubepods/pod{uid(B)}/{cid(B)}"))[0] != "resolved"
    assert lab.says(lab.mkdir(f"/docker/{cid(D)}/kubelet.slice/kubelet.service"))[:2] == ("host", "no_container")
    assert lab.says(lab.mkdir(f"/docker/{cid(P)}"))[0] == "pending"


def test_a_tracer_in_a_pod_knows_that_its_node_is_no_container(lab: Lab) -> None:
    """As a DaemonSet's pod on a plain node it believes no tree inside a container, also while it is the only one."""
    lab.index.cgroups.own = f"/kubepods/pod{uid(P)}/{cid(P)}"
    fake = lab.mkdir(f"/docker/{cid(D)}/kubepods/pod{uid(A)}/{cid(A)}")
    lab.pods(pod(A, container(A)))
    assert lab.says(fake)[0] != "resolved"


def test_a_given_prefix_is_the_only_place() -> None:
    """``--cgroup-prefix``: what is elsewhere is host from the start, and nothing else is learnt."""
    lab = Lab(Rules(prefix="/nested/kubepods"))
    home = lab.mkdir(f"/nested/kubepods/pod{uid(A)}/{cid(A)}")
    assert lab.says(lab.mkdir(HOME_B))[:2] == ("host", "outside_root")
    lab.pods(pod(A, container(A)), pod(B, container(B)))
    assert lab.says(home) == RESOLVED_A
    assert lab.says(HOME_B)[:2] == ("host", "outside_root")
    bare = lab.mkdir(f"/docker/{cid(B)}")
    assert lab.says(bare)[0] != "resolved"
    within = lab.mkdir(f"/nested/kubepods/{cid(D)}/kubepods/pod{uid(B)}/{cid(B)}")
    assert lab.says(within)[0] != "resolved"
    lab.index.cgroups.track(TOP)
    assert lab.index.cgroups.prefix == "/nested/kubepods"


# ---- instances that ended, pods alone ----


@pytest.mark.parametrize("known", ["former", "restarts"])
def test_the_former_instance_of_a_container_is_no_sandbox(lab: Lab, known: str) -> None:
    """Its ID stands in ``lastState`` alone, or after two restarts nowhere, while processes of it may still run."""
    former = lab.mkdir(f"{POD_A}/{cid(C)}")
    lab.mkdir(HOME_A)
    lab.wait(10)
    more = {"former_id": cid(C)} if known == "former" else {"restarts": 2}
    lab.pods(pod(A, container(A, **more)))
    assert lab.says(former) == ("pending", "not_listed_yet", cid(C))
    lab.wait(31)
    lab.pods(pod(A, container(A, **more)))
    assert lab.says(former) == ("unknown", "not_listed", cid(C))


def test_without_container_selectors_a_pod_needs_no_listed_neighbour() -> None:
    """SPIRE gives the pod's selectors where the path names the pod, also on a node on which no container is listed; but
    not by a UID that it does not find in paths, nor to who may have named the path."""
    lab = Lab(Rules(disable_container_selectors=True))
    lab.delegate(USER)
    home = lab.mkdir(HOME_A)
    forged = lab.mkdir(f"{USER}/kubepods/pod{uid(A)}/{cid(C)}")
    static = lab.mkdir(f"/kubepods/podmy-static/{cid(D)}")
    digest = lab.mkdir(f"/kubepods/pod{'e' * 32}/{cid(P)}")
    lab.pods(
        pod(A, container(None)),
        pod(D, container(None), uid="my-static"),
        pod("e", container(None), uid="e" * 32),
    )
    assert lab.says(home) == RESOLVED_A
    assert lab.who(home).workload.container is None
    for other in (forged, static, digest):
        assert lab.says(other)[0] != "resolved"
        without = lab.index.without_container(lab.who(other))
        assert without.state is not State.RESOLVED


@pytest.mark.parametrize(
    ("path", "reported", "how"),
    [
        (f"/kubepods/pod{uid(A)}/{cid(A)}", f"/kubepods/pod{uid(A)}/{cid(A)}", 2),
        (f"/docker/{cid(D)}/kubepods/pod{uid(A)}/{cid(A)}", f"/kubepods/pod{uid(A)}/{cid(A)}", 1),
        (f"/xkubepods/pod{uid(A)}/{cid(A)}", f"/kubepods/pod{uid(A)}/{cid(A)}", 0),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-containerd-{cid(A)}.scope",
            f"kubepods-burstable-podx.slice:cri-containerd:{cid(A)}",
            2,
        ),
        (
            f"/x/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/crio-{cid(A)}.scope",
            f"kubepods-burstable-podx.slice:crio:{cid(A)}",
            1,
        ),
        (f"/kubepods-podx.slice:cri-containerd:{cid(A)}", f"kubepods-podx.slice:cri-containerd:{cid(A)}", 2),
        (
            f"/system.slice/containerd.service/kubepods-podx.slice:cri-containerd:{cid(A)}",
            f"kubepods-podx.slice:cri-containerd:{cid(A)}",
            1,
        ),
        (f"/kubepods-pody.slice/cri-containerd-{cid(A)}.scope", f"kubepods-podx.slice:cri-containerd:{cid(A)}", 0),
        (f"/docker/{cid(A)}", "/", 0),
        (f"/docker/{cid(A)}", "", 0),
        (f"/docker/{cid(A)}", ":", 0),
        (f"/docker/{cid(A)}", "::", 0),
        (f"/docker/{cid(A)}", cid(A), 0),
    ],
)
def test_a_path_agrees_with_what_the_runtime_reports_in_its_drivers_form(path: str, reported: str, how: int) -> None:
    """The runtime's word is a path or systemd's triple; on a node that is a container paths end so."""
    assert agreement(path, reported) == how
