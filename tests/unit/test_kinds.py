"""What each kind of container is granted, beside what SPIRE's attestor grants it: the table of ``docs/kinds.md``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.index_lab import Lab, cid, container, pod, spec, uid
from tracer.identity.entries import Entries, Entry
from tracer.identity.grants import grant, is_pod_enough
from tracer.identity.index import Rules
from tracer.identity.parity import Located, attest, uid_for_spire
from tracer.identity.pods import PodTable
from tracer.identity.runtime import Runtime
from tracer.identity.selectors import selectors
from tracer.issuing import Issuing
from tracer.model import Clock, Container, ContainerRef, Pod, RuntimeContainer, Workload

DOCS = (Path(__file__).parents[2] / "docs" / "kinds.md").read_text()

A, B, C, D = "abcd"
STATIC = "2732ca68f6358eba7703fb6f82a25c94"
WHATS = {"own": "pod's and its own", "pod": "pod's", "none": "none"}
INIT = container(A, "first", role="init")
SIDECAR = replace(INIT, sidecar=True)
DEBUG = container(A, "debug", role="ephemeral")
APP = container(B)


@dataclass(frozen=True)
class Row:
    """A way in which a pod has the container A (or not): what SPIRE grants a process of it and what we do, both as they
    are by default and with disable_container_selectors, and what we do with ephemeral_containers, without and with the
    other. ``listed`` is the container whose selectors are the "own" ones."""

    pod: Pod
    spire: tuple[str, str]
    ours: tuple[str, str]
    ephemeral: tuple[str, str]
    listed: Container | None = None
    kind: str | None = None
    state: str | None = "resolved"


def row(pod_: Pod, spire: str, ours: str = "", ephemeral: str = "", **more: object) -> Row:
    """Grants as two words; ours are SPIRE's where they are not given."""
    ours = ours or spire
    pairs = [tuple(each.split()) for each in (spire, ours, ephemeral or ours)]
    return Row(pod_, *pairs, **more)  # type: ignore[arg-type]


def static(*containers: Container) -> Pod:
    """A static pod, as the kubelet itself lists it."""
    return pod(A, *containers, uid=STATIC, config_hash=STATIC)


OWN = container(A)
# The first words are those of the table in the manual.
ROWS = {
    "app": row(pod(A, OWN), "own pod", listed=OWN, kind="container"),
    "app, terminated": row(
        pod(A, replace(OWN, state="terminated")), "own pod", listed=OWN, kind="container"
    ),
    "app, restarted, the new instance": row(
        pod(A, replace(OWN, former_id=cid(D), restarts=1)), "own pod", listed=OWN, kind="container"
    ),
    "app, of a static pod": row(static(OWN), "own pod", listed=OWN, kind="container"),
    "init": row(pod(A, APP, INIT), "own pod", listed=INIT, kind="init"),
    "init, terminated": row(pod(A, APP, replace(INIT, state="terminated")), "own pod", listed=INIT, kind="init"),
    "sidecar": row(pod(A, APP, SIDECAR), "own pod", listed=SIDECAR, kind="sidecar"),
    "ephemeral": row(pod(A, APP, DEBUG), "none pod", "none pod", "own pod", listed=DEBUG, kind="ephemeral"),
    "ephemeral, terminated": row(
        pod(A, APP, replace(DEBUG, state="terminated")), "none pod", "none pod", "own pod",
        listed=DEBUG, kind="ephemeral",
    ),
    "ephemeral, of a static pod": row(
        static(APP, DEBUG), "none none", "none none", "own pod", listed=DEBUG, kind="ephemeral"
    ),
    "ephemeral, by the name of an app container": row(
        pod(A, APP, replace(DEBUG, name="app")), "none pod", "none pod", "own pod",
        listed=replace(DEBUG, name="app"), kind="ephemeral",
    ),
    "restarted, the former instance": row(
        pod(A, replace(APP, former_id=cid(A), restarts=1)), "none pod", state=None
    ),
    "waiting, without an ID": row(pod(A, container(None, state="waiting")), "none pod", state="pending"),
    "waiting, without an ID, of a static pod": row(
        static(container(None, state="waiting")), "none none", state="pending"
    ),
    "listed as app and as init": row(pod(A, OWN, INIT), "own pod", listed=OWN, kind="container"),
    "listed as app and as ephemeral": row(pod(A, OWN, DEBUG), "own pod", listed=OWN, kind="container"),
    "listed as init and as ephemeral": row(pod(A, APP, INIT, DEBUG), "own pod", listed=INIT, kind="init"),
}  # fmt: skip


