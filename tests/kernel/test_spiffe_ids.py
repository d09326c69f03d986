"""SPIFFE IDs of live processes: the commands as a user runs them, with a file of registration entries."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.entries import AGENT, body, entry, write
from tests.kernel.conftest import Run
from tests.kernel.lab import Cgroup, Kernel
from tests.node import FakePod, listing
from tests.podtracer import Watch, podtracer
from tests.waiting import until
from tracer.sources.replay import ReplayKubelet

pytestmark = pytest.mark.root
DOMAIN = "spiffe://example.org"
CART = FakePod("cart-1")
NOBODY = 65534  # a user and a group that every machine has

Words = list[str | int]


@pytest.fixture
def cgroup(kernel: Kernel) -> Iterator[Cgroup]:
    """The cgroup of the cart's container."""
    made = Cgroup(kernel.mount, CART.cgroup())
    yield made
    made.remove()


@pytest.fixture(scope="module")
def kubelet() -> Iterator[ReplayKubelet]:
    """Lists the cart."""
    with ReplayKubelet(listing(CART)) as running:
        yield running


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    """The file, with an entry for the cart."""
    return write(tmp_path / "entries.json", entry("/cart", "k8s:ns:shop", "k8s:sa:cart"))


@pytest.fixture
def words(kubelet: ReplayKubelet, entries: Path) -> Words:
    """The flags that name both."""
    return ["--kubelet-read-only-port", kubelet.port, "--entries-file", str(entries)]


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """Starts a shell that waits for its end, in a cgroup and as a user; its PID."""
    shells = []

    def run(cgroup: Cgroup | None = None, **more: Any) -> int:
        shell = subprocess.Popen(["/bin/sh", "-c", "read x"], stdin=subprocess.PIPE, **more)
        shells.append(shell)
        if cgroup is not None:
            cgroup.add(shell.pid)
        return shell.pid

    yield run
    for shell in shells:
        shell.communicate(timeout=10)


def _look(*asked: str | int) -> list[dict[str, Any]]:
    found = podtracer("lookup", "--standalone", "-o", "json", *asked)
    assert found.returncode in (0, 1), found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def _run_in(cgroup: Cgroup) -> int:
    """A process that starts in the cgroup and ends; its PID."""
    shell = subprocess.Popen(["/bin/sh", "-c", f"echo $$ > {cgroup.procs}; exec /bin/true"])
    shell.wait(10)
    return shell.pid


def test_watch_shows_spiffe_ids_and_follows_an_edit(
    cgroup: Cgroup, words: Words, entries: Path, start: Callable[..., int]
) -> None:
    """From the snapshot on, each event of a pod's process has the SPIFFE IDs of the entries as they are then; one that
    no entry matches has none; an edit that cannot be read changes nothing."""
    sleeper = start(cgroup)
    with Watch("--host", *words) as watch:

        def ids() -> list[str] | None:
            pid = _run_in(cgroup)
            until(lambda: any(e["event"] == "exit" for e in watch.of(pid)), 10, "the process's end")
            told = [e["spiffe_ids"] for e in watch.of(pid) if e["event"] in ("move", "exec", "exit") and e["pod"]]
            assert len(told) >= 2
            found: list[str] | None = told[-1]
            return found

        (snapshot,) = watch.of(sleeper)
        assert snapshot["spiffe_ids"] == [f"{DOMAIN}/cart"]
        assert ids() == [f"{DOMAIN}/cart"]
        write(
            entries,
            entry("/new", "k8s:pod-name:cart-1"),
            entry("/more", "k8s:container-name:app", "k8s:ns:shop"),
            entry("/over", "k8s:ns:shop", expires_at=1),
            entry("/other", "k8s:ns:other"),
        )
        until(lambda: ids() == [f"{DOMAIN}/more", f"{DOMAIN}/new"], 10, "the edit to be seen")
        entries.write_bytes(body(entry("/cut", "k8s:ns:shop"))[:-9])
        os.utime(entries, ns=(0, 0))
        assert ids() == [f"{DOMAIN}/more", f"{DOMAIN}/new"]
        write(entries, entry("/other", "k8s:ns:other"))
        until(lambda: ids() == [], 10, "the second edit to be seen")


