"""``podtracer explain``: of files, and of a process of a tracer made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import CART, CONTAINER_ID, HOST, WAITING, FakeTracer, identity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import entries
from tests.node import FakePod, listing
from tracer import clock, explaining
from tracer.cli.app import App
from tracer.cli.main import run
from tracer.errors import ParityError
from tracer.explanation import difference
from tracer.identity import offline, parity
from tracer.identity.explained import Explained
from tracer.identity.parity import Line, Located
from tracer.model import GONE, Identity, State, Workload

FILES = json.loads((Path(__file__).parents[1] / "vectors" / "cgroup.json").read_text())["cases"]
OWN, VICTIM = FakePod("cart-1"), FakePod("vault-0", "secrets", "vault")
ID = OWN.containers["app"]
NESTED = f"{OWN.cgroup()}/pod{VICTIM.uid}/{VICTIM.containers['app']}"


def explain(*args: str | Path) -> int:
    return run(["explain", *map(str, args)], App(environ={}))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """A file with this content."""

    def write(name: str, body: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(body.encode() if isinstance(body, str) else body)
        return path

    return write


# ---- files ----


@pytest.mark.parametrize("case", FILES, ids=lambda case: case["case"])
def test_every_recorded_case(write: Any, capsys: pytest.CaptureFixture[str], case: dict[str, Any]) -> None:
    """Each recorded pair of files gives SPIRE's container, pod UID or error through the command; a file that is not
    there is left out or empty."""
    want = case["want"]
    args = ["--cgroup-file", write("cgroup", case["cgroup"] or ""), "--mode", "parity", "-o", "json"]
    if case["mountinfo"] is not None:
        args += ["--mountinfo-file", write("mountinfo", case["mountinfo"])]
    code = explain(*args)
    told = json.loads(capsys.readouterr().out)
    assert (told["container_id"], told["error"]) == (want["container_id"], want["error"])
    if case["pod_uids"]:
        assert told["pod_uid"] == want["pod_uid"]
    if want["error"] is None:
        assert code == (0 if want["container_id"] else 1)
    else:
        assert code == (1 if want["error"].startswith("multiple") else 2)


def test_both_rules_on_a_nested_cgroup(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a path that impersonates another pod strict mode tells the own pod, parity mode the victim, and both say
    that they differ."""
    args = ["--cgroup-file", write("cgroup", f"0::{NESTED}\n"), "--pods-file", write("pods", listing(OWN, VICTIM))]
    for mode, pod in (("strict", OWN), ("parity", VICTIM)):
        assert explain(*args, "-o", "json", "--mode", mode) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["mode"], told["pod"], told["pod_uid"]) == (mode, pod.name, pod.uid)
        assert (told["container_id"], told["parity"]) == (pod.containers["app"], False)
        assert f"k8s:sa:{pod.service_account}" in told["selectors"]
        assert "k8s:sa:vault" in told["parity_answer"]["selectors"]
    assert explain(*args) == 0
    assert "impersonates that pod" in capsys.readouterr().out


