"""Named parts of the graph."""

from __future__ import annotations

from typing import Any

import dagster as dg

from hillclimb.assets import EXPERIMENTS
from hillclimb.recipe.climb import SPECIALISTS

_Job = Any

JOBS: dict[str, tuple[dg.AssetSelection, str]] = {
    "base": (
        dg.AssetSelection.groups("problems", "corpus", "base"),
        "From raw documents to the last base checkpoint.",
    ),
    **{
        f"climb_{name}": (
            dg.AssetSelection.groups(name),
            f"Every round of the {name} specialist: climb, traces, student.",
        )
        for name in SPECIALISTS
    },
    "finish": (
        dg.AssetSelection.groups("final"),
        "Consolidation, the final climb, the scorecard and the model card.",
    ),
    "everything": (dg.AssetSelection.all(), "The whole graph of an experiment."),
}


def build_jobs() -> list[_Job]:
    """One partitioned job per part."""
    return [
        dg.define_asset_job(name, selection, description=text, partitions_def=EXPERIMENTS)
        for name, (selection, text) in JOBS.items()
    ]