def test_lookup_shows_spiffe_ids(cgroup: Cgroup, words: Words, entries: Path, start: Callable[..., int]) -> None:
    """JSON has the SPIFFE IDs, the table a column for them; a pod's process that no entry matches has none; without
    entries there is nothing of it."""
    pid = start(cgroup)
    assert _look(pid, *words)[0]["spiffe_ids"] == [f"{DOMAIN}/cart"]
    assert _look(pid, *words[:2])[0]["spiffe_ids"] is None
    table = podtracer("lookup", "--standalone", pid, *words).stdout.splitlines()
    assert "SPIFFE-ID" in table[0]
    assert f"{DOMAIN}/cart" in table[1]
    write(entries, entry("/other", "k8s:ns:other"))
    assert _look(pid, *words)[0]["spiffe_ids"] == []
    assert " none " in podtracer("lookup", "--standalone", pid, *words).stdout.splitlines()[1]


def test_an_agent_has_its_own_entries_only(
    cgroup: Cgroup, words: Words, entries: Path, start: Callable[..., int]
) -> None:
    """With --agent-id the entries count whose chain of parents reaches that agent; when none does, that is said."""
    pid = start(cgroup)
    write(entries, entry("/mine", "k8s:ns:shop"), entry("/theirs", "k8s:ns:shop", parent=f"{DOMAIN}/spire/agent/b"))
    assert _look(pid, *words)[0]["spiffe_ids"] == [f"{DOMAIN}/mine", f"{DOMAIN}/theirs"]
    assert _look(pid, *words, "--agent-id", AGENT)[0]["spiffe_ids"] == [f"{DOMAIN}/mine"]
    found = podtracer("lookup", "--standalone", "-o", "json", pid, *words, "--agent-id", f"{DOMAIN}/nobody")
    assert json.loads(found.stdout)["spiffe_ids"] == []
    assert "no registration entry" in found.stderr


def test_a_process_is_looked_at_where_an_entry_wants_its_user(
    cgroup: Cgroup, words: Words, entries: Path, start: Callable[..., int]
) -> None:
    """Entries with unix selectors match by the process's own user and groups: beside a container's selectors in a pod,
    alone on the host."""
    write(
        entries,
        entry("/shop-nobody", "k8s:ns:shop", f"unix:uid:{NOBODY}"),
        entry("/nobody", f"unix:uid:{NOBODY}", f"unix:gid:{NOBODY}"),
        entry("/extra", f"unix:supplementary_gid:{NOBODY}", "unix:user:root", "k8s:ns:shop"),
        entry("/program", "unix:path:/bin/sh"),
        entry("/shop", "k8s:ns:shop"),
    )
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    asked = [
        start(cgroup),
        start(cgroup, **as_nobody),
        start(cgroup, extra_groups=[NOBODY]),
        start(),
        start(**as_nobody),
    ]
    assert [found["spiffe_ids"] for found in _look(*asked, *words)] == [
        [f"{DOMAIN}/shop"],
        [f"{DOMAIN}/nobody", f"{DOMAIN}/shop", f"{DOMAIN}/shop-nobody"],
        [f"{DOMAIN}/extra", f"{DOMAIN}/shop"],
        [],
        [f"{DOMAIN}/nobody"],
    ]


def test_a_host_process_has_its_id_until_its_end(words: Words, entries: Path, lab: Run) -> None:
    """A watch shows the SPIFFE ID of a host process that an entry matches by its user, in its last event too, when
    nobody can be asked about it any more."""
    write(entries, entry("/root", "unix:uid:0", "unix:user:root"))
    helper = lab("pause")
    with Watch("-p", helper.pid, *words) as watch:
        helper.finish()
        until(lambda: any(e["event"] == "exit" for e in watch.of(helper.pid)), 10, "its end")
        assert [(e["event"], e["spiffe_ids"]) for e in watch.of(helper.pid)] == [
            ("snapshot", [f"{DOMAIN}/root"]),
            ("exit", [f"{DOMAIN}/root"]),
        ]


@pytest.mark.parametrize("command", ["watch", "lookup"])
def test_a_file_that_cannot_be_used_ends_a_command_at_once(command: str, tmp_path: Path) -> None:
    """A missing or broken file is one error that names it, exit 2, before anything is loaded; so is an agent that is no
    SPIFFE ID."""
    pid = ["1"] if command == "lookup" else []
    broken = tmp_path / "broken.json"
    broken.write_bytes(b'{"entries": [')
    for flags, said in (
        (["--entries-file", tmp_path / "none.json"], "none.json"),
        (["--entries-file", broken], "truncated"),
        (["--agent-id", "example.org/agent"], "no SPIFFE ID"),
    ):
        found = podtracer(command, "--standalone", *pid, *map(str, flags))
        assert found.returncode == 2
        assert found.stdout == ""
        error, hint = found.stderr.splitlines()
        assert error.startswith("error: ")
        assert said in error
        assert hint.startswith("hint: ")
