"""HCL 1 is read as the Go module reads it with which SPIRE's agent wrote it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.errors import UsageError
from tracer.serve.hcl import Block, HclError, Item, Scalar, parse
from tracer.serve.spire_config import decode

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "hcl.json").read_text())
CACHE = "experimental.api_server.cache.enabled"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: ascii(vector["text"])[1:-1][:60])
def test_a_text_is_read_as_the_go_module_reads_it(vector: dict[str, Any]) -> None:
    if not vector["parses"]:
        with pytest.raises(HclError):
            parse(vector["text"])
        return
    tree = parse(vector["text"])
    if not vector["decodes"]:
        with pytest.raises(UsageError):
            decode(tree)
        return
    values, _ = decode(tree)
    wanted = dict(vector["values"])
    experimental: Any = wanted.pop("experimental")
    cache = experimental and experimental["api_server"] and experimental["api_server"]["cache"]
    assert values.pop(CACHE, False) == bool(cache and cache["enabled"])
    # What was not set is Go's zero value there, and is not there here.
    assert {key: value for key, value in values.items() if value not in ("", 0, False)} == {
        key: value for key, value in wanted.items() if value
    }
    assert values.get("use_new_container_locator") == wanted["use_new_container_locator"]


@pytest.mark.parametrize("text", ["a = 1.", "a = 1e", "a = .5", '{"a": 1', "a =", "a = \\"])
def test_what_is_cut_short_is_refused_also_where_the_go_module_takes_it(text: str) -> None:
    with pytest.raises(HclError, match="line 1, column"):
        parse(text)


def test_an_error_says_where() -> None:
    with pytest.raises(HclError, match="line 3, column 7: "):
        parse("a = 1\nb {\n  c = ;\n}\n")


def test_blocks_within_blocks_have_an_end() -> None:
    for text in ("a {" * 5000, "a = [" + "[" * 5000, '{"a":' * 50000):
        with pytest.raises(HclError):
            parse(text)


NESTED = st.recursive(
    st.one_of(
        st.integers(-(1 << 40), 1 << 40).map(lambda number: Scalar("number", str(number))),
        st.booleans().map(lambda truth: Scalar("bool", str(truth).lower())),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(lambda s: Scalar("string", s)),
    ),
    lambda values: st.lists(
        st.tuples(st.from_regex(r"[a-z_][a-z_0-9.-]{0,9}", fullmatch=True), values), max_size=4
    ).map(lambda pairs: Block(tuple(Item((key,), value) for key, value in pairs))),
    max_leaves=12,
)


def printed(value: object) -> str:
    """A value as the agent prints it."""
    if isinstance(value, Block):
        return "{\n" + "".join(f"  {item.keys[0]} = {printed(item.value)}\n" for item in value.items) + "}"
    assert isinstance(value, Scalar)
    if value.kind != "string":
        return value.text
    # A dollar may begin what is not read as a string any more.
    return '"' + "".join(f"\\U{ord(char):08x}" if not char.isalnum() else char for char in value.text) + '"'


@given(NESTED.filter(lambda value: isinstance(value, Block)))
def test_what_is_printed_is_read_back(tree: Block) -> None:
    words = {"true", "false"}  # are values, also where a key is meant

    def has_word(block: Block) -> bool:
        return any(
            item.keys[0] in words or (isinstance(item.value, Block) and has_word(item.value)) for item in block.items
        )

    if not has_word(tree):
        assert parse(printed(tree)[1:-1]) == tree


@given(st.text() | st.text('{}[]"=,\\$<-\n aE0.x#/*'))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with suppress(HclError, UsageError):
        decode(parse(text))
