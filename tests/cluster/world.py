"""Tracers with different sources of pod data on one cluster, and what they are to say.

What is expected is computed here, from the kubelet's raw JSON and the runtime's raw records, by other code than the
product's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests import machine
from tests.cluster.cluster import Cluster
from tests.cluster.config import APP, CGROUP, PORTS
from tests.cluster.test_cluster import listed
from tests.waiting import until
from tracer import Tracer
from tracer.clock import boottime
from tracer.model import Identity, State
from tracer.settings import Settings
from tracer.sources.cri import CriClient, CriContainer, CriState

WAIT = 60.0
KUBELET, PODS_API, ALONE = "kubelet and CRI", "Pods API and CRI", "kubelet alone"
IMAGE = f'image: "{APP}", imagePullPolicy: Never'
POD = """
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 0
"""


def pod_of(name: str, *containers: str, init: tuple[str, ...] = ()) -> str:
    """The manifest of a pod whose containers are given as YAML without the image, where it is the usual one."""
    text = POD % (name, name)
    for key, each in (("initContainers", init), ("containers", containers)):
        if each:
            text += f"  {key}:\n"
        for container in each:
            image = "" if "image:" in container else f"{IMAGE}, "
            text += f"    - {{{image}{container}}}\n"
    return text


# --- what is expected


def spire(pod: dict[str, Any], status: dict[str, Any]) -> set[str]:
    """SPIRE's selectors of the container with this status, from a pod as the kubelet writes it."""
    meta, spec, state = pod["metadata"], pod["spec"], pod["status"]
    apps, inits = state.get("containerStatuses") or [], state.get("initContainerStatuses") or []
    found = [
        f"sa:{spec.get('serviceAccountName', '')}",
        f"ns:{meta['namespace']}",
        f"node-name:{spec.get('nodeName', '')}",
        f"pod-uid:{meta['uid']}",
        f"pod-name:{meta['name']}",
        f"pod-image-count:{len(apps)}",
        f"pod-init-image-count:{len(inits)}",
        f"container-name:{status['name']}",
    ]
    for key, statuses in (("pod-image", apps), ("pod-init-image", inits), ("container-image", [status])):
        for each in statuses:
            found += [f"{key}:{each.get('imageID', '')}", f"{key}:{each.get('image', '')}"]
    found += [f"pod-label:{key}:{value}" for key, value in (meta.get("labels") or {}).items()]
    for owner in meta.get("ownerReferences") or []:
        found += [f"pod-owner:{owner['kind']}:{owner['name']}", f"pod-owner-uid:{owner['kind']}:{owner['uid']}"]
    return {f"k8s:{value}" for value in found}


