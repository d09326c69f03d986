"""Protobuf messages from tables: only the fields that are used, classes made when they are first needed.

A table names each message's fields with their numbers on the wire. The classes behave like generated ones, but
fit every version of the protobuf library, and no compiler is needed to build this. Fields that no table names
are skipped, as protobuf has it. Strings have to be UTF-8 whoever wrote them, and enumerations are plain numbers.

This module imports nothing heavy; ``declare`` imports protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its number on the wire, a scalar type or the name of a message of the same table."""

    number: int
    type: str = "string"
    repeated: bool = False


Table = Mapping[str, Mapping[str, Field]]
STRING_MAP = "map<string, string>"

# FieldDescriptorProto.Type of those that are used. An enum is an int32 on the wire.
_MESSAGE = 11
_SCALARS = {"string": 9, "bytes": 12, "int32": 5, "int64": 3, "uint32": 13, "bool": 8}
_OPTIONAL, _REPEATED = 1, 3


def declare(package: str, table: Table) -> Any:
    """The message classes of a table, as attributes: ``declare("p", {"Pod": …}).Pod(name="cart")``."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in table.items():
        message = file.message_type.add(name=name)
        for field_name, field in fields.items():
            _add(message, f".{package}.{name}", field_name, field)
    # A pool of its own: another library in this process may have registered the full messages.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return SimpleNamespace(
        **{name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in table}
    )


def _add(message: DescriptorProto, full_name: str, name: str, field: Field) -> None:
    package = full_name.rpartition(".")[0]
    if field.type == STRING_MAP:
        # What protoc makes of a map: repeated entries of a nested message.
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add(entry, full_name, "key", Field(1))
        _add(entry, full_name, "value", Field(2))
        message.field.add(
            name=name, number=field.number, label=_REPEATED, type=_MESSAGE, type_name=f"{full_name}.{entry.name}"
        )
        return
    label = _REPEATED if field.repeated else _OPTIONAL
    if field.type in _SCALARS:
        message.field.add(name=name, number=field.number, label=label, type=_SCALARS[field.type])
    else:
        message.field.add(
            name=name, number=field.number, label=label, type=_MESSAGE, type_name=f"{package}.{field.type}"
        )
