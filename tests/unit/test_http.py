"""Health and metrics over HTTP, and what is told to systemd and to the log."""

from __future__ import annotations

import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer import notify
from tracer.errors import MissingError, UsageError
from tracer.histogram import Histogram
from tracer.logs import Formatter
from tracer.serve.http import HttpServer, address
from tracer.serve.metrics import Exposition, Figures

CHECKS = {"bpf": True, "scan": True, "pods": True}


def _figures() -> Figures:
    took = Histogram((0.001, 0.01))
    for seconds in (0.0005, 0.001, 0.005, 3.0):
        took.observe(seconds)
    return Figures(
        events={"exec": 7, "fork": 8},
        lost=3,
        repairs=0,
        lookups={"resolved": 5, "gone": 1},
        refused=2,
        took=took,
        ready=Histogram((1.0,)),
        processes=11,
        containers=4,
        connections=1,
        kubelet_requests={"200": 9, "401": 1},
        sources={"kubelet": True, "cri": False},
        pods=3,
        pods_age=1.5,
    )


@pytest.fixture
def checks() -> dict[str, bool]:
    """What the server says of readiness."""
    return dict(CHECKS)


@pytest.fixture
def base(checks: dict[str, bool]) -> Iterator[str]:
    """The address of a server."""
    server = HttpServer(
        ("127.0.0.1", 0), live=lambda: {"bpf": True}, ready=lambda: checks, metrics=Exposition(_figures)
    )
    yield f"http://127.0.0.1:{server.port}"
    server.close()


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_readiness_names_what_is_missing(base: str, checks: dict[str, bool]) -> None:
    """All that has to be is listed when asked; one that is not makes it 503, listed then without being asked."""
    assert _get(base + "/readyz") == (200, "ok")
    assert _get(base + "/readyz?verbose") == (200, "[+]bpf ok\n[+]scan ok\n[+]pods ok\nreadyz check passed\n")
    checks["pods"] = False
    assert _get(base + "/readyz") == (503, "[+]bpf ok\n[+]scan ok\n[-]pods not yet\nreadyz check failed\n")
    assert _get(base + "/livez") == (200, "ok")
    assert _get(base + "/healthz?verbose") == (200, "[+]bpf ok\nhealthz check passed\n")
    assert _get(base + "/secrets")[0] == 404
    with socket.create_connection(("127.0.0.1", int(base.rpartition(":")[2]))) as odd:
        odd.sendall(b"GET http://[ HTTP/1.0\r\n\r\n")
        assert odd.recv(100).startswith(b"HTTP/1.0 400 ")


def test_metrics_have_their_names_and_add_up(base: str) -> None:
    """Each figure stands under its name; the buckets of a histogram are cumulative."""
    status, text = _get(base + "/metrics")
    assert status == 200
    lines = set(text.splitlines())
    assert {
        'podtracer_events_total{type="exec"} 7.0',
        "podtracer_events_lost_total 3.0",
        'podtracer_lookups_total{result="resolved"} 5.0',
        'podtracer_lookup_duration_seconds_bucket{le="0.001"} 2.0',
        'podtracer_lookup_duration_seconds_bucket{le="0.01"} 3.0',
        'podtracer_lookup_duration_seconds_bucket{le="+Inf"} 4.0',
        "podtracer_lookup_duration_seconds_count 4.0",
        "podtracer_identity_ready_seconds_count 0.0",
        "podtracer_processes 11.0",
        'podtracer_kubelet_requests_total{code="401"} 1.0',
        'podtracer_source_up{source="cri"} 0.0',
        "podtracer_pods_age_seconds 1.5",
    } <= lines
    assert any(line.startswith("podtracer_build_info{version=") for line in lines)


def test_who_connects_and_says_nothing_keeps_no_probe_waiting(base: str) -> None:
    """More silent connections than are served at once leave the server answering once they are given up."""
    where = ("127.0.0.1", int(base.rpartition(":")[2]))
    silent = [socket.create_connection(where) for _ in range(8)]
    garbage = socket.create_connection(where)
    garbage.sendall(b"\x00\xff" * 1000 + b"\r\n\r\n")
    assert _get(base + "/livez")[0] == 200
    for sock in (*silent, garbage):
        sock.close()


def test_an_address_is_checked() -> None:
    """Host and port, brackets around IPv6; what cannot be listened at is an error that names the place."""
    assert address("127.0.0.1:9469") == ("127.0.0.1", 9469)
    assert address("[::1]:0") == ("::1", 0)
    for text in ("9469", ":9469", "host:", "host:port", "host:65536", "host:-1"):
        with pytest.raises(UsageError):
            address(text)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = taken.getsockname()
        with pytest.raises(MissingError) as error:
            HttpServer(where, live=dict, ready=dict, metrics=Exposition(_figures))
    assert error.value.obj == f"127.0.0.1:{where[1]}"


def test_systemd_is_told_over_its_socket(tmp_path: Path) -> None:
    """A datagram of lines goes to the socket that the environment names, abstract ones too; without, nothing does."""
    path = tmp_path / "notify"
    for name, bound in ((str(path), str(path)), ("@podtracer-test-notify", "\0podtracer-test-notify")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(bound)
            systemd.settimeout(10)
            notify.notify("READY=1", "STATUS=well", environ={"NOTIFY_SOCKET": name})
            assert systemd.recv(4096) == b"READY=1\nSTATUS=well"
    notify.notify("READY=1", environ={})
    notify.notify("READY=1", environ={"NOTIFY_SOCKET": "/nowhere/at/all"})


def test_a_log_line_is_one_line() -> None:
    """Whatever stands in a message stays within its quotes, on its line, in ASCII."""
    record = logging.LogRecord("podtracer", logging.WARNING, "", 0, "pod %s", ('a"b\n\x1b[31m\u202e',), None)
    line = Formatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert line.endswith('level=warning logger=podtracer msg="pod a\'b\\n\\x1b[31m\\u202e"')
