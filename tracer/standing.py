"""Where podtracer itself stands: whether it can see the pods' processes and name their cgroups from there.

In a container podtracer may see only a part of the machine, without any error: the processes of its own PID namespace,
the cgroups below its own. Its answers about the rest would be wrong. So every command that traces checks this first,
the daemon checks it again while it runs, and ``podtracer doctor`` reports the same in the same words.
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
    """The result of one check: ``found`` says what the check found, ``hint`` what the user can do, if anything.

    ``warn`` is for what podtracer can work without, slower or later; ``fail`` for what it needs.
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
    """The checks that a function returns. If it raises, that is one more failed check, of this name."""
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
    """Raises ``MissingError`` for the first check that fails, in the same words; ``PermissionMissing`` if podtracer may
    not read files."""
    for check in checks:
        if check.state == "fail":
            kind = PermissionMissing if check.name == "reading" else MissingError
            raise kind(check.found, None, check.hint)


# ---- before anything is loaded ----


def procfs_of(folder: str) -> Check:
    """Whether this procfs belongs to our own PID namespace. In any other one a PID means another process."""
    try:
        shown = os.readlink(os.path.join(folder, "self"))
    except OSError as error:
        raise MissingError(
            f"procfs cannot be read: {error.strerror}", folder, "name its place with --procfs"
        ) from error
    if shown == str(os.getpid()):
        return Check("procfs", "ok", f"{folder} shows the processes of our PID namespace")
    found = f"{folder} belongs to another PID namespace: podtracer is PID {os.getpid()} in its own, and {shown} there"
    hint = "run podtracer in that PID namespace (hostPID: true), or name the procfs of its own with --procfs"
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
    """Whether we can read other users' files in ``/proc``; ``status`` is the text of ``/proc/self/status``. Parity mode
    answers by these files. Init has the most capabilities, so a process that may read its files may read all."""
    hint = "add CAP_SYS_PTRACE"
    for name in _READ:
        path = os.path.join(procfs, "1", name)
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            found = f"cannot read files of other users' processes ({path}: {error.strerror}): their parity is not known"
            return Check("reading", "fail" if parity else "warn", found, hint)
    if machine.holds(status, machine.SYS_PTRACE):
        return Check("reading", "ok", "the files and namespaces of all users' processes")
    found = "CAP_SYS_PTRACE is missing: podtracer reads the files of other users' processes, but not their namespaces"
    return Check("reading", "warn", found, hint)


def first(settings: Settings) -> Iterator[Check]:
    """The checks that need no loaded programs."""
    yield from guarded("procfs", lambda: procfs_of(settings.procfs))
    yield from guarded("time-namespace", _own_time_namespace)
    yield from guarded("reading", lambda: _own_reading(settings))


def _own_reading(settings: Settings) -> Check:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return reading(settings.procfs, status, parity=settings.mode == "parity")


# ---- which processes are seen ----


def pid_namespace(inum: int, level: int | None = None, blind: str | None = None) -> Check:
    """Whether PIDs are the machine's own. ``level`` counts the namespaces above ours, if that is known; ``blind`` says
    why we cannot see the pods' processes from here, if we cannot."""
    if level == 0 or (level is None and inum == _INITIAL_PID_NAMESPACE):
        return Check("pid-namespace", "ok", "the initial one: PIDs are the machine's own")
    where = "" if level is None else f", {level} below the initial one"
    hint = "run podtracer in the host's PID namespace (hostPID: true) to see all processes, by the machine's own PIDs"
    found = f"PIDs are those of PID namespace {inum}{where}; podtracer does not see processes outside of it"
    if blind is not None:
        return Check("pid-namespace", "fail", f"{found}: {blind}", hint)
    return Check("pid-namespace", "warn", found, hint)


def blindness(feed: Feed, settings: Settings) -> str | None:
    """Why we cannot see the pods' processes from our PID namespace; ``None`` if we can, or nothing shows that we
    cannot. The caller holds the feed's lock.

    A node's PID namespace may be another than the machine's: in KIND the node is a container. So the processes in our
    namespace decide. If its init is in a pod's cgroup, the namespace is that pod's, since all of its processes come
    from init. If it holds our own container or service alone while pods run outside of it, it is not a node's.
    """
    if feed.header.ns_level == 0:
        return None
    if not feed.mount.trusted:
        return "podtracer cannot tell whether the pods' are in it, since it cannot name any cgroup"
    init, own = _path_of(feed, 1), _path_of(feed, os.getpid())
    if init is not None and match_strict(init, settings.cgroup_prefix).pod_uid is not None:
        return f"it is the PID namespace of one pod, whose first process is in {init!a}"
    if own is None or own == "/" or not _is_alone(feed, own):
        return None
    hidden = next((path for mount in feed.mounts if (path := _hidden_pod(mount, own, settings.cgroup_prefix))), None)
    if hidden is None:
        return None
    return f"it holds only the processes in {own!a}, and none of the pods', such as those in {hidden!a}"


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
            below.clear()  # a user may have named what is below
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
    """Each mounted cgroup hierarchy, and whether the paths below its mount are whole."""
    for mount in mounts:
        name = f"cgroup {mount.name}"
        if mount.trusted:
            yield Check(name, "ok", f"{mount.path} is the root of the hierarchy")
            continue
        found = f"{mount.path} is not the root of the hierarchy, as in a private cgroup namespace: paths are not whole"
        hint = "use the host's cgroup namespace, or mount its cgroup file system here and name it with --cgroupfs"
        yield Check(name, "fail", found, hint)


class Standing:
    """Checks, now and again while a tracer runs, whether it still sees the pods' processes and cgroups."""

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
                found = f"{mount.path} is no longer mounted: podtracer cannot name cgroups"
                yield Check(check.name, "fail", found, "mount it again, and restart podtracer")
            else:
                yield check

    def missing(self) -> tuple[Check, ...]:
        """All checks that fail."""
        return tuple(check for check in (self.seeing(), *self.naming()) if check.state == "fail")


def _place(mount: Mount) -> tuple[int, int] | None:
    try:
        there = os.stat(mount.path)
    except OSError:
        return None
    return there.st_dev, there.st_ino
