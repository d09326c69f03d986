"""What containers go through on a real cluster, as tracers with different sources tell it at the same time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, ClusterError
from tests.cluster.config import APP, PORTS
from tests.cluster.world import ALONE, KUBELET, PODS_API, WAIT, Look, World, named, pod_of, statuses_of, tracing
from tests.entries import entry, write
from tests.waiting import SLOW, until
from tracer import Tracer
from tracer.clock import boottime
from tracer.model import Identity, State
from tracer.settings import Settings

pytestmark = [pytest.mark.root, pytest.mark.cluster]

MOMENTS = 100


@pytest.fixture(scope="module")
def world(cluster: Cluster) -> Iterator[World]:
    """The tracers, which ask once a second."""
    with tracing(cluster, 1.0) as world:
        yield world


# --- at a hundred moments

MIXED = pod_of(
    "mixed",
    'name: hooked, lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 1"]}}}',
    "name: second",
    'name: broken, image: "localhost/missing:1", imagePullPolicy: Never',
    init=('name: before, command: [sh, -c, "sleep 1"]', "name: sidecar, restartPolicy: Always"),
)
CRASHING = pod_of("crashing", 'name: app, command: [sh, -c, "sleep 1; exit 1"]')
PAIR = pod_of("pair", "name: one", "name: two")


@dataclass
class Moments:
    """Compares what the tracers say with what the cluster says."""

    world: World
    namespace: str
    of_list: dict[str, int] = field(default_factory=dict)
    of_runtime: dict[str, int] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)

    def check(self) -> None:
        """One moment: every process of every container, between two looks at the cluster."""
        before = self.world.look(self.namespace)
        found = self._ask(before)
        after = self.world.look(self.namespace)
        seen: dict[str, set[str]] = {"of_list": set(), "of_runtime": set()}
        for mode, uid, container_id, pid, identity in found:
            workload = identity.workload
            if workload.state is not State.RESOLVED:
                # A process that came after the look may not be known yet, but is never said to be on the host.
                assert workload.state is not State.HOST, (mode, container_id, workload)
                continue
            assert (workload.container_id, workload.pod_uid) == (container_id, uid), (mode, workload)
            by_list = workload.pods_from != "cri"
            if identity.pods_at is None or identity.pods_at < before.at:
                continue
            right = self._right(before, after, uid, container_id, by_list)
            if set(workload.selectors) in right:
                seen["of_list" if by_list else "of_runtime"].add(mode)
                continue
            told = f"{mode}: {container_id} {sorted(workload.selectors)} from {workload.pods_from}, not {right}"
            of_list = before.listed(container_id)
            if mode != PODS_API and of_list is not None and of_list == after.listed(container_id):
                raise AssertionError(told)
            # Something changed between the looks, or the Pods API, or a cgroup, was ahead of them.
            self.late.append(told)
            until(lambda mode=mode, uid=uid, cid=container_id, pid=pid: self._comes_right(mode, uid, cid, pid), 2, told)
        for mode in seen["of_list"]:
            self.of_list[mode] = self.of_list.get(mode, 0) + 1
        for mode in seen["of_runtime"]:
            self.of_runtime[mode] = self.of_runtime.get(mode, 0) + 1

    def _ask(self, look: Look) -> list[tuple[str, str, str, int, Identity]]:
        """Each tracer's answer for each process, once the tracers have asked for pods since the look."""
        processes = [
            (uid, each.container_id, pid)
            for uid, records in look.records.items()
            for each in records
            for pid in self.world.pids(uid, each.container_id)
        ]

        def answers() -> list[tuple[str, str, str, int, Identity]]:
            return [
                (mode, uid, container_id, pid, tracer.lookup(pid))
                for mode, tracer in self.world.tracers.items()
                for uid, container_id, pid in processes
            ]

        def fresh() -> list[tuple[str, str, str, int, Identity]]:
            found = answers()
            resolved = [each[4] for each in found if each[4].state is State.RESOLVED]
            assert all((identity.pods_at or 0) >= look.at for identity in resolved)
            return found

        with contextlib.suppress(TimeoutError):
            return until(fresh, 1, "fresh pods") if processes else []
        return answers()

    def _right(self, before: Look, after: Look, uid: str, container_id: str, by_list: bool) -> list[set[str]]:
        if by_list:
            found = [each for look in (before, after) if (each := look.listed(container_id)) is not None]
            return found or [set()]  # the instance before a restart
        return [each for look in (before, after) for each in look.to_come(uid, container_id)]

    def _comes_right(self, mode: str, uid: str, container_id: str, pid: int) -> bool:
        look = self.world.look(self.namespace)
        identity = self.world.tracers[mode].lookup(pid)
        if identity.state is not State.RESOLVED:
            return True  # it ended
        right = self._right(look, look, uid, container_id, identity.workload.pods_from != "cri")
        return set(identity.workload.selectors) in right


