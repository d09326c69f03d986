"""Containers by runc or crun alone: quicker than with containerd, and in the hierarchies that a test chooses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import machine
from tests.cluster import mkimage
from tests.containers import new_id, pod_cgroup

# Where a container with cgroups of its own has them mounted.
CGROUPS_INSIDE = "/cg"

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

    def spawn(self, *args: str) -> int:
        """Start a command inside, as ``kubectl exec`` does, and return its host PID; it runs on."""
        pid_file = self.runtime.folder / f"{self.id}.exec"
        command = self.runtime.command("exec", "--detach", "--pid-file", pid_file, self.id, *args)
        self.runtime.detached(command, self.runtime.folder / f"{self.id}.exec.log")
        return int(pid_file.read_text())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the entrypoint a signal."""
        self.runtime.runc("kill", self.id, str(int(number)))

    def remove(self) -> None:
        """Kill what runs inside, and remove the container and its cgroup."""
        self.runtime.remove(self)


class Runc:
    """runc, or another ``program`` with its command line, with state and a busybox root file system in a folder; all
    is removed with the ``with`` block."""

    def __init__(self, folder: Path, program: str = "runc") -> None:
        self.folder = folder
        self.program = program
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
        """Run it with our state folder. Raises ``RuntimeError`` with its message when it fails."""
        done = subprocess.run(
            [*prefix, *self.command(*args)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            words = " ".join(map(str, args))
            raise RuntimeError(f"{self.program} {words}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def command(self, *args: str | Path) -> list[str | Path]:
        """Its command line, with our state folder."""
        return [self.program, "--root", self.folder / "state", *args]

    def detached(self, command: Sequence[str | Path], log: Path) -> None:
        """Run a command whose output what it starts inherits: a pipe would never reach its end."""
        with log.open("w+") as output:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}: {log.read_text()}")

    def run(
        self,
        *args: str,
        container_id: str | None = None,
        cgroup: str | None = None,
        v2: bool = True,
        own_cgroups: bool = False,
    ) -> RuncContainer:
        """Start a container; ``v2=False`` keeps it out of the v2 hierarchy of a hybrid host, ``own_cgroups=True`` gives
        it a cgroup namespace of its own, and what is in it at ``CGROUPS_INSIDE`` to be written.

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
        spec["linux"]["namespaces"] = [space for space in spec["linux"]["namespaces"] if space["type"] != "cgroup"]
        if own_cgroups:
            spec["linux"]["namespaces"].append({"type": "cgroup"})
            mount = {"destination": CGROUPS_INSIDE, "type": "cgroup", "source": "cgroup"}
            spec["mounts"].append({**mount, "options": ["nosuid", "noexec", "nodev", "relatime"]})
        config.write_text(json.dumps(spec))
        pid_file = bundle / "pid"
        command = self.command("run", "--detach", "--bundle", bundle, "--pid-file", pid_file, container_id)
        self.detached([*(() if v2 else WITHOUT_V2), *command], bundle / "log")
        container = RuncContainer(self, container_id, cgroup, int(pid_file.read_text()))
        self._containers[container_id] = container
        return container

    def remove(self, container: RuncContainer) -> None:
        """Kill what runs in a container, and remove it and its cgroup."""
        self.runc("delete", "--force", container.id)
        shutil.rmtree(self.folder / container.id)
        del self._containers[container.id]
