"""Fixtures of the launcher's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster
from launcher_support import compute_for

from hillclimb.launcher.kubernetes import KubernetesLauncher


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    """A cluster with nothing on it."""
    with FakeCluster(tmp_path / "cluster") as made:
        yield made


@pytest.fixture
def launcher_on(cluster: FakeCluster, tmp_path: Path) -> Callable[..., KubernetesLauncher]:
    """Makes launchers for the cluster, each an orchestrator of its own, by the section's fields."""

    def made(patience: float = 60.0, stuck: float = 300.0, **section: Any) -> KubernetesLauncher:
        compute, reached = compute_for(tmp_path, **section), cluster.configuration()
        return KubernetesLauncher(compute, reached, 0.05, patience, stuck)

    return made
