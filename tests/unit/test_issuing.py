"""SPIFFE IDs of identities: when they hold, when nothing can be said, and how they are shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.entries import AGENT, body, entry
from tests.unit.cli_fakes import CART, HOST, WAITING, FakeTracer, event, identity
from tracer.cli.app import App
from tracer.cli.main import run
from tracer.identity.entries import decode
from tracer.issuing import Issuing
from tracer.model import GONE, ProcessKey

DOMAIN = "spiffe://example.org"
SHOP, ROOT = entry("/shop", "k8s:ns:shop"), entry("/root", "unix:uid:0")


class World:
    """Entries, a clock, and processes with their unix selectors; ``asked`` are those that were looked at."""

    def __init__(self, *entries: dict[str, object], agent: str | None = None) -> None:
        self.now = 1000.0
        self.unix: dict[int, tuple[str, ...]] = {}
        self.asked: list[int] = []
        self.issuing = Issuing(agent, self._unix, lambda: self.now)
        self.issuing.take(decode(body(*entries)))

    def _unix(self, key: ProcessKey) -> tuple[str, ...] | None:
        self.asked.append(key.pid)
        return self.unix.get(key.pid)


def test_without_unix_selectors_no_process_is_looked_at() -> None:
    """What the container's selectors decide holds for all of its processes; a host process has none of them."""
    world = World(SHOP, entry("/other", "k8s:ns:other"))
    assert [world.issuing.identity(identity(pid)).spiffe_ids for pid in (1, 2)] == [(f"{DOMAIN}/shop",)] * 2
    assert world.issuing.identity(identity(3, HOST)).spiffe_ids == ()
    assert world.asked == []


@pytest.mark.parametrize("workload", [WAITING, GONE])
def test_nothing_is_said_of_who_is_not_known(workload: object) -> None:
    """Whoever is pending or gone has no SPIFFE IDs, not even an empty list of them."""
    world = World(SHOP, ROOT)
    asked = identity(1, workload)  # type: ignore[arg-type]
    assert world.issuing.identity(asked) == asked
    assert asked.spiffe_ids is None


def test_unix_selectors_are_each_processs_own() -> None:
    """An entry for a user matches the processes of that user, in a pod and on the host, as they are at that moment."""
    world = World(SHOP, ROOT)
    world.unix = {1: ("unix:uid:0",), 2: ("unix:uid:7",), 3: ("unix:uid:0",)}
    assert world.issuing.identity(identity(1)).spiffe_ids == (f"{DOMAIN}/root", f"{DOMAIN}/shop")
    assert world.issuing.identity(identity(2)).spiffe_ids == (f"{DOMAIN}/shop",)
    assert world.issuing.identity(identity(3, HOST)).spiffe_ids == (f"{DOMAIN}/root",)
    world.unix[3] = ("unix:uid:7",)
    assert world.issuing.identity(identity(3, HOST)).spiffe_ids == ()


def test_who_has_ended_is_answered_by_what_was_seen() -> None:
    """A process that cannot be looked at any more has the IDs it had; one that was never seen has its container's, and
    if there are none nothing is said."""
    world = World(SHOP, ROOT)
    world.unix = {1: ("unix:uid:0",)}
    for pid in (1, 2):
        world.issuing.identity(identity(pid))
    world.unix.clear()
    assert world.issuing.identity(identity(1)).spiffe_ids == (f"{DOMAIN}/root", f"{DOMAIN}/shop")
    assert world.issuing.identity(identity(2)).spiffe_ids == (f"{DOMAIN}/shop",)
    assert world.issuing.identity(identity(2, HOST)).spiffe_ids is None


def test_an_entry_holds_again_once_the_clock_was_set_back() -> None:
    """A clock that runs ahead ends an entry; set right again, the entry holds as long as it says."""
    world = World(SHOP, entry("/brief", "k8s:ns:shop", expires_at=1010))
    both = (f"{DOMAIN}/brief", f"{DOMAIN}/shop")
    workload = identity(1)
    for now, ids in ((1000.0, both), (5000.0, both[1:]), (1001.0, both), (1010.0, both[1:]), (900.0, both)):
        world.now = now
        assert world.issuing.identity(workload).spiffe_ids == ids


def test_an_entry_ends_while_we_watch() -> None:
    """An ID is gone from the second on in which its entry expires, though nothing else has changed."""
    world = World(SHOP, entry("/brief", "k8s:ns:shop", expires_at=1010))
    assert world.issuing.identity(identity(1)).spiffe_ids == (f"{DOMAIN}/brief", f"{DOMAIN}/shop")
    world.now = 1010.0
    assert world.issuing.identity(identity(1)).spiffe_ids == (f"{DOMAIN}/shop",)


