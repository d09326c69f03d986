"""The daemon as a pod of a real node: set up as README says it answers, set up wrongly it says what is missing.

The pods run the checkout, with the machine's own Python, below the busybox of the tests' image.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import machine
from tests.cluster.cluster import Cluster
from tests.cluster.config import APP, CGROUP, PORTS
from tests.cluster.test_cluster import listed
from tests.cluster.world import named, statuses_of
from tests.podtracer import COMMAND
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.cluster]

CHECKOUT = Path(__file__).parents[2]
CAPABILITIES = ("BPF", "PERFMON", "DAC_READ_SEARCH")
SOURCES = ("--kubelet-read-only-port", str(PORTS["kubelet read-only"]), "--cri", "none", "--pods-api", "none")
HTTP = 9469
CGROUPS, PART = "/sys/fs/cgroup", "part"


@dataclass(frozen=True, slots=True)
class Variant:
    """How a pod is set up: ``cgroups`` is the folder of the host that it has as /sys/fs/cgroup, ``PART`` one that is no
    hierarchy's root, ``None`` what the runtime gives; ``private`` is for a cgroup namespace of the daemon's own where
    the runtime makes none."""

    name: str
    host_pid: bool = True
    shared_pid: bool = False
    cgroups: str | None = CGROUPS
    private: bool = False


RIGHT = (Variant("right"), Variant("private", private=True))
# What a daemon set up like this says is missing; UID and ID are those of its pod and container.
ALONE = re.escape(f"it is the PID namespace of one pod, whose first process is in '{CGROUP}/kubepods/besteffort/pod")
NOT_WHOLE = "is not the root of the hierarchy|no cgroup hierarchy is mounted"
UNTOLD = "cannot tell whether the pods' are in it, since it cannot name any cgroup|no cgroup hierarchy is mounted"
WRONG = {
    Variant("no-host-pid", host_pid=False): ALONE + "UID/ID'",
    Variant("shared-pid", host_pid=False, shared_pid=True): ALONE
    + "UID/",  # the first process is the pause container's
    Variant("no-mount", cgroups=None): NOT_WHOLE,
    Variant("private-no-mount", cgroups=None, private=True): NOT_WHOLE,
    Variant("part-of-mount", cgroups=PART): "is not the root of the hierarchy",
    Variant("neither", host_pid=False, cgroups=None): UNTOLD,
}


def _seen_from_inside() -> list[Path]:
    """The folders that Python and the checkout are in, none below another."""
    wanted = [Path(path) for path in ("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, CHECKOUT)]
    there = sorted({path for path in wanted if path.is_dir()})
    return [path for path in there if not any(above in path.parents for above in there)]


def _pod(variant: Variant, address: str) -> dict[str, Any]:
    """The manifest. A wrong one has doctor beside it, in the same place; a right one a container that only waits."""
    volumes: list[dict[str, Any]] = [{"name": "run", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "run", "mountPath": "/run/podtracer"}]

    def mount(path: str | Path, at: str | Path) -> None:
        name = f"host{len(volumes)}"
        volumes.append({"name": name, "hostPath": {"path": str(path), "type": "Directory"}})
        mounts.append({"name": name, "mountPath": str(at), "readOnly": True})

    for path in _seen_from_inside():
        mount(path, path)
    if variant.cgroups is not None:
        mount(machine.cgroup_folders(CGROUP)[-1] if variant.cgroups == PART else variant.cgroups, CGROUPS)
    before = ("/usr/bin/unshare", "--cgroup") if variant.private else ()

    def container(name: str, *command: str) -> dict[str, Any]:
        capabilities = (*CAPABILITIES, "SYS_ADMIN") if variant.private else CAPABILITIES
        return {
            "name": name, "image": APP, "imagePullPolicy": "Never", "command": command,
            "workingDir": str(CHECKOUT), "volumeMounts": mounts,
            "securityContext": {"capabilities": {"drop": ["ALL"], "add": capabilities}, "readOnlyRootFilesystem": True},
        }  # fmt: skip

    daemon = container("daemon", *before, *COMMAND, "daemon", *SOURCES, "--http-address", f"{address}:{HTTP}")
    probe = {"path": "/readyz", "host": address, "port": HTTP}
    daemon["readinessProbe"] = {"httpGet": probe, "periodSeconds": 1, "timeoutSeconds": 10}
    doctor = container("doctor", *before, *COMMAND, "doctor", "-o", "json", *SOURCES)
    beside = container("beside", "/bin/sleep", "1000000")
    spec = {
        "hostPID": variant.host_pid, "shareProcessNamespace": variant.shared_pid, "hostNetwork": True,
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
        "volumes": volumes, "containers": [daemon, beside if variant in RIGHT else doctor],
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": variant.name}, "spec": spec}


WEB = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": APP, "imagePullPolicy": "Never"}],
    },
}  # fmt: skip


@dataclass
class Site:
    """The pods of all variants and a usual one, ``web``. ``were_ready`` has those whose daemon was ever Ready."""

    cluster: Cluster
    namespace: str
    were_ready: set[str] = field(default_factory=set)

    def states(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(pod, container) → its status, as the kubelet lists it now."""
        found = {}
        for pod in listed(self.cluster, self.namespace):
            for status in pod["status"].get("containerStatuses") or []:
                found[pod["metadata"]["name"], status["name"]] = status
                if status["name"] == "daemon" and status["ready"]:
                    self.were_ready.add(pod["metadata"]["name"])
        return found

    def have_come(self) -> bool:
        """Whether each pod is what it will be; one set up rightly that has ended fails the tests at once."""
        found = self.states()
        for variant in RIGHT:
            if "terminated" in found.get((variant.name, "daemon"), {"state": {}})["state"]:
                pytest.fail(f"{variant.name} has ended: {self.log(variant.name, 'daemon')}")
        ready = [("web", "main"), *((each.name, container) for each in RIGHT for container in ("daemon", "beside"))]
        if not all(key in found and found[key]["ready"] for key in ready):
            return False
        ended = [found.get((each.name, container)) for each in WRONG for container in ("daemon", "doctor")]
        return all(
            each and ("terminated" in each["state"] or (each["name"], each["ready"]) == ("daemon", True))
            for each in ended
        )

    def log(self, pod: str, container: str) -> str:
        """What a container wrote."""
        return self.cluster.kubectl("--namespace", self.namespace, "logs", pod, "--container", container).stdout

    def ids(self, pod: str, container: str) -> tuple[str, str]:
        """The pod's UID and the container's ID."""
        found = named(self.cluster, self.namespace, pod)
        (container_id,) = (key for key, status in statuses_of(found).items() if status["name"] == container)
        return found["metadata"]["uid"], container_id

    def pids(self, pod: str, container: str) -> list[int]:
        """The processes of a container, by the machine's own PIDs."""
        uid, container_id = self.ids(pod, container)
        folder = machine.cgroup_folders(f"{CGROUP}/kubepods/besteffort/pod{uid}/{container_id}")[0]
        return [int(pid) for pid in folder.joinpath("cgroup.procs").read_text().split()]

    def run(self, pod: str, container: str, *words: str | int) -> subprocess.CompletedProcess[str]:
        """``kubectl exec`` of podtracer in a container."""
        where = ("--namespace", self.namespace, "exec", pod, "--container", container, "--")
        return self.cluster.kubectl(*where, *COMMAND, *map(str, words), check=False)

    def ask(self, pod: str, container: str, *words: str | int) -> subprocess.CompletedProcess[str]:
        """The same, answered by the daemon: a socket that is named has to answer. On a busy machine it may be late."""

        def answered() -> subprocess.CompletedProcess[str]:
            done = self.run(pod, container, *words, "-o", "json", "--socket", "/run/podtracer/podtracer.sock")
            assert done.returncode != 69, done.stderr
            return done

        return until(answered, 60, "the daemon to answer", interval=0.2)


