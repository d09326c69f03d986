"""The demo's node as its program sees it: started, served on loopback, and cleared away.

A demo's cgroups are below ``/podtracer-demo-<pid>``. They are all that a demo which was killed leaves behind, and the
next one removes them.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NoReturn

from tracer.demo.play import Play
from tracer.demo.stage import CLONE_NEWPID, Stage, call, remove_tree
from tracer.errors import MissingError, PermissionMissing, TracerError
from tracer.kernel import machine
from tracer.kernel.cgroupfs import parse_mountinfo
from tracer.settings import Settings
from tracer.sources.replay import ReplayKubelet

_NAME = re.compile(r"podtracer-(?:demo|bench)-([0-9]+)")
_FAILED = b"!"  # what a line of the stage starts with that is no list but why it ended
_PATIENCE = 5.0  # seconds for the kernel to let go of cgroups whose processes have ended
_CLOSED = 1 << 20


class DemoNode:
    """A context manager within which the demo's pods run.

    ``settings`` says where the file systems are. ``warn`` gets a sentence when the pods end too early. To be entered
    in a program's main thread, before it has others. Raises ``PermissionMissing`` and ``MissingError`` where this
    machine or user cannot have it.
    """

    def __init__(self, settings: Settings, *, warn: Callable[[str], None]) -> None:
        self._given = settings
        self._warn = warn
        self._name = f"podtracer-demo-{os.getpid()}"
        self._root: str | None = None
        self._pid = 0
        self._pidfd = -1
        self._closing = False
        self._lists: BinaryIO | None = None
        self._kubelet: ReplayKubelet | None = None
        self._reader: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port of the kubelet on loopback."""
        assert self._kubelet is not None
        return self._kubelet.port

    @property
    def settings(self) -> Settings:
        """The given settings with those changed by which a tracer finds this node's pods."""
        return replace(
            self._given,
            kubelet="auto",
            kubelet_read_only_port=self.port,
            kubelet_secure_port=None,
            cri="none",
            pods_api="none",
            enable_namespace_labels=False,
            cgroup_prefix=f"/{self._name}/kubepods",
        )

    def __enter__(self) -> DemoNode:
        machine.check()
        sweep(self._given.cgroupfs, self._given.procfs)
        # Nobody else may write these cgroups: they are evidence only then.
        umask = os.umask(0o022)
        try:
            self._root = make_root(self._given, self._name)
            self._fork()
            os.umask(umask)
            assert self._lists is not None
            first = self._lists.readline()
            if not first or first.startswith(_FAILED):
                raise _error(first)
            kubelet = ReplayKubelet(first)
            kubelet.__enter__()
            self._kubelet = kubelet
            self._reader = threading.Thread(target=self._read, name="podtracer-demo", daemon=True)
            self._reader.start()
        except BaseException:
            os.umask(umask)
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Somebody looks: let things happen."""
        with suppress(ProcessLookupError):  # it has ended, of which there is a warning
            signal.pidfd_send_signal(self._pidfd, signal.SIGUSR1)

    def close(self) -> None:
        """Ends every process of the demo, and removes all that was made for them; may be called twice."""
        self._closing = True
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)  # our own child, not waited for yet
            os.waitpid(self._pid, 0)  # back when the whole PID namespace has ended
            self._pid = 0
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._reader is not None:
            self._reader.join()
            self._reader = None
        if self._lists is not None:
            self._lists.close()
            self._lists = None
        if self._kubelet is not None:
            self._kubelet.__exit__()
            self._kubelet = None
        if self._root is not None:
            ends = time.monotonic() + _PATIENCE
            while not remove_tree(self._root):
                if time.monotonic() > ends:
                    self._warn(f"{self._root} cannot be removed; the next demo tries again")
                    break
                time.sleep(0.01)
            self._root = None

    def _fork(self) -> None:
        """The stage becomes PID 1 of a namespace. All signals wait meanwhile: none may find the child half made."""
        read, write = os.pipe()
        self._lists = open(read, "rb")  # noqa: SIM115, closed by close()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            try:
                call("unshare", CLONE_NEWPID)
                try:
                    self._pid = os.fork()
                    if not self._pid:
                        self._play(write)
                finally:
                    call("setns", home, CLONE_NEWPID)
            finally:
                os.close(home)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            raise PermissionMissing(
                f"no PID namespace can be made: {error.strerror}", "CAP_SYS_ADMIN", "run it as root"
            ) from error
        finally:
            os.close(write)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _play(self, write: int) -> NoReturn:
        """The child's whole life. Nothing of the parent's is left to it but the pipe."""
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()  # a terminal's Ctrl-C is not for it
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.dup2(write, 3, inheritable=False)
            os.closerange(4, min(os.sysconf("SC_OPEN_MAX"), _CLOSED))
            stage = Stage(f"{self._root}/kubepods", 3)
            play = Play(stage)
            play.prologue()
            stage.run(play.begin)
        except BaseException as error:
            with suppress(OSError):
                os.write(3, _FAILED + f"{type(error).__name__}: {error}".encode() + b"\n")
        finally:
            os._exit(1)

    def _read(self) -> None:
        assert self._lists is not None
        assert self._kubelet is not None
        last = b""
        for last in self._lists:
            if not last.startswith(_FAILED):
                self._kubelet.set_body(last)
        if not self._closing:
            self._warn(str(_error(last if last.startswith(_FAILED) else b"")))


def make_root(settings: Settings, name: str) -> str:
    """The new folder ``name`` for cgroups, and ``kubepods/burstable`` in it, in the hierarchy that a tracer would
    follow: v2, else the first that can be written to.

    Raises ``PermissionMissing`` and ``MissingError`` where there is none.
    """
    refused: OSError | None = None
    for mount in mounts(settings.cgroupfs, settings.procfs):
        folder = f"{mount}/{name}"
        try:
            os.makedirs(f"{folder}/kubepods/burstable")
        except OSError as error:
            remove_tree(folder)
            refused = error
        else:
            return folder
    if refused is None:
        raise MissingError(
            "no cgroup hierarchy is mounted", settings.cgroupfs, "mount one, or name its place with --cgroupfs"
        )
    raise PermissionMissing(
        f"no cgroup can be made: {refused.strerror}", refused.filename, "run it as root, where cgroups are writable"
    )


def _error(line: bytes) -> TracerError:
    why = line.removeprefix(_FAILED).decode("utf-8", "replace").strip()
    return TracerError("the demo's pods have ended", why or "no word from them", "run it as root on the host")


def mounts(cgroupfs: str, procfs: str) -> list[str]:
    """Where cgroup hierarchies with controllers are mounted, v2 first, then the one that counts processes."""

    def rank(options: tuple[str, ...]) -> int:
        return 0 if "v2" in options else 1 if "pids" in options else 2

    found = [
        (rank(options), point)
        for point, _, options in all_mounts(cgroupfs, procfs)
        if not any(option.startswith("name=") for option in options)
    ]
    return [point for _, point in sorted(found)]


def all_mounts(cgroupfs: str, procfs: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(mount point, root, options) of each cgroup hierarchy; options of v2 are ``v2``."""
    text = Path(procfs, "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return parse_mountinfo(text, cgroupfs)


def sweep(cgroupfs: str, procfs: str) -> None:
    """Removes the cgroups of demos and benches that are no more. One with a process in it is left alone, whoever's it
    is."""
    for point, _, _ in all_mounts(cgroupfs, procfs):
        with suppress(OSError):
            for name in os.listdir(point):
                owner = _NAME.fullmatch(name)
                if owner is None or (int(owner[1]) != os.getpid() and os.path.exists(f"{procfs}/{owner[1]}")):
                    continue
                folder = f"{point}/{name}"
                if not any(_occupied(inside) for inside, _, _ in os.walk(folder)):
                    remove_tree(folder)


def _occupied(folder: str) -> bool:
    try:
        return bool(Path(folder, "cgroup.procs").read_bytes().strip())
    except OSError:
        return False