def test_selectors_at_a_hundred_moments(cluster: Cluster, namespace: str) -> None:
    """While pods come, restart, change and go, each container's selectors are at a hundred moments those of SPIRE's
    rules on the kubelet's list, and before that those of the status that the kubelet will write."""
    stop = threading.Event()
    rounds: list[Exception | None] = []

    def churn() -> None:
        number = 0
        try:
            cluster.apply(CRASHING, namespace)
            while not stop.is_set():
                number += 1
                cluster.apply(f"{MIXED}---{PAIR}", namespace)
                for name in ("pair", "crashing", "mixed"):
                    cluster.kubectl("label", "pod", name, f"round=r{number}", "--overwrite", "--namespace", namespace)
                until(lambda: len(statuses_of(named(cluster, namespace, "mixed"))) >= 4, WAIT, "the containers")
                cluster.kubectl("delete", "pod", "mixed", "pair", "--namespace", namespace)
                rounds.append(None)
        except (ClusterError, TimeoutError, OSError) as error:
            rounds.append(error)

    with tracing(cluster, 0.1) as world:
        moments = Moments(world, namespace)
        thread = threading.Thread(target=churn)
        thread.start()
        try:
            end = boottime() + round(90e9 * SLOW)
            while boottime() < end and not any(rounds):
                moments.check()
                if len(rounds) >= 2 and min(moments.of_list.get(mode, 0) for mode in world.tracers) >= MOMENTS:
                    break
        finally:
            stop.set()
            thread.join(WAIT)
    assert not any(rounds), rounds
    assert all(moments.of_list.get(mode, 0) >= MOMENTS for mode in world.tracers), moments.of_list
    assert all(moments.of_runtime.get(mode, 0) >= 5 for mode in (KUBELET, PODS_API)), moments.of_runtime
    assert ALONE not in moments.of_runtime


# --- scenarios


def test_init_containers(world: World, namespace: str) -> None:
    """An init container that ends and a native sidecar are resolved as themselves, before and after the kubelet lists
    them, and so is the app beside them."""
    first = 'name: first, command: [sh, -c, "sleep 4"]'
    world.cluster.apply(pod_of("init", "name: app", init=(first, "name: sidecar, restartPolicy: Always")), namespace)
    uid, container_id = world.running(namespace, "init", "first")
    for identity in world.agree(namespace, uid, container_id, within=4).values():
        assert identity.workload.container == "first"
        assert "k8s:pod-init-image-count:2" in identity.workload.selectors
    sidecar = world.running(namespace, "init", "sidecar")
    app = world.running(namespace, "init", "app")
    for (uid, container_id), name in ((sidecar, "sidecar"), (app, "app")):
        identities = world.agree(namespace, uid, container_id)
        assert {identity.workload.container for identity in identities.values()} == {name}


def test_a_second_image_is_missing(world: World, namespace: str) -> None:
    """Behind a hook, the first of two containers is resolved by the runtime's word but not settled, with the literal
    empty image of the second; listed, it is settled and keeps that, since its image never comes."""
    hooked = 'name: app, lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 3"]}}}'
    broken = 'name: broken, image: "localhost/missing:1", imagePullPolicy: Never'
    world.cluster.apply(pod_of("missing", hooked, broken), namespace)
    for identity in world.early(namespace, "app").values():
        assert identity.workload.settled is False
        assert {"k8s:pod-image:", "k8s:pod-image:localhost/missing:1", "k8s:pod-image-count:2"} <= set(
            identity.workload.selectors
        )
    uid, container_id = world.running(namespace, "missing", "app")
    for identity in world.agree(namespace, uid, container_id).values():
        assert "k8s:pod-image:" in identity.workload.selectors
    reasons = [each["state"] for each in named(world.cluster, namespace, "missing")["status"]["containerStatuses"]]
    assert [each["waiting"]["reason"] for each in reasons if "waiting" in each] == ["ErrImageNeverPull"]


