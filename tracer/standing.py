"""Where podtracer itself stands: whether it can see the pods' processes and name their cgroups from there.

Out of a container it may be shown a part only, without any error: the processes of its own PID namespace, the cgroups
below its own. What it would say of the rest were wrong. So whoever traces asks here first, the daemon again and again
while it runs, and ``podtracer doctor`` tells the same in the same words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tracer import pidfd
from tracer.errors import MissingError, PermissionMissing, TracerError
from tracer.feed import Feed
from tracer.identity.cgroup_path import match_strict
from tracer.kernel import machine
from tracer.kernel.cgroupfs import Mount
from tracer.settings import Settings

Outcome = Literal["ok", "warn", "fail"]
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO
_INITIAL_TIME_NAMESPACE = 0xEFFFFFFA  # PROC_TIME_INIT_INO
_READ = ("cgroup", "mountinfo")  # what SPIRE's rules read of a process


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: ``found`` says what was found, ``hint`` what to do, ``None`` for nothing.

    ``warn`` is what podtracer does without, slower or later; ``fail`` what it cannot do without.
    """

    name: str
    state: Outcome
    found: str
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The check with the keys ``name``, ``state``, ``found`` and ``hint``."""
        return asdict(self)


def failed(name: str, error: Exception, state: Outcome = "fail") -> Check:
    """The check that an error amounts to."""
    if isinstance(error, TracerError):
        return Check(name, state, str(error), error.hint)
    if isinstance(error, OSError):
        return Check(name, state, f"{error.strerror or error} ({error.filename})" if error.filename else str(error))
    return Check(name, state, f"internal error: {error!r}", "this is a bug; please report it")


def guarded(name: str, checks: Callable[[], Check | Iterable[Check]]) -> Iterator[Check]:
    """The checks that a function gives; what it raises is one more, of this name."""
    try:
        found = checks()
        if isinstance(found, Check):
            yield found
        else:
            yield from found
    except Exception as error:
        yield failed(name, error)


def is_ok(checks: Iterable[Check]) -> bool:
    """Whether nothing is missing that is needed."""
    return all(check.state != "fail" for check in checks)


def require(checks: Iterable[Check]) -> None:
    """Raises ``MissingError`` for the first that fails, in the same words; ``PermissionMissing`` for files that may not
    be read."""
    for check in checks:
        if check.state == "fail":
            kind = PermissionMissing if check.name == "reading" else MissingError
            raise kind(check.found, None, check.hint)


# ---- before anything is loaded ----


def procfs_of(folder: str) -> Check:
    """Whether the procfs that is read is of our own PID namespace: numbers mean other processes in any other."""
    try:
        shown = os.readlink(os.path.join(folder, "self"))
    except OSError as error:
        raise MissingError(
            f"procfs cannot be read: {error.strerror}", folder, "name its place with --procfs"
        ) from error
    if shown == str(os.getpid()):
        return Check("procfs", "ok", f"{folder} shows the processes of our PID namespace")
    found = f"{folder} is of another PID namespace: we are {os.getpid()} in ours, and {shown} there"
    hint = "run in the PID namespace that it is of (hostPID: true), or name our own with --procfs"
    return Check("procfs", "fail", found, hint)


def time_namespace(inum: int, offsets: str) -> Check:
    """Whether boot time is the machine's, in which the kernel stamps records; ``offsets`` is the text of
    ``/proc/self/timens_offsets``, see time_namespaces(7)."""
    boottime = next((line.split()[1:] for line in offsets.splitlines() if line.startswith("boottime")), [])
    if inum == _INITIAL_TIME_NAMESPACE or not any(int(number) for number in boottime):
        return Check("time-namespace", "ok", "boot time is the machine's own")
    found = f"boot time is {boottime[0]} s off the machine's in this time namespace: starts and ages would be wrong"
    return Check("time-namespace", "fail", found, "run in the host's time namespace")


def _own_time_namespace() -> Check:
    try:
        inum = os.stat("/proc/self/ns/time").st_ino
        offsets = Path("/proc/self/timens_offsets").read_text(encoding="ascii")
    except FileNotFoundError:
        return Check("time-namespace", "ok", "this kernel has no time namespaces")
    return time_namespace(inum, offsets)


def reading(procfs: str, status: str, *, parity: bool) -> Check:
    """Whether other users' files in ``/proc`` can be read; ``status`` is the text of ``/proc/self/status``. Parity mode
    answers by them. Init has the most capabilities, so that who may read its files may read everybody's."""
    hint = "add CAP_SYS_PTRACE"
    for name in _READ:
        path = os.path.join(procfs, "1", name)
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            found = f"other users' processes cannot be read ({path}: {error.strerror}): parity is not known of them"
            return Check("reading", "fail" if parity else "warn", found, hint)
    if machine.holds(status, machine.SYS_PTRACE):
        return Check("reading", "ok", "the files and namespaces of all users' processes")
    found = "CAP_SYS_PTRACE is missing: other users' processes show their files, but not the namespaces they are in"
    return Check("reading", "warn", found, hint)


def first(settings: Settings) -> Iterator[Check]:
    """What can be told before anything is loaded."""
    yield from guarded("procfs", lambda: procfs_of(settings.procfs))
    yield from guarded("time-namespace", _own_time_namespace)
    yield from guarded("reading", lambda: _own_reading(settings))


def _own_reading(settings: Settings) -> Check:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return reading(settings.procfs, status, parity=settings.mode == "parity")


# ---- which processes are seen ----