def path_of(owner: Pod) -> str:
    """The cgroup of container A of this pod."""
    return f"/kubepods/burstable/pod{owner.uid}/{cid(A)}"


def words(given: tuple[str, ...], made: Row) -> str:
    """What these selectors are of this row's pod."""
    if not given:
        return "none"
    if given == selectors(made.pod, None):
        return "pod"
    assert given == selectors(made.pod, made.listed)
    return "own"


def lab_of(owner: Pod, *, alone: bool = False, ephemeral: bool = False) -> Lab:
    """A node that has the container A and a list of its pod; another pod tells where pods are."""
    lab = Lab(Rules(disable_container_selectors=alone, ephemeral_containers=ephemeral))
    lab.mkdir(f"/kubepods/burstable/pod{uid(C)}/{cid(C)}")
    lab.mkdir(path_of(owner))
    lab.pods(owner, pod(C, container(C)))
    return lab


def said(made: Row, *, alone: bool = False, ephemeral: bool = False) -> Workload:
    """Our answer for a process of container A."""
    return lab_of(made.pod, alone=alone, ephemeral=ephemeral).who(path_of(made.pod)).workload


def located(ref: ContainerRef) -> Located:
    """What SPIRE takes from a path that names this."""
    return Located(uid_for_spire(ref.pod_uid) if ref.pod_uid is not None else None, ref.container_id)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("alone", [False, True])
def test_spire_grants_what_the_table_says(name: str, alone: bool) -> None:
    """Each row's first columns are what SPIRE's rules answer on the same list."""
    made = ROWS[name]
    outcome = attest(
        located(ContainerRef(cid(A), made.pod.uid)), PodTable.build([made.pod]), disable_container_selectors=alone
    )
    assert words(outcome.selectors, made) == made.spire[alone]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("alone", "ephemeral"), [*itertools.product([False, True], repeat=2)])
def test_the_daemon_grants_what_the_table_says(name: str, alone: bool, ephemeral: bool) -> None:
    """Each row's other columns are what the index answers, with the kind of the container."""
    made = ROWS[name]
    found = said(made, alone=alone, ephemeral=ephemeral)
    wanted = (made.ephemeral if ephemeral else made.ours)[alone]
    assert words(found.selectors, made) == wanted
    if made.state is not None:  # what it is called has rules of its own
        assert found.kind == made.kind
        assert found.state == (made.state if not alone or wanted == "none" else "resolved")
    if found.state == "resolved":
        assert (found.reason, found.reason_text is not None) == (None, wanted == "none")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("ephemeral", [False, True])
def test_who_leaves_container_selectors_out_gets_what_spire_gives_then(name: str, ephemeral: bool) -> None:
    """A question without container selectors is answered as SPIRE does with disable_container_selectors, whatever the
    operator lets ephemeral containers have."""
    made = ROWS[name]
    lab = lab_of(made.pod, ephemeral=ephemeral)
    identity = lab.who(path_of(made.pod))
    found = lab.index.without_container(identity)
    assert words(found.selectors, made) == made.spire[1]
    assert (found.container, found.kind) == (identity.workload.container, identity.workload.kind)


