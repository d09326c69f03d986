"""A node in miniature for tests of the index: cgroups and processes told as the kernel's records tell them, and pod
lists, with no kernel and no kubelet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tracer.identity.index import Index, Rules
from tracer.model import (
    CgroupEvent,
    CgroupEventKind,
    Container,
    Event,
    Identity,
    Pod,
    ProcessEvent,
    ProcessEventKind,
    ProcessKey,
)

SECOND = 1_000_000_000
TOP = 1
HIERARCHY = 5


def cid(letter: str) -> str:
    """A container ID."""
    return letter * 64


def uid(letter: str) -> str:
    """A pod's UID."""
    return f"{letter * 8}-{letter * 4}-{letter * 4}-{letter * 4}-{letter * 12}"


def container(letter: str | None, name: str = "app", **more: object) -> Container:
    """A running container of a status; ``None`` for one without an ID."""
    made = Container(name, cid(letter) if letter else None, f"{name}:1", f"sha256:{name}", "app", "running")
    return replace(made, **more)  # type: ignore[arg-type]


def spec(*containers: Container) -> tuple[Container, ...]:
    """The containers of a spec: what is run, but not which."""
    return tuple(replace(each, container_id=None, image_id="", state=None) for each in containers)


def named(*names: str) -> tuple[Container, ...]:
    """A spec of app containers by these names."""
    return spec(*(container(None, name) for name in names))


def pod(letter: str, *containers: Container, **more: object) -> Pod:
    """A pod whose UID repeats ``letter``, with these containers in its status and in its spec."""
    by_role = {role: tuple(each for each in containers if each.role == role) for role in ("app", "init", "ephemeral")}
    made = Pod(
        uid(letter),
        "shop",
        f"cart-{letter}",
        "cart",
        "node-1",
        {"tier": "front"},
        (),
        by_role["app"],
        by_role["init"],
        by_role["ephemeral"],
        spec(*containers),
    )
    return replace(made, **more)  # type: ignore[arg-type]


