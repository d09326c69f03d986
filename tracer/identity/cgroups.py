"""The tree of cgroups as the kernel's records tell it, and which container each of them belongs to.

Records carry a cgroup's own name and its parent's id; a path is only ever built from the chain of them, so nothing is
cut and a rename moves the whole subtree. Which container a cgroup names follows the strict rule (``cgroup_path``), with
one memory: a cgroup that was once resolved stays bound to the container that it names, and so does all below it, until
the kernel releases it, whatever is renamed later.

What was not resolved is read anew whenever a name on its way changes: an entry says what the names say now. Whether
the names are evidence is not decided here: see ``places``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from tracer.identity.cgroup_path import PathMatch, match_strict
from tracer.model import (
    Cgroup,
    CgroupEvent,
    CgroupEventKind,
    Container,
    ContainerRef,
    Pod,
    Process,
    ProcessKey,
    State,
    Workload,
)

# A released cgroup is remembered for this long: records of its last processes may still be unread.
_KEPT = 60_000_000_000
# Of those that others than root made, so many at most: they are nobody's, and a user makes any number.
_LOOSE_KEPT = 4096
# Deeper than any; a cycle cannot be, short of lost records.
_DEEPEST = 4096
# Longer paths are not built: whoever may write a cgroup can nest it as deep as memory lasts. Their beginning decides
# whose they are, since no container's own path is as long (PATH_MAX).
_LONGEST = 4095
# Processes announced before their container was known, whose resolution is announced in turn.
_AWAITING = 4096

Guard = Callable[[Sequence[int]], bool | None]
"""Whether all of these cgroups, from below the hierarchy's root downwards, and that root itself, belong to root and
nobody else may write them, so that nobody but root can have named what is in them; ``None`` where that cannot be
read."""


Writable = Callable[[int], bool]
"""Whether others than root may make cgroups in this one."""


def vouched(_cgroups: Sequence[int]) -> bool | None:
    """The guard of whoever makes up a tree, and stands for it."""
    return True


class Entry:
    """A container's own cgroup, and what is known of the container. Changes as sources tell more.

    ``home`` is the cgroup's id, ``root`` the place of its pod (``None`` for a container below no pod segment), ``born``
    when it was made (``seen``) or first heard of, ``live`` whether it still has a directory. ``guarded`` is what the
    guard says of the cgroups above it, ``inside`` whether it is below the prefix, where one was given. ``outer`` is the
    entry of the container above its pod segment, where there is one, and ``nest`` the path of the innermost such.
    ``pod`` and ``container`` are set once it was resolved.
    """

    __slots__ = (
        "awaiting",
        "born",
        "container",
        "guarded",
        "home",
        "inside",
        "live",
        "nest",
        "outer",
        "pod",
        "pods_at",
        "ref",
        "root",
        "seen",
        "workload",
    )

    def __init__(
        self,
        ref: ContainerRef,
        home: int,
        root: str | None,
        born: int,
        workload: Workload,
        *,
        seen: bool = False,
        guarded: bool | None = True,
        inside: bool = True,
        outer: Entry | None = None,
        nest: str | None = None,
    ) -> None:
        self.ref = ref
        self.home = home
        self.root = root
        self.born = born
        self.seen = seen
        self.live = True
        self.guarded = guarded
        self.inside = inside
        self.outer = outer
        self.nest = nest
        self.workload = workload
        self.pods_at: int | None = None
        self.pod: Pod | None = None
        self.container: Container | None = None
        self.awaiting: dict[ProcessKey, tuple[Process, Cgroup]] = {}

    def await_resolution(self, key: ProcessKey, process: Process, cgroup: Cgroup) -> None:
        """Remembers a process that was announced without its identity; the oldest go first."""
        self.awaiting.pop(key, None)
        self.awaiting[key] = (process, cgroup)
        if len(self.awaiting) > _AWAITING:
            self.awaiting.pop(next(iter(self.awaiting)))


class View:
    """A cgroup as a look-up sees it: its container's entry, or the workload of a cgroup that is in none."""

    __slots__ = ("cgroup", "entry", "workload")

    def __init__(self, cgroup: Cgroup, entry: Entry | None, workload: Workload) -> None:
        self.cgroup = cgroup
        self.entry = entry
        self.workload = workload


