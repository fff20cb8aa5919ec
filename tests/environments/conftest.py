"""Sandboxes of a cluster, for the tests that every sandbox must pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hillclimb.environments.sandbox import SandboxLimits, SandboxProvider

if TYPE_CHECKING:
    from fake_cluster import FakeCluster

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kubernetes"))


@pytest.fixture(scope="session")
def sandbox_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    """A cluster whose sandbox pods are bubblewrap trees behind the API."""
    from fake_cluster import FakeCluster
    from sandbox_cluster import prepare

    with FakeCluster(tmp_path_factory.mktemp("sandboxes")) as cluster:
        prepare(cluster)
        yield cluster


@pytest.fixture(scope="session")
def pods(sandbox_cluster: FakeCluster) -> Callable[[SandboxLimits], SandboxProvider]:
    """A provider of sandbox pods by limits."""
    from sandbox_cluster import provider

    return lambda limits: provider(sandbox_cluster, limits)
