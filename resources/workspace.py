"""Where everything lives."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg

from hillclimb.artifacts import Artifact, Store
from hillclimb.experiments import Experiment, Plan


def default_root() -> str:
    """HILLCLIMB_ROOT, or `.hillclimb` in the working folder."""
    return str(Path(os.environ.get("HILLCLIMB_ROOT", ".hillclimb")).resolve())


class Workspace(dg.ConfigurableResource):  # type: ignore[type-arg]
    """A local root for experiments, runs and databases, and the store of artifacts.

    `artifacts` is any fsspec URI; it is the root itself unless it is set.
    """

    root: str
    artifacts: str = ""

    @property
    def path(self) -> Path:
        """The local root."""
        return Path(self.root)

    @property
    def store(self) -> Store:
        """Where artifacts are."""
        return Store(self.artifacts or self.root)

    def plan(self, experiment: str) -> Plan:
        """The experiment of a partition, its recipe read anew where a file has changed."""
        found = Experiment.load(self.path, experiment)
        recipe = Path(found.recipe)
        changed = recipe.stat().st_mtime_ns if recipe.is_file() else 0
        return _plan(found, changed)

    def find(self, plan: Plan, name: str) -> Artifact | None:
        """The artifact of one stage, if it is made."""
        return self.store.find(name, plan.fingerprints[name])

    def stop_of(self, plan: Plan, climb: str) -> dict[str, Any] | None:
        """Why a climb ended; None while it is not made."""
        artifact = self.find(plan, climb)
        return dict(json.loads(artifact.read_text("stop.json"))) if artifact else None


@lru_cache(maxsize=64)
def _plan(experiment: Experiment, changed: int) -> Plan:
    return experiment.plan()
