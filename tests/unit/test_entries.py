"""Registration entries: what is read, what matches, and what is said of the rest."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.entries import AGENT, body, entry
from tracer.errors import InputError, TracerError
from tracer.identity.entries import Entries, Entry, decode
from tracer.identity.entries_report import NEAR, key_of

CART = ("k8s:ns:shop", "k8s:sa:default", "k8s:pod-label:app:cart", "k8s:pod-owner:ReplicaSet:cart-7d9f")
ROOT = ("unix:gid:0", "unix:group:root", "unix:uid:0", "unix:user:root")
NOW = 1_700_000_000.0


def ids(listed: Entries, unix: Sequence[str] | None = ROOT, agent: str | None = None) -> tuple[str, ...]:
    """The paths that the cart gets."""
    return tuple(found.removeprefix("spiffe://example.org") for found in listed.spiffe_ids(CART, unix, agent, NOW))


# ---- reading ----


def test_what_the_server_prints_is_read() -> None:
    """IDs are joined, selectors are type:value, sorted and each once, and unknown keys are passed over."""
    (read,) = decode(body(entry("/cart", "k8s:sa:x", "k8s:ns:shop", "k8s:ns:shop", expires_at=17, news=[1]))).entries
    assert read == Entry("cart", "spiffe://example.org/cart", AGENT, ("k8s:ns:shop", "k8s:sa:x"), 17)


@pytest.mark.parametrize("value", [17, "17"])
def test_an_int64_may_be_a_number_or_a_string(value: object) -> None:
    """expires_at is read either way; absent and null are never."""
    assert decode(body(entry("/cart") | {"expires_at": value})).entries[0].expires_at == 17
    assert decode(body(entry("/cart") | {"expires_at": None})).entries[0].expires_at == 0


@pytest.mark.parametrize("text", ['{"entries": [], "next_page_token": ""}', '{"entries": null}', '{"entries":[]}'])
def test_no_entries_are_a_list_too(text: str) -> None:
    """A server without entries is no error."""
    assert decode(text.encode()).entries == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\x7fELF\x02\x01\x01\x00\xff\xfe", "not UTF-8 (byte 8)"),
        (b"\x00\x01\x02", "not JSON"),
        ('{"entries": [], "x": "é'.encode("latin-1") + b'"}', "not UTF-8 (byte 22)"),
        (body(entry("/cart", "k8s:ns:shop"))[:-20], "truncated"),
        (b"[]", "no list of registration entries"),
        (b"{}", "no entries"),
        (b'{"results": []}', "no entries"),
        (b'{"entries": {}}', "$.entries"),
        (b'{"entries": [], "next_page_token": "abc"}', "next_page_token"),
        (body({}), "entry 0 is malformed"),
        (body(entry("/a"), entry("/b") | {"spiffe_id": None}), "entry 1 ('b')"),
        (body(entry("/b") | {"spiffe_id": {"path": "/b"}}), "its spiffe_id is no SPIFFE ID"),
        (body(entry("/b") | {"parent_id": {"path": "b", "trust_domain": "t"}}), "its parent_id is no SPIFFE ID"),
        (body(entry("/b") | {"selectors": [{"type": "k8s"}]}), "$.selectors[0]"),
        (body(entry("/b") | {"selectors": [{"type": "k8s:ns", "value": "x"}]}), "'k8s:ns'"),
        (body(entry("/b") | {"selectors": [{"type": "k8s", "value": ""}]}), "value ''"),
        (body(entry("/b") | {"expires_at": "soon"}), "'soon'"),
        (body(entry("/b") | {"expires_at": "9" * 5000}), "expires_at"),
        (b'{"entries": [' + b"[" * 100_000, "JSON"),
        (b'{"entries": [{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}", "recursion"),
    ],
)
def test_what_is_no_list_of_entries_is_one_clear_error(text: bytes, said: str) -> None:
    """The error says what is wrong and where, and ends a command with 2."""
    with pytest.raises(InputError) as caught:
        decode(text)
    assert said in caught.value.what
    assert caught.value.hint
    assert caught.value.exit_code == 2


@given(st.one_of(st.binary(), st.builds(lambda at: body(entry("/a", "k8s:ns:x"))[:at], st.integers(0, 400))))
def test_reading_raises_nothing_but_our_errors(text: bytes) -> None:
    """Whatever the bytes are, they are entries or one of our errors."""
    with suppress(TracerError):
        decode(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*entry("/x"), "type"]), inner),
    max_leaves=8,
)


@given(st.lists(st.fixed_dictionaries({key: st.just(value) | json_values for key, value in entry("/x").items()})))
def test_any_json_for_an_entry_is_an_entry_or_our_error(entries: list[dict[str, Any]]) -> None:
    """JSON of any other shape in any of an entry's places is an entry or one of our errors."""
    with suppress(TracerError):
        decode(json.dumps({"entries": entries}).encode())


