"""HCL 1, as far as a plugin's configuration is written in it: text in, a tree of keys and values out.

The language is that of the Go module ``github.com/hashicorp/hcl`` version 1, with which SPIRE's agent reads and prints
its configuration; what begins with ``{`` is JSON. Values keep what decides how they may be decoded: whether a literal
was a number or a string, and how a number was written.

Nothing is evaluated: ``${…}`` stays as it is. All is linear in the size of its input, and raises ``HclError`` only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

_DEEPEST = 64  # blocks within blocks; a configuration has four

Kind = Literal["number", "float", "bool", "string"]


class HclError(ValueError):
    """The text is not HCL; the message says where."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A literal: a string's value, everything else as it was written."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list in brackets."""

    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """An object in braces, or a whole text. Keys may come again: what that means is the reader's business."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """``key = value`` or ``key "label" … { … }``; a label is another key."""

    keys: tuple[str, ...]
    value: Value


Value = Scalar | Sequence | Block


def parse(text: str) -> Block:
    """The tree of a configuration. Raises ``HclError``."""
    if text.lstrip(" \t\r\n").startswith("{"):
        return _json(text)
    return _Parser(text).parse()


# ---- tokens ----


class _Token(NamedTuple):
    kind: str  # a Kind, "key", "end", or the character itself
    text: str
    at: int


_LETTER = r"[^\W\d]"
_TOKEN = re.compile(
    rf"""
    (?P<space>[ \t\r\n]+ | \#[^\n]* | //[^\n]* | /\*.*?\*/)
  | (?P<key>{_LETTER}(?:{_LETTER}|\d|[-.])*)
  | (?P<float>-?\d+\.\d+(?:[eE][-+]?\d+)?)
  | (?P<number>-?(?:0[xX][0-9A-Fa-f]+ | \d+(?:[eE][-+]?\d+)?))
  | (?P<quote>")
  | (?P<heredoc><<(?P<indented>-?)(?P<anchor>(?:{_LETTER}|\d)+)\r?\n)
  | (?P<mark>[{{}}\[\],=])
    """,
    re.VERBOSE | re.DOTALL,
)
_OCTAL = r"[0-7]{3}"
_STRING_PART = re.compile(
    rf'(?P<plain>[^"\\\n$]+|\$(?!\{{))|(?P<open>\$\{{)|\\(?P<escape>[abfnrtv\\"]|{_OCTAL}|x[0-9A-Fa-f]{{2}}'
    r'|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})|(?P<close>")'
)
_BRACES = re.compile(r"[^{}]*([{}])")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _error(text, at, f"{text[at]!r} was not expected")
        kind, start, at = str(found.lastgroup), at, found.end()
        if kind == "space":
            continue
        if kind == "quote":
            value, at = _string(text, at)
            yield _Token("string", value, start)
        elif found["heredoc"] is not None:
            value, at = _heredoc(text, found)
            yield _Token("string", value, start)
        elif kind == "key" and found[0] in ("true", "false"):
            yield _Token("bool", found[0], start)
        else:
            yield _Token(found[0] if kind == "mark" else kind, found[0], start)
    yield _Token("end", "", at)


def _string(text: str, at: int) -> tuple[str, int]:
    """The value of the string that begins at ``at``, behind its quote, and where it ends."""
    start = at
    parts: list[str] = []
    while True:
        found = _STRING_PART.match(text, at)
        if found is None:
            if text[at : at + 1] == "\\":
                raise _error(text, at, "this escape is not known")
            raise _error(text, start, "a string has no end")
        at = found.end()
        if found["close"] is not None:
            return _checked(text, start, "".join(parts)), at
        if found["open"] is not None:
            end = _interpolation(text, at)
            parts.append(text[found.start() : end])
            at = end
        elif found["escape"] is not None:
            parts.append(_unescape(text, found.start(), found["escape"]))
        else:
            parts.append(found[0])


def _interpolation(text: str, at: int) -> int:
    """Where the ``${`` before ``at`` is closed, whatever stands in it."""
    start, depth = at, 1
    while depth:
        found = _BRACES.match(text, at)
        if found is None:
            raise _error(text, start, "a string has no end")
        depth += 1 if found[1] == "{" else -1
        at = found.end()
    return at


def _unescape(text: str, at: int, escape: str) -> str:
    if escape in _ESCAPES:
        return _ESCAPES[escape]
    number = int(escape[1:], 16) if escape[0] in "xuU" else int(escape, 8)
    if number > (0xFF if escape[0] not in "uU" else 0x10FFFF):
        raise _error(text, at, "this escape is no character")
    return chr(number)


