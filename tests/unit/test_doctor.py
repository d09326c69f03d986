"""What doctor says of a machine, of machines made up, and how it is written."""

from __future__ import annotations

import importlib.machinery
import io
import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cli_fakes import identity

from tests.node import FakePod, listing
from tests.servers import pod_list
from tracer import doctor
from tracer.cli import color
from tracer.cli import doctor as command
from tracer.cli.output import Out
from tracer.cli.quote import width
from tracer.doctor import Check
from tracer.errors import MissingError, SourceError
from tracer.kernel import machine
from tracer.kernel.cgroupfs import Mount
from tracer.kernel.loader import Features, HierarchyInfo
from tracer.model import GONE
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet
from tracer.sources.state import SourceState

BEST = Features(None, None, True)
ROOT = "CapEff:\t000001ffffffffff\n"
NOBODY = "CapEff:\t0000000000000000\n"
NASTY = "a\x1b[2J\n\u202eb"
CHECKS = (Check("kernel", "ok", "Linux 6.1"), Check("kubelet", "warn", f"refused ({NASTY})", f"start it {NASTY}"))


def spec(folder: Path) -> importlib.machinery.ModuleSpec:
    return importlib.machinery.ModuleSpec("bcc", None, origin=str(folder / "__init__.py"))


def refused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# ---- the machine


@pytest.mark.parametrize(("release", "state"), [("5.8.0", "ok"), ("6.18.1-x", "ok"), ("5.7.19", "fail")])
def test_the_kernel_is_named_and_an_old_one_fails(release: str, state: str) -> None:
    """The release and the least version are told; below it the check fails."""
    (check,) = doctor.guarded("kernel", lambda: doctor.kernel(release))
    assert (check.name, check.state) == ("kernel", state)
    assert release in check.found
    assert "5.8" in (check.found + str(check.hint))


def test_a_missing_capability_is_named() -> None:
    """Root has all of them; who has none is told which are missing and what to do."""
    assert doctor.capabilities(ROOT).state == "ok"
    (check,) = doctor.guarded("capabilities", lambda: doctor.capabilities(NOBODY))
    assert (check.state, check.hint) == ("fail", "run it as root")
    assert "CAP_BPF" in check.found
    assert "CAP_DAC_READ_SEARCH" in check.found


def test_few_descriptors_are_refused_before_anything_is_opened() -> None:
    """Below the least number of open files the error says how to have more; no limit at all is fine."""
    for limit in (machine.LEAST_FILES, 1 << 20, resource.RLIM_INFINITY):
        machine.check_files(limit)
    with pytest.raises(MissingError, match=r"too few files may be open \(20, 64 are needed\)"):
        machine.check_files(20)


def test_no_btf_is_a_failure_that_names_the_file(tmp_path: Path) -> None:
    """A kernel without BTF, or with what is none, is a failed check."""
    (tmp_path / "garbage").write_bytes(b"x" * 100)
    for name in ("none", "garbage"):
        (check,) = doctor.guarded("btf", lambda name=name: doctor.type_information(str(tmp_path / name)))
        assert check.state == "fail"
        assert check.hint


def test_bcc_is_found_by_its_version_and_not_imported(tmp_path: Path) -> None:
    """bcc's version is read from its files; none at all, and PyPI's package of that name, are failures."""
    hints = set()
    for find in (lambda: None, lambda: spec(tmp_path)):
        check = doctor.bcc(find)
        assert check.state == "fail"
        hints.add(check.hint)
    assert len(hints) == 1
    (tmp_path / "libbcc.py").touch()
    assert doctor.bcc(lambda: spec(tmp_path)).found.startswith("of unknown version")
    (tmp_path / "version.py").write_text("__version__ = '0.26.0'\n")
    assert (doctor.bcc(lambda: spec(tmp_path)).state, doctor.bcc(lambda: spec(tmp_path)).found[:6]) == ("ok", "0.26.0")


@pytest.mark.parametrize(
    ("inum", "level", "state"),
    [(0xEFFFFFFC, None, "ok"), (0xEFFFFFFC, 0, "ok"), (4026532000, None, "warn"), (4026532000, 1, "warn")],
)
def test_a_child_pid_namespace_is_a_warning(inum: int, level: int | None, state: str) -> None:
    """In the initial PID namespace all is well; in another one its number is told."""
    check = doctor.pid_namespace(inum, level)
    assert check.state == state
    assert state == "ok" or str(inum) in check.found


def test_a_mount_of_a_private_cgroup_namespace_is_red() -> None:
    """Each hierarchy has its check, and one whose paths are not whole fails with what to do."""
    whole = Mount("/a", (), HierarchyInfo(1, 0, 1), trusted=True)
    private = Mount("/b", ("pids",), HierarchyInfo(2, 3, 1), trusted=False)
    checks = list(doctor.hierarchies([whole, private]))
    assert [(check.name, check.state) for check in checks] == [("cgroup v2", "ok"), ("cgroup pids", "fail")]
    assert "--cgroupfs" in str(checks[1].hint)


