"""Every answer compared with the truth, while processes do what makes answers wrong.

Actors (``actor``) make processes that take the PIDs of others, move, exec and end, in containers that die and come
back, in nested cgroups that are called like other pods' containers, and beside all pods; a ring of one page loses most
of what happens while nobody looks. The actors write down who each process is, so that a look-up during which that did
not change has one right answer. The same questions at the same moments go to an index by the bare PID (``weak``):
unless that one is wrong, the run has proved nothing.
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
from tracer.bench.oracle import Place, Score
from tracer.bench.pods import Pod, make_pod, restart
from tracer.bench.report import Report
from tracer.bench.site import Site
from tracer.bench.weak import ByPid
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
_PODS = 5  # of each actor, every other with two containers
_HELD = 64  # pidfds kept, to be asked again when their processes have ended
_STILL = 0.05  # seconds for a lane to stand still again
_MODES = ("pid", "pid, verified", "pidfd")
METHOD = (
    "Each look-up is compared with what the process was at that moment, which its maker wrote down.",
    "right: the state, and namespace, pod, UID, container and container ID, and the process's inode, are the true "
    "ones.",
    "due: on a living process in a container that the kubelet has listed for a second; late: due, and not resolved.",
    "The bare-PID index is asked the same at the same moments; unless it is wrong the run is invalid.",
)


class Asked(Protocol):
    """What is examined: a tracer, or what stands in for one."""

    def lookup(self, pid: int, *, verify: bool = False) -> Identity: ...
    def lookup_pidfd(self, fd: int) -> Identity: ...


@dataclass(slots=True)
class _Held:
    """A pidfd, and whose it is."""

    fd: int
    actor: int
    lane: int
    truth: Truth


class World:
    """The places of all actors, and who is listed when."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._pods: list[Pod] = []
        self.places: dict[int, Place] = {}

    def make(self, actor: int) -> list[int]:
        """The places of one actor: pods' containers, what is nested in some, and what only looks like one."""
        mine = []
        for number in range(_PODS):
            pod = make_pod(actor * _PODS + number, 1 + number % 2)
            self._pods.append(pod)
            # The last one is never restarted: what is nested in it keeps its name.
            restartable = number < _PODS - 1
            mine += [self._container(pod, n, restartable=restartable and n == 0) for n in range(len(pod.containers))]
        victim, host = self._pods[0], self._pods[-1]
        like = f"kubepods/burstable/pod{victim.uid}/{victim.containers[0].id}"
        holder = self.places[mine[-1]]
        for name in ("container", like, "\udcff\x1b[31m; rm -rf ~", "n" * 255):
            mine.append(self._add(replace(holder, folder=self._make(f"{holder.folder}/{name}"), restartable=False)))
        mine.append(self._add(Place(self._site.other(f"imposter-{actor}/{like}"))))
        mine.append(self._add(Place(self._make(f"{self._site.root}/kubepods/burstable/pod{host.uid}"))))
        return mine

    def _make(self, folder: str) -> str:
        os.makedirs(folder, exist_ok=True)
        return folder

    def _add(self, place: Place) -> int:
        number = len(self.places) + DEAD + 1
        self.places[number] = place
        return number

    def _container(self, pod: Pod, which: int, *, restartable: bool) -> int:
        container = pod.containers[which]
        folder = self._site.folder(pod, container)
        names = (pod.namespace, pod.name, pod.uid, container.name, container.id)
        return self._add(Place(folder, *names, restartable=restartable))

    @property
    def steady(self) -> Place:
        """A container that never goes."""
        return next(place for place in self.places.values() if place.pod_uid == self._pods[-1].uid)

    def publish(self) -> None:
        """The kubelet lists all pods as they are now."""
        self._site.publish(self._pods)
        now = time.monotonic_ns()
        for place in self.places.values():
            place.listed = place.listed or now

    def restart(self, number: int) -> int:
        """The container of a place comes back, by another ID, in another pod of the same name at times: its new
        place."""
        place = self.places[number]
        at, pod = next((at, pod) for at, pod in enumerate(self._pods) if pod.uid == place.pod_uid)
        if len(pod.containers) == 1 and random.random() < 0.3:  # noqa: S311
            self._pods[at] = pod = make_pod(int(pod.service_account.partition("-")[2]), 1)
        else:
            restart(pod.containers[0])
        new = self._container(pod, 0, restartable=True)
        self.publish()
        return new