@pytest.fixture(scope="module")
def site(cluster: Cluster) -> Iterator[Site]:
    """All pods at once, when the right ones are Ready and the wrong ones have ended."""
    namespace = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", namespace)
    try:
        account = ("--namespace", namespace, "get", "serviceaccount", "default")
        until(lambda: cluster.kubectl(*account, check=False).returncode == 0, 30, "the service account", interval=0.1)
        variants = enumerate((*RIGHT, *WRONG), start=1)
        # An address each, since all of them have the host's ports.
        pods = [WEB, *(_pod(variant, f"127.9.46.{number}") for number, variant in variants)]
        cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}), namespace)
        site = Site(cluster, namespace)
        until(site.have_come, 180, "the daemons to be Ready or to end", interval=0.1)
        yield site
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
        until(lambda: not listed(cluster, namespace), 60, "the pods to go", interval=0.1)


def _general(text: str, uid: str, container_id: str) -> str:
    """Without what differs between two containers of a pod: their IDs and PID namespaces."""
    return re.sub(r"PID namespace \d+", "PID namespace N", text.replace(uid, "UID").replace(container_id, "ID"))


@pytest.mark.parametrize(("variant", "missing"), WRONG.items(), ids=[variant.name for variant in WRONG])
def test_a_daemon_whose_pod_is_set_up_wrongly_says_what_is_missing(site: Site, variant: Variant, missing: str) -> None:
    """Without hostPID, without the host's cgroups, or with a part of them, the daemon ends with 69 and says why, in the
    words that doctor has in the same place; it was never Ready."""
    states = site.states()
    daemon = states[variant.name, "daemon"]
    log = site.log(variant.name, "daemon")
    assert variant.name not in site.were_ready, log
    assert daemon["state"]["terminated"]["exitCode"] == 69, log
    said = next(line for line in log.splitlines() if line.startswith("error: ")).removeprefix("error: ")
    assert "\nhint: " in log
    said = _general(said, *site.ids(variant.name, "daemon"))
    assert re.search(missing, said)
    answer = json.loads(site.log(variant.name, "doctor"))
    assert (answer["ok"], states[variant.name, "doctor"]["state"]["terminated"]["exitCode"]) == (False, 1)
    ids = site.ids(variant.name, "doctor")
    assert said in [_general(check["found"], *ids) for check in answer["checks"] if check["state"] == "fail"]


