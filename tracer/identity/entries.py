"""Registration entries: which SPIFFE IDs a set of selectors earns, by the rule of SPIRE's server.

An entry matches when all of its selectors, type and value exactly, are in the workload's set; an entry without
selectors never does. An agent holds the entries whose chain of parents reaches it. A parent may be another entry (a
node alias): the chain goes on with that one's parent. Which aliases an agent attests to is not in the list, so that for
entries below one the alias's own ID is the agent's.

The list is what ``spire-server entry show -output json`` prints. It is taken whole or not at all: an entry that was
passed over would turn "it has an identity" into "none matches".
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from tracer.errors import InputError

if TYPE_CHECKING:
    from tracer.identity.entries_report import Report

OBJ = "registration entries"
HINT = "give what `spire-server entry show -output json` prints"
UNIX_KEYS = frozenset(("uid", "user", "gid", "group", "supplementary_gid", "supplementary_group"))
"""The ``unix`` selectors that can be told from ``/proc/<pid>/status``; the others want the program's file."""

_INT64 = re.compile(r"-?[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """A registration entry. IDs are ``spiffe://td/path``, selectors ``type:value``, sorted and each once;
    ``expires_at`` is an epoch second, 0 for never."""

    id: str
    spiffe_id: str
    parent_id: str
    selectors: tuple[str, ...]
    expires_at: int = 0

    def expired(self, now: float) -> bool:
        """Whether it is over at the epoch second ``now``."""
        return self.expires_at != 0 and self.expires_at <= now


_Indexed = tuple[Entry, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Matches:
    """What the selectors of a workload decide of all entries, for all of its processes.

    ``sure`` match. ``maybe`` want ``unix`` selectors beside, which each process has of its own.
    """

    sure: tuple[Entry, ...]
    maybe: tuple[_Indexed, ...]
    _unix_only: Mapping[str, Sequence[_Indexed]]

    @property
    def asks_unix(self) -> bool:
        """Whether a process's ``unix`` selectors could make a difference."""
        return bool(self.maybe or self._unix_only)

    def spiffe_ids(self, unix: Collection[str] | None, now: float) -> tuple[str, ...]:
        """The IDs of the entries that match and are not over at ``now``: sorted, each once."""
        found = list(self.sure)
        if unix:
            have = frozenset(unix)
            found += [entry for entry, wanted in self.maybe if wanted <= have]
            for selector in have:
                found += [entry for entry, wanted in self._unix_only.get(selector, ()) if wanted <= have]
        return tuple(sorted({entry.spiffe_id for entry in found if not entry.expired(now)}))


@dataclass(frozen=True)
class Entries:
    """An immutable list of entries with an index: each stands under the rarest of its selectors, so that a workload
    meets few beside those that match it."""

    entries: tuple[Entry, ...]
    _of_agents: dict[str, Entries] = field(default_factory=dict, init=False, repr=False, compare=False)
    _by_rarest: dict[str, list[_Indexed]] = field(init=False, repr=False, compare=False)
    _unix_only: dict[str, list[_Indexed]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = Counter(selector for entry in self.entries for selector in entry.selectors)
        by_rarest, unix_only = defaultdict(list), defaultdict(list)
        for entry in self.entries:
            if not entry.selectors:
                continue
            wanted = frozenset(entry.selectors)
            # Under one of the workload's if it has any: those of the process come later.
            others = [selector for selector in entry.selectors if not is_unix(selector)]
            rarest = min(others or entry.selectors, key=lambda selector: (counts[selector], selector))
            by_rarest[rarest].append((entry, wanted))
            if not others and all(map(is_told_by_status, wanted)):
                unix_only[rarest].append((entry, wanted))
        object.__setattr__(self, "_by_rarest", dict(by_rarest))
        object.__setattr__(self, "_unix_only", dict(unix_only))

    def of_agent(self, agent_id: str | None) -> Entries:
        """The entries whose chain of parents reaches the agent; all of them for ``None``."""
        if agent_id is None:
            return self
        found = self._of_agents.get(agent_id)
        if found is None:
            children = defaultdict(list)
            for entry in self.entries:
                children[entry.parent_id].append(entry)
            # From the agent downwards, each ID once: a cycle has no way out, and none in.
            seen, ahead = {agent_id}, [agent_id]
            while ahead:
                for entry in children[ahead.pop()]:
                    if entry.spiffe_id not in seen:
                        seen.add(entry.spiffe_id)
                        ahead.append(entry.spiffe_id)
            found = Entries(tuple(entry for entry in self.entries if entry.parent_id in seen))
            self._of_agents.clear()
            self._of_agents[agent_id] = found
        return found

    def match(self, selectors: Iterable[str]) -> Matches:
        """What these selectors, ``type:value``, decide."""
        have = frozenset(selectors)
        sure, maybe = [], []
        for selector in have:
            for entry, wanted in self._by_rarest.get(selector, ()):
                unmet = wanted - have
                if not unmet:
                    sure.append(entry)
                elif all(map(is_told_by_status, unmet)):
                    maybe.append((entry, unmet))
        return Matches(tuple(sure), tuple(maybe), self._unix_only)

    def spiffe_ids(
        self, selectors: Iterable[str], unix: Collection[str] | None, agent_id: str | None, now: float
    ) -> tuple[str, ...]:
        """The SPIFFE IDs of the entries that match and are not over at the epoch second ``now``: sorted, each once.

        ``unix`` are the process's own selectors, ``None`` where they are not known: entries that want any then do not
        match. ``agent_id`` keeps the entries of that agent.
        """
        return self.of_agent(agent_id).match(selectors).spiffe_ids(unix, now)

    def report(
        self, selectors: Iterable[str], unix: Collection[str] | None, agent_id: str | None, now: float
    ) -> Report:
        """What each entry says to this set, the arguments being those of ``spiffe_ids``; for people who ask why."""
        from tracer.identity.entries_report import report

        return report(self.of_agent(agent_id).entries, selectors, unix, agent_id, now)


def is_unix(selector: str) -> bool:
    """Whether it is of the ``unix`` attestor."""
    return selector.startswith("unix:")


def is_told_by_status(selector: str) -> bool:
    """Whether ``/proc/<pid>/status`` says whether a process has it."""
    return is_unix(selector) and selector.split(":", 2)[1] in UNIX_KEYS


# ---- from JSON ----


class _Id(msgspec.Struct):
    trust_domain: str = ""
    path: str | None = None


class _Selector(msgspec.Struct):
    type: str
    value: str


class _Item(msgspec.Struct):
    spiffe_id: _Id
    parent_id: _Id
    id: str | None = None
    selectors: list[_Selector] | None = None
    expires_at: int | str | None = None


class _List(msgspec.Struct):
    entries: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    next_page_token: str | msgspec.UnsetType | None = msgspec.UNSET


class _Named(msgspec.Struct):
    id: str


_list_decoder = msgspec.json.Decoder(_List)
_item_decoder = msgspec.json.Decoder(_Item)
_name_decoder = msgspec.json.Decoder(_Named)


def decode(body: bytes) -> Entries:
    """The entries of ``body``, which is not kept.

    Raises ``InputError``, which names the place, when it is no such list: not JSON, cut short, not UTF-8, of another
    shape; when an entry of it is malformed; and when it is one page of several (``next_page_token``), since what the
    others hold would be missed.
    """
    if not body.strip():
        raise InputError("this is empty", OBJ, HINT)
    if not body.isascii():  # msgspec does not look inside the strings that it passes over
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"this is not UTF-8 (byte {error.start})", OBJ, HINT) from None
    try:
        top = _list_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InputError(f"this is no list of registration entries: {error}", OBJ, HINT) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"this is not JSON: {error}, of {len(body)} bytes", OBJ, HINT) from None
    if top.entries is msgspec.UNSET and top.next_page_token is msgspec.UNSET:
        raise InputError("this JSON object has no entries", OBJ, HINT)
    if top.next_page_token:
        hint = "give all of them: ask without a page size, or join the pages"
        raise InputError("this is one page of several: next_page_token is set", OBJ, hint)
    items = top.entries if isinstance(top.entries, list) else []
    return Entries(tuple(_entry(index, raw) for index, raw in enumerate(items)))


