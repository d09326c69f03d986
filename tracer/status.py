"""How a tracer fares, as JSON: what it runs on, what it counts, and how its sources of pod data do."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from tracer import clock
from tracer.node import Tracer
from tracer.version import __version__

_KINDS = {1: "fork", 2: "exec", 3: "exit", 4: "attach", 5: "scan"}


@dataclass(slots=True)
class Readiness:
    """What has to be before the daemon is ready, each by its name."""

    bpf: bool = False
    scan: bool = False
    pods: bool = False
    missing: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)

    def checks(self) -> dict[str, bool]:
        """By name, whether it is. The scan is complete only if podtracer sees all processes and their cgroups:
        ``missing`` says in sentences what it does not see."""
        return {"bpf": self.bpf, "scan": self.scan and not self.missing, "pods": self.pods}

    @property
    def is_ready(self) -> bool:
        """Whether all of it is."""
        return all(self.checks().values())


def status(tracer: Tracer, readiness: Readiness) -> dict[str, Any]:
    """The status of a running tracer. Every key is always there; new releases only add keys."""
    settings, features = tracer.settings, tracer.features
    return {
        "pid": os.getpid(),
        "version": __version__,
        "uptime_s": round(time.monotonic() - readiness.began, 3),
        "ready": readiness.checks(),
        "missing": list(readiness.missing),
        "mode": settings.mode,
        "namespace_labels": settings.enable_namespace_labels,
        "disable_container_selectors": settings.disable_container_selectors,
        "ephemeral_containers": settings.ephemeral_containers,
        "hierarchy": tracer.hierarchy,
        "ways": {
            "slots": tracer.programs.slots.kind,
            "iterator": features.no_iterator is None,
            "pidfs": features.pidfs,
        },
        "processes": len(tracer.pids()),
        "containers": tracer.containers,
        "counters": tracer.counters(),
        "events": events(tracer),
        "lost": tracer.lost,
        **tracer.pod_data(clock.read()),
    }


def events(tracer: Tracer) -> dict[str, int]:
    """How many records of each kind were taken in."""
    processes, cgroups = tracer.records()
    return {**{word: processes[kind] for kind, word in _KINDS.items()}, "cgroup": cgroups}
