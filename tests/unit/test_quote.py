"""Untrusted text cannot touch the terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.cli.quote import cut, quote, width


@given(st.text())
def test_no_text_puts_a_control_or_an_invisible_format_character_into_the_output(text: str) -> None:
    shown = quote(text)
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1


@given(st.text())
def test_quoting_twice_is_quoting_once(text: str) -> None:
    assert quote(quote(text)) == quote(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nginx", "nginx"),
        ("my app", "my app"),
        ("über 中", "über 中"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202egnp", r"\u202egnp"),
        ("a\u2028b\u00a0", r"a\u2028b\xa0"),
        ("\u200b\u3164", r"\u200b\u3164"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        (r"\xff", r"\xff"),
    ],
)
def test_what_a_terminal_could_obey_is_written_as_its_number(text: str, shown: str) -> None:
    assert quote(text) == shown


@given(st.text(), st.integers(0, 30))
def test_a_cut_text_is_never_wider_than_its_room(text: str, columns: int) -> None:
    assert width(cut(quote(text), columns)) <= columns


def test_wide_characters_take_two_columns_and_marks_none() -> None:
    assert width("中") == 2
    assert width("e\u0301") == 1
    assert cut("abcdef", 4) == "abc…"