def statuses_of(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Container ID → status, of every container that the kubelet lists with an ID."""
    keys = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
    every = [status for key in keys for status in pod["status"].get(key) or []]
    return {each["containerID"].partition("://")[2]: each for each in every if each.get("containerID")}


def foreseen(pod: dict[str, Any], records: list[CriContainer], container_id: str) -> set[str]:
    """The selectors of a container that the kubelet does not list yet: of the status that it will write, name by name
    of the spec the newest record, else its own entry if that has an ID, else the spec's image without an ID."""
    newest = {each.name: each for each in sorted(records, key=lambda each: each.created_at)}
    own = {status["name"]: status for status in statuses_of(pod).values()}

    def status(asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["name"]
        if name in newest:
            return {"name": name, "image": newest[name].image, "imageID": newest[name].image_id}
        return own.get(name) or {"name": name, "image": asked["image"], "imageID": ""}

    written = {
        "containerStatuses": [status(asked) for asked in pod["spec"]["containers"]],
        "initContainerStatuses": [status(asked) for asked in pod["spec"].get("initContainers") or []],
    }
    (record,) = [each for each in records if each.container_id == container_id]
    itself = {"name": record.name, "image": record.image, "imageID": record.image_id}
    asked = [each["name"] for key in ("containers", "initContainers") for each in pod["spec"].get(key) or []]
    if record.name not in asked or newest[record.name] is not record:
        return set()  # an ephemeral one, or the instance before a restart
    return spire({**pod, "status": written}, itself)


# --- the cluster as it is


def named(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """The newest pod of that name that the kubelet lists; not there is "not yet"."""
    found = [pod for pod in listed(cluster, namespace) if pod["metadata"]["name"] == name]
    assert found, f"{name} is not listed"
    return found[-1]


@dataclass
class Look:
    """What the kubelet lists and the runtime has of a namespace, at one moment."""

    at: int
    pods: dict[str, dict[str, Any]]
    records: dict[str, list[CriContainer]]
    with_cgroup: set[str]

    def listed(self, container_id: str) -> set[str] | None:
        """SPIRE's selectors of a container, if the kubelet lists it: none of an ephemeral one."""
        for pod in self.pods.values():
            status = statuses_of(pod).get(container_id)
            if status is not None:
                is_ephemeral = status in (pod["status"].get("ephemeralContainerStatuses") or [])
                return set() if is_ephemeral else spire(pod, status)
        return None

    def to_come(self, uid: str, container_id: str) -> list[set[str]]:
        """The selectors by the runtime's records; without those of which nobody can know, having no cgroup yet."""
        pod, records = self.pods.get(uid), self.records.get(uid, [])
        if pod is None or not any(each.container_id == container_id for each in records):
            return []
        known = [each for each in records if each.container_id in self.with_cgroup or each.state is CriState.EXITED]
        variants = [records] if len(known) == len(records) else [records, known]
        return [
            foreseen(pod, each, container_id)
            for each in variants
            if any(record.container_id == container_id for record in each)
        ]


class World:
    """The tracers, and what is needed to ask the cluster about a namespace."""

    def __init__(self, cluster: Cluster, tracers: dict[str, Tracer], cri: CriClient) -> None:
        self.cluster = cluster
        self.tracers = tracers
        self.cri = cri
        self._records: dict[str, CriContainer] = {}

    def look(self, namespace: str) -> Look:
        """What there is now; each container's status is asked for once, since its image does not change."""
        at = boottime()
        pods = {pod["metadata"]["uid"]: pod for pod in listed(self.cluster, namespace)}
        records: dict[str, list[CriContainer]] = {}
        with_cgroup = set()
        for each in self.cri.list_containers():
            if each.pod_namespace != namespace:
                continue
            record = self._records.get(each.container_id) or self.cri.container_status(each.container_id)
            if record is not None:
                self._records[each.container_id] = record
                records.setdefault(each.pod_uid, []).append(replace(record, state=each.state))
            if self.folders(each.pod_uid, each.container_id):
                with_cgroup.add(each.container_id)
        return Look(at, pods, records, with_cgroup)

    def folders(self, uid: str, container_id: str) -> list[Path]:
        """The cgroups of a container."""
        return machine.cgroup_folders(f"{CGROUP}/kubepods/besteffort/pod{uid}/{container_id}")

    def pids(self, uid: str, container_id: str) -> list[int]:
        """The processes that are in a container's cgroup of every hierarchy."""
        folders = self.folders(uid, container_id)
        with contextlib.suppress(OSError):
            if len(folders) == len(machine.hierarchies()):
                found = [set(folder.joinpath("cgroup.procs").read_text().split()) for folder in folders]
                return sorted(map(int, set.intersection(*found)))
        return []

    def running(self, namespace: str, name: str, container: str) -> tuple[str, str]:
        """Waits until the kubelet says that a container runs; its pod's UID and its ID."""

        def check() -> tuple[str, str] | None:
            pod = named(self.cluster, namespace, name)
            for container_id, status in statuses_of(pod).items():
                if status["name"] == container and "running" in status["state"]:
                    return pod["metadata"]["uid"], container_id
            return None

        return until(check, WAIT, f"container {container} of {name} to run", interval=0.05)

    def born(self, namespace: str, container: str) -> tuple[str, str, int]:
        """Waits until a container of that name has a process; its pod's UID, its ID and the process."""

        def check() -> tuple[str, str, int] | None:
            for each in self.cri.list_containers():
                if (each.pod_namespace, each.name) == (namespace, container):
                    for pid in self.pids(each.pod_uid, each.container_id):
                        return each.pod_uid, each.container_id, pid
            return None

        return until(check, WAIT, f"a process of container {container}")

    def agree(self, namespace: str, uid: str, container_id: str, *, within: float = 10) -> dict[str, Identity]:
        """Waits until every tracer says of each process of a container what the kubelet's list says."""

        def check() -> dict[str, Identity]:
            wanted = self.look(namespace).listed(container_id)
            found = {}
            for mode, tracer in self.tracers.items():
                pids = self.pids(uid, container_id)
                assert pids
                assert wanted is not None
                for pid in pids:
                    found[mode] = identity = tracer.lookup(pid)
                    workload = identity.workload
                    assert (workload.state, workload.container_id) == (State.RESOLVED, container_id), (mode, workload)
                    assert set(workload.selectors) == wanted, (mode, workload)
                    assert workload.pods_from == ("pods-api" if mode == PODS_API else "kubelet"), (mode, workload)
                    assert workload.settled, mode
            return found

        return until(check, within, "all tracers to agree with the kubelet", interval=0.05)

    def early(self, namespace: str, container: str) -> dict[str, Identity]:
        """What the tracers that ask the runtime say of a container's process while the kubelet does not list it."""
        uid, container_id, _ = self.born(namespace, container)

        def check() -> dict[str, Identity]:
            pids = self.pids(uid, container_id)  # those that prepare the container end
            assert pids
            pid = pids[0]
            look = self.look(namespace)
            found = {mode: self.tracers[mode].lookup(pid) for mode in (KUBELET, PODS_API)}
            for mode, identity in found.items():
                workload = identity.workload
                assert (workload.state, workload.pods_from) == (State.RESOLVED, "cri"), (mode, workload)
                assert set(workload.selectors) in look.to_come(uid, container_id), (mode, workload)
            assert self.look(namespace).listed(container_id) is None
            return found

        return until(check, 10, f"{container} to be known by the runtime's word")


@contextlib.contextmanager
def tracing(cluster: Cluster, refresh_interval: float) -> Iterator[World]:
    """Three tracers, each with its sources, in this process."""
    port, cri, pods_api = (
        PORTS["kubelet read-only"],
        f"unix://{cluster.containerd.socket}",
        f"unix://{cluster.pods_api}",
    )
    sources = {KUBELET: (cri, "none"), PODS_API: (cri, pods_api), ALONE: ("none", "none")}
    with contextlib.ExitStack() as stack:
        tracers = {}
        for mode, (runtime, api) in sources.items():
            settings = Settings(
                kubelet_read_only_port=port, cri=runtime, pods_api=api, refresh_interval=refresh_interval
            )
            tracers[mode] = stack.enter_context(Tracer(settings))
        for tracer in tracers.values():
            assert tracer.wait_synced(30)
        yield World(cluster, tracers, stack.enter_context(CriClient(cri)))
