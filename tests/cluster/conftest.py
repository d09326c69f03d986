"""Fixtures for tests on a real Kubernetes cluster."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from tests import machine
from tests.cluster.build import BuildError, build
from tests.cluster.cluster import Cluster, default_folder
from tests.conftest import require


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster for the whole session, in a folder of its own beside the one of ``scripts/cluster``."""
    try:
        build()
    except BuildError as error:
        require(False, str(error))
    folder = default_folder()
    cluster = Cluster(folder.with_name(f"{folder.name}-test"), owner=machine.Process.of(os.getpid()))
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """An empty namespace; it goes, with all that is in it, after the test."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
