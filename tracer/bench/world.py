"""The pods of an accuracy run, where their processes can be, who is listed when, and what a user may call like them."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from dataclasses import replace

from tracer.bench.lanes import DEAD
from tracer.bench.oracle import Place
from tracer.bench.pods import Container, Pod, make_pod, restart
from tracer.bench.site import Site
from tracer.bench.user import FORMS

_PODS = 5  # of each actor, every other with two containers
_AWAITED = 8  # pods that are listed and have no cgroup yet, as after a reboot
_ENDED = 8  # containers that have ended and are still named


class World:
    """The places of all actors, and who is listed when. ``delegated`` is the folder beside the pods that a user owns,
    ``actors`` how many have pods."""

    def __init__(self, site: Site, delegated: str, actors: int) -> None:
        self._site = site
        self._delegated = delegated
        self._pods: list[Pod] = []
        self._living: dict[int, Place] = {}
        self._ended: deque[Place] = deque(maxlen=_ENDED)
        self._awaited: deque[tuple[Pod, Place]] = deque()
        self.places: dict[int, Place] = {}
        for number in range(_AWAITED):
            self._await(actors * _PODS + number)

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
        mine.append(self._add(Place(self._make(f"{self._delegated}/imposter-{actor}/{like}"))))
        mine.append(self._add(Place(self._make(f"{self._site.root}/kubepods/burstable/pod{host.uid}"))))
        return mine

    def make_user(self) -> int:
        """The places of a user's processes, which are nobody's, one after the other for each of ``FORMS``, and
        ``init``: the first."""
        first, *_ = [self._add(Place(f"a cgroup of the user's own ({form})")) for form in (*FORMS, "init")]
        return first

    def _make(self, folder: str) -> str:
        os.makedirs(folder, exist_ok=True)
        return folder

    def _add(self, place: Place) -> int:
        number = len(self.places) + DEAD + 1
        self.places[number] = place
        return number

    def _place(self, pod: Pod, container: Container, *, restartable: bool) -> Place:
        folder = self._site.where(pod, container)
        names = (pod.namespace, pod.name, pod.uid, container.name, container.id)
        return Place(folder, *names, restartable=restartable, path=self._site.path(folder))

    def _container(self, pod: Pod, which: int, *, restartable: bool) -> int:
        return self._start(self._place(pod, pod.containers[which], restartable=restartable))

    def _start(self, place: Place) -> int:
        self._make(place.folder)
        number = self._add(place)
        self._living[number] = place
        return number

    def _await(self, pod_number: int) -> None:
        pod = make_pod(pod_number)
        self._awaited.append((pod, self._place(pod, pod.containers[0], restartable=True)))

    @property
    def steady(self) -> Place:
        """A container that never goes."""
        return next(place for place in self.places.values() if place.pod_uid == self._pods[-1].uid)

    def named(self) -> list[Place]:
        """The containers after which somebody may call a cgroup: those that are listed and not made yet, those that
        are there, and those that ended last."""
        return [*(place for _, place in self._awaited), *self._living.values(), *self._ended]

    def names(self) -> list[tuple[str | None, str | None]]:
        """The same, as (pod UID, container ID)."""
        return [(place.pod_uid, place.container_id) for place in self.named()]

    def publish(self) -> None:
        """The kubelet lists all pods as they are now."""
        self._site.publish([*self._pods, *(pod for pod, _ in self._awaited)])
        now = time.monotonic_ns()
        for place in (*self.places.values(), *(place for _, place in self._awaited)):
            place.listed = place.listed or now

    def restart(self, number: int) -> int:
        """The container of a place comes back, by another ID, or in its pod's stead one that was listed before; then
        another pod of the old one's name is listed. Its new place."""
        place = self.places[number]
        at, pod = next((at, pod) for at, pod in enumerate(self._pods) if pod.uid == place.pod_uid)
        self._ended.append(self._living.pop(number))
        if len(pod.containers) == 1 and random.random() < 0.3:  # noqa: S311
            self._pods[at], awaited = self._awaited.popleft()
            self._await(int(pod.service_account.partition("-")[2]))
            new = self._start(awaited)
        else:
            restart(pod.containers[0])
            new = self._container(pod, 0, restartable=True)
        self.publish()
        return new
