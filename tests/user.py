"""An ordinary user who owns a delegated subtree of cgroups, as systemd gives one to whoever logs in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.waiting import until

UID = 65534
_GIVEN = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
# Makes a cgroup, moves into it, says so and stays there, all as the user.
_ENTER = 'mkdir -p "$1" && echo $$ >"$1/cgroup.procs" && echo there && exec sleep 1000'


class User:
    """The user of one hierarchy, mounted at ``mount``; all of its cgroups and processes end with it."""

    def __init__(self, mount: Path) -> None:
        self._slice = mount / "user.slice" / f"user-{UID}.slice"
        self.folder = self._slice / f"user@{UID}.service"
        self._made = [each for each in (self._slice, self._slice.parent) if not each.exists()]
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> User:
        (self.folder / "init").mkdir(parents=True)
        for folder in (self.folder, self.folder / "init"):
            for path in (folder, *(folder / name for name in _GIVEN)):
                if path.exists():
                    os.chown(path, UID, UID)
        return self

    def enter(self, path: str) -> int:
        """Has the user make a cgroup below its own and a process of its enter it; that one's PID."""
        where = f"{self.folder}{path}"
        first = ("sh", "-c", f'echo $$ >{self.folder}/init/cgroup.procs && exec "$@"', "sh")
        become = ("setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups")
        child = subprocess.Popen([*first, *become, "sh", "-c", _ENTER, "sh", where], stdout=subprocess.PIPE, text=True)
        self._children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n", f"the user could not enter {where}"
        return child.pid

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        for folder, _, _ in os.walk(self.folder, topdown=False):
            until(lambda folder=folder: _removed(Path(folder)), 10, f"{folder} to be removable")
        for made in self._made:
            _removed(made)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True
