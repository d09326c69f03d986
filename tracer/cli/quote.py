"""Untrusted text, made harmless: what is printed for people can neither move the cursor nor break a line."""

from __future__ import annotations

import unicodedata


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# Letters by Unicode's book, and yet nothing is to be seen of them: names that differ would look the same.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def _is_shown(char: str) -> bool:
    # isprintable() is false for controls, format characters (bidi controls among them), surrogates, private
    # and unassigned code points, and every space but the plain one. Variation selectors show nothing themselves.
    if not char.isprintable() or char in _INVISIBLE:
        return False
    return not (0xFE00 <= ord(char) <= 0xFE0F or 0xE0100 <= ord(char) <= 0xE01EF)


def quote(text: str) -> str:
    r"""``text`` with every character that a terminal could obey, or not show, as ``\xNN`` or ``\uNNNN``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _is_shown(char) else _escape(char) for char in text)


def width(text: str) -> int:
    """How many columns of a terminal quoted ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, columns: int) -> str:
    """Quoted ``text`` cut to ``columns`` of a terminal, with an ellipsis where something is missing."""
    if width(text) <= columns:
        return text
    kept, used = [], 0
    for char in text:
        used += _char_width(char)
        if used > columns - 1:
            break
        kept.append(char)
    return "".join(kept) + "…" if columns > 0 else ""