@pytest.mark.parametrize("variant", RIGHT, ids=[variant.name for variant in RIGHT])
def test_a_daemon_in_a_pod_answers(site: Site, variant: Variant) -> None:
    """With hostPID, the host's cgroups and three capabilities, and in a private cgroup namespace too, the daemon is
    Ready and knows another pod's process, its own and podtracer's in its container as those pods', and the host's."""
    assert variant.name in site.were_ready
    (daemon,), (web,) = site.pids(variant.name, "daemon"), site.pids("web", "main")
    if variant.private:
        assert os.stat(f"/proc/{daemon}/ns/cgroup").st_ino != os.stat("/proc/self/ns/cgroup").st_ino
    done = site.ask(variant.name, "daemon", "lookup", web, daemon, "self", 1, "--wait=30s")
    *resolved, init = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [("web", "main"), (variant.name, "daemon"), (variant.name, "daemon")]
    for identity, (pod, container) in zip(resolved, expected, strict=True):
        uid, container_id = site.ids(pod, container)
        assert (identity["state"], identity["namespace"]) == ("resolved", site.namespace)
        assert (identity["pod"], identity["pod_uid"]) == (pod, uid)
        assert (identity["container"], identity["container_id"]) == (container, container_id)
        assert f"k8s:pod-uid:{uid}" in identity["selectors"]
    assert [identity["pid"] for identity in resolved[:2]] == [web, daemon]
    assert (init["pid"], init["state"], init["reason"]) == (1, "host", "no_container")


@pytest.mark.parametrize("variant", RIGHT, ids=[variant.name for variant in RIGHT])
def test_kubectl_exec_into_the_daemons_pod_shows_everyone(site: Site, variant: Variant) -> None:
    """In the daemon's own container ``ps`` lists the processes of all pods, and doctor finds nothing missing."""
    pods = [("web", "main"), *((each.name, container) for each in RIGHT for container in ("daemon", "beside"))]
    expected = {(pid, *each) for each in pods for pid in site.pids(*each)}

    def shown() -> bool:
        done = site.ask(variant.name, "daemon", "ps")
        assert done.returncode == 0, done.stderr
        found = map(json.loads, done.stdout.splitlines())
        return expected <= {(each["pid"], each["pod"], each["container"]) for each in found}

    until(shown, 30, "the daemon to be told of all pods", interval=0.2)
    done = site.run(variant.name, "daemon", "doctor", "-o", "json", *SOURCES)
    checks = json.loads(done.stdout)["checks"]
    assert [check for check in checks if check["state"] == "fail"] == []
    assert done.returncode == 0


@pytest.mark.parametrize("variant", RIGHT, ids=[variant.name for variant in RIGHT])
def test_another_container_of_the_daemons_pod_learns_of_itself_only(site: Site, variant: Variant) -> None:
    """Though it has the daemon's user, socket and host's PIDs, it is told who it is, and nothing of anybody else."""
    done = site.ask(variant.name, "beside", "lookup", "self", "--wait=30s")
    assert done.returncode == 0, done.stderr
    identity = json.loads(done.stdout)
    assert (identity["state"], identity["pod"], identity["container"]) == ("resolved", variant.name, "beside")
    (web,) = site.pids("web", "main")
    for words in (("lookup", web), ("lookup", 1), ("ps",)):
        done = site.ask(variant.name, "beside", *words)
        assert (done.returncode, done.stdout) == (77, "")
