"""The way to an answer, step by step: what was looked at, what came of it, and where it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.errors import ParityError
from tracer.identity.cgroup_path import PathMatch
from tracer.identity.entries_report import Report
from tracer.identity.parity import CONFLICT, Line, Located, Outcome
from tracer.model import Source, State, Workload

ENTRIES = "Registration entries"
_SHOWN = 40  # lines of a file or entries that are shown to a person; JSON has them all

_HINTS = {
    "no_container": "nothing of a container gets no k8s selectors; name a process of the container",
    "not_a_pod": "this is a container outside Kubernetes, or of a pod that the list does not have",
    "sandbox": "name a process of one of the pod's containers",
    "conmon": "name a process of the container, not its monitor",
    "pod_cgroup": "name a process of one of the pod's containers",
    "outside_root": "a cgroup counts where only root may write those above it; where this node's pods are kept by"
    " another user or below another container, name the place with --cgroup-prefix",
    "no_list": "give the pod list with --pods-file",
    "not_listed_yet": "ask again, or wait with podtracer lookup --wait; see whether the kubelet answers",
    "not_listed": "see whether the list is that of this node, and whether the pod still runs",
    "hierarchy": "ask again in a moment",
    "conflict": "see the lines above: which of the names is right cannot be told from here; where another user than"
    " root or another container keeps this node's pods, name the place with --cgroup-prefix",
    "deleted": "the pod is being removed; there is nothing to do",
    "stale": "see why the kubelet does not answer",
    "unnamed": "the cgroup is gone, or its mount is not the host's; run podtracer in the host's cgroup namespace",
    "unreadable": "see the line above",
    "gone": "look up a process that runs",
}
_LEARNT = {
    Source.FORK: "from its fork",
    Source.EXEC: "from its exec",
    Source.ATTACH: "from a move to another cgroup",
    Source.SCAN: "from a scan of all processes: it ran before podtracer",
}
_TAKEN = {
    "taken": "taken",
    "same": "says the same",
    "overrides": "taken instead, since it names a pod",
    "ignored": "passed over, since it names no pod",
    "nothing": "",
    "skipped": "the whole hierarchy, passed over",
    "conflict": "contradicts what was taken",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step; ``failed`` where the way to an identity ends here, and then perhaps a ``hint``."""

    title: str
    lines: tuple[str, ...]
    failed: bool = False
    hint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it is written as JSON."""
        return {"title": self.title, "lines": list(self.lines), "failed": self.failed, "hint": self.hint}

    @classmethod
    def of_dict(cls, said: Mapping[str, Any]) -> Step:
        """The step that was written as JSON."""
        return cls(str(said["title"]), tuple(map(str, said["lines"])), bool(said["failed"]), said["hint"])


def hint(reason: str | None) -> str | None:
    """What to do about a reason."""
    return _HINTS.get(reason or "")


def learnt(source: Source) -> str:
    """How a process became known, in words."""
    return _LEARNT[source]


# ---- the lines of the files ----


def line_dicts(answer: Located | ParityError | None) -> list[dict[str, Any]]:
    """What SPIRE's rules took from each line, as it is written as JSON."""
    return [
        {
            "file": line.file,
            "line": line.number,
            "path": line.path,
            "pod_uid": line.pod_uid,
            "container_id": line.container_id,
            "taken": line.taken,
        }
        for line in (answer.taken if answer is not None else ())
    ]


def parity_dict(answer: Located | ParityError | None, outcome: Outcome | None) -> dict[str, Any] | None:
    """SPIRE's answer as it is written as JSON, ``None`` where its files were not read."""
    if answer is None:
        return None
    located = answer if isinstance(answer, Located) else Located(None, None)
    return {
        "pod_uid": located.pod_uid,
        "container_id": located.container_id,
        "from_file": located.from_file,
        "error": answer.what if isinstance(answer, ParityError) else None,
        "attest_error": outcome.error if outcome else None,
        "code": answer.code if isinstance(answer, ParityError) else (outcome.code if outcome else None),
        "selectors": list(outcome.selectors) if outcome else None,
    }


