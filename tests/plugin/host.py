"""A plugin host: go-plugin itself, in a program of Go that is told what to call."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.build import cache
from tests.waiting import SLOW

HERE = Path(__file__).parent
PROTO = HERE.parents[1] / "proto"
PLUGIN = [sys.executable, "-m", "tracer.cli.main", "spire-plugin"]

INIT = "spire.service.private.init.v1.Init"
CONFIG = "spire.service.common.config.v1.Config"
ATTESTOR = "spire.plugin.agent.workloadattestor.v1.WorkloadAttestor"
WAIT = 60.0


def build(name: str) -> Path:
    """The program of a folder here, built first if its sources are not those of the one that is there."""
    source = HERE / name
    digest = hashlib.sha256()
    for file in ("go.mod", "go.sum", "main.go"):
        digest.update((source / file).read_bytes())
    out = cache() / f"plugin-{name}-{digest.hexdigest()[:16]}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_suffix(f".{os.getpid()}")
        subprocess.run(["go", "build", "-buildvcs=false", "-o", unfinished, "."], cwd=source, check=True)
        unfinished.rename(out)
    return out


@dataclass(frozen=True)
class Result:
    """How the calls of one request ended: ``ends`` counts answers, as JSON, and ``CODE words``. Times in µs."""

    ends: dict[str, int]
    p50: float
    p99: float
    most: float
    took_ms: float

    @property
    def end(self) -> str:
        """How all of them ended."""
        (end,) = self.ends
        return end

    @property
    def answer(self) -> dict[str, Any]:
        """What all of them were answered. Raises ValueError where that is an error."""
        answer: dict[str, Any] = json.loads(self.end)
        return answer

    @property
    def selectors(self) -> set[str]:
        """What all of them were attested as."""
        return set(self.answer.get("selectorValues", ()))


class Host:
    """A running host with its plugin. ``log`` grows by what the host logs, a plugin's own lines among it."""

    def __init__(self, *, environ: Mapping[str, str] | None = None, plugin: list[str] | None = None) -> None:
        self._child = subprocess.Popen(
            [build("host"), "-proto", PROTO, "--", *(plugin or PLUGIN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environ or {})},
            text=True,
        )
        self.log: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._number = 0
        self._asked: dict[int, Future[Any]] = {0: Future()}
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_log)]
        for thread in self._threads:
            thread.start()
        said = self._wait(self._asked[0])
        self.plugin_pid: int = said["pid"]
        self.ready_ms: float = said["took_ms"]

    @property
    def pid(self) -> int:
        """The host's own PID: the agent's, for the plugin."""
        return self._child.pid

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            said = json.loads(line)
            with self._lock:
                asked = self._asked.pop(said["id"])
            asked.set_result(said)
        with self._lock:
            for asked in self._asked.values():
                asked.set_exception(RuntimeError("the host has ended"))

    def _read_log(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"@message": line.rstrip(), "@level": "raw"})

    def _wait(self, asked: Future[Any]) -> dict[str, Any]:
        said: dict[str, Any] = asked.result(WAIT * SLOW)
        assert not said.get("error"), said["error"]
        return said

    def _ask(self, **request: Any) -> Future[Any]:
        with self._lock:
            self._number += 1
            asked = self._asked[self._number] = Future()
            assert self._child.stdin is not None
            self._child.stdin.write(json.dumps({"id": self._number, **request}) + "\n")
            self._child.stdin.flush()
        return asked

    def start(self, service: str, method: str, message: Any = None, **more: Any) -> Future[Any]:
        """Begins calls: ``count`` of them by ``workers``, each with ``timeout_ms``. To be ended by ``finish``."""
        return self._ask(service=service, method=method, message=message or {}, **more)

    def finish(self, asked: Future[Any]) -> Result:
        """How those calls ended."""
        said = self._wait(asked)
        return Result(said["ends"], said["p50_us"], said["p99_us"], said["max_us"], said["took_ms"])

    def call(self, service: str, method: str, message: Any = None, **more: Any) -> Result:
        """Calls a method, and waits for the end."""
        return self.finish(self.start(service, method, message, **more))

    def init(self) -> Result:
        """Init, as the agent says it."""
        return self.call(INIT, "Init", {"hostServiceNames": []})

    def configure(self, text: str) -> Result:
        """Configure with this HCL."""
        message = {"coreConfiguration": {"trustDomain": "example.org"}, "hclConfiguration": text}
        return self.call(CONFIG, "Configure", message)

    def attest(self, pid: int, **more: Any) -> Result:
        """Attest a PID."""
        return self.call(ATTESTOR, "Attest", {"pid": pid}, **more)

    def start_attest(self, pid: int, **more: Any) -> Future[Any]:
        """Begin to attest a PID."""
        return self.start(ATTESTOR, "Attest", {"pid": pid}, **more)

    def attest_reference(self, type_url: str, value: bytes, **more: Any) -> Result:
        """AttestReference with this Any."""
        text = base64.b64encode(value).decode()
        return self.call(ATTESTOR, "AttestReference", type_url=type_url, value=text, **more)

    def kill(self) -> float:
        """The host ends the plugin as go-plugin does; how long that took, in milliseconds."""
        took: float = self._wait(self._ask(op="kill"))["took_ms"]
        return took

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(20 * SLOW)
        finally:
            self._child.kill()
            self._child.wait()
            for thread in self._threads:
                thread.join(10)
            for stream in (self._child.stdout, self._child.stderr):
                assert stream is not None
                stream.close()