# ---- the ways


def test_the_first_choice_is_ok_everywhere() -> None:
    """Where nothing was second best, nothing warns."""
    checks = {check.name: check for check in doctor.ways(BEST)}
    assert set(checks) == {"table", "iterator", "pidfs", "tracepoints"}
    assert all(check.state == "ok" for check in checks.values())


def test_a_second_best_way_is_a_warning_with_its_reason() -> None:
    """The way that was taken and why stand in the check; missing tracepoints are named, and no warning."""
    features = Features("no exchange", "forced", False, ("cgroup_rename",))
    checks = {check.name: check for check in doctor.ways(features)}
    assert {name for name, check in checks.items() if check.state == "warn"} == {"table", "iterator", "pidfs"}
    assert "hash" in checks["table"].found
    assert "no exchange" in checks["table"].found
    assert "/proc" in checks["iterator"].found
    assert "start times" in checks["pidfs"].found
    assert "forced" not in checks["pidfs"].found
    assert "cgroup_rename" in checks["tracepoints"].found
    assert doctor.is_ok(checks.values())


@pytest.mark.parametrize(
    ("certain", "elsewhere", "state", "words"),
    [(True, False, "ok", "certain"), (False, False, "ok", "until"), (False, True, "warn", "another")],
)
def test_the_tracked_hierarchy_says_whether_it_is_certain(
    certain: bool, elsewhere: bool, state: str, words: str
) -> None:
    """An empty node is no warning; a container in another hierarchy is."""
    mount = Mount("/sys/fs/cgroup", (), HierarchyInfo(1, 0, 1), trusted=True)
    check = doctor.tracked(mount, certain=certain, elsewhere=elsewhere)
    assert check.state == state
    assert words in check.found
    assert "/sys/fs/cgroup" in check.found


def test_losses_are_a_warning() -> None:
    """A day without losses is well; one lost record is told by its name."""
    assert doctor.losses({"lost_process": 0}).state == "ok"
    check = doctor.losses({"lost_cgroup": 1})
    assert check.state == "warn"
    assert "lost_cgroup 1" in check.found


def test_the_source_in_use_and_since_when() -> None:
    """The Pods API goes before the kubelet; a failing one is told with its error."""
    good = SourceState(True, 1_000_000_000)
    bad = SourceState(False, 0, error=SourceError("connection refused", "url", "start it"))
    assert doctor.in_use({"pods-api": good, "kubelet": good}, 3_500_000_000).found == (
        "pods come from pods-api, since 2.5 s ago"
    )
    assert "from kubelet" in doctor.in_use({"pods-api": bad, "kubelet": good}, 0).found
    for states in ({"kubelet": bad, "cri": good}, {}):
        check = doctor.in_use(states, 0)
        assert check.state == "warn"
        assert ("connection refused" in check.found) == bool(states)


def test_a_self_test_that_lies_is_found_out() -> None:
    """Answers about a child that are gone, of another inode, PID or parent are each named."""
    right = identity(7)
    assert right.process is not None
    right = right._replace(process=replace(right.process, ppid=os.getpid()))
    assert doctor._misjudged(right, right, 7, right.key.ino) is None
    gone = right._replace(workload=GONE)
    for by_pidfd, by_pid, pid, inode in (
        (gone, right, 7, right.key.ino),
        (right, gone, 7, right.key.ino),
        (right, right, 8, right.key.ino),
        (right, right, 7, right.key.ino + 1),
        (right, identity(7), 7, right.key.ino),
        (right, right._replace(key=right.key._replace(ino=1)), 7, None),
    ):
        assert doctor._misjudged(by_pidfd, by_pid, pid, inode)


def test_whatever_is_raised_is_a_check() -> None:
    """An error of ours keeps its hint, one of the system its file, a bug says what it is; what came before stays."""

    def broken() -> Iterator[Check]:
        yield CHECKS[0]
        raise ZeroDivisionError

    assert [check.state for check in doctor.guarded("x", broken)] == ["ok", "fail"]
    assert "bug" in str(list(doctor.guarded("x", broken))[-1].hint)
    known = doctor.failed("x", MissingError("not there", "obj", "get it"))
    assert (known.state, known.found, known.hint) == ("fail", "not there (obj)", "get it")
    (system,) = doctor.guarded("x", lambda: Check("x", "ok", Path("/none/file").read_text()))
    assert system.found == "No such file or directory (/none/file)"


# ---- pod data


def test_a_kubelet_that_answers_tells_how_many_pods_it_has() -> None:
    """The port, the number of pods and their age are told, and that the port was given."""
    for pods, words in (((FakePod("a"), FakePod("b")), ": 2 pods, 0."), ((FakePod("a"),), ": 1 pod, 0.")):
        with ReplayKubelet(listing(*pods)) as kubelet:
            check = doctor.kubelet(Settings(kubelet_read_only_port=kubelet.port), doctor._Found())
        assert check.state == "ok"
        assert f":{kubelet.port}/pods, as configured{words}" in check.found