def test_a_post_start_hook(world: World, namespace: str) -> None:
    """While a hook holds back the pod's status, the container is resolved and settled by the runtime's word, with
    the selectors that the kubelet's list gives it later; the kubelet alone says nothing until then."""
    world.cluster.apply(
        pod_of("hooked", 'name: app, lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 3"]}}}'), namespace
    )
    early = world.early(namespace, "app")
    uid, _, pid = world.born(namespace, "app")
    alone = world.tracers[ALONE].lookup(pid)
    assert (alone.state, alone.workload.pod_uid) == (State.PENDING, uid)
    uid, container_id = world.running(namespace, "hooked", "app")
    final = world.agree(namespace, uid, container_id)
    for mode, identity in early.items():
        assert identity.workload.settled
        assert identity.workload.selectors == final[mode].workload.selectors


def test_a_crashed_container_restarts(world: World, namespace: str) -> None:
    """A container that crashes comes back with another ID and is resolved as that one; processes of the old one are
    told as the old one's in every event, and the new one's as the new one's."""
    crash = 'name: app, command: [sh, -c, "while [ ! -e /tmp/crash ]; do sleep 0.1; done; exit 1"]'
    with contextlib.ExitStack() as stack:
        watches = [stack.enter_context(tracer.watch()) for tracer in world.tracers.values()]
        world.cluster.apply(pod_of("crash", crash), namespace)
        uid, old = world.running(namespace, "crash", "app")
        world.agree(namespace, uid, old)
        (pid, *_) = world.pids(uid, old)
        world.cluster.kubectl("exec", "crash", "--namespace", namespace, "--", "touch", "/tmp/crash")
        until(lambda: all(t.lookup(pid).state is State.GONE for t in world.tracers.values()), WAIT, "the crash")
        uid, new = until(
            lambda: (found := world.running(namespace, "crash", "app"))[1] != old and found, WAIT, "the restart"
        )
        world.agree(namespace, uid, new)
        for watch in watches:
            seen = set()
            while (event := watch.next(0)) is not None:
                if event.identity is None or event.identity.state is not State.RESOLVED:
                    continue
                cgroup = event.identity.cgroup
                for container_id in (old, new):
                    if cgroup and cgroup.path and container_id in cgroup.path:
                        seen.add(container_id)
                        assert event.identity.workload.container_id == container_id
            assert seen == {old, new}


def test_kubectl_exec(world: World, namespace: str) -> None:
    """A process that ``kubectl exec`` starts is its container's."""
    world.cluster.apply(pod_of("target", "name: app"), namespace)
    uid, container_id = world.running(namespace, "target", "app")
    entrypoint = world.pids(uid, container_id)
    command = [world.cluster.folder / "kbox", "kubectl", "exec", "target", "-n", namespace, "--", "sleep", "100"]
    with subprocess.Popen(command, env=world.cluster.kubectl_environment()) as kubectl:
        try:
            until(lambda: len(world.pids(uid, container_id)) > len(entrypoint), WAIT, "the process")
            identities = world.agree(namespace, uid, container_id)
        finally:
            kubectl.kill()
    assert {identity.key.pid for identity in identities.values()}.isdisjoint(entrypoint)


