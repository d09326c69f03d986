"""jsonpath: the little that is taken is right, the rest is refused at its place."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.cli.jsonpath import Template
from tracer.errors import UsageError

RECORD = {
    "pod": "cart",
    "pid": 7,
    "age_ms": 1.5,
    "settled": True,
    "reason": None,
    "comm": "a\x1b[0m",
    "list": ["x", "y"],
}


def render(template: str) -> str:
    return Template(template, tuple(RECORD), ("list",)).render(RECORD)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("text } only", "text } only"),
        ("{.pod}", "cart"),
        ("{.pod}/{.pid}", "cart/7"),
        ("{.age_ms} {.settled}", "1.5 true"),
        ("<{.reason}>", "<>"),
        ("{.comm}", r"a\x1b[0m"),
        ("{.list[*]}", "x y"),
        ("{.list}", '["x", "y"]'),
        (r'{.pod}{"\n"}{"\t"}', "cart\n\t"),
        (r'{"a \"b\" \\"}', 'a "b" \\'),
        (r"\n", r"\n"),
    ],
)
def test_a_template_renders(template: str, text: str) -> None:
    assert render(template) == text


@pytest.mark.parametrize(
    ("template", "position"),
    [
        ("{", 2), ("{}", 2), ("a{.pod", 7), ("{pod}", 2), ("{.podd}", 3), ("{.pod[*]}", 6), ("{.list[0]}", 7),
        ("{.pod.x}", 6), ("{..pod}", 2), ('{"x}', 2), (r'{"a\q"}', 4), ("{range .list[*]}", 2), ("{ .pod}", 2),
        ("{.pod}{", 8),
    ],
)  # fmt: skip
def test_anything_else_is_refused_at_its_position(template: str, position: int) -> None:
    with pytest.raises(UsageError, match=f"position {position}$|position {position} ") as caught:
        render(template)
    assert caught.value.hint


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        render("{.podd}")
    assert caught.value.hint == "did you mean .pod?"


@given(st.one_of(st.text(), st.text('{}.[]*"\\npod list', max_size=30)))
def test_no_template_raises_anything_but_a_usage_error(template: str) -> None:
    with suppress(UsageError):
        render(template)