def lines_step(answer: Located | ParityError | None) -> Step:
    """What SPIRE's rules take from each line."""
    title = "Lines of /proc/PID/cgroup, as SPIRE reads them"
    if answer is None:
        return Step(title, ("not read: there is no such process any more",))
    shown = [text for line in answer.taken[:_SHOWN] for text in _line(line)]
    if len(answer.taken) > _SHOWN:
        shown.append(f"… and {len(answer.taken) - _SHOWN} more")
    if isinstance(answer, ParityError):
        shown.append(f"SPIRE ends here with an error ({answer.file}, line {answer.line}): {answer.what}")
    return Step(title, tuple(shown) or ("the file has no lines",))


def _line(line: Line) -> Iterator[str]:
    yield f"{line.file}, line {line.number}: {line.path}"
    if line.taken == "skipped":
        yield f"  {_TAKEN['skipped']}"
    elif line.container_id is None:
        yield "  names no container" + (f"; {_TAKEN[line.taken]}" if line.taken == "conflict" else "")
    else:
        of = f" of pod {line.pod_uid}" if line.pod_uid else ", and no pod"
        yield f"  names container {line.container_id}{of}; {_TAKEN[line.taken]}"


# ---- the container ----


def container_step(path: str | None, match: PathMatch | None, workload: Workload, *, ends: bool) -> Step:
    """What the strict rule makes of the path; ``ends`` where nothing further can be said."""
    title = "Container, by the strict rule"
    what_to_do = hint(workload.reason) if ends else None
    if path is None or match is None:
        return Step(title, (workload.reason_text or "there is no cgroup to read",), ends, what_to_do)
    lines = [f"the path is in a pod of the place {match.root}" if match.pod_uid else "the path names no pod's cgroup"]
    if match.outer is not None:
        lines.append(f"that is below container {match.outer.name}, which counts only where it is this node")
    if match.container is None or match.depth is None:
        if match.pod_uid:
            lines.append(f"pod {match.pod_uid}")
    else:
        segments = path.removeprefix("/").split("/")
        place = "directly below its pod's" if match.below_pod else "below no pod's"
        lines.append(f"container {match.container.container_id}, named by segment {match.depth + 1}, {place}:")
        lines.append(f"  {segments[match.depth]}")
        if match.container.pod_uid:
            lines.append(f"pod {match.container.pod_uid}")
        if match.depth + 1 < len(segments):
            rest = "/".join(segments[match.depth + 1 :])
            lines.append(f"what is nested in it is the container's own making and never looked at: {rest}")
    if ends:
        lines.append(workload.reason_text or workload.reason or "")
    return Step(title, tuple(lines), ends, what_to_do)


# ---- pods, selectors, entries ----


def pods_step(workload: Workload, about: Sequence[str], *, ends: bool) -> Step:
    """Where the pod's data came from; ``about`` are sentences on the list."""
    lines = list(about)
    if workload.pod is not None:
        where = "/".join(name or "-" for name in (workload.namespace, workload.pod, workload.container))
        lines.append(f"{where} (service account {workload.service_account or '-'}, node {workload.node or '-'})")
    if workload.state is not State.RESOLVED:
        lines.append(workload.reason_text or workload.reason or workload.state.value)
    return Step("Pod data", tuple(lines), ends, hint(workload.reason) if ends else None)


def selectors_step(workload: Workload) -> Step:
    """The selectors, of which there are none unless resolved, and for a container that SPIRE does not attest."""
    if workload.state is State.RESOLVED and not workload.selectors:
        what_to_do = "name a process of the instance that runs now"
        if workload.kind == "ephemeral":
            what_to_do = (
                "if its processes may have what SPIRE refuses them, start podtracer with --ephemeral-containers"
            )
        return Step("Selectors", ("none", workload.reason_text or ""), True, what_to_do)
    return Step("Selectors", workload.selectors if workload.state is State.RESOLVED else ("none",))


def entries_step(report: Report | None, file: str | None) -> Step:
    """Which entries match, nearly match, or cannot be decided here."""
    title = ENTRIES
    if report is None:
        said = "not asked for" if file is None else "not compared: there are no selectors to compare"
        return Step(title, (said,), hint=None if file else "--entries-file F compares those of SPIRE's server")
    agent = f"of agent {report.agent}" if report.agent else "of any agent: what matches is not said to be issued"
    lines = [agent, *_entry_lines(report)]
    if any(not match.expired for match in report.matched):
        return Step(title, tuple(lines))
    lines.insert(1, "no entry matches, so no SPIFFE ID is to be had from these")
    what_to_do = "compare what the nearest entry wants with what the workload has" if report.near else None
    return Step(title, tuple(lines), True, what_to_do)