def test_an_ephemeral_container(world: World, namespace: str, tmp_path: Path) -> None:
    """A container that ``kubectl debug`` adds is resolved as itself, without selectors and without the SPIFFE ID of an
    entry for its pod, as SPIRE does not look for it; ``ephemeral_containers`` gives it its pod's."""
    world.cluster.apply(pod_of("target", "name: app"), namespace)
    world.running(namespace, "target", "app")
    debug = ("debug", "target", f"--image={APP}", "--image-pull-policy=Never", "--container=probe")
    world.cluster.kubectl("--namespace", namespace, *debug)
    uid, container_id = world.running(namespace, "target", "probe")
    for identity in world.agree(namespace, uid, container_id).values():
        workload = identity.workload
        assert (workload.container, workload.kind, workload.selectors) == ("probe", "ephemeral", ())
        assert "--ephemeral-containers" in (workload.reason_text or "")

    (pid,) = world.pids(uid, container_id)
    entries = write(tmp_path / "entries.json", entry("/target", f"k8s:ns:{namespace}", "k8s:pod-name:target"))
    for grants, ids in ((False, ()), (True, ("spiffe://example.org/target",))):
        settings = Settings(
            kubelet_read_only_port=PORTS["kubelet read-only"],
            cri=f"unix://{world.cluster.containerd.socket}",
            pods_api="none",
            entries_file=str(entries),
            ephemeral_containers=grants,
        )
        with Tracer(settings) as tracer:
            assert tracer.wait_synced(30)
            until(lambda tracer=tracer: tracer.lookup(pid).state is State.RESOLVED, 10, "the container")
            found = tracer.lookup(pid)
            assert (found.workload.kind, found.spiffe_ids) == ("ephemeral", ids)
            assert ("k8s:container-name:probe" in found.workload.selectors) is grants
            assert bool(found.workload.selectors) is grants
            # What SPIRE answers with disable_container_selectors: its path names the pod.
            alone = tracer.lookup(pid, container_selectors=False)
            assert "k8s:pod-name:target" in alone.workload.selectors
            assert not any(each.startswith("k8s:container-") for each in alone.workload.selectors)
            by_files = tracer.lookup(pid, mode="parity")
            assert (by_files.state is State.RESOLVED, by_files.workload.selectors) == (False, ())


def test_an_edited_label(world: World, namespace: str) -> None:
    """An edit of a label is in the selectors of every tracer within a refresh interval, the old value no more."""
    world.cluster.apply(pod_of("labelled", "name: app"), namespace)
    uid, container_id = world.running(namespace, "labelled", "app")
    world.agree(namespace, uid, container_id)
    (pid,) = world.pids(uid, container_id)
    world.cluster.kubectl("label", "pod", "labelled", "app=other", "--overwrite", "--namespace", namespace)
    until(lambda: named(world.cluster, namespace, "labelled")["metadata"]["labels"]["app"] == "other", WAIT, "the edit")
    edited = boottime()

    def follow() -> bool:
        found = [set(tracer.lookup(pid).workload.selectors) for tracer in world.tracers.values()]
        return all("k8s:pod-label:app:other" in each for each in found)

    until(follow, 10, "the selectors to follow")
    took = (boottime() - edited) / 1e9
    assert took < 2 * SLOW
    for identity in world.agree(namespace, uid, container_id).values():
        assert "k8s:pod-label:app:labelled" not in identity.workload.selectors


def test_a_pod_of_the_same_name(world: World, namespace: str) -> None:
    """A pod deleted by force and made again under its name has a new UID, and is resolved while the old one's process
    may still run; that one is never the new pod."""
    world.cluster.apply(pod_of("twin", "name: app").replace("Seconds: 0", "Seconds: 5"), namespace)
    old_uid, old = world.running(namespace, "twin", "app")
    world.agree(namespace, old_uid, old)
    (pid,) = world.pids(old_uid, old)
    with contextlib.ExitStack() as stack:
        watches = [stack.enter_context(tracer.watch()) for tracer in world.tracers.values()]
        world.cluster.kubectl("delete", "pod", "twin", "--force", "--grace-period=0", "--namespace", namespace)
        world.cluster.apply(pod_of("twin", "name: app"), namespace)
        answers: list[Identity] = []

        def replaced() -> tuple[str, str] | None:
            answers.extend(tracer.lookup(pid) for tracer in world.tracers.values())
            for container_id, status in statuses_of(pod := named(world.cluster, namespace, "twin")).items():
                if pod["metadata"]["uid"] != old_uid and "running" in status["state"]:
                    return pod["metadata"]["uid"], container_id
            return None

        uid, new = until(replaced, WAIT, "the new pod")
        world.agree(namespace, uid, new)
        until(lambda: all(t.lookup(pid).state is State.GONE for t in world.tracers.values()), WAIT, "the old one's end")
        told = [event.identity for watch in watches for event in iter(lambda w=watch: w.next(0), None)]
    assert {answer.workload.pod_uid for answer in answers} <= {old_uid, None}
    for identity in told:
        if identity is not None and identity.cgroup and identity.workload.state is State.RESOLVED:
            for container_id, of in ((old, old_uid), (new, uid)):
                if container_id in (identity.cgroup.path or ""):
                    assert (identity.workload.pod_uid, identity.workload.container_id) == (of, container_id)


