"""How complete an identity is when a workload first asks, on a node with many pods.

Not a test: ``python -m tests.cluster.join_table`` prints a table for the machine it runs on. Each workload's first act
is to connect; one look-up is made on accept, and where it was not complete, how much later it became so is measured by
asking again.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests import machine
from tests.cluster.build import build
from tests.cluster.cluster import Cluster, default_folder
from tests.cluster.config import PORTS
from tests.cluster.test_cluster import WORKLOAD, running
from tests.cluster.test_join import HOOK, POD
from tests.waiting import until
from tracer import Tracer
from tracer.model import State
from tracer.settings import Settings

PODS, STARTS, HOOKED = 100, 30, 10


def _measure(cluster: Cluster, folder: Path, settings: Settings, name: str, starts: int, hook: str) -> None:
    late: list[float] = []
    took: list[float] = []
    path = folder / "s"
    with Tracer(settings) as tracer, socket.socket(socket.AF_UNIX) as listener:
        assert tracer.wait_synced(30)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        listener.settimeout(120)
        for number in range(starts):
            pod = f"{name}-{number}"
            cluster.apply(POD.format(name=pod, folder=folder, hook=hook), "default")
            peer, _ = listener.accept()
            pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            asked = time.perf_counter()
            identity = tracer.lookup(pid)
            took.append((time.perf_counter() - asked) * 1e6)
            while identity.state is not State.RESOLVED or not identity.workload.settled:
                assert time.perf_counter() < asked + 60, identity
                time.sleep(0.001)
                identity = tracer.lookup(pid)
                if identity.workload.settled and identity.state is State.RESOLVED:
                    late.append((time.perf_counter() - asked) * 1e3)
            peer.send(b"!")
            peer.close()
            cluster.kubectl("delete", "pod", pod, "--wait=false", "--grace-period=0", "--force")
    path.unlink()
    lateness = f"median {median(late):.0f} ms, most {max(late):.0f} ms" if late else "-"
    complete = f"{starts - len(late)} of {starts}"
    print(f"| {name} | {complete} | {lateness} | {median(took):.0f} µs |", flush=True)


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
        port = PORTS["kubelet read-only"]
        runtime = f"unix://{cluster.containerd.socket}"
        print(f"{PODS} pods running\n\n| sources and pods | complete at the first act | else later by | look-up |")
        print("| --- | --- | --- | --- |")
        measure: Callable[..., None] = lambda name, starts, hook, **more: _measure(  # noqa: E731
            cluster, folder, Settings(**more), name, starts, hook
        )
        measure("runtime-and-kubelet", STARTS, "", kubelet_read_only_port=port, cri=runtime)
        measure("the-same-postStart-3s".lower(), HOOKED, HOOK, kubelet_read_only_port=port, cri=runtime)
        measure("runtime-and-pods-api", STARTS, "", pods_api=f"unix://{cluster.pods_api}", cri=runtime)
        measure("kubelet-alone", STARTS, "", kubelet_read_only_port=port, cri="none", pods_api="none")
    finally:
        cluster.down()


if __name__ == "__main__":
    sys.exit(main())
