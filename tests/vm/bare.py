"""A kernel without BTF, which Debian has as well: user-mode Linux, an ordinary process that is booted in a second.

Nothing can be traced there; what counts is that each command says why. The root file system is that of the virtual
machines, read in place, with this checkout's code over the one that was installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.vm import build
from tests.vm.plan import BARE, PROJECT

PACKAGE = "user-mode-linux"
TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Said:
    """What a command wrote and how it ended."""

    code: int
    out: str
    err: str


def _kernel() -> Path:
    folder = build.cache() / "kernels" / PACKAGE
    if not folder.exists():
        with build.made(folder) as part:
            build.Apt(BARE.suite).unpack(PACKAGE, part)
    return folder / "usr/bin/linux.uml"


def _boot(results: Path) -> None:
    """Boots it; what the commands said is in the folder then. Raises ``BuildError`` where it does not come so far."""
    shutil.copy(Path(__file__).with_suffix(".sh"), results / "run.sh")
    script = f'"mount -t hostfs -o {results} results /mnt && exec sh /mnt/run.sh {PROJECT}"'
    command: list[str | Path] = [
        *(_kernel(), "mem=512M", "rootfstype=hostfs", f"rootflags={build.installed(BARE.space)}", "ro", "quiet"),
        *("con=null", "con0=null,fd:1", "init=/bin/sh", "--", "-c", script),
    ]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise build.BuildError(f"user-mode Linux did not end within {TIMEOUT:g} s") from error
    if not (results / "doctor.code").exists():
        raise build.BuildError(f"user-mode Linux did not boot:\n{done.stdout[-3000:].decode(errors='replace')}")


def _said(results: Path, name: str) -> Said:
    code, out, err = ((results / f"{name}.{kind}").read_text() for kind in ("code", "out", "err"))
    return Said(int(code), out, err)


def a_lookup_says_that_btf_is_missing(said: Said) -> None:
    """Exit code 69, one error that names BTF and its file, one hint."""
    assert said.code == 69, said
    lines = [line.partition(":")[0] for line in said.err.splitlines()]
    assert lines == ["error", "hint"], said
    assert "BTF" in said.err, said
    assert "/sys/kernel/btf/vmlinux" in said.err, said


def doctor_is_red_for_btf(said: Said) -> None:
    """Exit code 1; BTF and with it the programs are what is missing, and all else is checked."""
    assert said.code == 1, said
    checks = json.loads(said.out)["checks"]
    assert {check["name"] for check in checks if check["state"] == "fail"} >= {"btf", "programs"}, said
    assert {check["name"] for check in checks if check["state"] == "ok"} >= {"kernel", "capabilities", "bcc"}, said


TESTS: dict[str, tuple[str, Callable[[Said], None]]] = {
    test.__name__: (command, test)
    for command, test in (("lookup", a_lookup_says_that_btf_is_missing), ("doctor", doctor_is_red_for_btf))
}


def run() -> tuple[str, dict[str, str]]:
    """The kernel's release, and for each test what went wrong, nothing where it passed. Raises ``BuildError``."""
    with tempfile.TemporaryDirectory(prefix="podtracer-vm-") as name:
        results = Path(name)
        _boot(results)
        if (results / "btf").read_text().startswith("vmlinux"):
            raise build.BuildError(f"{PACKAGE} has BTF by now")
        wrong = {}
        for test, (command, check) in TESTS.items():
            try:
                check(_said(results, command))
                wrong[test] = ""
            except (AssertionError, ValueError, KeyError, OSError) as error:
                wrong[test] = f"{type(error).__name__}: {error}"
        return (results / "release").read_text().strip(), wrong
