"""How complete an identity is when a workload first asks, on a node with many pods; and what a quiet node costs.

Not a test: ``python -m tests.cluster.join_table`` prints tables for the machine it runs on. Each workload's first act
is to connect; one look-up is made on accept. It was complete when it was resolved with exactly the selectors that
SPIRE's rules give of the kubelet's list later, once that has every container. Where it was not, how much later the
answer became so is measured by asking again.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests import machine
from tests.cluster.build import build
from tests.cluster.cluster import Cluster, default_folder
from tests.cluster.config import PORTS
from tests.cluster.test_cluster import WORKLOAD, listed, running
from tests.cluster.test_join import HOOK, POD
from tests.cluster.world import spire, statuses_of
from tests.waiting import until
from tracer import Tracer
from tracer.model import State
from tracer.settings import Settings
from tracer.sources.cri import CriClient

PODS, STARTS, QUIET_PODS, QUIET = 100, 30, 250, 60.0
SECOND_CONTAINER = """
    - name: side
      image: localhost/asker:1
      imagePullPolicy: Never
      command: [/bin/asker, /sock/s]
      volumeMounts: [{{name: sock, mountPath: /sock}}]
"""
_READ_ONLY = PORTS["kubelet read-only"]


@dataclass
class Asked:
    """One workload that asked: the container's pod UID and ID, what was said when (seconds of ``perf_counter``), and
    how long the one look-up took."""

    asked: float
    took: float
    pod_uid: str | None = None
    container_id: str | None = None
    said: list[tuple[float, bool, frozenset[str]]] = field(default_factory=list)

    def late(self, final: set[str]) -> float:
        """Seconds from the question to an answer that was final: 0 where the first one was."""
        at = next(at for at, is_settled, selectors in self.said if is_settled and selectors == final)
        return 0.0 if at == self.said[0][0] else at - self.asked


class Oracle:
    """Accepts, looks the peer up once, lets it go on, and asks again until the answer is settled."""

    def __init__(self, path: Path, tracer: Tracer, cri: CriClient) -> None:
        self.answers: list[Asked] = []
        # When the runtime was first seen to list all containers of a pod, by UID.
        self.whole: dict[str, float] = {}
        self.containers = 1
        self._tracer = tracer
        self._cri = cri
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._socket.listen()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer:
                pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                began = time.perf_counter()
                identity = self._tracer.lookup(pid)
                answer = Asked(began, time.perf_counter() - began)
                peer.send(b"!")
            follower = threading.Thread(target=self._follow, args=[answer, pid, identity])
            self._threads.append(follower)
            follower.start()

    def _follow(self, answer: Asked, pid: int, identity: Any) -> None:
        uid = identity.workload.pod_uid
        if self.containers > 1 and uid is not None and uid not in self.whole:
            self._threads.append(watcher := threading.Thread(target=self._watch, args=[uid]))
            watcher.start()
        while True:
            workload = identity.workload
            is_settled = workload.state is State.RESOLVED and bool(workload.settled)
            answer.said.append((time.perf_counter(), is_settled, frozenset(workload.selectors)))
            if is_settled:
                break
            while identity.workload is workload:
                assert time.perf_counter() < answer.asked + 60, identity
                time.sleep(0.001)
                identity = self._tracer.lookup(pid)
        answer.pod_uid, answer.container_id = workload.pod_uid, workload.container_id
        self.answers.append(answer)

    def _watch(self, uid: str) -> None:
        self.whole[uid] = float("inf")
        while len(self._cri.list_containers(uid)) < self.containers:
            time.sleep(0.002)
        self.whole[uid] = time.perf_counter()

    def close(self) -> None:
        """Ends it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(60)


