"""Containers by runc alone: quicker than with containerd, and in the hierarchies that a test chooses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import machine
from tests.cluster import mkimage
from tests.containers import new_id, pod_cgroup

# Run before runc in a mount namespace of its own: where runc sees no v2 hierarchy, it joins none.
WITHOUT_V2 = ("unshare", "--mount", "sh", "-c", 'umount --no-mtab /sys/fs/cgroup/unified && exec "$@"', "sh")


@dataclass(frozen=True, slots=True)
class RuncContainer:
    """A running container: its ID, its cgroup's path, its entrypoint's host PID."""

    runtime: Runc
    id: str
    cgroup: str
    pid: int

    def exec(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, wait for it, and return its output."""
        return self.runtime.runc("exec", self.id, *args)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the entrypoint a signal."""
        self.runtime.runc("kill", self.id, str(int(number)))

    def remove(self) -> None:
        """Kill what runs inside, and remove the container and its cgroup."""
        self.runtime.remove(self)


class Runc:
    """runc with state and a busybox root file system in a folder; all is removed with the ``with`` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._containers: dict[str, RuncContainer] = {}
        self._cgroups = machine.CgroupsMade()

    def __enter__(self) -> Self:
        rootfs = self.folder / "rootfs"
        rootfs.mkdir()
        subprocess.run(["tar", "-x", "-C", rootfs], input=mkimage.rootfs(), check=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for container in list(self._containers.values()):
            self.remove(container)
        self._cgroups.remove()
        shutil.rmtree(self.folder)

    def runc(self, *args: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run ``runc`` with our state folder. Raises ``RuntimeError`` with its message when it fails."""
        done = subprocess.run(
            [*prefix, "runc", "--root", self.folder / "state", *args],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise RuntimeError(f"runc {' '.join(map(str, args))}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def run(
        self, *args: str, container_id: str | None = None, cgroup: str | None = None, v2: bool = True
    ) -> RuncContainer:
        """Start a container; ``v2=False`` keeps it out of the v2 hierarchy of a hybrid host.

        The ID is fresh, and the cgroup that of a best-effort pod of its own, unless given.
        """
        container_id = container_id or new_id()
        cgroup = cgroup or pod_cgroup(container_id)
        self._cgroups.about_to_make(cgroup)
        bundle = self.folder / container_id
        bundle.mkdir()
        self.runc("spec", "--bundle", bundle)
        config = bundle / "config.json"
        spec = json.loads(config.read_text())
        spec["process"] |= {"terminal": False, "args": list(args or mkimage.FOREVER)}
        spec["root"]["path"] = str(self.folder / "rootfs")
        spec["linux"]["cgroupsPath"] = cgroup
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
        config.write_text(json.dumps(spec))
        pid_file = bundle / "pid"
        command = ["runc", "--root", self.folder / "state", "run", "--detach", "--bundle", bundle]
        with (bundle / "log").open("w+") as log:
            # A detached container keeps runc's own output: a pipe would never reach its end.
            done = subprocess.run(
                [*(() if v2 else WITHOUT_V2), *command, "--pid-file", pid_file, container_id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(f"runc run: exit {done.returncode}: {(bundle / 'log').read_text()}")
        container = RuncContainer(self, container_id, cgroup, int(pid_file.read_text()))
        self._containers[container_id] = container
        return container

    def remove(self, container: RuncContainer) -> None:
        """Kill what runs in a container, and remove it and its cgroup."""
        self.runc("delete", "--force", container.id)
        del self._containers[container.id]