def test_an_ephemeral_container(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It is resolved, and the step of its selectors says why there are none and what to set."""
    target = FakePod("cart-1", ephemeral={"debug": "d" * 64})
    args = ["--cgroup-file", write("cgroup", f"0::{target.cgroup('debug')}\n"), "--pods-file"]
    args.append(write("pods", listing(target)))
    assert explain(*args, "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["container"], told["kind"], told["selectors"]) == ("resolved", "debug", "ephemeral", [])
    assert told["parity_answer"]["code"] == "DeadlineExceeded"
    (step,) = [each for each in told["steps"] if each["title"] == "Selectors"]
    assert step["failed"]
    assert "--ephemeral-containers" in step["hint"]
    assert explain(*args, "-o", "json", "--ephemeral-containers") == 0
    told = json.loads(capsys.readouterr().out)
    assert "k8s:container-name:debug" in told["selectors"]
    assert not any(each["failed"] for each in told["steps"] if each["title"] == "Selectors")


@pytest.mark.parametrize("mode", ["strict", "parity"])
def test_an_empty_cgroup_file_is_an_answer(write: Any, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    """A process with no line is in no container: exit code 1, and no error."""
    assert explain("--cgroup-file", write("cgroup", ""), "--mode", mode, "-o", "json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["pod_uid"], told["container_id"], told["error"], told["state"]) == (None, None, None, "host")


@pytest.mark.parametrize(
    ("paths", "line"),
    [
        (["0::/", f"8:pids:{OWN.cgroup()}", "4:memory:/"], 2),
        ([f"4:memory:{OWN.cgroup()}", f"8:pids:{OWN.cgroup()}", "0::/user.slice"], 2),
        ([f"8:pids:{OWN.cgroup()}", f"0::{OWN.cgroup()}"], 2),
        (["1:cpu:/", f"9:name=systemd:/docker/{'c' * 64}", "0::/"], 2),
        (["8:pids:/", "0::/"], 2),
        (["5:devices:/", "3:cpu,cpuacct:/", "4:memory:/"], 3),
    ],
)
def test_which_line_counts_in_strict_mode(paths: list[str], line: int) -> None:
    """The hierarchy with a pod's container counts, else one with any, else the first; v2 before pids, memory, cpu."""
    chosen = offline.choose(offline.parse("\n".join(paths).encode(), "cgroup"))
    assert chosen is not None
    assert chosen.number == line


STATIC = "my-static-01"
UID = OWN.uid.replace("-", "_")
PATHS = {
    "cgroupfs": OWN.cgroup(),
    "systemd": f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID}.slice/crio-{ID}.scope",
    "no systemd": f"/system.slice/containerd.service/kubepods-besteffort-pod{UID}.slice:cri-containerd:{ID}",
    "nothing above": f"/kubepods-besteffort-pod{UID}.slice:cri-containerd:{ID}",
    "in a node's container": f"/docker/{'d' * 64}/kubelet/kubepods/besteffort/pod{OWN.uid}/{ID}",
    "no pod": f"/docker/{ID}",
    "static": f"/kubepods/burstable/pod{STATIC}/{ID}",
}


def _listed(state: str, *, with_id: bool = True, uid: str = OWN.uid) -> str:
    """The list of one pod whose container is in this state, with another that runs beside it."""
    pods = json.loads(listing(OWN, VICTIM))
    own = next(item for item in pods["items"] if item["metadata"]["uid"] == OWN.uid)
    own["metadata"]["uid"] = uid
    (status,) = own["status"]["containerStatuses"]
    status["state"] = {state: {}}
    if not with_id:
        del status["containerID"]
    return json.dumps(pods)


@pytest.mark.parametrize("alone", [False, True], ids=["all selectors", "of the pod"])
@pytest.mark.parametrize("state", ["running", "terminated", "waiting"])
@pytest.mark.parametrize("place", PATHS)
def test_files_need_no_live_node(
    write: Any, capsys: pytest.CaptureFixture[str], place: str, state: str, alone: bool
) -> None:
    """A container that the list has is resolved from files as SPIRE answers, wherever its cgroup is, and whether it
    runs still, has ended or waits to start again: nothing has to be alive."""
    uid = STATIC if place == "static" else OWN.uid
    args = [
        "--cgroup-file",
        write("cgroup", f"0::{PATHS[place]}\n"),
        "--pods-file",
        write("pods", _listed(state, uid=uid)),
    ]
    flags = ["--disable-container-selectors"] if alone else []
    assert explain(*args, *flags, "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["namespace"], told["pod"], told["parity"]) == (
        "resolved",
        OWN.namespace,
        OWN.name,
        True,
    )
    assert told["selectors"] == sorted(told["parity_answer"]["selectors"])
    assert any("container-name" in each for each in told["selectors"]) is not alone


@pytest.mark.parametrize("place", [place for place in PATHS if place not in ("no pod", "static")])
@pytest.mark.parametrize("state", ["running", "waiting"])
def test_without_container_selectors_a_listed_pod_is_enough(
    write: Any, capsys: pytest.CaptureFixture[str], place: str, state: str
) -> None:
    """A container whose ID the list does not have yet has the selectors of its pod where those of containers are left
    out, as by SPIRE, and none where they are not."""
    pods = write("pods", _listed(state, with_id=False))
    args = ["--cgroup-file", write("cgroup", f"0::{PATHS[place]}\n"), "--pods-file", pods, "-o", "json"]
    assert explain(*args, "--disable-container-selectors") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["pod"]) == ("resolved", OWN.name)
    assert told["selectors"] == sorted(told["parity_answer"]["selectors"]) != []
    assert explain(*args) == 1
    assert json.loads(capsys.readouterr().out)["selectors"] == []


