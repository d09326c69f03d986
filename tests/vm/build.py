"""What a virtual machine boots from: a distribution's kernel, and an initramfs that holds the project as installed.

The initramfs is two archives one after the other, as the kernel allows: a minimal distribution with bcc and a virtual
environment, which is cached outside the tree, and this checkout with the compiled helper program, packed at each run.
Whatever is downloaded comes through apt and pip, as they are set up on this machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from tests.cluster.build import cache as project_cache
from tests.kernel.lab import compile_lab
from tests.vm.plan import PROJECT

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
LISTS_AGE = 86400  # seconds after which apt is asked again for the newest kernels

# Where the project lies in the virtual machine, and what it is tested with there.
HOME = "/opt/podtracer"
NEEDED = ("python3-bpfcc", "linux-libc-dev", "python3-venv", "procps", "iproute2")
DISTRIBUTION = (*NEEDED, "containerd", "runc", "crun", "busybox-static")
PYTHON = ("pytest", "pytest-timeout")
BUILD_BACKEND = ("hatchling", "editables")
# What nobody reads there: an initramfs is memory.
USELESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists")


class BuildError(Exception):
    """Something that a virtual machine needs is not to be had; the message names it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image of the distribution; ``release`` as ``uname -r`` says it."""

    release: str
    image: Path


def cache() -> Path:
    """The folder of downloads and root file systems."""
    return project_cache() / "vm"


def run(*command: str | Path, **options: object) -> str:
    """What a command prints. Raises ``BuildError`` with what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    if done.returncode:
        words = " ".join(map(str, command))
        raise BuildError(f"{words}: exit {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return str(done.stdout)


# ---- the distribution ----


def mirror() -> str:
    """The address that this machine has the distribution's packages from."""
    sites = run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").split()
    for site in sites:
        if site.rstrip("/").endswith("/debian"):
            return site.rstrip("/")
    raise BuildError("apt knows no Debian mirror here")


class Apt:
    """apt with one suite and its own lists, beside this machine's; ``fresh`` asks for new ones in any case."""

    def __init__(self, suite: str, *, fresh: bool = False) -> None:
        self.suite = suite
        self._folder = cache() / "apt" / suite
        for name in ("lists/partial", "cache/archives/partial"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        sources = self._folder / "sources.list"
        self._options = [
            f"--option={name}={value}"
            for name, value in {
                "Dir::Etc::SourceList": sources,
                "Dir::Etc::SourceParts": "-",
                "Dir::State::Lists": self._folder / "lists",
                "Dir::Cache": self._folder / "cache",
                "APT::Sandbox::User": "root",
            }.items()
        ]
        stamp = self._folder / "updated"
        if not fresh and stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_AGE:
            return
        site = mirror() + ("-security" if suite.endswith("-security") else "")
        sources.write_text(f"deb [signed-by={KEYRING}] {site} {suite} main\n")
        try:
            run("apt-get", *self._options, "--quiet", "update")
        except BuildError:
            if not stamp.exists():
                raise
            return  # the lists of an earlier day do
        stamp.touch()

    def names(self, pattern: str) -> list[str]:
        """The packages whose names match."""
        found = run("apt-cache", *self._options, "search", "--names-only", pattern)
        return [line.split(" ")[0] for line in found.splitlines()]

    def unpack(self, package: str, folder: Path) -> None:
        """Downloads a package and unpacks it into the folder."""
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            run("apt-get", *self._options, "--quiet", "download", package, cwd=place)
            (file,) = Path(place).glob("*.deb")
            run("dpkg-deb", "--extract", file, folder)


def _release(package: str) -> str:
    return package.split("-", 2)[2]


def newest(packages: Iterable[str]) -> str:
    """The newest of some kernels by the release in the package's name, as dpkg compares versions."""

    def compare(one: str, other: str) -> int:
        newer = subprocess.run(["dpkg", "--compare-versions", _release(one), "gt", _release(other)], check=False)
        return 1 if newer.returncode == 0 else -1

    return max(packages, key=cmp_to_key(compare))


def kernel(suite: str, series: str) -> Kernel:
    """The newest kernel of a series ("6.1", "newest" for any) that the suite has, for clouds: without hardware.

    One that has been replaced since the suite's lists were read is looked for once more.
    """
    try:
        return _kernel(Apt(suite), series)
    except BuildError:
        return _kernel(Apt(suite, fresh=True), series)


def _kernel(apt: Apt, series: str) -> Kernel:
    number = r"[0-9]+\.[0-9]+" if series == "newest" else re.escape(series)
    pattern = f"^linux-(image|binary)-{number}[.-][0-9][^ ]*-cloud-amd64$"
    found = apt.names(pattern)
    if not found:
        raise BuildError(f"{apt.suite} has no kernel {series} any more")
    # Where image and boot loader's parts are separate packages, it is "binary" that holds the image.
    binaries = [name for name in found if name.startswith("linux-binary-")]
    package = newest(binaries or found)
    release = _release(package)
    folder = cache() / "kernels" / release
    if not folder.exists():
        with made(folder) as part:
            apt.unpack(package, part)
    image = next(folder.rglob("vmlinuz*"), None)
    if image is None:
        raise BuildError(f"{package} holds no kernel image")
    return Kernel(release, image)


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A folder that is there whole or not at all."""
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


# ---- the root file system ----


def dependencies() -> list[str]:
    """What the project says that it needs of PyPI."""
    found = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [str(name) for name in found]


def _key(*parts: Sequence[str]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _bootstrapped(suite: str) -> Path:
    """A minimal distribution with bcc, unpacked."""
    folder = cache() / "roots" / f"{suite}-{_key(DISTRIBUTION)}"
    if not folder.exists():
        with made(folder) as part:
            site = mirror()
            run("debootstrap", "--variant=minbase", f"--include={','.join(DISTRIBUTION)}", suite, part, site)
            for path in USELESS:
                shutil.rmtree(part / path, ignore_errors=True)
        for old in folder.parent.glob(f"{suite}-*"):
            if old != folder:
                shutil.rmtree(old)
    return folder


def _install(root: Path) -> None:
    """The project in a virtual environment made from the distribution's Python, editable, as scripts/setup does it."""
    home = root / HOME.lstrip("/")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, home)
    for name in ("tracer", "bpf"):
        shutil.copytree(PROJECT / name, home / name)
    version = run("chroot", root, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    with tempfile.TemporaryDirectory(dir=root) as wheels:
        # pip downloads here, where the network is set up, and installs there, where the Python is another.
        wanted = ["--only-binary=:all:", f"--python-version={version}", f"--dest={wheels}"]
        pip = (PROJECT / ".venv/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        run(*pip, "download", *wanted, *dependencies(), *PYTHON, *BUILD_BACKEND)
        venv = f"{HOME}/.venv"
        run("chroot", root, "python3", "-m", "venv", "--system-site-packages", venv)
        offline = ("--no-index", f"--find-links=/{Path(wheels).name}")
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        inside = ("chroot", root, f"{venv}/bin/python", "-m", "pip", "--quiet", "--isolated", "install", *offline)
        run(*inside, *PYTHON, "--editable", HOME, env=clean)


def installed(suite: str) -> Path:
    """The folder of a distribution with the project's environment in it, to be read."""
    distribution(suite)
    return _bootstrapped(suite)


def distribution(suite: str) -> Path:
    """The archive of a distribution with the project's environment in it."""
    wanted = (*dependencies(), *PYTHON, *BUILD_BACKEND)
    archive = cache() / "archives" / f"{suite}-{_key(DISTRIBUTION, wanted)}.cpio"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once would make the same
        if not archive.exists():
            root = _bootstrapped(suite)
            _install(root)
            _pack(root, (str(path.relative_to(root)) for path in _all_below(root)), archive)
            for old in archive.parent.glob(f"{suite}-*"):
                if old != archive:
                    old.unlink()
    return archive


def _all_below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        if Path(folder) == root / "dev":
            folders.clear()
            continue
        for name in (*folders, *files):
            yield Path(folder, name)


def _pack(root: Path, names: Iterable[str], archive: Path) -> None:
    part = archive.with_suffix(f".part-{os.getpid()}")
    command = ["cpio", "--create", "--format=newc", "--quiet", "--null", "--owner=0:0"]
    try:
        with part.open("wb") as out:
            subprocess.run(command, input="\0".join(names).encode(), stdout=out, cwd=root, check=True)
        part.rename(archive)
    finally:
        part.unlink(missing_ok=True)


def checkout(folder: Path) -> Path:
    """The archive of this checkout, as it is now, and of what only a compiler can make for it."""
    home = folder / HOME.lstrip("/")
    listed = run("git", "-C", PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        if (PROJECT / name).is_file():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, home / name)
    compile_lab(home / "tests/kernel")
    shutil.copy(Path(__file__).with_name("init.sh"), folder / "init")
    (folder / "init").chmod(0o755)
    archive = folder.with_suffix(".cpio")
    _pack(folder, (str(path.relative_to(folder)) for path in _all_below(folder)), archive)
    return archive


def joined(parts: Iterable[Path], out: Path) -> Path:
    """Archives one after the other, each padded as cpio pads them."""
    with out.open("wb") as file:
        for part in parts:
            with part.open("rb") as archive:
                shutil.copyfileobj(archive, file, 1 << 20)
    return out