def test_a_static_pod(world: World, namespace: str) -> None:
    """A static pod's process has the pod UID that its cgroup and the kubelet name, 32 hex digits, and not the one
    that the API server gives its mirror."""
    manifest = pod_of("fixed", "name: app").replace("metadata: {", f"metadata: {{namespace: {namespace}, ")
    file = world.cluster.static_pods / "fixed.yaml"
    file.write_text(manifest)
    name = f"fixed-{world.cluster.node}"
    try:
        uid, container_id = world.running(namespace, name, "app")
        for identity in world.agree(namespace, uid, container_id).values():
            assert identity.workload.pod_uid == uid
            assert len(uid) == 32
            assert set(uid) <= set("0123456789abcdef")
        mirror = world.cluster.kubectl("get", "pod", name, "--namespace", namespace, "--output", "json")
        assert json.loads(mirror.stdout)["metadata"]["uid"] != uid
    finally:
        file.unlink()
        until(lambda: not any(p["metadata"]["name"] == name for p in world.cluster.pods()), WAIT, "its end")


def test_the_pause_process(world: World, namespace: str) -> None:
    """A pod's pause process is on the host, as a sandbox, from every source, and never a workload."""
    world.cluster.apply(pod_of("plain", "name: app"), namespace)
    uid, container_id = world.running(namespace, "plain", "app")
    world.agree(namespace, uid, container_id)
    (sandbox,) = [each.sandbox_id for each in world.cri.list_sandboxes() if each.pod_uid == uid]
    (pause,) = world.pids(uid, sandbox)

    def host() -> bool:
        workloads = [tracer.lookup(pause).workload for tracer in world.tracers.values()]
        assert all(workload.state is not State.RESOLVED for workload in workloads)
        return all((workload.state, workload.reason) == (State.HOST, "sandbox") for workload in workloads)

    until(host, 10, "the pause process to be known")


@pytest.mark.parametrize("daemon", ["kubelet", "containerd"])
def test_a_daemon_restarted(world: World, namespace: str, daemon: str) -> None:
    """While the kubelet or the runtime is away, and when it is back, identities stay; the next pod is resolved."""
    world.cluster.apply(pod_of("stays", "name: app"), namespace)
    uid, container_id = world.running(namespace, "stays", "app")
    before = world.agree(namespace, uid, container_id)
    (pid,) = world.pids(uid, container_id)
    answers: list[tuple[str, Identity]] = []

    def ask() -> None:
        answers.extend((mode, tracer.lookup(pid)) for mode, tracer in world.tracers.items())

    def away(is_away: bool) -> Callable[[], bool]:
        def check() -> bool:
            ask()
            states = [tracer._sources.states for tracer in world.tracers.values()]
            named = [
                state.ok for each in states for name, state in each.items() if (name == "cri") != (daemon == "kubelet")
            ]
            return (not any(named)) if is_away else all(named)

        return check

    world.cluster.stop(daemon)
    try:
        until(away(True), WAIT, f"the tracers to miss {daemon}")
    finally:
        world.cluster.start(daemon)
    until(away(False), WAIT, f"the tracers to hear of {daemon}", interval=0.05)
    until(world.cluster.ready, WAIT, "the node", interval=0.2)
    ask()
    for mode, identity in answers:
        assert identity.workload.state is State.RESOLVED, (mode, identity)
        assert identity.workload.selectors == before[mode].workload.selectors
    world.cluster.apply(pod_of("next", "name: app"), namespace)
    uid, container_id = world.running(namespace, "next", "app")
    world.agree(namespace, uid, container_id)
