"""Whether an identity is complete when a container asks as its first act, and if not, how much later.

The containers are real ones of a real cluster, on the node that this runs on. Their entrypoint's first act is to write
its PID into a FIFO of the node; whoever reads it asks at once, in each way. To be asked by number a pod shares the
node's PID namespace; in all else it is like any other.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from tracer.bench.daemon import Daemon
from tracer.bench.helper import private_folder
from tracer.bench.kubectl import Kubectl
from tracer.bench.report import Label, Report
from tracer.bench.spire_way import CACHED, SpireWay
from tracer.client import Client
from tracer.errors import TracerError
from tracer.model import State
from tracer.settings import Settings
from tracer.sources.kubelet import KubeletEndpoint

PODS, STARTS, HOOKED = (3, 100), 20, 5
HOOK = 3.0
_FILLING, _STARTING, _LATEST = 300.0, 60.0, 30.0  # seconds
_LOOK = 0.001
# Kubernetes makes one of two dollar signs.
_SCRIPT = "echo $$$$ > /podtracer/ask; exec sleep 1000000"
WITH, WITHOUT, SPIRE = "podtracer", "podtracer, --cri none", "SPIRE's way"
METHOD = (
    "complete: the look-up that is made when the entrypoint's first act is read is resolved and settled. later: how "
    "long after that it was, 0 where it was complete; asked again every millisecond, of daemons over their sockets.",
    "SPIRE's way: the whole pod list is fetched when asked, and every 500 ms until the container is in it. All ways on "
    "the same starts.",
)


def run(
    report: Report,
    settings: Settings,
    endpoint: KubeletEndpoint,
    kubectl: Kubectl,
    *,
    image: str,
    pods: Sequence[int] = PODS,
    starts: int = STARTS,
    hooked: int = HOOKED,
    progress: Callable[[str], None],
    warn: Callable[[str], None],  # noqa: ARG001
) -> None:
    """Fills the report. Raises ``MissingError`` where there is no cluster."""
    report.settings = {"pods": list(pods), "starts": starts, "hooked": hooked, "hook_s": HOOK, "image": image}
    report.method = METHOD
    report.plot_unit, report.plot_label = "ms", "complete so much later than the first act"
    kubectl.check()
    node = kubectl.node(settings.node_name)
    with ExitStack() as stack:
        namespace = f"podtracer-bench-{os.getpid()}"
        folder = stack.enter_context(private_folder())
        os.chmod(folder, 0o755)  # noqa: S103, a container of any user writes into the FIFO
        ask = stack.enter_context(_Fifo(f"{folder}/ask"))
        stack.callback(_remove, kubectl, namespace)
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for name, cri in ((WITH, settings.cri), (WITHOUT, "none")):
            if name == WITHOUT and settings.cri == "none":
                continue
            ask.clients[name] = stack.enter_context(Daemon(replace(settings, cri=cri))).client
        ask.spire = stack.enter_context(SpireWay(endpoint, settings.procfs))
        made = 0
        for count in sorted(pods):
            made = _fill(kubectl, node, namespace, image, count, made, progress)
            for hook, times in ((0.0, starts), (HOOK, hooked)):
                _start(report, kubectl, node, namespace, image, folder, ask, count, hook, times, progress)


def _remove(kubectl: Kubectl, namespace: str) -> None:
    with suppress(TracerError):
        kubectl.run("delete", "pods", "-n", namespace, "--all", "--grace-period=0", "--force")
    with suppress(TracerError):
        kubectl.run("delete", "namespace", namespace, "--wait=false")


def _pod(name: str, namespace: str, node: str, image: str, script: str, **more: Any) -> dict[str, Any]:
    container = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]}
    container |= more.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "podtracer-bench"}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container], **more},
    }


def _fill(
    kubectl: Kubectl, node: str, namespace: str, image: str, count: int, made: int, progress: Callable[[str], None]
) -> int:
    """Adds pods until ``count`` run on the node; how many of ours there are then."""
    missing = count - kubectl.running(node)
    if missing > 0:
        progress(f"{missing} more pods on the node")
        names = [f"filler-{made + n}" for n in range(missing)]
        kubectl.apply(*(_pod(name, namespace, node, image, "exec sleep 1000000") for name in names))
        made += missing
        kubectl.wait_running(node, namespace, made, _FILLING)
    return made


def _start(
    report: Report,
    kubectl: Kubectl,
    node: str,
    namespace: str,
    image: str,
    folder: str,
    ask: _Fifo,
    count: int,
    hook: float,
    times: int,
    progress: Callable[[str], None],
) -> None:
    """So many starts, one after the other."""
    later: dict[str, list[float]] = {name: [] for name in (*ask.clients, SPIRE)}
    try:
        for number in range(times):
            progress(
                f"{count} pods, start {number + 1} of {times}" + (f", postStart hook of {hook:g} s" if hook else "")
            )
            name = f"starter-{count}-{hook:g}-{number}".replace(".", "-")
            container: dict[str, Any] = {"volumeMounts": [{"name": "ask", "mountPath": "/podtracer"}]}
            if hook:
                container["lifecycle"] = {"postStart": {"exec": {"command": ["sleep", f"{hook:g}"]}}}
            volume = {"name": "ask", "hostPath": {"path": folder}}
            kubectl.apply(
                _pod(name, namespace, node, image, _SCRIPT, container=container, volumes=[volume], hostPID=True)
            )
            for way, milliseconds in ask.one().items():
                later[way].append(milliseconds)
            kubectl.run("delete", "pod", name, "-n", namespace, "--grace-period=0", "--force", "--wait=false")
    finally:
        for way, samples in later.items():
            labels: dict[str, Label] = {"pods": count, "postStart": f"{hook:g} s" if hook else "-", "way": way}
            complete = sum(sample == 0 for sample in samples)
            series = f"{way}, {count} pods" if not hook and count == max(PODS) else None
            report.add("first act", labels, samples, "ms", series=series, complete=complete)


class _Fifo:
    """Where containers say who they are; asks for each in every way."""

    def __init__(self, path: str) -> None:
        os.mkfifo(path)
        os.chmod(path, 0o666)  # noqa: S103, see above
        # Open for both, so that whoever writes does not wait for us.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.clients: dict[str, Client] = {}
        self.spire: SpireWay | None = None

    def one(self) -> dict[str, float]:
        """Milliseconds from the first act of the next container until it is complete, by way. Raises
        ``TracerError``."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(_STARTING * 1e3):
            raise TracerError("a container does not start", "the bench's pod", "see kubectl get events")
        begun = time.monotonic()
        said = os.read(self._fd, 64).strip()
        if not said.isdigit():
            raise TracerError(
                f"a container says {said!r} and no PID", "the bench's pod", "does its image have a shell?"
            )
        pid = int(said)
        later: dict[str, float] = {}
        again = 0.0
        while len(later) < len(self.clients) + 1:
            for name, client in self.clients.items():
                if name not in later:
                    identity = client.lookup(pid)
                    if identity.state is State.RESOLVED and identity.workload.settled:
                        later[name] = (time.monotonic() - begun) * 1e3 if again else 0.0
            now = time.monotonic()
            if SPIRE not in later and now >= again:
                assert self.spire is not None
                with suppress(TracerError):
                    self.spire.forget()
                    self.spire.lookup(pid)
                    later[SPIRE] = (time.monotonic() - begun) * 1e3 if again else 0.0
                again = now + CACHED
            if now > begun + _LATEST:
                raise TracerError("an identity does not become complete", f"process {pid}", "see podtracer explain")
            time.sleep(_LOOK)
        return later

    def __enter__(self) -> _Fifo:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