def pid_namespace(inum: int, level: int | None = None, blind: str | None = None) -> Check:
    """Whether PIDs are the machine's own; ``level`` counts the namespaces above ours, where that is known, ``blind``
    says why the pods' processes cannot be seen from it."""
    if level == 0 or (level is None and inum == _INITIAL_PID_NAMESPACE):
        return Check("pid-namespace", "ok", "the initial one: PIDs are the machine's own")
    where = "" if level is None else f", {level} below the initial one"
    hint = "run in the host's PID namespace (hostPID: true) to know all processes by the machine's own PIDs"
    found = f"PIDs are those of PID namespace {inum}{where}; processes outside of it are not known"
    if blind is not None:
        return Check("pid-namespace", "fail", f"{found}: {blind}", hint)
    return Check("pid-namespace", "warn", found, hint)


def blindness(feed: Feed, settings: Settings) -> str | None:
    """Why the pods' processes cannot be seen from our PID namespace; ``None`` where they can be, or nothing speaks
    against it. Wants the feed's lock.

    A node's own PID namespace need not be the machine's: in KIND the node is a container. So a namespace of its own
    says nothing yet, but who is in it does: one whose init is in a pod's cgroup is that pod's, since all of its
    processes come from init. One that holds our own container or service alone is no node's if pods run outside of it.
    """
    if feed.header.ns_level == 0:
        return None
    if not feed.mount.trusted:
        return "whether it has the pods' in it cannot be told, since no cgroup can be named"
    init, own = _path_of(feed, 1), _path_of(feed, os.getpid())
    if init is not None and match_strict(init, settings.cgroup_prefix).pod_uid is not None:
        return f"it is one pod's alone, whose first process is in {init!a}"
    if own is None or own == "/" or not _is_alone(feed, own):
        return None
    hidden = next((path for mount in feed.mounts if (path := _hidden_pod(mount, own, settings.cgroup_prefix))), None)
    return None if hidden is None else f"only those in {own!a} are in it, and none of the pods', such as in {hidden!a}"


def _path_of(feed: Feed, pid: int) -> str | None:
    slot = feed.programs.slots.read(pid)
    if slot is None:  # as the iterator leaves init out on some machines
        with pidfd.pinned(pid) as fd:
            slot = feed.slot_from_procfs(pid, fd) if fd is not None else None
    return feed.names.path(slot.cgroup) if slot is not None and slot.hierarchy == feed.mount.info.hierarchy else None


def _is_alone(feed: Feed, own: str) -> bool:
    """Whether all processes that are seen are in this cgroup and those below it."""
    for cgroup in {known.cgroup for known in feed.index.processes.values()}:
        path = feed.names.path(cgroup)
        if path is None or not f"{path}/".startswith(f"{own}/"):
            return False
    return True


def _hidden_pod(mount: Mount, own: str, prefix: str | None) -> str | None:
    """A pod's container that has processes, outside of the cgroup ``own``."""
    if not mount.trusted:
        return None
    base = mount.path.rstrip("/")
    for folder, below, _ in os.walk(base):
        path = folder[len(base) :] or "/"
        if path == own or not (prefix or _is_roots(folder)):
            below.clear()  # also what a user may have named
        elif match_strict(path, prefix).below_pod:
            below.clear()
            if _is_populated(Path(folder)):
                return path
    return None


def _is_roots(folder: str) -> bool:
    try:
        return os.stat(folder).st_uid == 0
    except OSError:
        return False


def _is_populated(folder: Path) -> bool:
    """Whether processes are in a cgroup or below it, also such as have no number in our PID namespace. On v1 only the
    controller ``pids`` tells that."""
    try:
        return "populated 1" in (folder / "cgroup.events").read_text()
    except OSError:
        pass
    try:
        return int((folder / "pids.current").read_text()) > 0
    except (OSError, ValueError):
        return False


# ---- which cgroups can be named ----


def hierarchies(mounts: Sequence[Mount]) -> Iterator[Check]:
    """Each mounted cgroup hierarchy, and whether the paths below its mount can be believed."""
    for mount in mounts:
        name = f"cgroup {mount.name}"
        if mount.trusted:
            yield Check(name, "ok", f"{mount.path} is the root of the hierarchy")
            continue
        found = f"{mount.path} is not the root of the hierarchy, as in a private cgroup namespace: paths are not whole"
        hint = "use the host's cgroup namespace, or mount its cgroup file system here and name it with --cgroupfs"
        yield Check(name, "fail", found, hint)


class Standing:
    """What is missing where a tracer stands, looked at now and again while it runs."""

    def __init__(self, feed: Feed, settings: Settings) -> None:
        self._feed = feed
        self._settings = settings
        self._places = {mount.path: _place(mount) for mount in feed.mounts}

    def seeing(self) -> Check:
        """Whether the pods' processes can be seen."""
        header = self._feed.header
        return pid_namespace(header.ns_inum, header.ns_level, blindness(self._feed, self._settings))

    def naming(self) -> Iterator[Check]:
        """Whether the cgroups of each hierarchy can be named: its mount is whole, and still where it was."""
        for check, mount in zip(hierarchies(self._feed.mounts), self._feed.mounts, strict=True):
            if check.state == "ok" and _place(mount) != self._places[mount.path]:
                found = f"{mount.path} is not mounted any more: cgroups have no names"
                yield Check(check.name, "fail", found, "mount it again, and start podtracer anew")
            else:
                yield check

    def missing(self) -> tuple[Check, ...]:
        """All that fails."""
        return tuple(check for check in (self.seeing(), *self.naming()) if check.state == "fail")


def _place(mount: Mount) -> tuple[int, int] | None:
    try:
        there = os.stat(mount.path)
    except OSError:
        return None
    return there.st_dev, there.st_ino
