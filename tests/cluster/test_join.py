"""The join at birth, measured by the workload: its first act is to connect, and whoever accepts looks it up once."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.config import PORTS
from tests.servers import pod_list
from tests.waiting import until
from tracer import Tracer
from tracer.identity.pods import PodTable, decode_pod_list
from tracer.identity.selectors import selectors
from tracer.model import Identity, State
from tracer.settings import Settings

pytestmark = [pytest.mark.root, pytest.mark.cluster]

STARTS = 10
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: asker, run: "{name}"}}}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{{name: sock, hostPath: {{path: {folder}}}}}]
  containers:
    - name: app
      image: localhost/asker:1
      imagePullPolicy: Never
      command: [/bin/asker, /sock/s]
      volumeMounts: [{{name: sock, mountPath: /sock}}]
      {hook}
"""
HOOK = 'lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 3"]}}}'


@dataclass
class Answer:
    """What the one look-up said when the workload asked, and how long it took in seconds."""

    identity: Identity
    took: float


class Oracle:
    """Accepts, looks the peer up once, and lets it go on."""

    def __init__(self, folder: Path, tracer: Tracer) -> None:
        self.answers: list[Answer] = []
        self._tracer = tracer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "s"))
        (folder / "s").chmod(0o666)
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer:
                pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                start = time.perf_counter()
                identity = self._tracer.lookup(pid)
                self.answers.append(Answer(identity, time.perf_counter() - start))
                peer.send(b"!")

    def close(self) -> None:
        """Ends it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A folder for the socket, with a path that is short enough, and the image of the workload in the runtime."""
    binary = tmp_path / "asker"
    source = Path(__file__).with_name("asker.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-static", "-o", binary, source], check=True, timeout=60)
    cluster.containerd.add_image("localhost/asker:1", command=["/bin/asker"], extra=[binary])
    place = cluster.folder / "join"
    place.mkdir(exist_ok=True)
    yield place
    (place / "s").unlink(missing_ok=True)


@pytest.mark.parametrize("hook", ["", HOOK], ids=["plain", "behind a postStart hook"])
def test_the_identity_is_complete_when_the_workload_first_asks(
    cluster: Cluster, namespace: str, folder: Path, hook: str
) -> None:
    """With the container runtime asked, each of ten single-container pods is resolved, settled and has its final
    selectors in the one look-up that answers its entrypoint's first act, also behind a postStart hook of 3 s."""
    settings = Settings(kubelet_read_only_port=PORTS["kubelet read-only"], cri=f"unix://{cluster.containerd.socket}")
    with Tracer(settings) as tracer:
        assert tracer.wait_synced(30)
        oracle = Oracle(folder, tracer)
        try:
            for number in range(STARTS):
                cluster.apply(POD.format(name=f"asker-{number}", folder=folder, hook=hook), namespace)
                until(lambda number=number: len(oracle.answers) == number + 1, 60, "the workload to ask")
            names = {f"asker-{number}" for number in range(STARTS)}

            def listed() -> dict[str, tuple[str, ...]]:
                table = PodTable.build(decode_pod_list(pod_list(*cluster.pods())).pods)
                return {
                    container.container_id: selectors(pod, container)
                    for pod in table.pods
                    for container in pod.containers
                    if pod.name in names and pod.namespace == namespace and container.container_id
                }

            until(lambda: len(listed()) == STARTS, 60, "the kubelet to list all containers")
            final = listed()
        finally:
            oracle.close()
    for answer in oracle.answers:
        workload = answer.identity.workload
        assert (workload.state, workload.settled) == (State.RESOLVED, True), workload
        assert workload.container_id is not None
        assert workload.selectors == final[workload.container_id]
    assert {answer.identity.workload.pod for answer in oracle.answers} == names