# ---- matching ----


def test_all_selectors_have_to_be_there() -> None:
    """An entry matches with all of its selectors in the set, type and value exactly, and never without any."""
    listed = decode(
        body(
            entry("/all", *CART),
            entry("/one", "k8s:ns:shop"),
            entry("/empty"),
            entry("/other-value", "k8s:ns:shop", "k8s:sa:cart"),
            entry("/other-type", "docker:ns:shop"),
            entry("/prefix", "k8s:ns:sho"),
            entry("/case", "k8s:ns:Shop"),
            entry("/user", "k8s:ns:shop", "unix:uid:0"),
            entry("/nobody", "k8s:ns:shop", "unix:uid:65534"),
            entry("/root", "unix:user:root", "unix:uid:0"),
        )
    )
    assert ids(listed) == ("/all", "/one", "/root", "/user")
    assert ids(listed, unix=None) == ("/all", "/one")


def test_two_entries_with_one_id_give_it_once() -> None:
    """SPIFFE IDs are sorted and each is there once."""
    listed = decode(body(entry("/b", CART[0]), entry("/a", CART[1]), entry("/b", CART[1])))
    assert ids(listed) == ("/a", "/b")


def test_an_expired_entry_gives_nothing() -> None:
    """From the second of its expiry on an entry gives no ID, and is reported as expired."""
    listed = decode(
        body(
            entry("/over", CART[0], expires_at=int(NOW)),
            entry("/soon", CART[0], expires_at=int(NOW) + 1),
            entry("/never", CART[0]),
        )
    )
    assert ids(listed) == ("/never", "/soon")
    matched = listed.report(CART, None, None, NOW).to_dict()["matched"]
    assert {match["id"]: match["expired"] for match in matched} == {"never": False, "soon": False, "over": True}


def test_an_agent_has_the_entries_whose_chain_of_parents_reaches_it() -> None:
    """Parents may be entries, in turn; entries of other agents, and of nobody, are not this agent's."""
    domain = "spiffe://example.org"
    listed = decode(
        body(
            entry("/direct", CART[0]),
            entry("/alias", "k8s_psat:cluster:x"),
            entry("/below", CART[0], parent=f"{domain}/alias"),
            entry("/alias-2", CART[0], parent=f"{domain}/below"),
            entry("/far", CART[0], parent=f"{domain}/alias-2"),
            entry("/elsewhere", CART[0], parent=f"{domain}/spire/agent/x509pop/two"),
            entry("/orphan", CART[0], parent=f"{domain}/nobody"),
            entry("/circle-1", CART[0], parent=f"{domain}/circle-2"),
            entry("/circle-2", CART[0], parent=f"{domain}/circle-1"),
            entry("/self", CART[0], parent=f"{domain}/self"),
        )
    )
    assert ids(listed, agent=AGENT) == ("/alias-2", "/below", "/direct", "/far")
    assert ids(listed, agent=f"{domain}/circle-1") == ("/circle-1", "/circle-2")
    assert ids(listed, agent=f"{domain}/alias") == ("/alias-2", "/below", "/far")
    assert ids(listed, agent=f"{domain}/gone") == ()
    assert len(ids(listed)) == 9
    assert listed.report(CART, None, AGENT, NOW).to_dict()["agent"] == AGENT
    assert listed.report(CART, None, None, NOW).to_dict()["agent"] == "any"


# ---- properties ----

