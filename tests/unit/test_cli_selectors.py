"""``podtracer selectors``, which reads a pod list and asks nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.node import FakePod, listing
from tracer.cli.app import App
from tracer.cli.main import run

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "selectors.json").read_text())
POD = FakePod("cart-1")
OTHER = FakePod("cart-2", containers={"app": POD.containers["app"]})
ID = POD.containers["app"]


def selectors(*args: str | Path) -> int:
    return run(["selectors", *map(str, args)], App(environ={}))


@pytest.fixture
def pods(tmp_path: Path) -> Path:
    """A list of one pod."""
    path = tmp_path / "pods.json"
    path.write_bytes(listing(POD))
    return path


@pytest.mark.parametrize("mode", ["strict", "parity"])
@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["case"])
def test_every_recorded_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: dict[str, Any], mode: str
) -> None:
    """Each recorded list gives the recorded selectors with the case's flags, in both modes."""
    path = tmp_path / "pods.json"
    path.write_text(json.dumps(VECTORS["lists"][case["list"]]))
    args = ["--pods-file", path, "--container", case["container_id"], "--mode", mode, "-o", "json"]
    if case["pod_uid"] is not None:
        args += ["--pod-uid", case["pod_uid"]]
    if case["disable_container_selectors"]:
        args.append("--disable-container-selectors")
    assert selectors(*args) == 0
    assert json.loads(capsys.readouterr().out) == {"selectors": case["selectors"], "error": None}


def _with_debug(tmp_path: Path) -> Path:
    """A list of one pod whose only container with this ID is ephemeral."""
    path = tmp_path / "debug.json"
    path.write_bytes(listing(FakePod("cart-1", uid=POD.uid, containers={}, ephemeral={"debug": ID})))
    return path


@pytest.mark.parametrize("mode", ["strict", "parity"])
def test_an_ephemeral_container_gets_what_spire_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    """None, with an error; with --disable-container-selectors the pod's where its path names the pod; in strict mode
    the operator's word gives it the pod's and its own."""
    args = ["--pods-file", _with_debug(tmp_path), "--container", ID, "--mode", mode, "-o", "json"]
    alone, uid = "--disable-container-selectors", ("--pod-uid", POD.uid)

    def said(*more: str) -> tuple[int, list[str], str | None]:
        code = selectors(*args, *more)
        answer = json.loads(capsys.readouterr().out)
        return code, answer["selectors"], answer["error"]

    refused = "no selectors found after max poll attempts"
    if mode == "strict":
        refused = "SPIRE does not attest ephemeral containers; --ephemeral-containers gives them selectors"
    for more in ((), uid, (alone,)):
        assert said(*more) == (1, [], refused)
    code, given, error = said(alone, *uid)
    assert (code, error, "k8s:pod-name:cart-1" in given) == (0, None, True)
    code, given, error = said("--ephemeral-containers")
    if mode == "parity":
        assert (code, given, error) == (1, [], refused)
    else:
        assert (code, error, "k8s:container-name:debug" in given) == (0, None, True)


@pytest.mark.parametrize(
    ("mode", "error"),
    [("strict", "no pod of the list has this container"), ("parity", "no selectors found after max poll attempts")],
)
def test_a_container_that_no_pod_lists(pods: Path, capsys: pytest.CaptureFixture[str], mode: str, error: str) -> None:
    """What is not listed is a definite no, in parity mode with SPIRE's own error."""
    args = ["--pods-file", pods, "--container", "0" * 64, "--mode", mode]
    assert selectors(*args, "-o", "json") == 1
    assert json.loads(capsys.readouterr().out) == {"selectors": [], "error": error}
    assert selectors(*args) == 1
    assert capsys.readouterr().out == f"no selectors: {error}\n"


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("strict", "two pods are listed with this container ID"),
        ("parity", "two pods found with same container Id"),
    ],
)
def test_a_container_that_two_pods_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, error: str
) -> None:
    """Two pods that list the same container are an error, unless the pod's UID says which."""
    path = tmp_path / "pods.json"
    path.write_bytes(listing(POD, OTHER))
    args = ["--pods-file", path, "--container", ID, "--mode", mode, "-o", "json"]
    assert selectors(*args) == 1
    assert json.loads(capsys.readouterr().out)["error"] == error
    assert selectors(*args, "--pod-uid", OTHER.uid) == 0
    assert "k8s:pod-name:cart-2" in json.loads(capsys.readouterr().out)["selectors"]


def test_a_container_of_another_pod(pods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A container that another pod lists than the one that was given is not found."""
    assert selectors("--pods-file", pods, "--container", ID, "--pod-uid", OTHER.uid) == 1
    assert "it is listed in another pod" in capsys.readouterr().out


def test_text_is_one_selector_a_line(pods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People get the selectors one a line, sorted."""
    assert selectors("--pods-file", pods, "--container", ID) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == sorted(lines)
    assert "k8s:sa:cart" in lines


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "the pod list is empty"),
        (b"\n \n", "the pod list is empty"),
        (b"\x00\x01\xfe\xff" * 100, "this is not UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00", "this is not JSON"),
        (b'{"kind": "PodList", "items": [], "a": "\xff"}', "this is not UTF-8 (byte 39)"),
        (listing(POD)[:-40], "this is not JSON"),
        (b'{"kind": "Secret"}', "this is a 'Secret', no pod list"),
        (b'{"items": {}}', "this is no pod list"),
        (b"[" * 100_000, "this"),
        (b'"text"', "this is no pod list"),
    ],
)
def test_a_list_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: bytes | None, what: str
) -> None:
    """Whatever is wrong with the file, it is one error that names it, one hint, and exit code 2."""
    path = tmp_path / "pods.json"
    if body is not None:
        path.write_bytes(body)
    assert selectors("--pods-file", path, "--container", ID) == 2
    out, err = capsys.readouterr()
    error, hint = err.splitlines()
    assert out == ""
    assert what in error
    assert str(path) in error
    assert hint.startswith("hint: ")


def test_a_list_of_100_megabytes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file beyond the limit is not read to its end, nor is one that has none; a folder is no file."""
    huge = tmp_path / "pods.json"
    with huge.open("wb") as file:
        file.truncate(100 << 20)
    for path in (huge, Path("/dev/zero"), tmp_path):
        assert selectors("--pods-file", path, "--container", ID) == 2
        assert str(path) in capsys.readouterr().err


def test_a_pod_that_cannot_be_read_costs_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed pod is passed over with a warning; the others answer."""
    path = tmp_path / "pods.json"
    body = json.loads(listing(POD))
    body["items"].append({"metadata": {"uid": 7}})
    path.write_text(json.dumps(body))
    assert selectors("--pods-file", path, "--container", ID) == 0
    assert "warning: item 1 is malformed" in capsys.readouterr().err


def test_neither_bcc_nor_the_kernel_is_touched(pods: Path) -> None:
    """The offline commands load nothing that a machine without BPF would lack."""
    code = (
        "import sys; from tracer.cli.main import run\n"
        f"assert run(['selectors', '--pods-file', {str(pods)!r}, '--container', {ID!r}]) == 0\n"
        "assert run(['explain', '--cgroup-file', '/dev/null']) == 1\n"
        "bad = {'bcc', 'tracer.node', 'tracer.feed', 'requests', 'psutil', 'asyncio', 'grpc'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "assert not [name for name in sys.modules if name.startswith('tracer.kernel')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
