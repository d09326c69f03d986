"""Every answer compared with the truth, while processes do what makes answers wrong.

Actors (``actor``) make processes that take the PIDs of others, move, exec and end, in containers that die and come
back, in nested cgroups that are called like other pods' containers, and beside all pods; a user (``user``) who owns a
subtree of cgroups calls them like containers that are, were or will be, from before the tracer starts; a ring of one
page loses most of what happens while nobody looks. All write down who each process is, so that a look-up during which
that did not change has one right answer. The same questions at the same moments go to an index by the bare PID
(``weak``): unless that one is wrong, the run has proved nothing.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from tracer.bench.helper import Helper
from tracer.bench.holder import Holder
from tracer.bench.lanes import DEAD, LANES, Lanes, Truth
from tracer.bench.oracle import Score
from tracer.bench.report import Report
from tracer.bench.site import Site
from tracer.bench.user import UID
from tracer.bench.weak import ByPid
from tracer.bench.world import World
from tracer.identity.index import gone
from tracer.kernel.loader import Programs
from tracer.model import Identity
from tracer.node import Tracer
from tracer.settings import Settings
from tracer.watching import Watch

LEAST = 1000
RESOLVED = 0.999
_LONGEST = 2.5  # times the duration, until the least of everything must have happened
_LOOKING, _SILENT = 0.25, 0.1  # seconds, in turn
_ACTORS = 2
_HELD = 64  # pidfds kept, to be asked again when their processes have ended
_STILL = 0.05  # seconds for a lane to stand still again
# What must have happened often enough.
_ENOUGH = {
    "reuses": "reuses of PIDs",
    "moves": "moves",
    "lost": "lost records",
    "user_names": "names by a user",
    "user_moves": "moves of a user's processes",
}
_MODES = ("pid", "pid, verified", "pidfd")
_OF_USER, _BY_ID = "a user's process", "container ID"
_ASK_BY_ID = 50  # look-ups of processes for each of a container
METHOD = (
    "Each look-up is compared with what the process was at that moment, which its maker wrote down.",
    "right: the state, and namespace, pod, UID, container and container ID, and the process's inode, are the true "
    "ones.",
    "due: on a living process in a container that the kubelet has listed for a second; late: due, and not resolved.",
    "a user's process: of a user who owns a delegated subtree of cgroups, and calls them like listed containers in all "
    "forms that runtimes use, from before the tracer starts; resolved is wrong.",
    "container ID: of one that is there, was, or is listed and not made yet; it, in its own cgroup, or not resolved.",
    "The bare-PID index is asked the same at the same moments; unless it is wrong the run is invalid.",
)


class Asked(Protocol):
    """What is examined: a tracer, or what stands in for one."""

    def lookup(self, pid: int, *, verify: bool = False) -> Identity: ...
    def lookup_pidfd(self, fd: int) -> Identity: ...
    def lookup_container(self, container_id: str, pod_uid: str | None = None) -> Identity: ...


@dataclass(slots=True)
class _Held:
    """A pidfd, and whose it is."""

    fd: int
    actor: int
    lane: int
    truth: Truth


class Examination:
    """Asks, and judges. ``user`` is the actor whose processes are nobody's."""

    def __init__(
        self,
        asked: Asked,
        weak: ByPid,
        world: World,
        actors: list[tuple[Helper, Lanes]],
        user: tuple[Helper, Lanes],
        *,
        inodes: bool,
    ):
        self._asked = asked
        self._weak = weak
        self._world = world
        self._actors = [*actors, user]
        self._user = user
        self._inodes = inodes
        self._held: deque[_Held] = deque()
        self.scores = {mode: Score() for mode in (*_MODES, _OF_USER, _BY_ID)}
        self.ended, self.weak = Score(), Score()

    def look(self, turn: int) -> None:
        """One look-up of a process chosen by chance, at times of a container."""
        if turn % _ASK_BY_ID == 0:
            self._look_by_id()
        which = random.randrange(len(self._actors))  # noqa: S311
        lane = random.randrange(LANES)  # noqa: S311
        lanes = self._actors[which][1]
        truth = lanes.read(lane)
        if truth.turn % 2 or not truth.pid or lanes.turn(lane) != truth.turn:
            return  # it changes just now
        mode = _MODES[turn % len(_MODES)]
        if mode == "pidfd":
            self._look_by_pidfd(which, lane, truth)
            return
        verify = mode != "pid"
        score = self._score(which, mode)
        self._judge(score, lanes, lane, truth, lambda: self._asked.lookup(truth.pid, verify=verify))
        self._judge(self.weak, lanes, lane, truth, lambda: self._weak.lookup(truth.pid))

    def _score(self, which: int, mode: str) -> Score:
        return self.scores[_OF_USER if self._actors[which] is self._user else mode]

    def _look_by_id(self) -> None:
        place = random.choice(self._world.named())  # noqa: S311
        assert place.container_id is not None
        pod_uid = place.pod_uid if random.random() < 0.5 else None  # noqa: S311
        at = time.monotonic_ns()
        self.scores[_BY_ID].named(self._asked.lookup_container(place.container_id, pod_uid), place, at)

    def _look_by_pidfd(self, which: int, lane: int, truth: Truth) -> None:
        lanes = self._actors[which][1]
        if truth.place == DEAD:
            return
        try:
            fd = os.pidfd_open(truth.pid)
        except ProcessLookupError:
            return
        if lanes.turn(lane) != truth.turn:
            os.close(fd)
            return
        self._judge(self._score(which, "pidfd"), lanes, lane, truth, lambda: self._asked.lookup_pidfd(fd))
        self._held.append(_Held(fd, which, lane, truth))
        if len(self._held) > _HELD:
            self._look_again(self._held.popleft())

    def _look_again(self, held: _Held) -> None:
        """The process of a pidfd that was kept may have ended, and its number be another's."""
        lanes = self._actors[held.actor][1]
        now = lanes.read(held.lane)
        if now.turn % 2 == 0 and lanes.turn(held.lane) == now.turn and now.inode != held.truth.inode:
            self.ended.ended(self._asked.lookup_pidfd(held.fd), self._world.places.get(held.truth.place))
        os.close(held.fd)

    def _judge(self, score: Score, lanes: Lanes, lane: int, truth: Truth, ask: Callable[[], Identity]) -> None:
        if lanes.turn(lane) != truth.turn:
            return
        at = time.monotonic_ns()
        identity = ask()
        places = self._world.places
        if lanes.turn(lane) == truth.turn:
            if truth.place == DEAD:
                score.ended(identity)
            else:
                score.settled(identity, truth, places[truth.place], at, inodes=self._inodes)
            return
        now = self._still(lanes, lane)
        if now is not None and now.turn == truth.turn + 2 and truth.place != DEAD:
            score.moved(identity, places[truth.place], places.get(now.place))

    def _still(self, lanes: Lanes, lane: int) -> Truth | None:
        """The lane once it stands still; ``None`` where it takes too long."""
        end = time.monotonic() + _STILL
        while time.monotonic() < end:
            now = lanes.read(lane)
            if now.turn % 2 == 0 and lanes.turn(lane) == now.turn:
                return now
            time.sleep(0.0001)
        return None

    def serve(self, timeout: float) -> None:
        """Has containers come back whose actors ask for it, for so long."""
        end = time.monotonic() + timeout
        while True:
            for helper, _ in self._actors:
                if helper.ready():
                    old = helper.receive(10)["restart"]
                    new = self._world.restart(old)
                    helper.send([new, self._world.places[new].folder])
                    self._user[0].send(self._world.names())
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.005))

    def close(self) -> None:
        """Closes what is held."""
        while self._held:
            os.close(self._held.popleft().fd)


