"""How SPIRE's agent finds out which pod a process is in: the way that is compared with.

As its ``k8s`` workload attestor does it (``pkg/agent/plugin/workloadattestor/k8s``): the process's cgroup file gives
the container's ID; a pod list up to 500 ms old is taken, else the kubelet is asked for the whole list, which is parsed;
then all pods are walked for the container. In Python, with our own HTTP client and the parser that we use ourselves, so
that the comparison is of ways and not of languages.
"""

from __future__ import annotations

import time

from tracer.errors import TracerError
from tracer.identity import parity
from tracer.identity.selectors import selectors
from tracer.kernel import procfs
from tracer.model import Pod
from tracer.sources.kubelet import KubeletClient, KubeletEndpoint

CACHED = 0.5  # seconds, SPIRE's pod list cache


class SpireWay:
    """Selectors of processes, asked for in SPIRE's way; a context manager. ``fetches`` counts pod lists."""

    def __init__(self, endpoint: KubeletEndpoint, procfs_dir: str = "/proc") -> None:
        self._client = KubeletClient(endpoint)
        self._procfs = procfs_dir
        self._pods: tuple[Pod, ...] = ()
        self._fetched = float("-inf")
        self.fetches = 0

    def forget(self) -> None:
        """The next look-up finds the cache expired."""
        self._fetched = float("-inf")

    def keep(self) -> None:
        """The next look-ups find the cache fresh."""
        self._fetched = time.monotonic()

    def lookup(self, pid: int) -> tuple[str, ...]:
        """The selectors. Raises ``TracerError`` where there are none."""
        cgroup = procfs.read(self._procfs, pid, "cgroup")
        located = parity.locate(cgroup, None)
        if located.container_id is None:
            located = parity.locate(cgroup, procfs.read(self._procfs, pid, "mountinfo"))
        if time.monotonic() - self._fetched > CACHED:
            self._pods = tuple(self._client.fetch().pods.pods)
            self._fetched = time.monotonic()
            self.fetches += 1
        found: tuple[str, ...] | None = None
        for pod in self._pods:
            if located.pod_uid and pod.uid != located.pod_uid:
                continue
            for container in (*pod.containers, *pod.init_containers):
                if container.container_id == located.container_id:
                    found = selectors(pod, container)
                    break
        if found is None:
            raise TracerError("no pod has this process", f"process {pid}", "is it still there?")
        return found

    def __enter__(self) -> SpireWay:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
