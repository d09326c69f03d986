"""``bench attest`` against a small Workload API on a socket, whose wire is written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.rpc import RpcServer, pb, read_strings, socket_folder
from tracer.bench import attest
from tracer.bench.report import Report
from tracer.cli.app import App
from tracer.cli.main import run

ID = "spiffe://example.org/cart"


class WorkloadApi:
    """Gives one SVID of each kind to whoever sends the header that the standard asks for; counts calls and
    connections, and keeps the audiences."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "agent.sock"
        self.calls: list[str] = []
        self.peers: set[str] = set()
        self.audiences: list[dict[int, str]] = []
        self.status: grpc.StatusCode | None = None
        self.server = RpcServer(
            self.path, "SpiffeWorkloadAPI", {"FetchJWTSVID": self._jwt}, {"FetchX509SVID": self._x509}
        )

    def _note(self, name: str, context: Any) -> None:
        self.calls.append(name)
        self.peers.add(context.peer())
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        if self.status is not None:
            context.abort(self.status, "no identity issued")

    def _jwt(self, request: bytes, context: Any) -> bytes:
        self._note("FetchJWTSVID", context)
        self.audiences.append(read_strings(request))
        return pb((1, pb((1, ID), (2, "head.body.signature"))))

    def _x509(self, _request: bytes, context: Any) -> Iterator[bytes]:
        self._note("FetchX509SVID", context)
        yield pb((1, pb((1, ID), (2, b"cert"), (3, b"key"), (4, b"ca"))), (1, pb((1, f"{ID}-2"))))
        self.server.closing.wait(30)  # as an agent does: the next answer comes with the next certificate


@pytest.fixture
def api() -> Iterator[WorkloadApi]:
    with socket_folder() as folder:
        served = WorkloadApi(folder)
        with served.server:
            yield served


def _attest(api: WorkloadApi, *words: str) -> int:
    socket = f"unix://{api.path}"
    return run(
        ["bench", "attest", "--workload-api", socket, "--calls", "3", "--gap", "0", "-o", "json", *words],
        App(environ={}),
    )


def _rows(out: str, title: str) -> list[dict[str, Any]]:
    found: dict[str, Any] = json.loads(out)
    return next(table["rows"] for table in found["tables"] if table["title"] == title)


def test_calls_of_both_kinds_are_timed(api: WorkloadApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind is called as often as asked, in turn, behind one call that warms up, and its SVIDs are counted."""
    assert _attest(api, "--audience", "cart") == 0
    out = capsys.readouterr().out
    assert [(row["method"], row["count"], row["svids"]) for row in _rows(out, "call")] == [
        ("FetchJWTSVID", 3, 1),
        ("FetchX509SVID", 3, 2),
    ]
    assert api.calls == ["FetchJWTSVID", "FetchX509SVID"] * 4
    assert api.audiences == [{1: "cart"}] * 4


def test_a_refusal_is_told_and_is_no_success(api: WorkloadApi, capsys: pytest.CaptureFixture[str]) -> None:
    """A process without an entry is told how often it was refused, no time is shown for that, and the exit code is
    1."""
    api.status = grpc.StatusCode.PERMISSION_DENIED
    assert _attest(api) == 1
    out = capsys.readouterr().out
    assert {(row["status"], row["count"]) for row in _rows(out, "answers")} == {("PERMISSION_DENIED", 3)}
    assert all("p50" not in row for row in _rows(out, "call"))
    assert "FetchJWTSVID was answered PERMISSION_DENIED in 3 of 3 calls" in out


def test_a_connection_is_kept_unless_asked_otherwise(
    api: WorkloadApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One channel serves all calls; with --new-connection each counted call has its own."""
    made = []
    channel = attest.Channel
    monkeypatch.setattr(attest, "Channel", lambda *args: made.append(args) or channel(*args))
    assert _attest(api) == 0
    assert len(made) == 1
    made.clear()
    assert _attest(api, "--new-connection") == 0
    assert len(made) == 1 + 6
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "environ", "code", "said"),
    [
        ("", {}, 2, "error: no Workload API is named (workload-api)"),
        ("--workload-api agent.sock", {}, 2, "error: 'agent.sock' is no UNIX socket (workload-api)"),
        ("", {"SPIFFE_ENDPOINT_SOCKET": "tcp://127.0.0.1:1"}, 2, "is no UNIX socket"),
        ("--workload-api unix:///nobody/there.sock", {}, 69, "error: no Workload API answers (/nobody/there.sock)"),
    ],
)
def test_a_socket_that_cannot_be_asked_is_said(
    words: str, environ: dict[str, str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a socket, with a wrong one, or with nobody there, there is one error and one hint."""
    assert run(["bench", "attest", *words.split()], App(environ=environ)) == code
    error, hint = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("bench attest")]
    assert said in error
    assert hint.startswith("hint: ")


def test_a_server_that_never_answers_ends_the_call(api: WorkloadApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call without an answer ends with the time that it may take."""
    monkeypatch.setattr(attest, "TIMEOUT", 0.2)
    api.server.stop()
    silent = RpcServer(
        api.path,
        "SpiffeWorkloadAPI",
        {"FetchJWTSVID": lambda *_: hang()},
        {"FetchX509SVID": lambda *_: iter(hang, None)},
    )

    def hang() -> bytes:
        silent.closing.wait(30)
        return b""

    report = Report("attest")
    with silent:
        attest.run(report, str(api.path), calls=1, gap=0, progress=lambda _: None, warn=lambda _: None)
    answers = report.table("answers").rows
    assert [row.labels["status"] for row in answers] == ["DEADLINE_EXCEEDED"] * 2