SELECTORS = ("k8s:ns:a", "k8s:ns:b", "k8s:sa:a", "unix:uid:0", "unix:user:root", "unix:path:/x", "docker:label:x")
PATHS = ("/a", "/b", "/c", "/agent")

entries = st.lists(
    st.builds(
        Entry,
        id=st.sampled_from("0123456789"),
        spiffe_id=st.sampled_from(PATHS),
        parent_id=st.sampled_from(PATHS),
        selectors=st.lists(st.sampled_from(SELECTORS), unique=True, max_size=4).map(lambda s: tuple(sorted(s))),
        expires_at=st.sampled_from([0, 1, int(NOW), int(NOW) + 1]),
    ),
    max_size=12,
)
k8s_sets = st.lists(st.sampled_from(SELECTORS[:3]), unique=True)
unix_sets = st.none() | st.lists(st.sampled_from(SELECTORS[3:5]), unique=True)
agents = st.none() | st.sampled_from(PATHS)


def reaches(one: Entry, agent: str, listed: Sequence[Entry]) -> bool:
    """The rule, walked upwards."""
    parents, seen = {one.parent_id}, set[str]()
    while parents - seen:
        seen |= parents
        parents = {up.parent_id for up in listed if up.spiffe_id in seen}
    return agent in seen


@given(entries, k8s_sets, unix_sets, agents)
def test_the_index_answers_as_the_rule_does(
    listed: list[Entry], k8s: list[str], unix: list[str] | None, agent: str | None
) -> None:
    """The indexed answer is that of looking at each entry, with an agent and without; nothing expired is in it."""
    have = {*k8s, *(unix or ())}
    expected = {
        one.spiffe_id
        for one in listed
        if one.selectors
        and have.issuperset(one.selectors)
        and (one.expires_at == 0 or one.expires_at > NOW)
        and (agent is None or reaches(one, agent, listed))
    }
    assert Entries(tuple(listed)).spiffe_ids(k8s, unix, agent, NOW) == tuple(sorted(expected))
    if not Entries(tuple(listed)).of_agent(agent).match(k8s).asks_unix:
        assert Entries(tuple(listed)).spiffe_ids(k8s, SELECTORS[3:5], agent, NOW) == tuple(sorted(expected))


@given(entries, k8s_sets, unix_sets, agents, st.randoms())
def test_order_never_matters(
    listed: list[Entry], k8s: list[str], unix: list[str] | None, agent: str | None, chance: random.Random
) -> None:
    """Entries and selectors in any order give the same IDs and the same report."""
    first = Entries(tuple(listed))
    mixed = Entries(tuple(chance.sample(listed, len(listed))))
    other, other_unix = chance.sample(k8s, len(k8s)), None if unix is None else chance.sample(unix, len(unix))
    assert mixed.spiffe_ids(other, other_unix, agent, NOW) == first.spiffe_ids(k8s, unix, agent, NOW)
    one, two = first.report(k8s, unix, agent, NOW), mixed.report(other, other_unix, agent, NOW)
    assert sorted(map(repr, one.matched)) == sorted(map(repr, two.matched))
    assert sorted(map(repr, one.undecided)) == sorted(map(repr, two.undecided))
    assert [len(near.missing) for near in one.near] == [len(near.missing) for near in two.near]
    assert one.near_left_out == two.near_left_out


@given(entries, k8s_sets, unix_sets, agents)
def test_each_entry_is_reported_once(
    listed: list[Entry], k8s: list[str], unix: list[str] | None, agent: str | None
) -> None:
    """An entry with selectors is matched, near or undecided; the near ones miss more and more; the IDs that a process
    gets are those of the matched ones that are not expired."""
    everything = Entries(tuple(listed))
    report = everything.report(k8s, unix, agent, NOW)
    count = len(report.matched) + len(report.near) + report.near_left_out + len(report.undecided)
    assert count == sum(1 for one in everything.of_agent(agent).entries if one.selectors)
    assert all(len(one.missing) <= len(two.missing) for one, two in pairwise(report.near))
    gets = {match.entry.spiffe_id for match in report.matched if not match.expired}
    assert everything.spiffe_ids(k8s, unix, agent, NOW) == tuple(sorted(gets))
    have = {*k8s, *(unix or ())}
    for near in report.near:
        assert {missing.want for missing in near.missing} == set(near.entry.selectors) - have
    for undecided in report.undecided:
        assert set(undecided.unknown) == set(undecided.entry.selectors) - have


