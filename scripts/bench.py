"""Runs ``podtracer bench``, and writes what it found as docs/benchmarks.md and into the README."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tracer.cli.bench_output import number

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PODTRACER = ROOT / ".venv/bin/podtracer"
BEGIN, END = "<!-- figures of scripts/bench -->", "<!-- end of figures -->"
ABOUT = {
    "lookup": "What one look-up takes",
    "storm": "What tracing costs while everything forks",
    "accuracy": "Whether any answer is wrong",
    "start": "Until the daemon is ready, and what it takes",
    "ready": "Whether an identity is complete at a container's first act",
    "attest": "Calls to a Workload API",
}
SUMMARY = ("p50", "p90", "p99", "p99.9", "min", "max", "unit", "count")


def cluster(word: str) -> int:
    """``scripts/cluster WORD``."""
    return subprocess.run([ROOT / "scripts/cluster", word], check=False).returncode


def ready_flags() -> list[str]:
    """How the test cluster is named to ``bench ready``."""
    sys.path.insert(0, str(ROOT))
    from tests.cluster.cluster import Cluster
    from tests.cluster.config import APP, PORTS

    made = Cluster()
    return [
        *("--kubectl", f"{ROOT}/scripts/cluster kubectl", "--image", APP),
        *("--cri", f"unix://{made.containerd.socket}", "--kubelet-read-only-port", str(PORTS["kubelet read-only"])),
    ]


def run(name: str, *flags: str) -> dict[str, Any] | None:
    """What a benchmark says as JSON; ``None`` where it could not run here."""
    print(f"+ podtracer bench {name}", file=sys.stderr)
    done = subprocess.run(
        [PODTRACER, "bench", name, "-o", "json", "--plot", DOCS / f"bench-{name}.svg", *flags],
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode == 130:
        sys.exit(130)
    return json.loads(done.stdout) if done.stdout else None


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown: what they are about, then the figures."""
    keys = dict.fromkeys(key for row in rows for key in row)
    labels = [key for key in keys if key not in SUMMARY and all(key in row for row in rows)]
    columns = [
        *labels,
        *(key for key in SUMMARY if key in keys),
        *(k for k in keys if k not in SUMMARY and k not in labels),
    ]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(number(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def section(found: dict[str, Any]) -> str:
    """One benchmark."""
    name = found["benchmark"]
    said = ["## " + ABOUT[name], f"`podtracer bench {name}`, in {found['seconds']:.0f} s."]
    if not found["ok"]:
        said.append("**Not shown:** " + "; ".join(found["failures"]))
    if (DOCS / f"bench-{name}.svg").exists():
        said.append(f"![the figures of podtracer bench {name} as a picture](bench-{name}.svg)")
    said += [f"{each['title']}:\n\n{table(each['rows'])}" for each in found["tables"]]
    said.append("\n".join(f"- {sentence}" for sentence in found["method"]))
    shown = ", ".join(f"{key} {value}" for key, value in found["settings"].items())
    said.append(f"Settings: {shown}.")
    return "\n\n".join(said)


def machine(facts: dict[str, Any]) -> str:
    """The machine in a sentence."""
    return (
        f"{facts['kernel']}, {facts['distribution']}, {facts['cpus']} CPUs ({facts['cpu']}), "
        f"{facts['memory_mb'] / 1024:.0f} GB, pid_max {facts['pid_max']:,}; podtracer {facts['podtracer']}, "
        f"Python {facts['python']}, msgspec {facts['msgspec']}, grpcio {facts['grpcio']}"
    )


# (benchmark, table, what its row is, what it is called); the figures are p50, p99 and the worst.
HEADLINE: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("lookup", "look-up", {"way": "podtracer", "pods": 250, "kB each": 10}, "look-up in process, 250 pods (2.5 MB)"),
    ("lookup", "look-up", {"way": "SPIRE's way, cached", "pods": 250, "kB each": 10}, "SPIRE's way, list cached"),
    ("lookup", "look-up", {"way": "SPIRE's way, fetch", "pods": 250, "kB each": 10}, "SPIRE's way, list fetched"),
    ("lookup", "over the socket", {"asked": "Client"}, "look-up over the daemon's socket, Python client"),
    ("start", "ready", {"processes": 10_000}, "daemon ready, 10,000 processes, 250 pods"),
    ("storm", "rate with podtracer, of that without", {}, "rate of fork+exec with podtracer, of that without"),
)


def headline(found: dict[str, dict[str, Any]]) -> str:
    """The figures that the README shows."""

    def rows(name: str, title: str) -> list[dict[str, Any]]:
        return [row for each in found.get(name, {}).get("tables", ()) if each["title"] == title for row in each["rows"]]

    said = "| what | unit | p50 | p99 | max |\n| --- | --- | --- | --- | --- |"
    for name, title, wanted, what in HEADLINE:
        for row in rows(name, title):
            if "p50" in row and all(row.get(key) == value for key, value in wanted.items()):
                figures = " | ".join(number(row[key]) for key in ("p50", "p99", "max"))
                said += f"\n| {what} | {row['unit']} | {figures} |"
    ours = [row for row in rows("accuracy", "answers") if row["index"] == "podtracer"]
    weak = [row for row in rows("accuracy", "answers") if row["index"] != "podtracer"]
    if ours and weak:
        lookups, wrong = (sum(row[key] for row in ours) for key in ("lookups", "wrong"))
        said += (
            f"\n\nOf {lookups:,} answers while PIDs were reused, processes moved, records lost, and a user called "
            f"cgroups like pods' containers, {wrong:,} were wrong; "
            f"an index by the bare PID, asked the same, gave {weak[0]['wrong']:,} wrong ones."
        )
    return said


def main(words: list[str]) -> int:
    """Runs, and writes."""
    with_cluster = "--cluster" in words
    names = [word for word in words if word != "--cluster"]
    if unknown := [name for name in names if name not in ABOUT]:
        print(f"usage: scripts/bench [--cluster] [{'|'.join(ABOUT)} …]; there is no {unknown[0]}", file=sys.stderr)
        return 2
    found: dict[str, dict[str, Any]] = {}
    for name in names or ABOUT:
        flags: list[str] = []
        if name == "attest" and not os.environ.get("SPIFFE_ENDPOINT_SOCKET"):
            continue
        if name == "ready":
            if not with_cluster:
                continue
            if cluster("up"):
                return 1
            flags = ready_flags()
        try:
            result = run(name, *flags)
        finally:
            if name == "ready":
                cluster("down")
        if result is None:
            return 1
        found[name] = result
        print(section(result) if names else f"  done in {result['seconds']} s", flush=True)
    if not names:
        facts = next(iter(found.values()))["machine"]
        head = (
            "# Benchmarks\n\n"
            "Written by `scripts/bench`, which anyone can run on their own node. Figures are ranks of what was "
            "measured: none is interpolated, no sample is dropped, and p90, p99 and p99.9 take 10, 100 and 1,000 "
            "samples. The machine:\n\n" + machine(facts) + f"; load {facts['load'][0]} when it began."
        )
        (DOCS / "benchmarks.md").write_text("\n\n".join([head, *map(section, found.values())]) + "\n")
        readme = ROOT / "README.md"
        text = readme.read_text()
        new = f"{BEGIN}\n{headline(found)}\n{END}"
        readme.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: new, text, flags=re.S))
    return 0 if all(each["ok"] for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
