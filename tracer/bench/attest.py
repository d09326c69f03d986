"""What a workload sees of its SPIRE agent: the time of a call to any SPIFFE Workload API, as a client of it.

The caller is this process: the agent attests it anew at every call. Messages and methods are those of the SPIFFE
Workload API (``workload.proto``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from tracer.bench.report import Report
from tracer.errors import MissingError, UsageError
from tracer.protobuf import Field, declare
from tracer.sources.rpc import CallError, Channel, Service, socket_path

VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
METHODS = ("FetchJWTSVID", "FetchX509SVID")
CALLS, GAP, TIMEOUT = 40, 0.6, 35.0
METHOD = (
    "Calls of both kinds in turn, with the gap between any two; the first of each warms up and is not counted.",
    "A call of FetchX509SVID, a stream, is timed until its first answer.",
)
_SERVICE: Final = Service(
    "SpiffeWorkloadAPI",
    "is this the socket of a Workload API?",
    {"PERMISSION_DENIED": "no registration entry is for this process"},
    metadata=(("workload.spiffe.io", "true"),),
)
_TABLE: Final = {
    "X509SVIDRequest": {},
    "X509SVIDResponse": {"svids": Field(1, "X509SVID", repeated=True)},
    "X509SVID": {
        "spiffe_id": Field(1),
        "x509_svid": Field(2, "bytes"),
        "x509_svid_key": Field(3, "bytes"),
        "bundle": Field(4, "bytes"),
    },
    "JWTSVIDRequest": {"audience": Field(1, repeated=True), "spiffe_id": Field(2)},
    "JWTSVIDResponse": {"svids": Field(1, "JWTSVID", repeated=True)},
    "JWTSVID": {"spiffe_id": Field(1), "svid": Field(2)},
}


@cache
def messages() -> Any:
    """The message classes of the Workload API."""
    return declare("podtracer.workload", _TABLE)


def endpoint(given: str | None, environ: Mapping[str, str]) -> str:
    """The path of the socket: the one given, else that of the environment, as every client finds it. Raises
    ``UsageError``."""
    named = given or environ.get(VARIABLE)
    if not named:
        hint = f"say --workload-api unix:///PATH, or set {VARIABLE}"
        raise UsageError("no Workload API is named", "workload-api", hint)
    return socket_path(named, "workload-api")


def run(
    report: Report,
    path: str,
    *,
    calls: int = CALLS,
    gap: float = GAP,
    new_connection: bool = False,
    audience: str = "podtracer-bench",
    progress: Callable[[str], None],
    warn: Callable[[str], None],  # noqa: ARG001
) -> None:
    """Fills the report. Raises ``MissingError`` where nobody answers at ``path``."""
    report.settings = {"socket": path, "calls": calls, "gap_ms": gap * 1e3, "new_connection": new_connection}
    report.method = METHOD
    report.plot_unit, report.plot_label = "ms", "time of a call"
    took: dict[str, list[float]] = {method: [] for method in METHODS}
    answers: dict[str, Counter[str]] = {method: Counter() for method in METHODS}
    svids = dict.fromkeys(METHODS, 0)
    told = 0.0
    channel = Channel(path, _SERVICE)
    try:
        for number in range(calls + 1):
            if time.monotonic() - told >= 2:
                told = time.monotonic()
                progress(f"{number} of {calls} calls of each kind")
            for method in METHODS:
                if number and new_connection:
                    channel.close()
                    channel = Channel(path, _SERVICE)
                start = time.perf_counter_ns()
                code, found = _call(channel, method, audience)
                spent = (time.perf_counter_ns() - start) / 1e6
                if code == "UNAVAILABLE" and not number:
                    raise MissingError("no Workload API answers", path, "name the socket of a running SPIRE agent")
                if number:
                    answers[method][code] += 1
                    svids[method] = max(svids[method], found)
                    if code == "OK":
                        took[method].append(spent)
                time.sleep(gap)
    finally:
        channel.close()
        _conclude(report, took, answers, svids)


def _call(channel: Channel, method: str, audience: str) -> tuple[str, int]:
    """(status, SVIDs in the answer) of one call."""
    kinds = messages()
    try:
        if method == "FetchJWTSVID":
            request = kinds.JWTSVIDRequest(audience=[audience])
            return "OK", len(channel.call(method, request, kinds.JWTSVIDResponse, TIMEOUT).svids)
        answers = iter(channel.stream(method, kinds.X509SVIDRequest(), kinds.X509SVIDResponse, timeout=TIMEOUT))
        found = len(next(answers).svids)
        answers.close()  # type: ignore[attr-defined]
    except CallError as error:
        return error.code, 0
    return "OK", found


def _conclude(
    report: Report, took: dict[str, list[float]], answers: dict[str, Counter[str]], svids: dict[str, int]
) -> None:
    for method, samples in took.items():
        report.add("call", {"method": method}, samples, "ms", series=method, svids=svids[method])
        for code, count in sorted(answers[method].items()):
            report.add("answers", {"method": method, "status": code}, count=count)
            if code != "OK":
                report.failures.append(f"{method} was answered {code} in {count} of {answers[method].total()} calls")