# ---- near misses ----


def test_a_near_miss_shows_what_is_there_instead() -> None:
    """Fewest missing selectors first, each beside the values that the workload has for the same key."""
    listed = decode(
        body(
            entry("/two", "k8s:sa:cart", "k8s:ns:other"),
            entry("/one", "k8s:ns:shop", "k8s:sa:cart", expires_at=1),
            entry("/label", "k8s:ns:shop", "k8s:pod-label:app:card"),
            entry("/no-label", "k8s:ns:shop", "k8s:pod-label:tier:web"),
            entry("/owner", "k8s:ns:shop", "k8s:pod-owner:Deployment:cart"),
            entry("/user", "k8s:ns:shop", "unix:uid:1000"),
        )
    )
    near = {found["id"]: found for found in listed.report(CART, ROOT, None, NOW).to_dict()["near"]}
    assert list(near)[-1] == "two"
    assert near["one"] == {
        "id": "one",
        "spiffe_id": "spiffe://example.org/one",
        "parent_id": AGENT,
        "expired": True,
        "missing": [{"want": "k8s:sa:cart", "have": ["k8s:sa:default"]}],
    }
    assert near["label"]["missing"][0]["have"] == ["k8s:pod-label:app:cart"]
    assert near["no-label"]["missing"][0]["have"] == []
    assert near["owner"]["missing"][0]["have"] == ["k8s:pod-owner:ReplicaSet:cart-7d9f"]
    assert near["user"]["missing"][0]["have"] == ["unix:uid:0"]


def test_what_only_others_know_is_undecided() -> None:
    """An entry that lacks nothing but selectors of other attestors, or of files that are not read, is undecided; unix
    ones are when nobody knows the process."""
    listed = decode(
        body(
            entry("/docker", "k8s:ns:shop", "docker:label:x:y"),
            entry("/both", "k8s:ns:other", "docker:label:x:y"),
            entry("/path", "unix:path:/bin/cart", "unix:uid:0"),
            entry("/user", "unix:uid:1000"),
        )
    )

    def undecided(unix: Sequence[str] | None) -> dict[str, list[str]]:
        report = listed.report(CART, unix, None, NOW).to_dict()
        return {found["id"]: found["unknown"] for found in report["undecided"]}

    assert undecided(ROOT) == {"docker": ["docker:label:x:y"], "path": ["unix:path:/bin/cart"]}
    assert undecided(None) == {
        "docker": ["docker:label:x:y"],
        "path": ["unix:path:/bin/cart", "unix:uid:0"],
        "user": ["unix:uid:1000"],
    }


def test_a_long_list_of_near_misses_is_cut_and_says_so() -> None:
    """Only the nearest are listed; the others are counted."""
    listed = decode(body(*(entry(f"/{n:03}", "k8s:ns:shop", "k8s:sa:cart") for n in range(NEAR + 5))))
    report = listed.report(CART, None, None, NOW).to_dict()
    assert len(report["near"]) == NEAR
    assert report["near_left_out"] == 5
    assert "near_left_out" not in Entries(()).report(CART, None, None, NOW).to_dict()


@pytest.mark.parametrize(
    ("selector", "key"),
    [
        ("k8s:ns:x", "k8s:ns"),
        ("k8s:pod-label:app.kubernetes.io/name:a:b", "k8s:pod-label:app.kubernetes.io/name"),
        ("k8s:ns-label:team:x", "k8s:ns-label:team"),
        ("k8s:pod-owner:Deployment:x", "k8s:pod-owner"),
        ("k8s:pod-owner-uid:Deployment:x", "k8s:pod-owner-uid"),
        ("k8s:container-image:reg:5000/a:1", "k8s:container-image"),
        ("unix:uid:0", "unix:uid"),
        ("odd", "odd"),
    ],
)
def test_the_key_is_what_a_selector_is_about(selector: str, key: str) -> None:
    """Labels are about their own name; everything else is about its first word."""
    assert key_of(selector) == key
