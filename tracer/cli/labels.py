"""kubectl's label selectors: the whole grammar, errors with their position.

    selector    = [ requirement { "," requirement } ]
    requirement = [ "!" ] KEY
                | KEY ( "=" | "==" | "!=" ) [ VALUE ]
                | KEY ( ">" | "<" ) INTEGER
                | KEY ( "in" | "notin" ) "(" [ VALUE ] { "," [ VALUE ] } ")"

``in`` and ``notin`` are words only where an operator stands: they may be keys and values too. ``!=`` and
``notin`` are true where the label is missing, as in Kubernetes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tracer.cli.quote import quote
from tracer.errors import UsageError

_TOKEN = re.compile(r"[ \t\r\n]*(?:(==|!=|[=!(),<>])|([^ \t\r\n=!(),<>]+)|$)")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_OPERATORS = ("=", "==", "!=", ">", "<", "in", "notin")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on a label; ``operator`` is one of ``exists missing in notin > <``."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a pod with just these ``labels`` meets the condition."""
        value = labels.get(self.key)
        match self.operator:
            case "exists":
                return value is not None
            case "missing":
                return value is None
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
        if value is None or not _INTEGER.fullmatch(value):
            return False
        (limit,) = self.values
        return int(value) > int(limit) if self.operator == ">" else int(value) < int(limit)


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    position: int  # of its first character, counted from 1
    is_word: bool = False


class _Parser:
    def __init__(self, text: str) -> None:
        self.source = text
        self.tokens = self._split(text)
        self.next = 0

    @staticmethod
    def _split(text: str) -> list[_Token]:
        tokens, at = [], 0
        while match := _TOKEN.match(text, at):
            if not (match[1] or match[2]):
                break
            group = 1 if match[1] else 2
            tokens.append(_Token(match[group], match.start(group) + 1, group == 2))
            at = match.end()
        return [*tokens, _Token("", len(text) + 1)]

    def fail(self, what: str, token: _Token) -> UsageError:
        return UsageError(
            f"label selector: {what} at position {token.position}",
            quote(self.source),
            "write it as kubectl takes it, such as app=cart,tier in (web,api),!canary",
        )

    def expected(self, what: str, token: _Token) -> UsageError:
        found = f"'{quote(token.text)}'" if token.text else "the end"
        return self.fail(f"expected {what}, found {found}", token)

    def take(self) -> _Token:
        token = self.tokens[self.next]
        if token.text:
            self.next += 1
        return token

    @property
    def ahead(self) -> _Token:
        return self.tokens[self.next]

    def selector(self) -> tuple[Requirement, ...]:
        found: list[Requirement] = []
        if not self.ahead.text:
            return ()
        while True:
            found.append(self.requirement())
            token = self.take()
            if not token.text:
                return tuple(found)
            if token.text != ",":
                raise self.expected("a comma or the end", token)

    def requirement(self) -> Requirement:
        if self.ahead.text == "!":
            self.take()
            return Requirement(self.key(), "missing")
        key = self.key()
        if self.ahead.text in ("", ","):
            return Requirement(key, "exists")
        operator = self.take()
        if operator.text not in _OPERATORS:
            raise self.expected("an operator (=, ==, !=, in, notin, <, >)", operator)
        match operator.text:
            case "in" | "notin":
                return Requirement(key, operator.text, self.values())
            case "=" | "==":
                return Requirement(key, "in", frozenset((self.value(),)))
            case "!=":
                return Requirement(key, "notin", frozenset((self.value(),)))
        token = self.ahead
        value = self.value()
        if not _INTEGER.fullmatch(value):
            raise self.expected("a whole number", token)
        return Requirement(key, operator.text, frozenset((value,)))

    def key(self) -> str:
        token = self.take()
        if not token.is_word:
            raise self.expected("a label key", token)
        prefix, slash, name = token.text.rpartition("/")
        if not _NAME.fullmatch(name) or (slash and not (_PREFIX.fullmatch(prefix) and len(prefix) <= 253)):
            raise self.fail(f"'{quote(token.text)}' is no label key", token)
        return token.text

    def value(self) -> str:
        if self.ahead.text in ("", ","):
            return ""
        token = self.take()
        if not token.is_word:
            raise self.expected("a label value", token)
        if not _NAME.fullmatch(token.text):
            raise self.fail(f"'{quote(token.text)}' is no label value", token)
        return token.text

    def values(self) -> frozenset[str]:
        token = self.take()
        if token.text != "(":
            raise self.expected("'('", token)
        if self.ahead.text == ")":
            raise self.expected("a value", self.ahead)
        found = set()
        while True:
            found.add("" if self.ahead.text == ")" else self.value())
            token = self.take()
            if token.text == ")":
                return frozenset(found)
            if token.text != ",":
                raise self.expected("a comma or ')'", token)


def parse(text: str) -> tuple[Requirement, ...]:
    """The conditions of a selector, all of which must hold; a :class:`UsageError` names the position."""
    return _Parser(text).selector()
