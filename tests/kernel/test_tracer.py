"""The tracer as a program uses it, on this kernel, with real processes in pod-shaped cgroups."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel.conftest import Run
from tests.kernel.lab import Cgroup, Helper, empty_slot, tells
from tests.node import FakePod, listing
from tests.waiting import SLOW, until
from tracer import Tracer, lookups
from tracer.kernel.wire import PROCESS, PROCESS_RING_PAGES
from tracer.model import Event, Identity, ProcessEvent, State
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet
from tracer.watching import Watch

pytestmark = pytest.mark.root
CART, VICTIM = FakePod("cart-1"), FakePod("victim-1", "vault", "admin")


class Node:
    """A running tracer, the pods it is told of, and cgroups for their containers."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self._made: list[Cgroup] = []

    def cgroup(self, path: str) -> Cgroup:
        """A cgroup in the tracked hierarchy; there already, if another test made it."""
        assert self.tracer._feed is not None
        made = Cgroup(self.tracer._feed.mount, path)
        self._made.append(made)
        return made

    def remove(self) -> None:
        """Removes what this test made."""
        for cgroup in reversed(self._made):
            cgroup.remove()
        self._made.clear()


@pytest.fixture(scope="module")
def tracer() -> Iterator[Tracer]:
    """A tracer that knows the two pods."""
    with (
        ReplayKubelet(listing(CART, VICTIM)) as kubelet,
        Tracer(Settings(kubelet_read_only_port=kubelet.port)) as running,
    ):
        assert running.wait_synced(30)
        yield running


@pytest.fixture
def node(tracer: Tracer) -> Iterator[Node]:
    """The tracer and a place for cgroups."""
    node = Node(tracer)
    yield node
    node.remove()


def _events(watch: Watch, done: Callable[[list[Event]], bool], timeout: float = 10) -> list[Event]:
    """Events until ``done`` says so of what came so far."""
    found: list[Event] = []

    def enough() -> bool:
        while (event := watch.next(0)) is not None:
            found.append(event)
        return done(found)

    until(enough, timeout, "the events")
    return found


def _of(events: list[Event], pid: int) -> list[str]:
    return [event.event for event in events if event.identity is not None and event.identity.key.pid == pid]


def test_a_process_is_its_pods_from_its_first_record(node: Node) -> None:
    """A process in a listed container's cgroup is resolved, with its pod, in each event and each look-up."""
    cgroup = node.cgroup(CART.cgroup())
    with node.tracer.watch() as watch:
        child = subprocess.Popen(
            ["/bin/sh", "-c", f"echo $$ > {cgroup.procs}; exec sleep 100"], stdout=subprocess.DEVNULL
        )
        events = _events(watch, lambda e: _of(e, child.pid).count("exec") == 2)
        identity = node.tracer.lookup(child.pid)
        child.kill()
        child.wait()
        events += _events(watch, lambda e: "exit" in _of(e, child.pid))
    assert identity.state is State.RESOLVED
    assert identity.workload.pod == "cart-1"
    assert identity.workload.container == "app"
    assert {"k8s:ns:shop", "k8s:sa:cart", "k8s:pod-name:cart-1"} <= set(identity.workload.selectors)
    assert identity.key.ino
    moved = [e for e in events if e.identity and e.identity.key.pid == child.pid and e.event in ("move", "exit")]
    assert [(e.event, e.identity.workload.pod) for e in moved if e.identity] == [
        ("move", "cart-1"),
        ("exit", "cart-1"),
    ]
    assert moved[1].extra == {"exit_code": None, "signal": 9}
    assert node.tracer.lookup(child.pid).state is State.GONE