@pytest.mark.parametrize(
    ("path", "pods", "state", "reason", "code"),
    [
        (OWN.cgroup(), [OWN], "resolved", None, 0),
        (OWN.cgroup(), [VICTIM], "unknown", "not_listed", 1),
        (f"/kubepods/pod{OWN.uid}/{'c' * 64}", [OWN], "host", "sandbox", 1),
        (f"/kubepods/pod{VICTIM.uid}/{ID}", [OWN, VICTIM], "unknown", "conflict", 1),
        (f"/docker/{'c' * 64}", [OWN], "host", "not_a_pod", 1),
        ("/user.slice", [OWN], "host", "no_container", 1),
    ],
)
def test_what_a_list_makes_of_a_path(
    write: Any,
    capsys: pytest.CaptureFixture[str],
    path: str,
    pods: list[FakePod],
    state: str,
    reason: str | None,
    code: int,
) -> None:
    """Offline the index's own decisions are told, as if no other list would come."""
    args = ["--cgroup-file", write("cgroup", f"0::{path}\n"), "--pods-file", write("pods", listing(*pods))]
    assert explain(*args, "-o", "json") == code
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["reason"]) == (state, reason)
    assert explain(*args) == code
    assert ("<- it ends here" in capsys.readouterr().out) == (code != 0)


def test_the_line_that_was_used_is_told(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line says what SPIRE took from it, and whether the strict answer comes from it."""
    path = write("cgroup", f"8:pids:{OWN.cgroup()}\n0::/\n")
    assert explain("--cgroup-file", path, "-o", "json") == 0
    first, second = json.loads(capsys.readouterr().out)["lines"]
    assert (first["used"], first["taken"], first["container_id"]) == (True, "taken", ID)
    assert (second["used"], second["taken"], second["container_id"]) == (False, "nothing", None)
    assert explain("--cgroup-file", path) == 0
    assert "read from line 1 (pids)" in capsys.readouterr().out


def test_entries_of_files(write: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The report of the registration entries stands beside the selectors that it is about."""
    file = entries.write(
        tmp_path / "entries.json", entries.entry("/cart", "k8s:sa:cart"), entries.entry("/no", "k8s:sa:no")
    )
    args = ["--cgroup-file", write("cgroup", f"0::{OWN.cgroup()}"), "--entries-file", file]
    pods = ["--pods-file", write("pods", listing(OWN))]
    assert explain(*args, *pods, "-o", "json") == 0
    report = json.loads(capsys.readouterr().out)["entries"]
    assert [match["id"] for match in report["matched"]] == ["cart"]
    assert report["agent"] == "any"
    assert explain(*args, *pods, "--agent-id", entries.AGENT) == 0
    text = capsys.readouterr().out
    assert f"of agent {entries.AGENT}" in text
    assert "wants k8s:sa:no; it has k8s:sa:cart" in text
    assert explain(*args) == 0
    assert "there are no selectors to compare" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--cgroup-file", "--mountinfo-file"])
@pytest.mark.parametrize("mode", ["strict", "parity"])
@pytest.mark.parametrize(
    ("body", "what"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"0::/\n\x7fELF\0", "this is binary"),
        (b"nothing of the kind\n", "line 1"),
        (b"0::/\n\xff\xfe\n", "line"),
        (b"x" * 70_000, "line 1"),
        (b"1:a:/b\n" * (3 << 20), "is larger than 16 MiB"),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, mode: str, body: bytes | None, what: str
) -> None:
    """Whatever is wrong with a file, it is one error that names it and the place, one hint, and exit code 2."""
    path = tmp_path / "file"
    if body is not None:
        path.write_bytes(body)
    assert explain(flag, path, "--mode", mode) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert what in error
    assert str(path) in error
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("args", "what"),
    [
        ([], "neither a PID nor a file is given (PID)"),
        (["7", "--cgroup-file", "x"], "files stand in for a process, and a PID was given too (--cgroup-file)"),
        (["--pods-file", "x"], "neither a PID nor a file is given (PID)"),
        (["x"], "'x' is no process ID ([PID])"),
    ],
)
def test_either_a_pid_or_files(capsys: pytest.CaptureFixture[str], args: list[str], what: str) -> None:
    """A process and files at once, or neither, is a usage error."""
    assert explain(*args) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {what}"