def test_a_kubelet_that_cannot_be_used_fails_and_an_absent_one_warns() -> None:
    """Nothing that listens is a warning; garbage is a failure, unless the Pods API tells the pods."""
    check = doctor.kubelet(Settings(kubelet_read_only_port=refused_port()), doctor._Found())
    assert (check.state, check.found[:18]) == ("warn", "connection refused")
    assert check.hint
    with ReplayKubelet(b"garbage") as kubelet:
        settings = Settings(kubelet_read_only_port=kubelet.port)
        assert doctor.kubelet(settings, doctor._Found()).state == "fail"
        assert doctor.kubelet(settings, doctor._Found(has_pods_api=True)).state == "warn"
    assert doctor.kubelet(Settings(kubelet="none"), doctor._Found()).state == "ok"


def test_pods_that_cannot_be_used_are_a_warning() -> None:
    """A list with an item that is none is used, and the item is told of."""
    body = json.loads(pod_list(FakePod("a").to_json()))
    body["items"].append(7)
    with ReplayKubelet(json.dumps(body).encode()) as kubelet:
        check = doctor.kubelet(Settings(kubelet_read_only_port=kubelet.port), doctor._Found())
    assert check.state == "warn"
    assert "1 pod" in check.found


def test_sockets_that_are_not_there_warn_and_those_that_are_no_runtime_fail(tmp_path: Path) -> None:
    """A runtime or Pods API that is absent is done without; a socket that was named and is something else is wrong."""
    path = tmp_path / "x.sock"
    settings = Settings(cri=f"unix://{path}", pods_api=f"unix://{path}")
    assert doctor.runtime(settings).state == "warn"
    assert doctor.pods_api(settings, doctor._Found()).state == "warn"
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(path))
        for check in (doctor.runtime(settings), doctor.pods_api(settings, doctor._Found())):
            assert check.state == "fail"
            assert str(path) in check.found
    assert doctor.runtime(Settings(cri="none")).state == "ok"
    assert doctor.pods_api(Settings(pods_api="none"), doctor._Found()).state == "ok"


def test_namespace_labels_are_asked_for_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flag nothing is asked; with it, outside of a cluster, the check fails with what to do."""
    assert doctor.namespace_labels(Settings(), doctor._Found()).state == "ok"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    check = doctor.namespace_labels(Settings(enable_namespace_labels=True), doctor._Found())
    assert check.state == "fail"
    assert "--enable-namespace-labels" in str(check.hint)


def test_a_daemon_that_was_named_must_listen(tmp_path: Path) -> None:
    """A socket that nobody has made is a failure that names it."""
    check = doctor.daemon(str(tmp_path / "none"))
    assert check.state == "fail"
    assert str(tmp_path) in check.found


# ---- output


def test_text_is_aligned_quoted_and_plain_without_colour() -> None:
    """Every line starts in the same columns, hints below what was found, and nothing can move the cursor."""
    stream = io.StringIO()
    assert command.write_text(iter(CHECKS), Out(stream), colored=False) == 0
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert stream.getvalue().replace("\n", "").isprintable()
    at = lines[0].index("Linux")
    assert lines[0].startswith("[ok] ")
    assert lines[1].startswith("[warn] ")
    assert lines[1].index("refused") == at
    assert lines[2].index("hint: start it a\\x1b") == at == width(lines[2][:at])
    assert lines[3] == "nothing is missing that is needed; 1 of 2 checks warn"


def test_colours_change_no_column() -> None:
    """With colours taken out again the text is the plain one."""
    plain, colored = io.StringIO(), io.StringIO()
    failing = (*CHECKS, Check("bcc", "fail", "not there", "install it"))
    assert command.write_text(failing, Out(plain), colored=False) == 1
    assert command.write_text(failing, Out(colored), colored=True) == 1
    assert colored.getvalue() != plain.getvalue()
    text = colored.getvalue()
    for code in (color.RED, color.GREEN, color.YELLOW, color.CYAN, color.BOLD, color.RESET):
        text = text.replace(code, "")
    assert text == plain.getvalue()
    assert plain.getvalue().splitlines()[-1].startswith("1 of 3 checks failed")


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_json_is_one_object_and_only_a_failure_is_exit_1(state: doctor.Outcome, code: int) -> None:
    """The checks stand in order with all keys; ok and the exit code say the same."""
    stream = io.StringIO()
    assert command.write_json((CHECKS[0], replace(CHECKS[1], state=state)), Out(stream)) == code
    assert stream.getvalue().isascii()
    (line,) = stream.getvalue().splitlines()
    answer = json.loads(line)
    assert answer["ok"] == (code == 0)
    assert [check["name"] for check in answer["checks"]] == ["kernel", "kubelet"]
    assert answer["checks"][0] == {"name": "kernel", "state": "ok", "found": "Linux 6.1", "hint": None}
