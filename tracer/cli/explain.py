"""``podtracer explain``: the whole way from a process to its selectors and registration entries, and why not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tracer import explaining
from tracer import explanation as steps
from tracer.cli import options, steps_text
from tracer.cli.app import App, pass_app, warn
from tracer.cli.output import Out, to_json
from tracer.cli.params import OneOf, PidOrSelf, Text
from tracer.errors import InputError, ParityError, UsageError
from tracer.explanation import Step
from tracer.identity import offline, parity
from tracer.identity.index import Rules
from tracer.identity.parity import Located
from tracer.identity.pods import PodTable
from tracer.model import State, Workload
from tracer.sources import entries_file, files

if TYPE_CHECKING:
    from tracer.identity.entries import Entries
    from tracer.identity.entries_report import Report

_SYNC_TIMEOUT = 10.0  # seconds for the first pod list
_EXIT = {State.RESOLVED: 0, State.HOST: 1, State.GONE: 1, State.PENDING: 75, State.UNKNOWN: 75}
EXAMPLES = """\b
Examples:
  podtracer explain 4321                              a process of this node
  podtracer explain 4321 --entries-file entries.json  and which registration entries it matches
  podtracer explain --cgroup-file F --pods-file G     files of another machine, without root
  podtracer explain --cgroup-file F --mode parity -o json
