"""The plugin as SPIRE's agent starts and asks it: go-plugin's handshake, then Configure and Attest over gRPC."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from types import TracebackType
from typing import Any, Final, Self

from tracer.bench.helper import environment
from tracer.bench.report import Label, Report
from tracer.errors import TracerError
from tracer.protobuf import Field, declare
from tracer.sources.rpc import Channel, Service

METHOD = (
    "Through the plugin protocol: podtracer spire-plugin before the daemon, asked by a gRPC client in Python, whose "
    "own time is in it.",
)
_HINT: Final = "try podtracer spire-plugin in an agent"
_TIMEOUT = 30.0
_TABLE: Final = {
    "AttestRequest": {"pid": Field(1, "int32")},
    "AttestResponse": {"selector_values": Field(1, repeated=True)},
    "CoreConfiguration": {"trust_domain": Field(1)},
    "ConfigureRequest": {"core_configuration": Field(1, "CoreConfiguration"), "hcl_configuration": Field(2)},
    "ConfigureResponse": {},
}


@cache
def _messages() -> Any:
    return declare("podtracer.plugin", _TABLE)


class Plugin:
    """A plugin that asks the daemon at ``socket``; a context manager. Raises ``TracerError`` where it does not
    start."""

    def __init__(self, socket: str) -> None:
        self._stack = ExitStack()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tracer.cli.main", "spire-plugin"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**environment(), "WorkloadAttestor": "WorkloadAttestor", "PLUGIN_PROTOCOL_VERSIONS": "1"},
        )
        self._stack.callback(self._end)
        try:
            assert self._child.stdout is not None
            ready = select.select([self._child.stdout], [], [], _TIMEOUT)[0]
            said = self._child.stdout.readline().decode("utf-8", "replace").split("|") if ready else []
            if len(said) != 5 or said[2] != "unix":
                raise TracerError("the plugin does not start", "podtracer spire-plugin", _HINT)
            self._attestor = self._open(said[3], "spire.plugin.agent.workloadattestor.v1.WorkloadAttestor")
            config = self._open(said[3], "spire.service.common.config.v1.Config")
            kinds = _messages()
            request = kinds.ConfigureRequest(
                core_configuration=kinds.CoreConfiguration(trust_domain="example.org"),
                hcl_configuration=f'socket_path = "{socket}"\nfallback = false\n',
            )
            config.call("Configure", request, kinds.ConfigureResponse, _TIMEOUT)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, path: str, service: str) -> Channel:
        channel = Channel(path, Service(service, _HINT))
        self._stack.callback(channel.close)
        return channel

    def attest(self, pid: int) -> list[str]:
        """The selectors of a process. Raises ``SourceError``."""
        kinds = _messages()
        answer = self._attestor.call("Attest", kinds.AttestRequest(pid=pid), kinds.AttestResponse, _TIMEOUT)
        return list(answer.selector_values)

    def _end(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


def ask(report: Report, socket: str, pids: Sequence[int], seconds: float, gap: float) -> None:
    """Adds what an Attest takes, one after the other and paced."""
    with Plugin(socket) as plugin:
        if not plugin.attest(pids[0]):
            raise TracerError("the plugin knows no selectors", f"process {pids[0]}", "this is a bug")
        for pace, wait in (("one after the other", 0.0), (f"every {gap * 1e3:.0f} ms", gap)):
            samples: list[float] = []
            end = time.monotonic() + seconds / 2
            labels: dict[str, Label] = {"asked": "Attest", "pace": pace}
            try:
                while time.monotonic() < end:
                    pid = random.choice(pids)  # noqa: S311
                    start = time.perf_counter_ns()
                    plugin.attest(pid)
                    samples.append((time.perf_counter_ns() - start) / 1e3)
                    if wait:
                        time.sleep(wait)
            finally:
                report.add("through the plugin", labels, samples, series=None if wait else "through the plugin, Attest")
