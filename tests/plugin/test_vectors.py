"""The vectors of HCL 1 are what the Go module makes of their texts."""

from __future__ import annotations

import pytest

from tests.plugin.vectors import decode, load

pytestmark = pytest.mark.plugin


def test_the_vectors_are_current() -> None:
    assert decode([vector["text"] for vector in load()]) == load()