def _entry_lines(report: Report) -> Iterator[str]:
    for match in report.matched[:_SHOWN]:
        over = ", but it is expired" if match.expired else ""
        yield f"matches{over}: {match.entry.spiffe_id} (entry {match.entry.id or '-'})"
    for near in report.near[:_SHOWN]:
        over = ", expired" if near.expired else ""
        yield f"nearly matches{over}: {near.entry.spiffe_id} (entry {near.entry.id or '-'})"
        for missing in near.missing:
            yield f"  wants {missing.want}; it has {', '.join(missing.have) or 'nothing of that kind'}"
    if report.near_left_out:
        yield f"… and {report.near_left_out} entries that miss as much or more"
    for found in report.undecided[:_SHOWN]:
        yield f"cannot be decided here: {found.entry.spiffe_id} (entry {found.entry.id or '-'})"
        yield f"  wants {', '.join(found.unknown)}, which cannot be told here"


# ---- strict against parity ----


def parity_step(
    strict: Workload, answer: Located | ParityError | None, outcome: Outcome | None, same: bool | None
) -> Step:
    """Both answers beside one another, and what happened where they differ."""
    title = "Strict against parity"
    if answer is None:
        return Step(title, ("SPIRE's files were not read, so that there is nothing to compare",))
    lines = [f"strict: {_named(strict.container_id, strict.pod_uid)} ({strict.state.value})"]
    if isinstance(answer, ParityError):
        lines.append(f"SPIRE:  the error {answer.code}: {answer.what}")
    else:
        lines.append(f"SPIRE:  {_named(answer.container_id, answer.pod_uid)}")
        if outcome is not None and outcome.error:
            lines.append(f"        which ends in the error {outcome.code}: {outcome.error}")
        elif outcome is not None and outcome.pod is not None:
            lines.append(f"        which is {outcome.pod.namespace}/{outcome.pod.name}")
    if same is None:
        lines.append("strict mode does not know the container yet, so that they cannot be compared")
    elif same:
        lines.append("both are the same")
    else:
        lines += ["they differ:", *(f"  {line}" for line in difference(strict, answer))]
    return Step(title, tuple(lines))


def _named(container_id: str | None, pod_uid: str | None) -> str:
    if container_id is None:
        return "no container"
    return f"container {container_id}" + (f" of pod {pod_uid}" if pod_uid else "")


def difference(strict: Workload, answer: Located | ParityError) -> list[str]:
    """What happened where SPIRE's rules do not give the strict answer."""
    if isinstance(answer, ParityError):
        if answer.code == CONFLICT:
            return [
                "its lines name different things, and SPIRE does not choose; strict mode reads one hierarchy only",
                "the process is in cgroups of different names, as one that moved itself in some hierarchies is",
            ]
        return ["SPIRE cannot read the file at all, as the line above says"]
    if answer.container_id is None:
        return ["SPIRE's rules find no container ID where the strict rule does"]
    if answer.from_file == "mountinfo":
        return [
            "no line of the cgroup file names a container, so SPIRE looks at the mounts",
            "which mounts there are is for the process itself to say: strict mode never believes them",
        ]
    if strict.container_id is None:
        if strict.reason == "conmon":
            return ["the monitor's cgroup carries the container's ID, and SPIRE takes it for the container"]
        return ["the strict rule finds no container of a pod here, while SPIRE takes any ID for one"]
    taken = next((line for line in reversed(answer.taken) if line.container_id == answer.container_id), None)
    if taken is None or strict.container_id not in taken.path:
        return ["in another hierarchy the process is in a cgroup of that name, and SPIRE reads them all"]
    if answer.pod_uid is not None and answer.pod_uid != strict.pod_uid:
        return [
            f"inside its own cgroup the container has one that is named after container {answer.container_id}",
            f"of another pod, {answer.pod_uid}; SPIRE reads the innermost names, and takes it for that pod",
            "whoever may write the container's cgroups may give them such names: it impersonates that pod",
        ]
    return [
        f"inside its own cgroup the container has one that is named after container {answer.container_id},",
        "a container in the container perhaps; SPIRE reads the innermost name, which no pod lists",
    ]