@pytest.fixture
def no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much others do on this machine, a look-up looks through all that is unread."""
    monkeypatch.setattr(lookups, "_NEWEST", 1 << 20)


@pytest.mark.usefixtures("no_storm")
def test_what_a_process_has_become_is_told_while_others_are_busy(node: Node, lab: Run) -> None:
    """The look-up after an exec has the new name and its source, among unread records of others."""
    for _ in range(10):
        words = ["/bin/sh", "-c", "read x; exec cat"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            node.tracer.lookup(child.pid)
            lab("forks", 10).number()
            child.stdin.write(b"x\ny")
            assert child.stdout.read(1) == b"y"  # which the new program says
            process = node.tracer.lookup(child.pid).process
        assert process is not None
        assert (process.comm, process.source) == ("cat", "exec")


@pytest.mark.usefixtures("no_storm")
def test_a_record_that_another_thread_is_taking_in_is_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the tracer's own thread has read an exec's record and the index does not have it yet, the look-up of that
    process waits, and has the new name."""
    feed = node.tracer._feed
    assert feed is not None
    taking, go_on = threading.Event(), threading.Event()
    take = feed._process
    words = ["/bin/sh", "-c", "read x; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:

        def slow(event: ProcessEvent) -> Event | None:
            if event.pid == child.pid and event.comm.startswith(b"cat"):
                taking.set()
                assert go_on.wait(60 * SLOW)
            return take(event)

        assert child.stdin is not None
        assert child.stdout is not None
        node.tracer.lookup(child.pid)
        monkeypatch.setattr(feed, "_process", slow)
        found: list[Identity] = []
        asker = threading.Thread(target=lambda: found.append(node.tracer.lookup(child.pid)))
        try:
            child.stdin.write(b"x\ny")
            assert child.stdout.read(1) == b"y"
            assert taking.wait(60 * SLOW), "the tracer's thread drains by itself"
            asker.start()
            assert feed.behind()
            asker.join(0.2)  # time in which it would answer if it did not wait
            assert not found
        finally:
            go_on.set()
            if asker.ident is not None:
                asker.join(60 * SLOW)
    assert found[0].process is not None
    assert (found[0].process.comm, found[0].process.source) == ("cat", "exec")


def test_a_process_that_moves_is_answered_by_where_it_is_now(node: Node, lab: Run) -> None:
    """Between two containers and out to the host, every look-up after a move has the new place, and its source."""
    first, second = node.cgroup(CART.cgroup()), node.cgroup(VICTIM.cgroup())
    helper = lab("pause")
    assert node.tracer.lookup(helper.pid).state is State.HOST
    for _ in range(20):
        for cgroup, pod in ((first, "cart-1"), (second, "victim-1")):
            cgroup.add(helper.pid)
            identity = node.tracer.lookup(helper.pid)
            assert identity.workload.pod == pod
            assert identity.process is not None
            assert identity.process.source == "attach"
    Path(first.mount.path, "cgroup.procs").write_text(str(helper.pid))
    assert node.tracer.lookup(helper.pid).state is State.HOST


def test_a_nested_cgroup_named_after_another_pod_stays_its_own(node: Node, lab: Run) -> None:
    """A container that makes a cgroup below its own and names it after another pod's container is still itself."""
    node.cgroup(VICTIM.cgroup())
    own = node.cgroup(CART.cgroup())
    nested = node.cgroup(f"{CART.cgroup()}/pod{VICTIM.uid}/{VICTIM.containers['app']}")
    again = node.cgroup(f"{CART.cgroup()}{VICTIM.cgroup()}")
    helper = lab("pause")
    for cgroup in (nested, again, own):
        cgroup.add(helper.pid)
        assert node.tracer.lookup(helper.pid).workload.pod == "cart-1"


def test_a_pid_that_comes_back_is_somebody_else(node: Node, lab_binary: Path) -> None:
    """Of 200 processes that are given the same PID by force, in two pods in turn, each is answered as itself: the PID
    came back, what tells them apart never did, and the pidfd of an earlier one is gone."""
    cgroups = [(node.cgroup(CART.cgroup()), "cart-1"), (node.cgroup(VICTIM.cgroup()), "victim-1")]
    wanted, inodes, earlier = 20_000 + os.getpid() % 1000, set(), None
    for turn in range(200):
        cgroup, pod = cgroups[turn % 2]
        with Helper(lab_binary, "with-pid", wanted) as helper:
            assert helper.number() == wanted
            cgroup.add(wanted)
            identity = node.tracer.lookup(wanted)
            assert identity.workload.pod == pod
            assert tells(identity.key.ino, wanted, pidfs=node.tracer.features.pidfs)
            inodes.add(identity.key.ino)
            if earlier is not None:
                assert node.tracer.lookup_pidfd(earlier).state is State.GONE
                os.close(earlier)
            earlier = os.pidfd_open(wanted)
            assert node.tracer.lookup_pidfd(earlier).workload.pod == pod
    assert earlier is not None
    os.close(earlier)
    assert len(inodes) == 200


def test_a_thread_is_answered_as_its_process(node: Node, lab: Run) -> None:
    """A thread's ID gives the process's identity, and keeps the number that was asked."""
    helper = lab("thread")
    helper.number()
    (thread,) = {int(name) for name in os.listdir(f"/proc/{helper.pid}/task")} - {helper.pid}
    identity = node.tracer.lookup(thread)
    assert (identity.key.pid, identity.asked) == (helper.pid, thread)
    assert tells(identity.key.ino, helper.pid, pidfs=node.tracer.features.pidfs)


def test_numbers_that_nobody_has_are_gone(node: Node) -> None:
    """A PID that does not exist, exists no longer, or cannot exist is "gone", verified or not."""
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    for pid in (child.pid, 4_194_304, 2**31 - 1):
        assert node.tracer.lookup(pid).state is State.GONE
        assert node.tracer.lookup(pid, verify=True).state is State.GONE


def test_a_zombie_is_gone(node: Node, lab: Run) -> None:
    """A process that has ended but was not waited for is "gone", though its number is still taken."""
    corpse = lab("zombie").number()
    assert Path(f"/proc/{corpse}").exists()
    until(lambda: node.tracer.lookup(corpse).state is State.GONE, 10, "the zombie to be gone")


def test_everyone_who_runs_is_in_the_snapshot(node: Node) -> None:
    """The snapshot of a watch has every process that /proc has and that lived before and after, init included."""
    before = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    with node.tracer.watch() as watch:
        events = _events(watch, lambda e: any(event.event == "synced" for event in e))
    after = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    shown = {event.identity.key.pid for event in events if event.identity and event.event == "snapshot"}
    zombies = {pid for pid in before if _state(pid) in "ZX"}
    assert (before & after) - zombies <= shown
    assert 1 in shown


def _state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def test_a_slot_that_was_emptied_is_repaired(node: Node, lab: Run) -> None:
    """A living process whose slot is empty is answered all the same, counted, and has its slot back soon."""
    cgroup = node.cgroup(CART.cgroup())
    helper = lab("pause")
    cgroup.add(helper.pid)
    assert node.tracer._feed is not None
    slots = node.tracer._feed.programs.slots
    before = node.tracer.counters()["repairs"]

    def met() -> bool:
        # A scan that another test left due may be ahead of the look-up.
        assert node.tracer._feed is not None
        empty_slot(node.tracer._feed.programs, helper.pid)
        assert node.tracer.lookup(helper.pid).workload.pod == "cart-1"
        return node.tracer.counters()["repairs"] > before

    until(met, 10, "a look-up to meet the empty slot")
    until(lambda: slots.read(helper.pid) is not None, 10, "the slot to be written again")


def test_lost_records_are_counted_told_and_repaired(node: Node, lab: Run) -> None:
    """When the ring of processes overflows, look-ups stay right meanwhile, the loss is counted and told, who was born
    unseen is shown, and who ended unseen is ended."""
    cgroup = node.cgroup(CART.cgroup())
    capacity = PROCESS_RING_PAGES * 4096 // (PROCESS.size + 8)
    assert node.tracer._feed is not None
    doomed = lab("pause")
    with node.tracer.watch() as watch:
        with node.tracer._feed.lock:  # the tracer cannot keep up
            storm = lab("forks", capacity // 2 + 200)
            storm.number()
            unseen = lab("pause")
            cgroup.add(unseen.pid)
            doomed.finish()
            assert node.tracer._feed.programs.counters()["lost_process"] > 0
            assert node.tracer._feed.programs.slots.read(unseen.pid) is not None
        assert node.tracer.lookup(unseen.pid).workload.pod == "cart-1"
        events = _events(
            watch, lambda e: "snapshot" in _of(e, unseen.pid)[-1:] and "exit" in _of(e, doomed.pid), timeout=20
        )
    told = sum(event.extra["count"] for event in events if event.event == "lost")
    assert told == node.tracer.counters()["lost_process"]
    assert _of(events, doomed.pid).count("exit") == 1


def test_a_birth_is_not_held_up_by_unread_forks(node: Node, lab: Run) -> None:
    """With 10,000 records of processes unread, a container's cgroup is known within 5 ms of the tracer's waking up, in
    the best of five tries: births have a ring of their own, and are read first."""
    feed = node.tracer._feed
    assert feed is not None
    took, limit = [], 0.005 * SLOW
    for turn in range(5):
        pod = FakePod(f"late-{turn}")
        with feed.lock:
            storm = lab("forks", 5000)
            storm.number()
            assert feed.programs.processes.unread() >= 10_000
            cgroup = node.cgroup(pod.cgroup())
            released = threading.Event()
            seen: list[float] = []
            watcher = threading.Thread(target=_note_when, args=(node, cgroup.id, released, seen))
            watcher.start()
            released.set()
        watcher.join(20)
        took.append(seen[0])
        if took[-1] <= limit:
            break
        until(lambda: not feed.behind(), 20, "the backlog to be read")
    assert min(took) <= limit, took


def _note_when(node: Node, cgroup: int, released: threading.Event, seen: list[float]) -> None:
    released.wait()
    start = time.monotonic()
    entries = node.tracer._index.cgroups.entries
    while cgroup not in entries and time.monotonic() < start + 10:
        time.sleep(0.0002)
    seen.append(time.monotonic() - start)


def test_a_container_is_wanted_at_the_birth_of_its_cgroup() -> None:
    """A container's cgroup that no source knows has the kubelet asked at once, not at the next interval, and resolves
    as soon as the list has it; one of Docker, outside of any pod, asks nobody."""
    pod = FakePod("new-1", listed=False)
    with (
        ReplayKubelet(listing(pod)) as kubelet,
        Tracer(Settings(kubelet_read_only_port=kubelet.port, refresh_interval=600)) as tracer,
    ):
        assert tracer.wait_synced(30)
        node = Node(tracer)
        try:
            asked = kubelet.requests
            node.cgroup("/docker/" + "d" * 64)
            until(lambda: not tracer._feed or not tracer._feed.behind(), 10, "the news to be read")
            assert kubelet.requests == asked
            cgroup = node.cgroup(pod.cgroup())
            until(lambda: kubelet.requests > asked, 5, "the kubelet to be asked")
            with tracer.watch() as watch:
                child = subprocess.Popen(["/bin/sh", "-c", f"echo $$ > {cgroup.procs}; read x"], stdin=subprocess.PIPE)
                events = _events(watch, lambda e: "move" in _of(e, child.pid))
                assert tracer.lookup(child.pid).state is State.PENDING
                child.communicate(b"\n", timeout=10)
                pod.listed = True
                kubelet.set_body(listing(pod))
                events += _events(watch, lambda e: "resolved" in _of(e, child.pid))
            (resolved,) = [event for event in events if event.event == "resolved"]
            assert resolved.identity is not None
            assert resolved.identity.workload.pod == "new-1"
        finally:
            node.remove()


def test_closing_a_watch_ends_its_iteration(node: Node) -> None:
    """Closing a watch from another thread ends whoever iterates over it, and the tracer goes on."""
    watch = node.tracer.watch(snapshot=False)
    threading.Timer(0.1, watch.close).start()
    assert all(event.event in ("synced", "fork", "exec", "exit", "move", "resolved") for event in watch)
    assert node.tracer.lookup(os.getpid()).state is State.HOST


@pytest.mark.brisk
def test_a_tracer_that_is_closed_meanwhile_says_so() -> None:
    """Look-ups that run in other threads while the tracer is closed end with an answer or with the error that says that
    it is not running, nothing else."""
    for _ in range(3):
        tracer = Tracer(Settings(kubelet="none", cri="none"))
        tracer.start()
        ends: list[str] = []

        def ask(tracer: Tracer = tracer, ends: list[str] = ends) -> None:
            try:
                while True:
                    tracer.lookup(os.getpid())
            except BaseException as error:
                ends.append(type(error).__name__)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)  # they are to be in the midst of it
        tracer.close()
        for thread in threads:
            thread.join(20)
        assert ends == ["RuntimeError"] * 4


@pytest.mark.brisk
def test_starting_and_closing_leaves_nothing_open() -> None:
    """After ten tracers were started and closed in a process it has as many descriptors and threads as before."""
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(10):
        with Tracer(Settings(kubelet="none", cri="none")):
            pass
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert threading.active_count() <= before[1]  # one of an earlier test may have ended meanwhile
