"""Whether a peer is of the host, or of the daemon's own container, by the peer's own files.

The index knows a process's cgroup in the one hierarchy that holds the containers. That is enough for a peer that asks
about itself. Root in a container is root by its number only, so a peer that asks about others must meet more:

- its PID namespace is the daemon's; the peer's pidfd tells that when it connects (see ``peers``);
- its user namespace is the daemon's, in which programs are loaded: the initial one;
- none of its cgroups, in any hierarchy, is shaped like a container's or a pod's: the tracked hierarchy may be about to
  change, and another one may know more.

The files are certainly the peer's: its pidfd says that it has this number in the PID namespace of our ``/proc``, and
that it still lives after the files were read. So this module reads that ``/proc``, wherever the tracer reads its own. A
peer whose files cannot be read is not of the host.
"""

from __future__ import annotations

import os
import re

from tracer.model import Identity, State
from tracer.serve.peers import Peer

# A container's ID, a pod's segment, or the place where pods live. Other containers (LXC's, systemd's) have a PID
# namespace of their own.
_SHAPE = re.compile(
    r"[0-9A-Fa-f]{64}|kubepods|(?:^|/)(?:[^/]*-)?pod[0-9A-Fa-f]{8}[-_]?(?:[0-9A-Fa-f]{4}[-_]?){3}[0-9A-Fa-f]{12}"
)
_LONGEST = 1 << 20  # bytes of a file that are read


def is_of_host(peer: Peer, procfs: str = "/proc") -> bool:
    """Whether a peer is in no container by its files: its namespaces are the daemon's, and in no hierarchy is it in a
    container's cgroup."""
    cgroups = _cgroups(procfs, peer.pid)
    if not cgroups or any(_SHAPE.search(path) for path in cgroups.values()):
        return False
    return _shares_namespaces(peer, procfs) and peer.is_alive()


def is_of_own_container(peer: Peer, identity: Identity, own: Identity, procfs: str = "/proc") -> bool:
    """Whether a peer with this identity is in the container of the daemon (identity ``own``) and has its user, like a
    process that ``kubectl exec`` starts. A peer in a container nested there, or in another container of another
    hierarchy, is not."""
    if peer.uid != os.geteuid() or State.GONE in (identity.state, own.state):
        return False
    home, theirs = _home(own), _home(identity)
    if home is None or theirs is None or home[0] != theirs[0] or _SHAPE.search(theirs[1]):
        return False
    ours, cgroups = _cgroups("/proc", "self"), _cgroups(procfs, peer.pid)
    if not ours or not cgroups or ours.keys() != cgroups.keys():
        return False
    if any(_SHAPE.search(_below(_container_part(ours[key]), path)) for key, path in cgroups.items()):
        return False
    return _shares_namespaces(peer, procfs) and peer.is_alive()


def _home(identity: Identity) -> tuple[str, str] | None:
    """(the path of the container's own cgroup in the tracked hierarchy, what is below it)."""
    container = identity.workload.container_id
    path = identity.cgroup.path if identity.cgroup is not None else None
    at = path.find(container) if path is not None and container else -1
    if path is None or container is None or at < 0:
        return None
    end = path.find("/", at)
    return (path, "") if end < 0 else (path[:end], path[end:])


def _container_part(path: str) -> str:
    """The path down to the last segment that is shaped like a container's, "" without one."""
    segments = path.split("/")
    shaped = [at for at, segment in enumerate(segments) if _SHAPE.search(segment)]
    return "/".join(segments[: shaped[-1] + 1]) if shaped else ""


def _below(top: str, path: str) -> str:
    """What is below ``top`` in a path that is there, else the whole path."""
    return path[len(top) :] if path == top or path.startswith(f"{top}/") else path


def _shares_namespaces(peer: Peer, procfs: str) -> bool:
    if not peer.counts_alike:
        return False
    try:
        theirs, ours = os.stat(f"{procfs}/{peer.pid}/ns/user"), os.stat("/proc/self/ns/user")
    except PermissionError:
        # CAP_SYS_PTRACE is missing. Anyone may read the maps, and only root of the host can write one for another
        # namespace that looks like the initial one's.
        return all(_is_mapped_alike(procfs, peer.pid, name) for name in ("uid_map", "gid_map"))
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _is_mapped_alike(procfs: str, pid: int, name: str) -> bool:
    theirs, ours = _read(f"{procfs}/{pid}/{name}"), _read(f"/proc/self/{name}")
    return bool(theirs) and theirs == ours


def _cgroups(procfs: str, pid: int | str) -> dict[str, str] | None:
    """The path in each hierarchy; ``None`` if it cannot be read, or the first thread of the process has ended: the
    other threads may be anywhere."""
    stat, text = _read(f"{procfs}/{pid}/stat"), _read(f"{procfs}/{pid}/cgroup")
    state = stat[stat.rfind(b")") + 1 :].split()[:1]
    if not text or state in ([], [b"Z"], [b"X"]):
        return None
    lines = (line.split(":", 2) for line in text.decode("utf-8", "backslashreplace").splitlines())
    return {f"{line[0]}:{line[1]}": line[2] for line in lines if len(line) == 3}


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LONGEST)
    except OSError:
        return b""