class Examination:
    """Asks, and judges."""

    def __init__(self, asked: Asked, weak: ByPid, world: World, actors: list[tuple[Helper, Lanes]], *, inodes: bool):
        self._asked = asked
        self._weak = weak
        self._world = world
        self._actors = actors
        self._inodes = inodes
        self._held: deque[_Held] = deque()
        self.scores = {mode: Score() for mode in _MODES}
        self.ended, self.weak = Score(), Score()

    def look(self, turn: int) -> None:
        """One look-up of a process chosen by chance."""
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
        self._judge(self.scores[mode], lanes, lane, truth, lambda: self._asked.lookup(truth.pid, verify=verify))
        self._judge(self.weak, lanes, lane, truth, lambda: self._weak.lookup(truth.pid))

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
        self._judge(self.scores["pidfd"], lanes, lane, truth, lambda: self._asked.lookup_pidfd(fd))
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
    """Fills the report. ``least`` reuses, moves and lost records must have happened; ``examined`` may put something
    else in the tracer's place, to see whether it would be found wrong."""
    seed = random.randrange(1 << 32) if seed is None else seed  # noqa: S311
    random.seed(seed)
    report.settings = {
        "duration_s": duration,
        "least": least,
        "seed": seed,
        "actors": _ACTORS,
        "processes": _ACTORS * LANES,
    }
    report.method = METHOD
    with ExitStack() as stack:
        site = stack.enter_context(Site(settings, warn=warn))
        world = World(site)
        lanes = [Lanes.make() for _ in range(_ACTORS)]
        mine = [world.make(actor) for actor in range(_ACTORS)]
        world.publish()
        # So that the tracer finds at once which hierarchy holds the containers.
        stack.enter_context(Holder()).hold([(world.steady.folder, 1)])
        progress("starting the tracer with a ring of one page")
        tracer = stack.enter_context(small_ring(site.settings, warn))
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
        examination = Examination(asked, ByPid(watch), world, actors, inodes=tracer.features.pidfs)
        stack.callback(examination.close)
        try:
            _examine(examination, tracer, lanes, duration, least, progress)
        finally:
            _conclude(report, examination, tracer, lanes, least)


def _examine(
    examination: Examination,
    tracer: Tracer,
    lanes: list[Lanes],
    duration: float,
    least: int,
    progress: Callable[[str], None],
) -> None:
    begun = time.monotonic()
    turn = 0
    told = 0.0
    while (now := time.monotonic()) < begun + duration * _LONGEST:
        done = _happened(tracer, lanes)
        if now >= begun + duration and min(done["reuses"], done["moves"], done["lost"]) >= least:
            return
        if now - told >= 2:
            told = now
            progress(f"{done['reuses']} reuses, {done['moves']} moves, {done['lost']} records lost")
        while time.monotonic() < now + _LOOKING:
            for _ in range(50):
                examination.look(turn)
                turn += 1
            examination.serve(0)
        examination.serve(_SILENT)  # nobody looks, and the ring runs over


def _happened(tracer: Tracer, lanes: list[Lanes]) -> dict[str, int]:
    done: dict[str, int] = {}
    for each in lanes:
        for name, count in each.counts().items():
            done[name] = done.get(name, 0) + count
    done["lost"] = tracer.counters()["lost_process"]
    return done


def _conclude(report: Report, examination: Examination, tracer: Tracer, lanes: list[Lanes], least: int) -> None:
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
    done = _happened(tracer, lanes)
    report.bars = {
        "look-ups": sum(score.lookups for score in scores.values()),
        "podtracer: wrong": sum(score.wrong for score in scores.values()),
        "podtracer: late": sum(score.late for score in scores.values()),
        "by the bare PID: wrong": examination.weak.wrong,
        "PIDs reused": done["reuses"],
        "moves": done["moves"],
        "records lost": done["lost"],
        "containers restarted": done["restarts"],
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
        for name, what in (("reuses", "reuses of PIDs"), ("moves", "moves"), ("lost", "lost records"))
        if done[name] < least
    ]
    if not weak.wrong:
        failures.append("the run is invalid: an index by the bare PID was never wrong in it")
    return failures


__all__ = ["Asked", "Examination", "gone", "run", "small_ring", "verdict"]
