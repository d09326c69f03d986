r"""What one flat object needs of kubectl's jsonpath: ``{.key}``, ``{.list[*]}``, ``{"\n"}`` and text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from tracer.cli.quote import quote
from tracer.errors import UsageError

_FIELD = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)(\[\*\])?")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}
_HINT = 'only {.key}, {.list[*]}, {"text"} and plain text are known'


class Template:
    """A parsed jsonpath; ``keys`` are those of the object, ``lists`` the ones whose value is a list.

    Raises :class:`UsageError`, which names the position, for whatever it cannot render.
    """

    def __init__(self, text: str, keys: Collection[str], lists: Collection[str] = ()) -> None:
        self._text = text
        self._keys = keys
        self._lists = lists
        # What to print: a text as it is, or a key and whether each element is meant.
        self._parts: list[str | tuple[str, bool]] = []
        at = 0
        while (brace := text.find("{", at)) >= 0:
            self._parts.append(text[at:brace])
            at = self._action(brace + 1)
        self._parts.append(text[at:])

    def _fail(self, what: str, at: int, hint: str = _HINT) -> UsageError:
        return UsageError(f"jsonpath: {what} at position {at + 1}", quote(self._text), hint)

    def _action(self, at: int) -> int:
        # Reads what follows a brace, and gives the place behind the closing one.
        if match := _FIELD.match(self._text, at):
            key, each = match[1], match[2] is not None
            if key not in self._keys:
                import difflib  # for a wrong word alone

                close = difflib.get_close_matches(key, self._keys, 1)
                hint = f"did you mean .{close[0]}?" if close else f"the keys are {', '.join(self._keys)}"
                raise self._fail(f"no key '{key}'", match.start(1), hint)
            if each and key not in self._lists:
                raise self._fail(f"'{key}' is no list", match.start(2), f"say {{.{key}}}")
            self._parts.append((key, each))
        elif match := _TEXT.match(self._text, at):
            for escape in _ESCAPE.finditer(match[1]):
                if escape[1] not in _ESCAPES:
                    where = match.start(1) + escape.start()
                    raise self._fail(f"unknown escape '{quote(escape[0])}'", where, r"known are \n, \t, \" and \\")
            self._parts.append(_ESCAPE.sub(lambda found: _ESCAPES[found[1]], match[1]))
        else:
            raise self._fail("cannot be read", at)
        if self._text[match.end() : match.end() + 1] != "}":
            raise self._fail("expected '}'", match.end())
        return match.end() + 1

    def render(self, record: Mapping[str, Any]) -> str:
        """The text for one object: unknown is empty, spaces part elements, values are quoted."""
        return "".join(
            part if isinstance(part, str) else _value(record.get(part[0]), each=part[1]) for part in self._parts
        )


def _value(value: Any, *, each: bool) -> str:
    if value is None:
        return ""
    if each:
        return " ".join(_value(item, each=False) for item in value)
    return quote(value) if isinstance(value, str) else json.dumps(value)