@pytest.mark.parametrize("name", ROWS)
def test_the_manual_has_the_table(name: str) -> None:
    """Each row is one of the manual's, cell for cell."""
    made = ROWS[name]
    cells = [name, *(WHATS[each] for each in (*made.spire, *made.ours, *made.ephemeral))]
    assert f"| {' | '.join(cells)} |" in DOCS


# ---- what follows from having none ----


def test_an_ephemeral_container_is_known_to_people() -> None:
    """It is resolved with its pod, its name and its labels for filters, its kind is a key of its own, and the text says
    what to set."""
    found = lab_of(ROWS["ephemeral"].pod).who(path_of(ROWS["ephemeral"].pod))
    said = found.to_dict(Clock(0, 0.0))
    assert (said["state"], said["pod"], said["container"], said["kind"]) == ("resolved", "cart-a", "debug", "ephemeral")
    assert (said["image"], said["selectors"], said["settled"]) == ("debug:1", [], True)
    assert found.workload.labels == {"tier": "front"}
    assert "--ephemeral-containers" in said["reason_text"]


def test_no_k8s_entry_matches_an_ephemeral_container_and_unix_ones_do() -> None:
    """Of the entries only those that want unix selectors alone give an ID, as SPIRE's unix attestor is another one."""
    entries = Entries(
        tuple(
            Entry(name, f"spiffe://e.org/{name}", "spiffe://e.org/agent", wanted)
            for name, wanted in (
                ("pod", ("k8s:ns:shop",)),
                ("both", ("k8s:ns:shop", "unix:uid:0")),
                ("unix", ("unix:uid:0",)),
            )
        )
    )
    issuing = Issuing(None, lambda _key: ("unix:uid:0",))
    issuing.take(entries)
    made = ROWS["ephemeral"]
    without = lab_of(made.pod).who(path_of(made.pod))
    assert issuing.identity(without).spiffe_ids == ("spiffe://e.org/unix",)
    granted = lab_of(made.pod, ephemeral=True).who(path_of(made.pod))
    ids_of = {f"spiffe://e.org/{each}" for each in ("pod", "both", "unix")}
    assert set(issuing.identity(granted).spiffe_ids or ()) == ids_of


def test_other_rules_count_at_once() -> None:
    """A setting that is changed while it runs takes and gives selectors, though the pod is the same."""
    made = ROWS["ephemeral"]
    lab = lab_of(made.pod)
    for rules, wanted in (
        (Rules(ephemeral_containers=True), "own"),
        (Rules(disable_container_selectors=True), "pod"),
        (Rules(), "none"),
    ):
        lab.index.set_rules(rules)
        lab.index.refresh(lab.now)
        assert words(lab.who(path_of(made.pod)).workload.selectors, made) == wanted


@pytest.mark.parametrize("later", [{"former_id": cid(A), "restarts": 1}, {"restarts": 1}, {"former_id": cid(A)}])
def test_a_restart_takes_the_selectors_of_the_former_instance(later: dict[str, object]) -> None:
    """What still runs in the old container stays resolved as it, and has no selectors once the list has the new one."""
    lab = lab_of(pod(A, OWN))
    assert lab.who(path_of(pod(A))).workload.selectors
    owner = pod(A, container(B, **later))
    lab.pods(owner, pod(C, container(C)))
    found = lab.who(path_of(pod(A))).workload
    assert (found.state, found.container, found.kind, found.selectors) == ("resolved", "app", "container", ())
    assert found.reason_text is not None


@pytest.mark.parametrize("lagging", [pod(A, container(D)), pod(A, container(None, state="waiting")), pod(A)])
def test_a_list_that_lacks_a_container_takes_nothing_away(lagging: Pod) -> None:
    """A container that was listed keeps its selectors where a list does not have it and shows no later instance."""
    lab = lab_of(pod(A, replace(OWN, restarts=1)))
    lab.pods(lagging, pod(C, container(C)))
    assert "k8s:container-name:app" in lab.who(path_of(pod(A))).workload.selectors


