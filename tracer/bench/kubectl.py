"""A cluster as ``kubectl`` shows it: namespaces and pods that the bench makes, and takes away again."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from tracer.errors import MissingError, TracerError

_TIMEOUT = 60.0


class Kubectl:
    """``command`` is ``kubectl``, or what stands in for it; ``kubeconfig`` names the cluster, ``None`` for the
    usual."""

    def __init__(self, command: Sequence[str], kubeconfig: str | None) -> None:
        self._command = [*command, *(["--kubeconfig", kubeconfig] if kubeconfig else [])]

    def check(self) -> None:
        """Raises ``MissingError`` where there is no such program, or no cluster answers it."""
        if shutil.which(self._command[0]) is None:
            raise MissingError("no such program", self._command[0], "install kubectl, or name it with --kubectl")
        try:
            self.run("get", "--raw", "/version")
        except TracerError as error:
            raise MissingError("no cluster answers", error.obj, "name one with --kubeconfig or --kubectl") from error

    def run(self, *words: str, stdin: str | None = None) -> str:
        """What it prints. Raises ``TracerError`` with what it says on stderr."""
        try:
            done = subprocess.run(
                [*self._command, *words], input=stdin, capture_output=True, text=True, timeout=_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            raise TracerError("kubectl does not end", " ".join(words[:3]), "is the cluster well?") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            raise TracerError(f"kubectl failed: {said[:300]}", " ".join(words[:3]), "try it by hand")
        return done.stdout

    def get(self, *words: str) -> Any:
        """What ``get … -o json`` says."""
        return json.loads(self.run("get", *words, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Makes these."""
        self.run("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def node(self, name: str | None) -> str:
        """The node to run on: the one of this name, else the only one. Raises ``MissingError``."""
        found = [item["metadata"]["name"] for item in self.get("nodes")["items"]]
        if name is None and len(found) == 1:
            return str(found[0])
        if name is None or name not in found:
            what = "several nodes, and none is named" if name is None else "the cluster has no such node"
            raise MissingError(what, name or ", ".join(found[:5]), "say --node-name NAME, that of this machine")
        return name

    def running(self, node: str, namespace: str | None = None) -> int:
        """How many pods run on a node, in one namespace or all."""
        where = ["-n", namespace] if namespace else ["-A"]
        pods = self.get("pods", *where, "--field-selector", f"spec.nodeName={node},status.phase=Running")["items"]
        return len(pods)

    def wait_running(self, node: str, namespace: str, count: int, timeout: float) -> None:
        """Returns once so many run. Raises ``TracerError`` when they do not in time."""
        end = time.monotonic() + timeout
        while self.running(node, namespace) < count:
            if time.monotonic() > end:
                raise TracerError("pods do not start", f"namespace {namespace}", "is there room on the node for them?")
            time.sleep(0.5)