class Lab:
    """Drives an index as the feed does. Time stands still unless ``now`` is set."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.index = Index(rules)
        self.index.hierarchy = HIERARCHY
        self.index.cgroups.track(TOP)
        self.index.cgroups.guard = lambda cgroups: not any(cgroup in self.users for cgroup in (TOP, *cgroups))
        self.index.cgroups.writable = lambda cgroup: cgroup in self.users
        self.index.watched = True
        self.now = 100 * SECOND
        self.dirs: dict[str, int] = {"": TOP}
        self.inodes: dict[int, int] = {}
        # Cgroups that an ordinary user may write.
        self.users: set[int] = set()
        self._next = 1000

    # ---- cgroups ----

    def mkdir(self, path: str, *, told: bool = True) -> int:
        """Makes a cgroup and those above it, and tells of their births unless not ``told``. Its id."""
        parent = ""
        for name in path.strip("/").split("/"):
            whole = f"{parent}/{name}"
            if whole not in self.dirs:
                self._next += 1
                self.dirs[whole] = self._next
                if self.dirs[parent] in self.users:
                    self.users.add(self._next)
                if told:
                    self.cgroup_event(CgroupEventKind.MKDIR, self._next, self.dirs[parent], name)
                    self.index.locate(self._next)
            parent = whole
        return self.dirs[parent]

    def delegate(self, path: str) -> int:
        """Makes a cgroup and gives it, with all that is made in it later, to an ordinary user. Its id."""
        cgroup = self.mkdir(path)
        self.users.add(cgroup)
        return cgroup

    def cgroup_event(self, kind: CgroupEventKind, cgroup: int, parent: int = TOP, name: str = "") -> None:
        """Tells the index of a cgroup."""
        self.index.cgroups.apply(
            CgroupEvent(kind, HIERARCHY, self.now, cgroup, parent, 1, name.encode("utf-8", "surrogatepass"))
        )

    def rename(self, path: str, name: str) -> None:
        """Renames a cgroup, and tells of it."""
        above = path.rpartition("/")[0]
        moved = {old: f"{above}/{name}{old[len(path) :]}" for old in self.dirs if f"{old}/".startswith(f"{path}/")}
        self.cgroup_event(CgroupEventKind.RENAME, self.dirs[path], self.dirs[above], name)
        for old, new in moved.items():
            self.dirs[new] = self.dirs.pop(old)

    def remove(self, path: str, *, release: bool = True) -> int:
        """Removes a cgroup, and tells of it."""
        cgroup = self.dirs.pop(path)
        self.cgroup_event(CgroupEventKind.RMDIR, cgroup)
        if release:
            self.cgroup_event(CgroupEventKind.RELEASE, cgroup)
        return cgroup

    def chain(self, cgroup: int) -> list[tuple[int, str]] | None:
        """What cgroupfs tells of a cgroup's names; ``None`` for one that is removed."""
        path = next((path for path, each in self.dirs.items() if each == cgroup), None)
        if path is None:
            return None
        parts = path.split("/")[1:]
        return [(self.dirs["/" + "/".join(parts[: n + 1])], part) for n, part in enumerate(parts)]

    def name(self, cgroup: int) -> None:
        """Has the index learn the names of a cgroup."""
        if self.index.locate(cgroup) is None and (chain := self.chain(cgroup)) is not None:
            self.index.cgroups.learn(chain, self.now)

    # ---- processes ----

    def tell(self, kind: ProcessEventKind, pid: int, cgroup: int, **more: object) -> Event | None:
        """Tells the index of a process."""
        ino = self.inodes.setdefault(pid, pid * 10)
        event = ProcessEvent(kind, pid, 1, HIERARCHY, self.now, self.now, ino, cgroup, 0, b"sh\0junk")
        event = event._replace(**more)  # type: ignore[arg-type]
        self.name(cgroup)
        return self.index.process_event(event, event.hierarchy, cgroup)

    def fork(self, pid: int, cgroup: int, **more: object) -> Event | None:
        """A process is forked into a cgroup."""
        return self.tell(ProcessEventKind.FORK, pid, cgroup, **more)

    def exec(self, pid: int, cgroup: int, **more: object) -> Event | None:
        """A process executes a program."""
        return self.tell(ProcessEventKind.EXEC, pid, cgroup, **more)

    def exit(self, pid: int, cgroup: int, **more: object) -> Event | None:
        """A process ends."""
        return self.tell(ProcessEventKind.EXIT, pid, cgroup, **more)

    def scan(self, pid: int, cgroup: int, **more: object) -> Event | None:
        """A scan meets a process."""
        return self.tell(ProcessEventKind.SCAN, pid, cgroup, **more)

    def move(self, pid: int, left: int, cgroup: int) -> Event | None:
        """A process is attached to another cgroup."""
        return self.tell(ProcessEventKind.ATTACH, pid, cgroup, arg=left)

    # ---- pods, time, answers ----

    def pods(self, *pods: Pod, at: int | None = None, complete: bool = True) -> list[Event]:
        """Gives the index a list, fetched now or ``at`` a time."""
        when = self.now if at is None else at
        return self.index.pods(pods, when, complete=complete, source="kubelet", now=self.now)

    def wait(self, seconds: float) -> list[Event]:
        """Lets time pass."""
        self.now += round(seconds * SECOND)
        return self.index.tick(self.now)

    def who(self, cgroup: int | str, hierarchy: int = HIERARCHY) -> Identity:
        """The identity of a process in a cgroup, its names learnt."""
        number = self.dirs[cgroup] if isinstance(cgroup, str) else cgroup
        if hierarchy == self.index.hierarchy:
            self.name(number)
        return self.index.identify(ProcessKey(9, 90), 9, hierarchy, number, None)

    def says(self, cgroup: int | str) -> tuple[str, str | None, str | None]:
        """(state, reason, container ID) of a process in a cgroup."""
        found = self.who(cgroup).workload
        return found.state.value, found.reason, found.container_id


def told(events: Iterable[Event | None]) -> list[tuple[str, int]]:
    """(event, PID) of each event about a process."""
    return [(event.event, event.identity.key.pid) for event in events if event and event.identity]