def test_hostile_names_are_quoted(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A cgroup's name can neither move the cursor nor begin a line of its own."""
    path = write("cgroup", b"0::" + OWN.cgroup().encode() + b"/\x1b[31m\xff\rx\n")
    assert explain("--cgroup-file", path) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    assert r"\x1b[31m\xff\x0dx" in out


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    body=st.binary() | st.text().map(lambda text: f"0::/{text}".encode(errors="replace")),
    mode=st.sampled_from(["strict", "parity"]),
)
def test_whatever_a_file_holds_there_is_no_traceback(tmp_path: Path, body: bytes, mode: str) -> None:
    """Any bytes give an answer, a definite no or one error."""
    path = tmp_path / "cgroup"
    path.write_bytes(body)
    assert explain("--cgroup-file", path, "--mode", mode) in (0, 1, 2)


# ---- a process ----


def explained(found: Identity, answer: Located | ParityError | None = None) -> Explained:
    same = None if answer is None else parity.is_same(found.workload, answer)
    return Explained(
        identity=found._replace(parity=same),
        strict=found.workload,
        answer=answer,
        outcome=None,
        hierarchy="v2",
        root="/kubepods",
        unix=("unix:uid:0",),
        pods=2,
        pods_at=0,
        pods_from="kubelet",
    )


def live(found: Explained, *args: str) -> int:
    class Explaining(FakeTracer):
        def explain_record(self, pid: int) -> dict[str, Any]:
            self.calls.append(("explain", pid))
            return explaining.record(found, clock.read())

    return run(["explain", "--standalone", "7", *args], App(tracer=Explaining().factory, environ={}))


@pytest.mark.parametrize(
    ("workload", "code", "failed"),
    [
        (CART, 0, []),
        (HOST, 1, ["Container, by the strict rule"]),
        (WAITING, 75, ["Pod data"]),
        (Workload(State.UNKNOWN, "unnamed", "its name cannot be told"), 75, ["Container, by the strict rule"]),
    ],
)
def test_a_process_is_told_step_by_step(
    capsys: pytest.CaptureFixture[str], workload: Workload, code: int, failed: list[str]
) -> None:
    """The exit code is that of a look-up, and the step where the way ended is marked, with what to do."""
    line = Line("cgroup", 1, "/kubepods/x", CONTAINER_ID, "6f2a", "taken")
    found = explained(identity(7, workload), Located("6f2a", CONTAINER_ID, (line,), "cgroup"))
    assert live(found, "-o", "json") == code
    told = json.loads(capsys.readouterr().out)
    assert [step["title"] for step in told["steps"] if step["failed"]] == failed
    assert all(step["hint"] for step in told["steps"] if step["failed"])
    assert set(identity(7).to_dict(clock.read())) < set(told)
    assert live(found) == code
    text = capsys.readouterr().out
    assert text.startswith(f"PID 7 is {workload.state.value}")
    assert "1. Kernel record" in text
    assert "learnt from its exec, 5.0s ago" in text


def test_a_process_that_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a number that nobody has there is one step, and nothing to compare."""
    found = explained(identity(7, GONE)._replace(process=None, cgroup=None))
    assert live(found, "-o", "json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["parity"], told["parity_answer"], told["lines"]) == ("gone", None, None, [])
    assert [step["title"] for step in told["steps"]] == ["Kernel record"]


def _line(path: str, uid: str) -> tuple[Line, ...]:
    return (Line("cgroup", 1, path, "V", uid, "taken"),)


@pytest.mark.parametrize(
    ("strict", "answer", "words"),
    [
        (CART, ParityError("multiple", "FailedPrecondition", "cgroup", 2), "SPIRE does not choose"),
        (CART, ParityError("invalid", "Internal", "cgroup", 2), "cannot read the file"),
        (CART, Located(None, None), "find no container ID"),
        (CART, Located("v", "V", (), "mountinfo"), "looks at the mounts"),
        (Workload(State.HOST, "conmon"), Located(None, "V"), "the monitor's cgroup"),
        (Workload(State.HOST, "outside_root"), Located(None, "V"), "finds no container of a pod here"),
        (CART, Located("v", "V", _line("/elsewhere", "v")), "in another hierarchy"),
        (CART, Located("v", "V", _line(f"/{CONTAINER_ID}/V", "v")), "impersonates"),
        (CART, Located("6f2a", "V", _line(f"/{CONTAINER_ID}/V", "6f2a")), "a container in the container"),
    ],
)
def test_what_happened_where_the_rules_differ(strict: Workload, answer: Located | ParityError, words: str) -> None:
    """Each way in which SPIRE's rules give another container is told apart."""
    assert words in " ".join(difference(strict, answer))
