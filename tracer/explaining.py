"""The explanation of one process as JSON: its identity, each step on the way to it, and what entries say to it.

A caller that may ask about itself only sees its own steps and nothing of others:

- no entries that it does not match, since their SPIFFE IDs and selectors are others';
- no answer of SPIRE's for a container that its files name and its cgroup does not: a process that nests a cgroup named
  after another pod would read that pod's selectors;
- not the number of the node's pods.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tracer.ages import age
from tracer.explanation import (
    ENTRIES,
    Step,
    container_step,
    entries_step,
    hint,
    learnt,
    line_dicts,
    lines_step,
    parity_dict,
    parity_step,
    pods_step,
    selectors_step,
)
from tracer.identity.cgroup_path import match_strict
from tracer.identity.explained import Explained
from tracer.model import Clock, State

if TYPE_CHECKING:
    from tracer.identity.entries import Entries

# Reasons that lie with the pod data, not with the cgroup's path.
_OF_PODS = ("not_listed", "not_listed_yet", "no_pod_yet", "namespace_labels", "conflict", "deleted", "stale", "sandbox")


def record(found: Explained, now: Clock, *, of_itself: bool = False) -> dict[str, Any]:
    """All that is known of a process, as ``podtracer explain -o json`` prints it, no entries compared yet.
    ``of_itself`` leaves out what is about others."""
    identity = found.identity
    is_known = identity.state is State.RESOLVED and identity.parity is True
    if of_itself and identity.mode != "parity" and not is_known:
        found = replace(found, outcome=None)
    return {
        **found.identity.to_dict(now),
        "unix": None if found.unix is None else list(found.unix),
        "lines": line_dicts(found.answer),
        "parity_answer": parity_dict(found.answer, found.outcome),
        "entries": None,
        "steps": [step.to_dict() for step in _steps(found, now, of_itself=of_itself)],
    }


def compare(
    said: dict[str, Any],
    entries: Entries,
    agent_id: str | None,
    file: str | None,
    now: float,
    *,
    of_itself: bool = False,
) -> None:
    """Adds to a record what registration entries, of this agent or of any, say to the process; ``now`` is seconds of
    the epoch. ``of_itself`` leaves out those that do not match."""
    report = None
    if said["state"] in (State.RESOLVED, State.HOST):
        report = entries.report(said["selectors"], said["unix"], agent_id, now)
        if of_itself:
            report = replace(report, near=(), undecided=(), near_left_out=0)
    said["entries"] = report.to_dict() if report else None
    step = entries_step(report, file).to_dict()
    said["steps"] = [step if each["title"] == ENTRIES else each for each in said["steps"]]


def _steps(found: Explained, now: Clock, *, of_itself: bool) -> list[Step]:
    identity, workload = found.identity, found.identity.workload
    if identity.state is State.GONE:
        return [Step("Kernel record", ("no process has this PID now",), True, hint("gone"))]
    path = identity.cgroup.path if identity.cgroup else None
    number = identity.cgroup.id if identity.cgroup else "-"
    ends = identity.state is not State.RESOLVED
    in_pods = workload.reason in _OF_PODS or identity.mode == "parity"
    match = match_strict(path, found.root) if path is not None else None
    return [
        _record(found, now),
        Step("Cgroup", (f"hierarchy {found.hierarchy}, cgroup id {number}", path or "its path is not known")),
        lines_step(found.answer),
        container_step(path, match, found.strict, ends=ends and not in_pods),
        pods_step(workload, _of_list(found, now, counts=not of_itself), ends=ends and in_pods),
        selectors_step(workload),
        entries_step(None, None),
        parity_step(found.strict, found.answer, found.outcome, identity.parity),
    ]


def _record(found: Explained, now: Clock) -> Step:
    identity, process = found.identity, found.identity.process
    thread = f", of thread {identity.asked}" if identity.asked != identity.key.pid else ""
    if process is None:
        return Step("Kernel record", (f"PID {identity.key.pid}{thread}", "there is no record of it"))
    return Step(
        "Kernel record",
        (
            f"PID {identity.key.pid}{thread}, named {process.comm or '-'}, child of {process.ppid}",
            f"learnt {learnt(process.source)}, {age(max(0.0, (now.now - process.since) / 1e6))} ago",
            f"started at {now.rfc3339(process.start)}" if process.start else "started at an unknown time",
        ),
    )


def _of_list(found: Explained, now: Clock, *, counts: bool) -> list[str]:
    if found.pods is None or found.pods_at is None:
        return ["no pod list has come yet: see whether the kubelet answers"]
    old = age(max(0.0, (now.now - found.pods_at) / 1e6))
    what = f"has {found.pods} pods, from" if counts else "is from"
    return [f"the newest list {what} {found.pods_from or '-'}, fetched {old} ago"]