@pytest.mark.parametrize("ephemeral", [False, True])
def test_what_an_ephemeral_container_names_below_itself_grants_nothing(ephemeral: bool) -> None:
    """A cgroup that it calls like another pod's container has what it has, also without container selectors."""
    made = ROWS["ephemeral"]
    lab = lab_of(made.pod, ephemeral=ephemeral)
    lab.who(path_of(made.pod))
    lab.mkdir(f"{path_of(made.pod)}/pod{uid(C)}/{cid(C)}")
    nested = lab.who(f"{path_of(made.pod)}/pod{uid(C)}/{cid(C)}")
    assert nested.workload == lab.who(path_of(made.pod)).workload
    assert words(lab.index.without_container(nested).selectors, made) == "pod"


# ---- the runtime's word ----


def record(letter: str, name: str, created: int = 1) -> RuntimeContainer:
    """What the runtime tells of a container of pod A."""
    return RuntimeContainer(cid(letter), name, "shop", "cart-a", uid(A), f"{name}:1", "digest", created, created)


@pytest.mark.parametrize("ephemeral", [False, True])
def test_what_the_spec_does_not_have_yet_is_granted_nothing(ephemeral: bool) -> None:
    """A container that the runtime has and the pod's spec has not is pending until the list tells its kind."""
    lab = lab_of(pod(A, APP), ephemeral=ephemeral)
    home = path_of(pod(A))
    lab.index.container(record(A, "debug"), lab.now)
    found = lab.who(home).workload
    assert (found.state, found.reason, found.container, found.kind) == ("pending", "not_listed_yet", "debug", None)
    assert found.selectors == ()
    # The spec has it, the status not yet: the runtime's word is enough for its kind.
    lab.pods(pod(A, APP, spec=spec(APP, DEBUG)), pod(C, container(C)))
    found = lab.who(home).workload
    assert (found.state, found.kind, bool(found.selectors)) == ("resolved", "ephemeral", ephemeral)
    lab.pods(pod(A, APP, DEBUG), pod(C, container(C)))
    found = lab.who(home).workload
    assert (found.state, found.kind, bool(found.selectors)) == ("resolved", "ephemeral", ephemeral)


def test_what_the_spec_never_has_is_given_up() -> None:
    """A container of which no list ever tells the kind is unknown after all attempts."""
    lab = lab_of(pod(A, APP))
    lab.index.container(record(A, "debug"), lab.now)
    lab.wait(31)
    lab.pods(pod(A, APP), pod(C, container(C)))
    assert lab.says(path_of(pod(A)))[:2] == ("unknown", "not_listed")


def test_the_runtimes_older_instance_is_granted_nothing() -> None:
    """Of two instances by one name the runtime's newer one is the container; the older one has no selectors."""
    lab = lab_of(pod(A, container(None, state="waiting")))
    home = path_of(pod(A))
    lab.index.container(record(A, "app", 1), lab.now)
    assert lab.who(home).workload.selectors
    lab.index.container(record(B, "app", 2), lab.now)
    found = lab.who(home).workload
    assert (found.state, found.kind, found.selectors) == ("resolved", "container", ())


# ---- never more than SPIRE ----

ids = st.sampled_from([None, *(cid(each) for each in "abc")])
uids = st.sampled_from([uid(A), uid(A).upper(), uid(B), STATIC, f"{uid(A)}-x", "my-static-01", "x"])
named = st.sampled_from(["app", "side", "debug"])