def small_ring(settings: Settings, warn: Callable[[str], None]) -> Tracer:
    """A tracer whose ring is one page: about forty records."""
    return Tracer(settings, warn=warn, note=lambda _: None, load=partial(Programs, process_ring_pages=1))


def run(
    report: Report,
    settings: Settings,
    *,
    duration: float = 20.0,
    least: int = LEAST,
    seed: int | None = None,
    progress: Callable[[str], None],
    warn: Callable[[str], None],
    examined: Callable[[Tracer], Asked] = lambda tracer: tracer,
) -> None:
    """Fills the report. ``least`` reuses, moves, lost records, and moves and names of the user must have happened;
    ``examined`` may put something else in the tracer's place, to see whether it would be found wrong."""
    seed = random.randrange(1 << 32) if seed is None else seed  # noqa: S311
    random.seed(seed)
    report.settings = {
        "duration_s": duration,
        "least": least,
        "seed": seed,
        "actors": _ACTORS,
        "processes": _ACTORS * LANES,
        "user": UID,
        "user_processes": LANES,
    }
    report.method = METHOD
    with ExitStack() as stack:
        site = stack.enter_context(Site(settings, warn=warn))
        folders = site.delegate(UID)
        world = World(site, folders[0], _ACTORS)
        lanes = [Lanes.make() for _ in range(_ACTORS)]
        mine = [world.make(actor) for actor in range(_ACTORS)]
        world.publish()
        user = _start_user(stack, world, folders, seed + _ACTORS)
        # So that the tracer finds at once which hierarchy holds the containers.
        stack.enter_context(Holder()).hold([(world.steady.folder, 1)])
        progress("starting the tracer with a ring of one page")
        # Without a prefix: a node's operator says none, and then only who owns a cgroup tells a user's from a pod's.
        tracer = stack.enter_context(small_ring(replace(site.settings, cgroup_prefix=None), warn))
        tracer.wait_synced(10)
        watch = stack.enter_context(tracer.watch())
        assert isinstance(watch, Watch)
        home = site.other("actors")
        actors = []
        for number, (lane, places) in enumerate(zip(lanes, mine, strict=True)):
            helper = stack.enter_context(
                Helper("tracer.bench.actor", str(lane.fd), str(seed + number), pass_fds=[lane.fd])
            )
            told = [[place, world.places[place].folder] for place in places]
            again = [place for place in places if world.places[place].restartable]
            helper.send({"places": told, "restartable": again, "home": home, "v2": tracer.hierarchy == "v2"})
            actors.append((helper, lane))
        asked = examined(tracer)
        examination = Examination(asked, ByPid(watch), world, actors, user, inodes=tracer.features.pidfs)
        stack.callback(examination.close)
        try:
            _examine(examination, lambda: _happened(tracer, lanes, user[1]), duration, least, progress)
        finally:
            _conclude(report, examination, tracer, _happened(tracer, lanes, user[1]), least)