def _heredoc(text: str, found: re.Match[str]) -> tuple[str, int]:
    """The value of a heredoc, and where it ends: behind the line that holds its anchor alone."""
    blank = r"[ \t]*" if found["indented"] else ""
    last = re.compile(rf"^(?P<blank>{blank}){found['anchor']}\r*\n", re.MULTILINE).search(text, found.end())
    if last is None:
        raise _error(text, found.start(), "a heredoc has no end")
    body = text[found.end() : last.start()]
    indent = last["blank"]
    lines = body.split("\n")
    if indent and all(line.startswith(indent) for line in lines[:-1]):
        body = "\n".join(line.removeprefix(indent) for line in lines)
    return _checked(text, found.start(), body), last.end() - 1


def _checked(text: str, at: int, value: str) -> str:
    if "\0" in value or not _is_text(value):
        raise _error(text, at, "a string holds what is no text")
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _error(text: str, at: int, what: str) -> HclError:
    line = text.count("\n", 0, at) + 1
    return HclError(f"line {line}, column {at - text.rfind(chr(10), 0, at)}: {what}")


# ---- the tree ----


class _Parser:
    """One token of look-ahead: ``_next`` is the one that comes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = next(self._tokens)
        self._depth = 0

    def parse(self) -> Block:
        return self._items("end")

    def _take(self) -> _Token:
        token = self._next
        if token.kind != "end":
            self._next = next(self._tokens)
        return token

    def _items(self, end: str) -> Block:
        """Items up to ``end``, which is taken; a comma may stand behind each."""
        items = []
        while self._next.kind != end:
            items.append(self._item())
            if self._next.kind == ",":
                self._take()
        self._take()
        return Block(tuple(items))

    def _item(self) -> Item:
        keys = []
        while self._next.kind in ("key", "string"):
            keys.append(self._take().text)
        token = self._take()
        if not keys:
            raise self._unexpected(token, "a key")
        if token.kind == "=" and len(keys) == 1:
            return Item((keys[0],), self._value())
        if token.kind == "{":
            return Item(tuple(keys), self._nested(token, self._block))
        raise self._unexpected(token, "= or {" if len(keys) == 1 else "{")

    def _value(self) -> Value:
        token = self._take()
        if token.kind == "[":
            return self._nested(token, self._list)
        if token.kind == "{":
            return self._nested(token, self._block)
        if token.kind in ("number", "float", "bool", "string"):
            kind: Any = token.kind
            return Scalar(kind, token.text)
        raise self._unexpected(token, "a value")

    def _nested(self, token: _Token, read: Callable[[], Value]) -> Value:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _error(self._text, token.at, "too many blocks within blocks")
        value = read()
        self._depth -= 1
        return value

    def _block(self) -> Block:
        return self._items("}")

    def _list(self) -> Sequence:
        values: list[Value] = []
        while self._next.kind != "]":
            if self._next.kind == ",":  # HCL takes any number of them
                self._take()
                continue
            values.append(self._value())
            if self._next.kind not in (",", "]"):
                raise self._unexpected(self._next, "a comma or ]")
        self._take()
        return Sequence(tuple(values))

    def _unexpected(self, token: _Token, wanted: str) -> HclError:
        found = "the end" if token.kind == "end" else repr(token.text)[:40]
        return _error(self._text, token.at, f"{found} stands where {wanted} was expected")


# ---- JSON ----


def _json(text: str) -> Block:
    try:
        # Pairs and not dictionaries, since a key may come again; numbers stay as they are written.
        pairs = json.loads(
            text,
            object_pairs_hook=lambda found: Block(tuple(_json_items(found))),
            parse_int=lambda number: Scalar("number", number),
            parse_float=lambda number: Scalar("float", number),
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as error:
        raise HclError(f"line {error.lineno}, column {error.colno}: this is no JSON: {error.msg}") from None
    except RecursionError:
        raise HclError("too many objects within objects") from None
    assert isinstance(pairs, Block)  # it begins with a brace
    return pairs


def _no_constant(name: str) -> Any:
    raise HclError(f"this is no JSON: {name}")


def _json_items(pairs: list[tuple[str, Any]]) -> Iterator[Item]:
    for key, value in pairs:
        if isinstance(value, list) and value and all(isinstance(one, Block) for one in value):
            # What JSON has no other way to say: the same block several times.
            yield from (Item((key,), block) for block in value)
        else:
            yield Item((key,), _json_value(value))


def _json_value(value: Any) -> Value:
    if isinstance(value, list):
        return Sequence(tuple(map(_json_value, value)))
    if isinstance(value, bool):
        return Scalar("bool", "true" if value else "false")
    if value is None:
        return Scalar("string", "")
    if isinstance(value, str):
        if not _is_text(value) or "\0" in value:
            raise HclError("a string holds what is no text")
        return Scalar("string", value)
    assert isinstance(value, Scalar | Block)
    return value
