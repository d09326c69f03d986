"""What is said of a machine or a user that cannot trace, and how little memory suffices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import hierarchies
from tests.node import FakePod, listing
from tests.waiting import SLOW, until
from tracer import Tracer
from tracer.errors import MissingError, PermissionMissing
from tracer.kernel import btf, machine
from tracer.kernel.loader import Programs
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

COMMAND = [sys.executable, "-m", "tracer.cli.main"]


def _podtracer(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
        check=False,
        env={**os.environ, **environment},
    )


def _is_one_error(result: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("podtracer:", "warning:"))]
    assert result.returncode == code, result.stderr
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], result.stderr
    for text in said:
        assert text in result.stderr


@pytest.mark.root
def test_without_root_it_says_what_is_missing() -> None:
    """As an ordinary user a command ends with 77, one error that names the missing capabilities, and one hint."""
    result = _podtracer(
        "lookup", "1", prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
    )
    _is_one_error(result, 77, "CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH", "root")


@pytest.mark.root
def test_one_capability_short_is_named() -> None:
    """Root without the one capability that opens cgroups by id ends with 77, and only that one is named."""
    result = _podtracer(
        "lookup",
        "1",
        prefix=("setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search", "--"),
    )
    _is_one_error(result, 77, "CAP_DAC_READ_SEARCH")
    assert "CAP_BPF" not in result.stderr


@pytest.mark.root
def test_without_bcc_it_says_which_package(tmp_path: Path) -> None:
    """Where bcc cannot be imported the command ends with 69 and names the distribution's package."""
    (tmp_path / "bcc.py").write_text("raise ImportError('No module named bcc')\n")
    result = _podtracer("lookup", "1", PYTHONPATH=str(tmp_path))
    _is_one_error(result, 69, "python3-bpfcc")


@pytest.mark.root
def test_without_cgroups_it_says_so(tmp_path: Path) -> None:
    """Where no cgroup hierarchy is mounted the command ends with 69 and names the place it looked at."""
    result = _podtracer("lookup", "1", "--cgroupfs", str(tmp_path))
    _is_one_error(result, 69, str(tmp_path), "--cgroupfs")


@pytest.mark.root
def test_without_btf_it_says_so(tmp_path: Path) -> None:
    """A kernel without BTF, or with a file that is none, is an error that says what is missing."""
    with pytest.raises(MissingError) as error:
        Programs(btf_path=str(tmp_path / "vmlinux"))
    assert "BTF" in error.value.what
    assert error.value.hint
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF")
    with pytest.raises(MissingError):
        btf.read(str(tmp_path / "vmlinux"))


@pytest.mark.root
def test_a_kernel_that_shows_no_btf_ends_the_command() -> None:
    """Where the kernel shows no BTF a command ends with 69, one error that names it, and one hint."""
    hide = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh")
    _is_one_error(_podtracer("lookup", "1", prefix=hide), 69, "BTF", "/sys/kernel/btf/vmlinux")


@pytest.mark.root
def test_a_kernel_that_is_too_old_ends_the_command() -> None:
    """Where the kernel says that it is older than 5.8, as it can be asked to, a command ends with 69, one error with
    the release that runs, and one hint with the one that is needed."""
    _is_one_error(_podtracer("lookup", "1", prefix=("setarch", "--uname-2.6")), 69, "Linux 2.6.", "5.8")


@pytest.mark.parametrize("release", ["4.19.0-27-amd64", "5.4.0-generic", "5.7.19"])
def test_an_old_kernel_is_refused_by_name(release: str) -> None:
    """Below Linux 5.8 the error names the release that runs and the one that is needed."""
    with pytest.raises(MissingError) as error:
        machine.check_kernel(release)
    assert release in str(error.value)
    assert "5.8" in str(error.value.hint)


@pytest.mark.parametrize("release", ["5.8.0", "5.10.0-46-cloud-amd64", "6.18.44", "10.0-rc1", "strange"])
def test_a_kernel_from_5_8_is_tried(release: str) -> None:
    """A release of 5.8 or later is accepted, and so is one that does not read as a number: trying tells."""
    machine.check_kernel(release)


