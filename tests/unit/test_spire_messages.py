"""The messages of the plugin are those of the .proto files, which the tests' plugin host speaks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tracer.serve import spire_messages
from tracer.serve.spire_messages import TABLES

PROTO = Path(__file__).parents[2] / "proto"
FILES = sorted(PROTO.rglob("*.proto"))
NAMES = (
    spire_messages.INIT,
    spire_messages.ATTESTOR,
    spire_messages.CONFIG,
    spire_messages.BROKER,
    spire_messages.CONTROLLER,
    spire_messages.STDIO,
    spire_messages.HEALTH,
)


def written(text: str) -> dict[str, set[tuple[str, str, int]]]:
    """Each message's fields in a .proto file, as (type, name, number)."""
    text = re.sub(r"//[^\n]*", "", text)
    messages = {}
    for name, body in re.findall(r"message (\w+) \{([^}]*)\}", text):
        fields = re.findall(r"((?:repeated )?[\w.]+) (\w+) = (\d+);", body)
        messages[name] = {(kind, field, int(number)) for kind, field, number in fields}
    return messages


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_table_has_the_fields_of_its_file(path: Path) -> None:
    text = path.read_text()
    package = re.findall(r"^package ([\w.]+);", text, re.M)[0]
    tables = {name: fields for name, fields in TABLES[package].items() if name != "Reference"}
    ours = {
        name: {
            (f"{'repeated ' if field.repeated else ''}{field.type}", key, field.number) for key, field in fields.items()
        }
        for name, fields in tables.items()
    }
    theirs = written(text)
    for fields in theirs.values():  # on the wire it is no more than that
        if ("google.protobuf.Any", "reference", 1) in fields:
            fields.remove(("google.protobuf.Any", "reference", 1))
            fields.add(("Reference", "reference", 1))
    assert theirs
    assert {name: fields for name, fields in ours.items() if name in theirs} == theirs


def test_every_message_and_service_is_in_a_file() -> None:
    texts = {re.findall(r"^package ([\w.]+);", text, re.M)[0]: "" for text in map(Path.read_text, FILES)}
    for text in map(Path.read_text, FILES):
        texts[re.findall(r"^package ([\w.]+);", text, re.M)[0]] += text
    for package, table in TABLES.items():
        for message in table:
            assert message == "Reference" or f"message {message} {{" in texts[package]
    for name in NAMES:
        package, _, service = name.rpartition(".")
        assert f"service {service} {{" in texts[package]
