"""Builds kbox, the one binary that holds a whole Kubernetes (``tests/cluster/kbox``), into a cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "kbox"
FILES = ("go.mod", "go.sum", "main.go")
OLDEST_GO = (1, 21)  # the first that fetches the toolchain which go.mod asks for


class BuildError(Exception):
    """kbox cannot be built; the message says what is missing or where the compiler stopped."""


def cache() -> Path:
    """The folder of built binaries, outside the tree."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podtracer"


def binary() -> Path:
    """Where the binary of these sources is, or will be, named by their hash."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update((SOURCE / name).read_bytes())
    return cache() / f"kbox-{digest.hexdigest()[:16]}"


def build() -> Path:
    """The binary, built first if it is not there yet: minutes with a cold Go cache, half a minute with a warm.

    Raises ``BuildError``.
    """
    out = binary()
    if out.exists():
        return out
    _check_go()
    print(f"cluster: building {out}: several minutes the first time", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    version = re.search(r"k8s\.io/kubernetes (v\S+)", (SOURCE / "go.mod").read_text())
    unfinished = out.with_suffix(f".{os.getpid()}")
    command = ["go", "build", "-buildvcs=false", "-o", unfinished, "-ldflags"]
    # Without a version, Kubernetes calls itself v0.0.0-master; without symbols the file is a third smaller.
    flags = f"-s -w -X k8s.io/component-base/version.gitVersion={version[1] if version else 'v0.0.0'}"
    try:
        if subprocess.run([*command, flags, "."], cwd=SOURCE, check=False).returncode != 0:
            raise BuildError(f"go could not build {SOURCE}; its messages are above")
        unfinished.rename(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return out


def _check_go() -> None:
    if shutil.which("go") is None:
        raise BuildError("go is needed to build the test cluster: install it from https://go.dev/dl/")
    output = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"go(\d+)\.(\d+)", output)
    if version and (int(version[1]), int(version[2])) < OLDEST_GO:
        raise BuildError(f"go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer is needed, this is {version[0]}")