def test_sys_admin_stands_for_the_bpf_capabilities() -> None:
    """CAP_SYS_ADMIN is enough to load programs, as before Linux 5.8 had capabilities of their own for it."""
    machine.check_capabilities(f"CapEff:\t{1 << 21 | 1 << 2:016x}\n")
    with pytest.raises(PermissionMissing):
        machine.check_capabilities(f"CapEff:\t{1 << 21:016x}\n")


def test_offsets_are_those_of_the_running_kernel() -> None:
    """Every macro that the programs use is found in this kernel's BTF, and cgroup controllers by their numbers."""
    kernel = btf.read()
    values = btf.macros(kernel)
    program = Path(__file__).parents[2] / "bpf/tracer.bpf.c"
    text = program.read_text()
    assert values
    assert all(name in text for name in values)
    assert {"memory", "pids", "cpu"} <= btf.controllers(kernel).keys()


@pytest.fixture
def limited() -> Iterator[Path]:
    """A memory cgroup with a limit of 64 MB."""
    roots = {kind: root for root, kind in hierarchies().items() if kind == "cgroup2" or root.name == "memory"}
    v1 = "cgroup" in roots
    folder = roots["cgroup" if v1 else "cgroup2"] / f"podtracer-test-memory-{os.getpid()}"
    if not v1:
        (folder.parent / "cgroup.subtree_control").write_text("+memory")
    folder.mkdir()
    (folder / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(64 << 20))
    yield folder
    folder.rmdir()


@pytest.mark.root
def test_64_mb_are_enough_from_start_to_end(limited: Path) -> None:
    """A watch in a memory cgroup limited to 64 MB starts, compiler included, shows its snapshot and ends by itself."""
    pods = [FakePod(f"pod-{number}") for number in range(110)]
    with ReplayKubelet(listing(*pods)) as kubelet:
        script = f'echo $$ > {limited}/cgroup.procs; exec "$@"'
        result = _podtracer(
            "watch",
            "--standalone",
            "--kubelet-read-only-port",
            str(kubelet.port),
            "--duration",
            "2s",
            "--host",
            "-o",
            "json",
            prefix=("/bin/sh", "-c", script, "sh"),
        )
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert "synced" in {event["event"] for event in events}
    assert os.getpid() in {event.get("pid") for event in events}


@pytest.mark.root
def test_a_watch_stays_small_with_the_largest_pid_max() -> None:
    """With pid_max at 4,194,304 the resident memory of a watch on a small node is at most 45 MB; with Python 3.14,
    which takes more itself, at most 52."""
    path = Path("/proc/sys/kernel/pid_max")
    before = path.read_text()
    path.write_text("4194304")
    try:
        with ReplayKubelet(listing(*(FakePod(f"pod-{number}") for number in range(3)))) as kubelet:
            watch = subprocess.Popen(
                [
                    *COMMAND,
                    "watch",
                    "--standalone",
                    "--host",
                    "--kubelet-read-only-port",
                    str(kubelet.port),
                    "-o",
                    "json",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert watch.stdout is not None
            for line in watch.stdout:
                if json.loads(line)["event"] == "synced":
                    break
            until(lambda: kubelet.requests, 10, "the first pod list to be fetched")
            status = Path(f"/proc/{watch.pid}/status").read_text()
            watch.terminate()
            watch.stdout.read()
            assert watch.wait(10 * SLOW) == 0
            watch.stdout.close()
    finally:
        path.write_text(before)
    resident = int(status.partition("VmRSS:")[2].split()[0])
    assert resident <= (45 if sys.version_info < (3, 14) else 52) * 1024, status


@pytest.mark.root
@pytest.mark.brisk
def test_a_kubelet_that_is_not_there_is_one_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """Where no kubelet listens a tracer warns once, and answers."""
    warnings: list[str] = []
    with Tracer(Settings(kubelet_read_only_port=1), warn=warnings.append) as tracer:
        assert tracer.wait_synced(30)
        assert tracer.lookup(os.getpid()).state == "host"
    assert len(warnings) == 1
    assert "127.0.0.1:1/" in warnings[0]
    assert capfd.readouterr().err == ""
