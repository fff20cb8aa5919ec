"""Everything that Dagster loads. Imports no torch."""

from __future__ import annotations

import dagster as dg

from hillclimb.assets import build_assets, union_of_recipes
from hillclimb.jobs import automation, build_jobs, nightly, recipe_changes, self_distillation
from hillclimb.resources import StageLauncher, Tracking, Workspace, default_root


def build(root: str) -> dg.Definitions:
    """The definitions for everything under `root`."""
    return dg.Definitions(
        assets=build_assets(union_of_recipes()),
        jobs=build_jobs(),
        sensors=[self_distillation, recipe_changes, automation],
        schedules=[nightly],
        resources={
            "workspace": Workspace(root=root),
            "launcher": StageLauncher(root=root),
            "tracking": Tracking(root=root),
        },
        executor=dg.in_process_executor,
    )


defs = build(default_root())
