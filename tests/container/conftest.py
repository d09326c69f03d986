"""Fixtures for tests with real containers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containers import Containerd
from tests.runc import Runc


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A containerd for the whole session; its containers go when it goes, or with ``remove``."""
    with Containerd(tmp_path_factory.mktemp("containerd")) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def runc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runc]:
    """runc alone, for the whole session."""
    with Runc(tmp_path_factory.mktemp("runc")) as runtime:
        yield runtime