def _entry(index: int, raw: msgspec.Raw) -> Entry:
    try:
        item = _item_decoder.decode(raw)
        return Entry(
            id=item.id or "",
            spiffe_id=_spiffe_id(item.spiffe_id, "spiffe_id"),
            parent_id=_spiffe_id(item.parent_id, "parent_id"),
            selectors=tuple(sorted({_selector(selector) for selector in item.selectors or ()})),
            expires_at=_int64(item.expires_at),
        )
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{_which(index, raw)} is malformed: {error}", OBJ, HINT) from None


def _spiffe_id(found: _Id, key: str) -> str:
    path = found.path or ""
    if not found.trust_domain or (path and not path.startswith("/")):
        raise ValueError(f"its {key} is no SPIFFE ID")
    return f"spiffe://{found.trust_domain}{path}"


def _selector(found: _Selector) -> str:
    # A type with a colon could pass for another type with another value.
    if not found.type or ":" in found.type or not found.value:
        raise ValueError(f"it has a selector of type {found.type[:64]!r} and value {found.value[:64]!r}")
    return f"{found.type}:{found.value}"


def _int64(value: int | str | None) -> int:
    if not isinstance(value, str):
        return value or 0
    if not _INT64.fullmatch(value):
        raise ValueError(f"its expires_at is {value[:64]!r}, no number")
    return int(value)


def _which(index: int, raw: msgspec.Raw) -> str:
    try:
        name = _name_decoder.decode(raw).id
    except (msgspec.DecodeError, RecursionError):
        name = ""
    return f"entry {index} ({name[:253]!r})" if name else f"entry {index}"