def test_new_entries_and_new_selectors_count_at_once() -> None:
    """After a reload the new entries count, after a change of the pod its new selectors."""
    world = World(SHOP)
    world.issuing.prepare([CART, HOST, WAITING])
    assert world.issuing.take(decode(body(entry("/cart", "k8s:sa:cart"))))
    assert world.issuing.identity(identity(1)).spiffe_ids == (f"{DOMAIN}/cart",)
    assert world.issuing.identity(identity(1, replace(CART, selectors=("k8s:sa:x",)))).spiffe_ids == ()


def test_only_the_agents_entries_count() -> None:
    """With an agent the entries of others do not; that it has none is told."""
    world = World(SHOP, entry("/theirs", "k8s:ns:shop", parent=f"{DOMAIN}/b"), agent=AGENT)
    assert world.issuing.identity(identity(1)).spiffe_ids == (f"{DOMAIN}/shop",)
    assert not world.issuing.take(decode(body(entry("/theirs", "k8s:ns:shop", parent=f"{DOMAIN}/b"))))
    assert world.issuing.take(decode(body()))


def test_events_get_the_ids_of_their_processes() -> None:
    """Every event about a process has them; those about the stream stay as they are."""
    world = World(SHOP)
    exec_, synced = world.issuing.events([event("exec", 1), event("synced")])
    assert exec_.identity is not None
    assert exec_.identity.spiffe_ids == (f"{DOMAIN}/shop",)
    assert synced.identity is None


IDS = (f"{DOMAIN}/a", f"{DOMAIN}/b\x1b[2J")


@pytest.mark.parametrize("format_", ["table", "wide"])
def test_tables_have_a_column_where_entries_are_given(format_: str, capsys: pytest.CaptureFixture[str]) -> None:
    """IDs are joined by commas and quoted; "none" is a pod's process that gets none, "-" one that has no say."""
    known = {
        1: identity(1)._replace(spiffe_ids=IDS),
        2: identity(2)._replace(spiffe_ids=()),
        3: identity(3, WAITING),
        4: identity(4, HOST)._replace(spiffe_ids=()),
    }
    events = [*(replace(event("exec"), identity=who) for who in known.values()), event("lost", count=3)]
    tracer = FakeTracer(known=known, events=events)

    def column(*words: str) -> list[str]:
        run([*words, "--standalone", "-o", format_, "--entries-file", "x"], App(tracer=tracer.factory, environ={}))
        head, *lines = capsys.readouterr().out.splitlines()
        start = head.index("SPIFFE-ID")
        return [line[start:].split("  ")[0].strip() for line in lines]

    shown = [f"{DOMAIN}/a,{DOMAIN}/b\\x1b[2J", "none", "-", "-"]
    assert column("lookup", "1", "2", "3", "4") == shown
    assert column("watch", "--host", "--count", "4", "--no-snapshot") == shown
    assert tracer.settings is not None
    assert tracer.settings.entries_file == "x"
    run(["lookup", "1", "--standalone", "-o", format_], App(tracer=tracer.factory, environ={}))
    assert "SPIFFE" not in capsys.readouterr().out


def test_json_has_the_ids_as_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has a list, and a jsonpath can go through it."""
    tracer = FakeTracer(known={1: identity(1)._replace(spiffe_ids=IDS)})
    run(["lookup", "1", "--standalone", "-o", "json"], App(tracer=tracer.factory, environ={}))
    assert json.loads(capsys.readouterr().out)["spiffe_ids"] == list(IDS)
    run(["lookup", "1", "--standalone", "-o", "jsonpath={.spiffe_ids[*]}"], App(tracer=tracer.factory, environ={}))
    assert capsys.readouterr().out == f"{DOMAIN}/a {DOMAIN}/b\\x1b[2J\n"


@pytest.mark.parametrize(
    "agent",
    ["example.org/a", "spiffe://", "spiffe://Example.org/a", "spiffe://td/a/../b", "spiffe://td//a", "x" * 9999],
)
def test_an_agent_that_is_no_spiffe_id_is_refused(agent: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the flag, and ends the command with 2."""
    words = ["lookup", "1", "--standalone", "--agent-id", agent]
    assert run(words, App(tracer=FakeTracer().factory, environ={})) == 2
    assert "(agent-id)" in capsys.readouterr().err