class _Node:
    """A cgroup's own name. ``loose`` is one that others than root may have made, ``located`` one that is on the way to
    a cgroup that was asked about."""

    __slots__ = ("born", "located", "loose", "name", "parent", "seen")

    def __init__(self, parent: int, name: str, born: int, seen: bool, loose: bool = False) -> None:
        self.parent = parent
        self.name = name
        self.born = born
        self.seen = seen
        self.loose = loose
        self.located = False


_HOST_TEXT = {
    "no_container": "its cgroup belongs to no container",
    "conmon": "it is the container's monitor, not the container",
    "pod_cgroup": "it is in a pod's cgroup, but in none of its containers",
    "outside_root": "its cgroup only looks like a pod's: it is not below --cgroup-prefix",
}


def _host(match: PathMatch) -> Workload:
    why = match.why or "no_container"
    return Workload(State.HOST, why, _HOST_TEXT.get(why), pod_uid=match.pod_uid)


class CgroupTree:
    """The cgroups of the tracked hierarchy. Pure: names come in as records and as chains, ``guard`` says who may write
    the cgroups above a container's, and ``writable`` of which births there may be any number."""

    def __init__(self, prefix: str | None = None, guard: Guard = vouched) -> None:
        self.prefix = prefix
        self.guard = guard
        self.writable: Writable = lambda _cgroup: False
        self._start_on(0)

    def _start_on(self, top: int) -> None:
        self._top = top
        self._nodes: dict[int, _Node] = {}
        self._bound: dict[int, Entry] = {}
        self._by_id: dict[str, list[Entry]] = {}
        self._released: deque[tuple[int, int]] = deque()
        self._loose_released: deque[int] = deque()
        # Homes whose names were dropped and not read again yet, and since when: perhaps they are removed.
        self._unsure: dict[int, int | None] = {}
        self.views: dict[int, View] = {}
        self.entries: dict[int, Entry] = {}
        # The tracer's own cgroup, where it is known: a container above it is its node.
        self.own: str | None = None
        # Entries that nobody has considered yet, and whether any entry changed since that was last asked.
        self.fresh: list[Entry] = []
        self.changed = True
        # Containers below pods that were made or removed since that was last asked.
        self.stirred: set[ContainerRef] = set()

    def track(self, top: int) -> None:
        """Starts anew on another hierarchy, whose root cgroup has the id ``top``."""
        self._start_on(top)

    def apply(self, event: CgroupEvent) -> None:
        """Takes a birth, removal, release or rename in."""
        if event.kind == CgroupEventKind.MKDIR:
            name = event.name.decode("utf-8", "backslashreplace")
            old = self._nodes.get(event.id)
            above = self._nodes.get(event.parent)
            loose = (above is not None and above.loose) or self.writable(event.parent)
            self._nodes[event.id] = _Node(event.parent, name, event.time, True, loose)
            if old is not None:  # its names were read before the record of its birth
                if (entry := self.entries.get(event.id)) is not None:
                    entry.born, entry.seen = event.time, True
                if (old.parent, old.name) != (event.parent, name):
                    self._renamed()
        elif event.kind == CgroupEventKind.RENAME:
            name = event.name.decode("utf-8", "backslashreplace")
            node = self._nodes.get(event.id)
            if node is not None and (node.parent, node.name) != (event.parent, name):
                node.parent, node.name = event.parent, name
                if node.loose or self.writable(event.parent):
                    self._renamed_by_others(event.id, node)
                else:
                    self._renamed()
        else:
            self._unsure.pop(event.id, None)
            if (entry := self.entries.get(event.id)) is not None:
                self._stir(entry)
                entry.live = False
                self.changed = True
            if event.kind == CgroupEventKind.RELEASE:
                self._release(event)

    def _release(self, event: CgroupEvent) -> None:
        if not self.is_loose(event.id):
            self._released.append((event.time, event.id))
            return
        self._loose_released.append(event.id)
        if len(self._loose_released) > _LOOSE_KEPT:
            self._drop(self._loose_released.popleft())

    def is_loose(self, cgroup: int) -> bool:
        """Whether others than root may have made this cgroup: it is nobody's container, and looked at when somebody
        asks only."""
        node = self._nodes.get(cgroup)
        return node is not None and node.loose

    def learn(self, chain: Iterable[tuple[int, str]], now: int) -> None:
        """Takes in the (id, name) of each cgroup from below the root down to one whose records we do not have."""
        parent, renamed = self._top, False
        for cgroup, name in chain:
            node = self._nodes.get(cgroup)
            if node is None:
                self._nodes[cgroup] = _Node(parent, name, now, False)
            elif (node.parent, node.name) != (parent, name):
                node.parent, node.name = parent, name
                renamed = True
            if cgroup in self._unsure:
                del self._unsure[cgroup]
                self.entries[cgroup].live = True
                self.changed = True
            parent = cgroup
        if renamed:
            self._renamed()

    def forget_names(self) -> None:
        """Drops every name, to be read again: a record was lost, perhaps that of a rename or a removal. Bindings stay;
        a container counts as live again once its name was learnt."""
        self._nodes.clear()
        self.views.clear()
        for home, entry in self.entries.items():
            if entry.live:
                entry.live = False
                self._unsure[home] = None
        self.changed = True

    def prune(self, now: int) -> None:
        """Drops what was released long enough ago for no unread record to name it, and what was not found again."""
        while self._released and self._released[0][0] < now - _KEPT:
            self._drop(self._released.popleft()[1])
        for home, since in tuple(self._unsure.items()):
            if since is None:
                self._unsure[home] = now
            elif since < now - _KEPT:
                self._drop(home)

    def _drop(self, cgroup: int) -> None:
        for table in (self._nodes, self.views, self._bound):
            table.pop(cgroup, None)
        self._remove(cgroup)

    def _remove(self, home: int) -> Entry | None:
        self._unsure.pop(home, None)
        entry = self.entries.pop(home, None)
        if entry is not None:
            same = self._by_id.get(entry.ref.container_id, [])
            if entry in same:
                same.remove(entry)
            if not same:
                self._by_id.pop(entry.ref.container_id, None)
            self.changed = True
        return entry

    def _renamed(self) -> None:
        """Some name changed: reads those of all containers anew that are not bound."""
        self.views.clear()
        for home in tuple(self.entries):
            if home not in self._bound:
                self.locate(home)

    def _renamed_by_others(self, cgroup: int, node: _Node) -> None:
        """As above, of what is below a cgroup that others than root may rename as often as they like."""
        if not node.located:
            return
        node.located = False
        for each in tuple(self.views):
            if self._is_below(each, cgroup):
                del self.views[each]
        for home, entry in tuple(self.entries.items()):
            if home not in self._bound and self._is_below(home, cgroup):
                if entry.guarded is False:
                    self._remove(home)
                else:
                    self.locate(home)

    def _is_below(self, cgroup: int, top: int) -> bool:
        for _ in range(_DEEPEST):
            node = self._nodes.get(cgroup)
            if cgroup == top or node is None:
                return cgroup == top
            cgroup = node.parent
        return False

    def _chain(self, cgroup: int) -> list[tuple[int, _Node]] | None:
        """(id, node) from below the root down to the cgroup, ``None`` where a link is missing."""
        links: list[tuple[int, _Node]] = []
        while cgroup != self._top:
            node = self._nodes.get(cgroup)
            if node is None or len(links) > _DEEPEST:
                return None
            links.append((cgroup, node))
            cgroup = node.parent
        links.reverse()
        return links

    def locate(self, cgroup: int) -> View | None:
        """The view of a cgroup; ``None`` where its chain of names is not known and has to be learnt first."""
        view = self.views.get(cgroup)
        if view is not None:
            return view
        chain = self._chain(cgroup)
        if chain is None:
            return None
        for _, node in chain:
            node.located = True
        path = _path(chain)
        place = Cgroup(cgroup, path if len(path) <= _LONGEST else None)
        for link, _ in chain:
            if (entry := self._bound.get(link)) is not None:
                view = View(place, entry, entry.workload)
                break
        else:
            view = self._match(place, path, chain)
        self.views[cgroup] = view
        return view

    def _match(self, place: Cgroup, path: str, chain: list[tuple[int, _Node]]) -> View:
        match = match_strict(path, self.prefix)
        if match.container is None or match.depth is None:
            self._remove(place.id)
            return View(place, None, _host(match))
        home, node = chain[match.depth]
        if home != place.id:
            self._remove(place.id)
        root = match.root if match.below_pod else None
        outer, nest = None, None
        if match.outer is not None:
            above = self.locate(chain[match.outer.depth][0])
            outer, nest = (above.entry if above is not None else None), match.outer.place
        entry = self.entries.get(home)
        if entry is None or (entry.ref, entry.root, entry.nest) != (match.container, root, nest):
            old = self._remove(home)
            entry = Entry(
                match.container,
                home,
                root,
                node.born,
                first_workload(match.container),
                seen=node.seen,
                guarded=None,
                inside=self.prefix is None or match.root is not None,
                nest=nest,
            )
            if old is not None:
                entry.live, entry.awaiting = old.live, old.awaiting
            self.read_guard(entry)
            self.entries[home] = entry
            if entry.guarded is not False:  # else it counts for nobody, however many of them a user makes
                self._by_id.setdefault(entry.ref.container_id, []).append(entry)
            self.fresh.append(entry)
            self.changed = True
            self._stir(entry)
        entry.outer = outer
        return View(place, entry, entry.workload)

    def read_guard(self, entry: Entry) -> None:
        """Asks the guard about the cgroups above a container's own."""
        chain = self._chain(entry.home)
        entry.guarded = None if chain is None else self.guard([cgroup for cgroup, _ in chain[:-1]])

    def path(self, entry: Entry) -> str | None:
        """The path of a container's own cgroup; ``None`` where a name on its way is not known."""
        chain = self._chain(entry.home)
        return None if chain is None else _path(chain)

    def _stir(self, entry: Entry) -> None:
        if entry.live and entry.root is not None:
            self.stirred.add(entry.ref)

    def bind(self, entry: Entry) -> None:
        """Ties a resolved container's cgroup, and with it all below, to this container until it is released."""
        self._bound[entry.home] = entry

    def containers(self) -> Iterator[Entry]:
        """Every container's cgroup that is known."""
        return iter(tuple(self.entries.values()))

    def named(self, container_id: str) -> tuple[Entry, ...]:
        """The cgroups that are called like this container, but for those that others than root may have made."""
        return tuple(self._by_id.get(container_id, ()))


def _path(chain: Sequence[tuple[int, _Node]]) -> str:
    """The path of the last of these; of one that is too long its beginning, and more than the longest by a name."""
    names: list[str] = []
    length = 0
    for _, node in chain:
        names.append(node.name)
        length += len(node.name) + 1
        if length > _LONGEST:
            break
    return "/" + "/".join(names)


def first_workload(ref: ContainerRef) -> Workload:
    """What is known of a container before any source was asked."""
    return Workload(
        State.PENDING,
        "not_listed_yet",
        "no source lists this container yet",
        pod_uid=ref.pod_uid,
        container_id=ref.container_id,
    )