def _start_user(stack: ExitStack, world: World, folders: list[str], seed: int) -> tuple[Helper, Lanes]:
    """A user, all of whose processes are in cgroups that are called like containers."""
    lanes = Lanes.make()
    helper = stack.enter_context(Helper("tracer.bench.user", str(lanes.fd), str(seed), pass_fds=[lanes.fd]))
    helper.send(
        {
            "uid": UID,
            "folders": folders,
            "v2": os.path.exists(f"{folders[0]}/cgroup.events"),  # a file that v1 does not have
            "first": world.make_user(),
            "names": world.names(),
        }
    )
    helper.receive(30)
    return helper, lanes


def _examine(
    examination: Examination,
    happened: Callable[[], dict[str, int]],
    duration: float,
    least: int,
    progress: Callable[[str], None],
) -> None:
    begun = time.monotonic()
    turn = 0
    told = 0.0
    while (now := time.monotonic()) < begun + duration * _LONGEST:
        done = happened()
        if now >= begun + duration and min(done[name] for name in _ENOUGH) >= least:
            return
        if now - told >= 2:
            told = now
            progress(
                f"{done['reuses']} reuses, {done['moves']} moves, {done['lost']} records lost,"
                f" {done['user_names']} names by a user"
            )
        while time.monotonic() < now + _LOOKING:
            for _ in range(50):
                examination.look(turn)
                turn += 1
            examination.serve(0)
        examination.serve(_SILENT)  # nobody looks, and the ring runs over


def _happened(tracer: Tracer, lanes: list[Lanes], user: Lanes) -> dict[str, int]:
    done: dict[str, int] = {}
    for each in lanes:
        for name, count in each.counts().items():
            if name != "names":
                done[name] = done.get(name, 0) + count
    mine = user.counts()
    done |= {f"user_{name}": mine[name] for name in ("names", "moves", "forks")}
    done["lost"] = tracer.counters()["lost_process"]
    return done


def _conclude(report: Report, examination: Examination, tracer: Tracer, done: dict[str, int], least: int) -> None:
    scores = {**examination.scores, "pidfd of an ended process": examination.ended}
    rows = [("podtracer", mode, score) for mode, score in scores.items()]
    for index, mode, score in (*rows, ("by the bare PID", "pid", examination.weak)):
        report.add(
            "answers",
            {"index": index, "asked by": mode},
            lookups=score.lookups,
            right=score.right,
            wrong=score.wrong,
            late=score.late,
            pending=score.pending,
            unknown=score.unknown,
            due=score.due,
            overtaken=score.overtaken,
        )
    report.bars = {
        "look-ups": sum(score.lookups for score in scores.values()),
        "podtracer: wrong": sum(score.wrong for score in scores.values()),
        "podtracer: late": sum(score.late for score in scores.values()),
        "by the bare PID: wrong": examination.weak.wrong,
        "PIDs reused": done["reuses"],
        "moves": done["moves"],
        "records lost": done["lost"],
        "containers restarted": done["restarts"],
        "names by a user": done["user_names"],
    }
    for name, count in done.items():
        report.add("what happened", {"what": name}, count=count)
    for name, count in tracer.counters().items():
        report.add("counters", {"what": name}, count=count)
    report.failures += verdict(list(scores.values()), examination.weak, done, least)


def verdict(scores: list[Score], weak: Score, done: dict[str, int], least: int) -> list[str]:
    """Why the run has not shown that answers are right; nothing where it has."""
    failures = []
    wrong = sum(score.wrong for score in scores)
    if wrong:
        examples = [text for score in scores for text in score.examples][:3]
        failures.append(f"{wrong} answers are wrong: {'; '.join(examples)}")
    due, late = sum(score.due for score in scores), sum(score.late for score in scores)
    if not due:
        failures.append("no container was listed for a second")
    elif (due - late) / due < RESOLVED:
        failures.append(f"only {100 * (due - late) / due:.2f} % of the look-ups that were due are resolved")
    failures += [
        f"only {done[name]} {what} of {least} happened: say a longer --duration"
        for name, what in _ENOUGH.items()
        if done[name] < least
    ]
    if not weak.wrong:
        failures.append("the run is invalid: an index by the bare PID was never wrong in it")
    return failures


__all__ = ["Asked", "Examination", "gone", "run", "small_ring", "verdict"]