\b
F is a copy of /proc/PID/cgroup, the entries what `spire-server entry show -output json` prints.
Exit code: of a PID as of lookup; of files 0 found, 1 not, 2 when one cannot be read.
"""


@click.command("explain", cls=options.Command, epilog=EXAMPLES)
@click.argument("pid", metavar="[PID]", type=PidOrSelf(), required=False)
@click.option("--cgroup-file", type=Text(), metavar="F", help="A copy of /proc/PID/cgroup, in place of a PID.")
@click.option("--mountinfo-file", type=Text(), metavar="F", help="A copy of /proc/PID/mountinfo, for parity.")
@click.option("--pods-file", type=Text(), metavar="F", help="A pod list, for files in place of a PID.")
@click.option("-o", "--output", "format_", type=OneOf("text", "json"), default="text", help="text or json. [text]")
@options.pod_data_options
@options.global_options
@pass_app
def command(app: App, /, pid: int | None, format_: str, **given: Any) -> int:
    """Tell step by step which workload a process is, and where the way ended if that cannot be said.

    Takes the PID of a process of this node, or self for podtracer's own. Takes files from any machine instead, asks
    nobody then, and needs no root.
    """
    named = [f"--{key.replace('_', '-')}" for key, value in given.items() if value is not None]
    if pid is not None and named:
        raise UsageError("files stand in for a process, and a PID was given too", named[0], "leave one of them out")
    if pid is None and not (given["cgroup_file"] or given["mountinfo_file"]):
        raise UsageError("neither a PID nor a file is given", "PID", "give a PID or self, or --cgroup-file F")
    path = app.value("entries-file")
    entries = entries_file.read(path) if path is not None else None
    if pid is not None:
        return _live(app, pid, entries, format_)
    return _offline(app, entries, format_, **given)


def _report(app: App, entries: Entries | None, workload: Workload, unix: Sequence[str] | None) -> Report | None:
    """What the entries say to a workload, or to a process of none, which has ``unix`` selectors at most."""
    if entries is None or workload.state not in (State.RESOLVED, State.HOST):
        return None
    return entries.report(workload.selectors, unix, app.value("agent-id"), time.time())


# ---- a process of this node ----


def _live(app: App, pid: int, entries: Entries | None, format_: str) -> int:
    out = Out()
    with app.open_tracer() as tracer:
        tracer.wait_synced(_SYNC_TIMEOUT)
        record = tracer.explain_record(pid)
    if entries is not None:
        explaining.compare(record, entries, app.value("agent-id"), app.value("entries-file"), time.time())
    if format_ == "json":
        out.write(to_json(record))
    else:
        is_known = record["state"] == State.RESOLVED
        what = f": {steps_text.name(record)}" if is_known else ""
        head = f"PID {record['asked']} is {record['state']}{what}"
        told = [Step.of_dict(step) for step in record["steps"]]
        out.write(steps_text.render(head, told, colored=app.is_colored(out.stream)))
    return _EXIT[State(record["state"])]


# ---- files ----


def _offline(
    app: App,
    entries: Entries | None,
    format_: str,
    *,
    cgroup_file: str | None,
    mountinfo_file: str | None,
    pods_file: str | None,
) -> int:
    mode, root = app.value("mode"), app.value("cgroup-prefix")
    alone = app.value("disable-container-selectors")
    cgroup = files.read_proc(cgroup_file, "cgroup") if cgroup_file else None
    mountinfo = files.read_proc(mountinfo_file, "mountinfo") if mountinfo_file else None
    pods = files.read_pods(pods_file) if pods_file else None
    for sentence in pods.skipped if pods else ():
        warn(f"{sentence} ({pods_file})")
    answer = _locate(cgroup, mountinfo)
    groups = _groups(cgroup, cgroup_file, root, strict=mode == "strict")
    group = offline.choose(groups)
    rules = Rules(
        prefix=root, disable_container_selectors=alone, ephemeral_containers=app.value("ephemeral-containers")
    )
    strict = offline.answer(group.path if group else "/", pods.pods if pods else None, rules=rules)
    outcome = None
    if pods is not None and isinstance(answer, Located):
        outcome = parity.attest(answer, PodTable.build(pods.pods), disable_container_selectors=alone)
    theirs = parity.workload(answer, outcome, source="file" if pods else None, given_up=True)
    if theirs.state is State.PENDING:
        theirs = replace(theirs, reason="no_list", reason_text="no pod list was given")
    workload = strict if mode == "strict" else theirs
    same = parity.is_same(strict, answer)
    report = _report(app, entries, workload, None)

    ends = workload.state is not State.RESOLVED and (pods is not None or workload.container_id is None)
    in_pods = workload.container_id is not None or mode == "parity"
    about = f"the list has {len(pods.pods)} pods, from {pods_file}" if pods else "no pod list was given"
    told = [
        steps.lines_step(answer),
        _chosen(group, strict, ends=ends and not in_pods),
        steps.pods_step(workload, [about], ends=ends and in_pods),
        steps.selectors_step(workload),
        steps.entries_step(report, app.value("entries-file")),
        steps.parity_step(strict, answer, outcome, same),
    ]
    uid, container_id, message = _ids(mode, group, answer)
    out = Out()
    if format_ == "json":
        lines = steps.line_dicts(answer)
        for line in lines:
            line["used"] = line["file"] == "cgroup" and group is not None and line["line"] == group.number
        record = {
            "mode": mode,
            "pod_uid": uid,
            "container_id": container_id,
            "error": message,
            "state": workload.state.value,
            "reason": workload.reason,
            "reason_text": workload.reason_text,
            "namespace": workload.namespace,
            "service_account": workload.service_account,
            "pod": workload.pod,
            "container": workload.container,
            "kind": workload.kind,
            "selectors": list(workload.selectors),
            "parity": same,
            "lines": lines,
            "parity_answer": steps.parity_dict(answer, outcome),
            "entries": report.to_dict() if report else None,
            "steps": [step.to_dict() for step in told],
        }
        out.write(to_json(record))
    else:
        head = f"The process is {workload.state.value}, by the rule of {mode} mode"
        out.write(steps_text.render(head, told, colored=app.is_colored(out.stream)))
    if isinstance(answer, ParityError) and answer.code == parity.INTERNAL:
        path = (cgroup_file if answer.file == "cgroup" else mountinfo_file) or ""
        raise InputError(f"line {answer.line}: {answer.what}", path, f"give a copy of /proc/PID/{answer.file}")
    found = workload.state is State.RESOLVED if pods is not None else container_id is not None
    return 0 if found else 1


def _locate(cgroup: bytes | None, mountinfo: bytes | None) -> Located | ParityError:
    try:
        return parity.locate(cgroup, mountinfo)
    except ParityError as error:
        return error


def _groups(cgroup: bytes | None, file: str | None, root: str | None, *, strict: bool) -> tuple[offline.Group, ...]:
    """The lines by the strict rule; in parity mode none where the file is malformed, of which SPIRE's error tells."""
    try:
        return offline.parse(cgroup or b"", file or "", root)
    except InputError:
        if strict:
            raise
        return ()


def _chosen(group: offline.Group | None, strict: Workload, *, ends: bool) -> Step:
    """The strict answer, and by which line of the file."""
    if group is None:
        return steps.container_step(None, None, replace(strict, reason_text="no line to read"), ends=ends)
    step = steps.container_step(group.path, group.match, strict, ends=ends)
    return replace(step, lines=(f"read from line {group.number} ({group.hierarchy})", *step.lines))


def _ids(
    mode: str, group: offline.Group | None, answer: Located | ParityError
) -> tuple[str | None, str | None, str | None]:
    """(pod UID, container ID, error) by the rule of this mode."""
    if mode == "strict":
        match = group.match if group else None
        container = match.container if match else None
        return match.pod_uid if match else None, container.container_id if container else None, None
    if isinstance(answer, ParityError):
        return None, None, answer.what
    return answer.pod_uid, answer.container_id, None