@st.composite
def containers(draw: st.DrawFn, role: str) -> Container:
    """A container of a status, perhaps one that no kubelet would write."""
    state = draw(st.sampled_from(["running", "waiting", "terminated", None]))
    return Container(
        draw(named), draw(ids), draw(st.sampled_from("ij")), draw(st.sampled_from(["", "d"])), role, state,  # type: ignore[arg-type]
        draw(ids), draw(st.integers(0, 2)), role == "init" and draw(st.booleans()),
    )  # fmt: skip


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    """A pod with any statuses, and a spec that may lag behind them or be ahead."""
    roles = [tuple(draw(st.lists(containers(role), max_size=2))) for role in ("app", "init", "ephemeral")]
    asked = [draw(st.lists(containers(role), max_size=2)) for role in ("app", "init", "ephemeral")]
    of_spec = spec(*(each for some in asked for each in some))
    return Pod(draw(uids), "shop", "cart", "sa", "n", {}, (), *roles, of_spec, draw(st.sampled_from([None, STATIC])))


@given(st.lists(pods(), max_size=3), uids | st.none(), ids.filter(bool), st.booleans(), st.lists(named, max_size=3))
@settings(max_examples=400, deadline=None)
def test_never_more_than_spire_on_the_same_facts(
    listed: list[Pod], path_uid: str | None, container_id: str, alone: bool, told: list[str]
) -> None:
    """Whatever is listed and told, in any kind of status: no process has a selector that SPIRE would not give it on the
    same list, or on the list as the kubelet will write it from what the runtime told."""
    lab = Lab(Rules(disable_container_selectors=alone))
    runtime = Runtime()
    home = f"/kubepods/pod{path_uid}/{container_id}" if path_uid is not None else f"/docker/{container_id}"
    lab.mkdir(home)
    lab.mkdir(f"/kubepods/pod{uid(D)}/{cid(D)}")
    of_d = pod(D, container(D))
    lab.pods(*listed, of_d)
    owner = path_uid or uid(A)
    for at, name in enumerate(told):
        made = replace(record("abc"[at], name, at), pod_uid=owner)
        runtime.take(made)
        lab.index.container(made, lab.now)
    identity = lab.who(home)
    spires = located(ContainerRef(container_id, path_uid))
    table = PodTable.build(listed)
    seen = (table, PodTable.build(runtime.foresee(each) for each in table.pods))

    def allowed(alone: bool) -> list[set[str]]:
        return [set(attest(spires, each, disable_container_selectors=alone).selectors) for each in seen]

    assert any(set(identity.workload.selectors) <= each for each in allowed(alone))
    assert any(set(lab.index.without_container(identity, path_uid).selectors) <= each for each in allowed(True))
    # What is answered of a container that no cgroup is called like.
    nobody = identity._replace(cgroup=None, process=None)
    elsewhere = Lab(Rules(disable_container_selectors=alone))
    elsewhere.pods(*listed)
    found = elsewhere.index.identify_container(nobody, container_id, path_uid, elsewhere.now)
    (strictly, _), (without, _) = allowed(alone), allowed(True)
    assert set(found.workload.selectors) <= strictly
    found = found._replace(cgroup=None)
    assert set(elsewhere.index.without_container(found, path_uid).selectors) <= without


@given(pods(), uids | st.none(), ids.filter(bool), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_grant_is_spires_own_set(owner: Pod, path_uid: str | None, container_id: str, alone: bool) -> None:
    """Without the operator's word on ephemeral containers, a grant is exactly what SPIRE answers on that pod."""
    ref = ContainerRef(container_id, path_uid)
    found = [each for _, each in PodTable.build([owner]).find(container_id)]
    given_ = grant(ref, owner, found[0] if found else None, disable_container_selectors=alone)
    outcome = attest(located(ref), PodTable.build([owner]), disable_container_selectors=alone)
    assert (given_.selectors, given_.why_not is None) == (outcome.selectors, bool(outcome.selectors))


def test_a_static_pods_uid_is_not_enough() -> None:
    """SPIRE finds no UID without dashes in a path, so that there the container has to be listed."""
    for each, enough in ((STATIC, False), ("my-static-01", False), (uid(A), True), (f"{uid(A)}-x", False)):
        assert is_pod_enough(ContainerRef(cid(A), each), pod(A, uid=each)) is enough
    assert not is_pod_enough(ContainerRef(cid(A), None), pod(A))
