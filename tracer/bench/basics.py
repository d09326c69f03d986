"""The four figures that the rest hangs on: look-up, cost in the kernel, memory, time until ready.

``scripts/measure`` prints them for the machine it runs on. Nothing is compared with a limit here: machines are shared.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from tracer import Tracer
from tracer.kernel import bpf
from tracer.settings import Settings

_LOOKUPS = 200_000
_BATCH = 100  # look-ups timed together, since reading the clock costs a tenth of one
_EXECS = 2_000
_RUNS = 5


def _spread(values: list[float], unit: str) -> str:
    cuts = quantiles(values, n=100)
    figures = {"p50": median(values), "p99": cuts[98], "min": min(values)}
    return ", ".join(f"{name} {value:.2f} {unit}" for name, value in figures.items()) + f" ({len(values)} samples)"


def lookups(tracer: Tracer) -> list[float]:
    """Microseconds for a look-up of a running process, in batches."""
    pid, lookup, clock = os.getpid(), tracer.lookup, time.perf_counter_ns
    samples = []
    for _ in range(_LOOKUPS // _BATCH):
        start = clock()
        for _ in range(_BATCH):
            lookup(pid)
        samples.append((clock() - start) / _BATCH / 1e3)
    return samples


def kernel_cost(tracer: Tracer) -> dict[str, tuple[int, float]]:
    """Program → (runs, nanoseconds for each), over some fork, exec and exit, by the kernel's own clock."""
    programs = tracer.programs
    stats = bpf.enable_stats()
    try:
        before = programs.stats()
        for _ in range(_EXECS):
            subprocess.run(["/bin/true"], check=True)
        after = programs.stats()
    finally:
        os.close(stats)
    found = {}
    for name, counts in after.items():
        runs = counts.get("run_cnt", 0) - before[name].get("run_cnt", 0)
        spent = counts.get("run_time_ns", 0) - before[name].get("run_time_ns", 0)
        if runs:
            found[name] = (runs, spent / runs)
    return found


def _run_until_synced(measure: Callable[[int], float]) -> tuple[float, float]:
    """(seconds until a watch has shown its snapshot, what ``measure`` says of its PID then)."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tracer.cli.main", "watch", "--standalone", "--host", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if '"synced"' in line:
                break
        ready = time.perf_counter() - start
        measured = measure(child.pid)
        child.terminate()
        child.stdout.read()
    return ready, measured


def resident(pid: int) -> float:
    """Resident memory of a process in MB (2^20 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    """Measures and prints."""
    processes = sum(name.isdigit() for name in os.listdir("/proc"))
    print(
        f"Linux {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {processes} processes"
    )
    with Tracer(Settings(kubelet="none")) as tracer:
        print(f"look-up in process: {_spread(lookups(tracer), 'µs')}")
        for name, (runs, each) in kernel_cost(tracer).items():
            print(f"in the kernel, {name}: {each:.0f} ns ({runs} runs)")
    watches = [_run_until_synced(resident) for _ in range(_RUNS)]
    print(f"watch, start to synced: median {median(ready for ready, _ in watches):.2f} s of {_RUNS}")
    print(f"watch, resident when synced: median {median(size for _, size in watches):.1f} MB of {_RUNS}")


if __name__ == "__main__":
    main()
