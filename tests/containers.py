"""Real containers for tests: the distribution's containerd and runc, with all of theirs below one folder.

    with Containerd(tmp_path) as runtime:
        container = runtime.run("sleep", "1000")        # a pod-shaped cgroup of its own
        container.pid                                   # the entrypoint, as the host sees it
        container.exec("id").stdout
        container.kill()

Cgroup paths are those of the cgroupfs driver, ``/kubepods/besteffort/pod<uid>/<id>``, in every hierarchy.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import signal
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import machine
from tests.cluster import mkimage
from tests.waiting import SLOW, until

APP = "localhost/app:1"
NAMESPACE = "k8s.io"  # where CRI keeps its containers
CONNECT_TIMEOUT = f"{round(20 * SLOW)}s"
LONGEST_SOCKET = 100  # sun_path holds 108 bytes, and containerd adds to some of its own

CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
"""


def new_id() -> str:
    """A fresh container ID: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def pod_cgroup(container_id: str, *, pod_uid: str | None = None, qos: str = "besteffort") -> str:
    """The cgroup path that a kubelet with the cgroupfs driver asks for; a Guaranteed pod has ``qos=""``."""
    return "/".join(part for part in ("/kubepods", qos, f"pod{pod_uid or uuid.uuid4()}", container_id) if part)


class ContainerdDaemon:
    """containerd below one folder, started and removed; what it runs is up to its users.

    ``stop`` needs only the folder: it also cleans up after a containerd that has died, or was started by
    another Python process.
    """

    def __init__(self, folder: Path, config: str = CONFIG, daemons: machine.Daemons | None = None) -> None:
        self.folder = folder
        self.socket = folder / "c.sock"
        self.config = config.format(folder=folder, socket=self.socket)
        self.daemons = daemons or machine.Daemons(folder / "daemon")
        if len(bytes(self.socket)) > LONGEST_SOCKET:
            raise ValueError(f"too long for a socket's path: {self.socket}")

    def start(self) -> None:
        """Start containerd, and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.toml"
        config.write_text(self.config)
        self.daemons.start("containerd", ["containerd", "--config", config])

        def answers() -> bool:
            if not self.daemons.alive("containerd"):
                raise RuntimeError(f"containerd has ended; see {self.daemons.log('containerd')}")
            return self.socket.exists() and self.ctr("version", check=False).returncode == 0

        until(answers, 20, f"containerd to answer; see {self.daemons.log('containerd')}", interval=0.05)

    def ctr(self, *args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``ctr`` against this containerd. Raises ``RuntimeError`` with its message when it fails."""
        done = subprocess.run(
            [*("ctr", "--connect-timeout", CONNECT_TIMEOUT, "--address", self.socket, "--namespace", NAMESPACE), *args],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"ctr {' '.join(map(str, args))}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def add_image(self, name: str, **kwargs: Sequence[str] | Sequence[Path]) -> None:
        """Make a busybox image (arguments as of ``mkimage.write_image``) and import it under this name."""
        archive = self.folder / "image.tar"
        mkimage.write_image(archive, name, **kwargs)
        # From containerd 2 on the daemon unpacks unless it is told not to, and not for every snapshotter.
        local = ["--local"] if "--local" in self.ctr("images", "import", "--help").stdout else []
        self.ctr("images", "import", *local, "--snapshotter", "native", archive)
        archive.unlink()

    def stop(self, *cgroups: str) -> None:
        """End containerd, its shims and every container in these cgroups, and undo their mounts."""
        for cgroup in cgroups:
            machine.kill_cgroup(cgroup)
        self.daemons.stop("containerd")
        # A shim outlives containerd, on purpose. It names our socket on its command line; its own socket lies
        # outside our folder, and its file "address" says where.
        machine.end(machine.processes_with_argument(self.socket), grace=0)
        for address in self.folder.glob("state/io.containerd.runtime.v2.task/*/*/address"):
            Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)
        machine.unmount_below(self.folder)
        for cgroup in cgroups:
            machine.remove_cgroup(cgroup)
        for shared in ("/run/containerd/s", "/run/containerd"):
            with contextlib.suppress(OSError):  # used by another containerd
                Path(shared).rmdir()


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a ``Containerd``: ID, cgroup path (in every hierarchy), host PID of the entrypoint."""

    runtime: Containerd
    id: str
    cgroup: str
    pid: int

    def exec(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside, wait for it, and return its output."""
        return self.runtime.ctr(
            *(
                "tasks",
                "exec",
                "--fifo-dir",
                self.runtime.fifos,
                "--exec-id",
                secrets.token_hex(8),
                self.id,
                *args,
            ),
            check=check,
        )

    def spawn(self, *args: str) -> int:
        """Start a command inside, as ``kubectl exec`` does, and return its host PID; it runs on."""
        exec_id = secrets.token_hex(8)
        output = self.runtime.log_uri(f"{self.id}.{exec_id}")
        self.runtime.ctr(
            *("tasks", "exec", "--detach", "--log-uri", output, "--exec-id", exec_id, self.id, *args),
        )
        for line in self.runtime.ctr("tasks", "ps", self.id).stdout.splitlines():
            if exec_id in line:
                return int(line.split()[0])
        raise RuntimeError(f"the process has ended already: {args}")

    def pids(self) -> list[int]:
        """The host PIDs of all processes inside, sorted."""
        lines = self.runtime.ctr("tasks", "ps", self.id).stdout.splitlines()
        return sorted(int(line.split()[0]) for line in lines[1:])

    def output(self) -> str:
        """What the entrypoint has written so far, standard output and standard error."""
        return self.runtime.log(self.id).read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the entrypoint a signal."""
        self.runtime.ctr("tasks", "kill", "--signal", str(int(number)), self.id)

    def stopped(self) -> bool:
        """Whether the entrypoint has ended."""
        lines = self.runtime.ctr("tasks", "ls").stdout.splitlines()
        return not any(line.split()[0] == self.id and line.split()[-1] != "STOPPED" for line in lines[1:])

    def wait(self, timeout: float = 10) -> int:
        """Wait for the entrypoint's end, remove the container, and return the exit code."""
        until(self.stopped, timeout, f"the end of container {self.id}", interval=0.05)
        deleted = self.runtime.ctr("tasks", "delete", self.id)
        self.runtime.forget(self)
        code = re.search(r"exit with non-zero exit code (\d+)", deleted.stderr)
        return int(code[1]) if code else 0

    def remove(self) -> None:
        """Kill what runs inside, and remove the container and its cgroup."""
        self.runtime.ctr("tasks", "delete", "--force", self.id)
        self.runtime.forget(self)


class Containerd(ContainerdDaemon):
    """containerd with a busybox image (``APP``), for tests; all is removed with the ``with`` block."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fifos = folder / "fifos"
        self._containers: dict[str, Container] = {}
        self._cgroups = machine.CgroupsMade()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.add_image(APP)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove every container, containerd itself, and all they left but the logs."""
        self.stop(*(container.cgroup for container in self._containers.values()))
        self._containers.clear()
        self._cgroups.remove()
        for name in ("root", "state", "opt", "fifos", "runc"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def log(self, name: str) -> Path:
        """Where the output of a container, or of a process started in one, is."""
        return self.folder / f"{name}.log"

    def log_uri(self, name: str) -> str:
        """The same place, as ``ctr`` wants it."""
        return f"file://{self.log(name)}"

    def run(
        self,
        *args: str,
        container_id: str | None = None,
        cgroup: str | None = None,
        image: str = APP,
        options: Sequence[str] = (),
    ) -> Container:
        """Start a container, and return once its entrypoint runs (or has ended by then).

        Without ``args`` the image's own command runs, a long sleep. The ID is fresh, and the cgroup that of a
        best-effort pod of its own, unless given. ``options`` go to ``ctr run``.
        """
        container_id = container_id or new_id()
        cgroup = cgroup or pod_cgroup(container_id)
        self._cgroups.about_to_make(cgroup)
        pid_file = self.folder / f"{container_id}.pid"
        # Noted before it runs: should the start fail half-way, the end still finds it.
        self._containers[container_id] = Container(self, container_id, cgroup, pid=0)
        self.ctr(
            *("run", "--detach", "--snapshotter", "native", "--cgroup", cgroup, "--pid-file", pid_file),
            *("--runc-root", self.folder / "runc", "--log-uri", self.log_uri(container_id), *options),
            *(image, container_id, *args),
        )
        container = Container(self, container_id, cgroup, int(pid_file.read_text()))
        pid_file.unlink()
        self._containers[container_id] = container
        until(lambda: not _still_runc(container.pid), 10, f"the entrypoint of {container_id}")
        return container

    def forget(self, container: Container) -> None:
        """Remove a container that has no task any more."""
        self.ctr("containers", "delete", container.id)
        self._containers.pop(container.id, None)


def _still_runc(pid: int) -> bool:
    """Whether the entrypoint's process is still the one runc made: ``runc init`` before its ``execve``."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"runc\0init\0")
    except OSError:
        return False
