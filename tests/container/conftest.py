"""Fixtures for tests with real containers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containers import Containerd
from tests.node import FakePod, listing
from tests.runc import Runc
from tracer.sources.replay import ReplayKubelet


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


@pytest.fixture
def pod() -> FakePod:
    """A pod of one container."""
    return FakePod("cart-7d9f", "shop", "cart", labels={"app": "cart"})


@pytest.fixture
def kubelet(pod: FakePod) -> Iterator[ReplayKubelet]:
    """A kubelet's answer that lists the pod."""
    with ReplayKubelet(listing(pod)) as running:
        yield running