class Table:
    """Measures one row after the other on a cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.runtime = f"unix://{cluster.containerd.socket}"
        self._folder = folder

    @contextlib.contextmanager
    def _asking(self, settings: Settings, containers: int) -> Iterator[Oracle]:
        path = self._folder / "s"
        with Tracer(settings) as tracer, CriClient(self.runtime) as cri:
            assert tracer.wait_synced(30)
            oracle = Oracle(path, tracer, cri)
            oracle.containers = containers
            try:
                yield oracle
            finally:
                oracle.close()
                path.unlink()

    def row(self, name: str, sources: str, kind: str, hook: str = "", second: str = "", **settings: Any) -> None:
        """Starts the pods of one row, one after the other, and prints it."""
        containers = 2 if second else 1
        with self._asking(Settings(**settings), containers) as oracle:
            for number in range(STARTS):
                manifest = (POD + second).format(name=f"{name}-{number}", folder=self._folder, hook=hook)
                self.cluster.apply(manifest, "default")
                asked = (number + 1) * containers
                until(lambda asked=asked: len(oracle.answers) >= asked, 90, f"workload {asked} to be known")
            final = until(lambda: self._final(name, containers), 120, "the kubelet to list all", interval=0.2)
        for each in oracle.answers:
            assert each.container_id in final, each
        print(f"| {sources} | {kind} | {_summary(oracle, final)} |", flush=True)
        pods = [f"{name}-{number}" for number in range(STARTS)]
        self.cluster.kubectl("delete", "pod", *pods, "--wait=false", "--grace-period=0", "--force")
        until(lambda: not self._named(name), 120, "the pods to go", interval=0.2)

    def _named(self, name: str) -> list[dict[str, Any]]:
        return [pod for pod in listed(self.cluster, "default") if pod["metadata"]["name"].startswith(f"{name}-")]

    def _final(self, name: str, containers: int) -> dict[str, set[str]] | None:
        final = {}
        for pod in self._named(name):
            final |= {container_id: spire(pod, status) for container_id, status in statuses_of(pod).items()}
        return final if len(final) == STARTS * containers else None

    def requests(self) -> int:
        """How many lists of pods the kubelet's read-only port has answered, by the kubelet's own count."""
        with urllib.request.urlopen(f"http://127.0.0.1:{_READ_ONLY}/metrics", timeout=10) as response:
            text = response.read().decode()
        found = re.findall(
            r'^kubelet_http_requests_total\{[^}]*path="pods",server_type="readonly"\} (\S+)$', text, re.M
        )
        return round(sum(map(float, found)))

    def quiet(self, name: str, **settings: Any) -> None:
        """Counts the lists that a tracer asks for on a node on which nothing changes."""
        with Tracer(Settings(kubelet_read_only_port=_READ_ONLY, **settings)) as tracer:
            assert tracer.wait_synced(30)
            time.sleep(40)  # what is known to no source is asked for until it is given up
            before, own = self.requests(), tracer.sources["kubelet"].fetches
            time.sleep(QUIET)
            after, own = self.requests(), tracer.sources["kubelet"].fetches - own
        expected = QUIET / tracer.settings.refresh_interval
        print(f"| {name} | {after - before} (own count {own}) | {expected:g} |", flush=True)


def _summary(oracle: Oracle, final: dict[str, set[str]]) -> str:
    def but_for_images(selectors: set[str] | frozenset[str]) -> set[str]:
        return {each for each in selectors if not each.startswith("k8s:pod-image:")}

    answers = oracle.answers
    late = [each.late(final[each.container_id or ""]) for each in answers]
    at_once = late.count(0.0)
    but = sum(but_for_images(each.said[0][2]) == but_for_images(final[each.container_id or ""]) for each in answers)
    later = [seconds * 1e3 for seconds in late if seconds]
    text = f"{at_once} of {len(late)} | {but} of {len(late)} | "
    text += f"median {median(later):.0f}, most {max(later):.0f} ms" if later else "-"
    after = [
        (each.asked + seconds - oracle.whole[each.pod_uid or ""]) * 1e3
        for each, seconds in zip(answers, late, strict=True)
        if seconds and (each.pod_uid or "") in oracle.whole
    ]
    text += f" | {f'median {median(after):.0f}, most {max(after):.0f} ms' if after else '-'}"
    return f"{text} | {median(each.took for each in answers) * 1e6:.0f} µs"


def _measure(cluster: Cluster, folder: Path) -> None:
    table = Table(cluster, folder)
    both = {"kubelet_read_only_port": _READ_ONLY, "cri": table.runtime, "pods_api": "none"}
    pushed = {"pods_api": f"unix://{cluster.pods_api}", "cri": table.runtime}
    alone = {"kubelet_read_only_port": _READ_ONLY, "cri": "none", "pods_api": "none"}
    print(f"{PODS} pods running, {STARTS} further starts in each row\n")
    print("| sources | pods | complete at first | complete but for pod-image | else late by |", end="")
    print(" and after the runtime lists the last container by | look-up |")
    print("| --- " * 7 + "|", flush=True)
    table.row("one", "CRI, kubelet", "one container", **both)
    table.row("hooked", "CRI, kubelet", "one, postStart: sleep 3", HOOK, **both)
    table.row("pushed", "CRI, Pods API", "one container", **pushed)
    table.row("two", "CRI, kubelet", "two containers", second=SECOND_CONTAINER, **both)
    table.row("two-pushed", "CRI, Pods API", "two containers", second=SECOND_CONTAINER, **pushed)
    table.row("alone", "kubelet alone", "one container", **alone)
    table.row("alone-two", "kubelet alone", "two containers", second=SECOND_CONTAINER, **alone)
    table.row("alone-hooked", "kubelet alone", "one, postStart: sleep 3", HOOK, **alone)
    cluster.apply(WORKLOAD % QUIET_PODS, "default")
    until(lambda: len(running(cluster, "default")) >= QUIET_PODS, 400, f"{QUIET_PODS} pods", interval=1.0)
    print(f"\n{QUIET_PODS} pods running, nothing changes for {QUIET:g} s\n\n| sources | lists | intervals |")
    print("| --- | --- | --- |", flush=True)
    table.quiet("CRI, kubelet", cri=table.runtime, pods_api="none")
    table.quiet("kubelet alone", cri="none", pods_api="none")


def main() -> None:
    """Brings a cluster up, fills it, measures, and takes it down."""
    build()
    place = default_folder()
    cluster = Cluster(place.with_name(f"{place.name}-join"), owner=machine.Process.of(os.getpid()))
    cluster.up()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            binary = Path(scratch, "asker")
            source = Path(__file__).with_name("asker.c")
            subprocess.run(["gcc", "-O1", "-static", "-o", binary, source], check=True, timeout=60)
            cluster.containerd.add_image("localhost/asker:1", command=["/bin/asker"], extra=[binary])
        cluster.apply(WORKLOAD % PODS, "default")
        until(lambda: len(running(cluster, "default")) >= PODS, 180, f"{PODS} pods", interval=0.5)
        folder = cluster.folder / "join"
        folder.mkdir(exist_ok=True)
        _measure(cluster, folder)
    finally:
        cluster.down()


if __name__ == "__main__":
    sys.exit(main())
