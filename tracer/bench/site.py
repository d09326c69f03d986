"""The bench's own corner of a node: cgroups of pods below one folder, and their removal, whatever happened."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tracer.bench.kubelet import Kubelet
from tracer.bench.pods import Container, Pod, pod_list
from tracer.demo.node import all_mounts, make_root, mounts, sweep
from tracer.demo.stage import remove_tree
from tracer.kernel import machine
from tracer.settings import Settings

_PATIENCE = 10.0  # seconds for the kernel to let go of cgroups


class Site:
    """A context manager within which there are cgroups for pods, and a kubelet that lists them.

    ``settings`` says where the file systems are; ``warn`` gets a sentence when something stays behind. Raises
    ``PermissionMissing`` and ``MissingError`` where this machine or user cannot have it.
    """

    def __init__(self, settings: Settings, *, warn: Callable[[str], None]) -> None:
        self._given = settings
        self._warn = warn
        self.name = f"podtracer-bench-{os.getpid()}"
        self.root = ""
        self._second: str | None = None
        self._kubelet: Kubelet | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        machine.check()
        sweep(self._given.cgroupfs, self._given.procfs)
        # Nobody else may write these cgroups: they are evidence only then.
        self._stack.callback(os.umask, os.umask(0o022))
        try:
            self.root = make_root(self._given, self.name)
            self._stack.callback(self._clear)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    # ---- pods ----

    @property
    def port(self) -> int:
        """The kubelet's port on loopback."""
        assert self._kubelet is not None
        return self._kubelet.port

    @property
    def settings(self) -> Settings:
        """The given settings with those changed by which a tracer finds these pods and no others."""
        return replace(
            self._given,
            kubelet="auto",
            kubelet_read_only_port=self.port,
            kubelet_secure_port=None,
            cri="none",
            pods_api="none",
            enable_namespace_labels=False,
            cgroup_prefix=f"/{self.name}/kubepods",
            mode="strict",
            entries_file=None,
            agent_id=None,
        )

    def publish(self, pods: list[Pod], size: int = 0) -> None:
        """The kubelet lists these from now on, each ``size`` bytes long at least."""
        body = pod_list(pods, size)
        if self._kubelet is None:
            self._kubelet = Kubelet(body)
            self._stack.callback(self._kubelet.end)
        else:
            self._kubelet.set_body(body)

    def folder(self, pod: Pod, container: Container) -> str:
        """The container's cgroup, which is made."""
        path = self.where(pod, container)
        os.makedirs(path, exist_ok=True)
        return path

    def where(self, pod: Pod, container: Container) -> str:
        """The same, which may not be made."""
        return f"{self.root}/kubepods/burstable/pod{pod.uid}/{container.id}"

    def path(self, folder: str) -> str:
        """The path in its hierarchy of a cgroup of this site."""
        return f"/{self.name}{folder.removeprefix(self.root)}"

    def other(self, name: str) -> str:
        """A cgroup beside those of pods, which is made."""
        path = f"{self.root}/{name}"
        os.makedirs(path, exist_ok=True)
        return path

    def delegate(self, uid: int) -> list[str]:
        """Folders that this user may write, as systemd gives them to whoever logs in: one beside the pods, and one in
        another hierarchy, where this machine has such. Each has a cgroup ``init`` in it."""
        if self._second is None:
            self._second = self._make_second()
        folders = []
        for root in filter(None, (self.root, self._second)):
            folder = f"{root}/user.slice/user-{uid}.slice/user@{uid}.service"
            os.makedirs(f"{folder}/init", exist_ok=True)
            for path in (folder, f"{folder}/init"):
                os.chown(path, uid, uid)
                for name in ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                    with suppress(FileNotFoundError):  # v1 has fewer
                        os.chown(f"{path}/{name}", uid, uid)
            folders.append(folder)
        return folders

    def _make_second(self) -> str | None:
        for mount in mounts(self._given.cgroupfs, self._given.procfs):
            folder = f"{mount}/{self.name}"
            if folder != self.root:
                with suppress(OSError):
                    os.makedirs(folder, exist_ok=True)
                    return folder
        return None

    # ---- the end ----

    def _clear(self) -> None:
        for root in filter(None, (self.root, self._second)):
            self._remove(root)

    def _remove(self, root: str) -> None:
        ends = time.monotonic() + _PATIENCE
        empty(root)
        while not remove_tree(root):
            if time.monotonic() > ends:
                self._warn(f"{root} cannot be removed; the next bench tries again")
                return
            time.sleep(0.02)
            empty(root)


@contextmanager
def memory_cgroup(settings: Settings, name: str) -> Iterator[str | None]:
    """The folder of a new cgroup that counts memory; ``None`` where this machine has none to be made."""
    top = None
    for point, _, options in all_mounts(settings.cgroupfs, settings.procfs):
        counts = "memory" in options
        if "v2" in options:
            with suppress(OSError):
                counts = "memory" in Path(point, "cgroup.subtree_control").read_text().split()
        if counts:
            top = f"{point}/{name}"
            break
    folder = None
    with suppress(OSError):
        if top is not None:
            os.makedirs(f"{top}/memory", exist_ok=True)
            if os.path.exists(f"{top}/cgroup.subtree_control"):
                Path(top, "cgroup.subtree_control").write_text("+memory")
            folder = f"{top}/memory"
    try:
        yield folder
    finally:
        end = time.monotonic() + _PATIENCE
        while top is not None and not remove_tree(f"{top}/memory") and time.monotonic() < end:
            time.sleep(0.02)
        if top is not None:
            with suppress(OSError):
                os.rmdir(top)  # unless it is the site's own, which removes it


def empty(folder: str) -> None:
    """Kills whatever lives in a cgroup and below it."""
    name = os.path.basename(folder)
    with suppress(OSError):
        Path(folder, "cgroup.kill").write_text("1")  # v2, from 5.14
        return
    for inside, _, _ in os.walk(folder):
        with suppress(OSError):
            for pid in map(int, Path(inside, "cgroup.procs").read_text().split()):
                _kill(pid, name)


def _kill(pid: int, name: str) -> None:
    # Pinned before it is looked at once more: its number may be another's by now.
    with suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            if f"/{name}" in Path(f"/proc/{pid}/cgroup").read_text(errors="replace"):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
