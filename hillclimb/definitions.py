"""Everything that Dagster loads. Imports no torch."""

from __future__ import annotations

import os

import dagster as dg

from hillclimb.assets import build_assets, union_of_recipes
from hillclimb.jobs import (
    automation,
    build_jobs,
    janitor,
    nightly,
    recipe_changes,
    self_distillation,
)
from hillclimb.resources import StageLauncher, Tracking, Workspace, default_root
from hillclimb.resources.launching import on_cluster

ARTIFACTS, MLFLOW_UI = "HILLCLIMB_ARTIFACTS", "HILLCLIMB_MLFLOW_UI"


def build(root: str, artifacts: str = "", mlflow_ui: str = "") -> dg.Definitions:
    """The definitions for everything under `root`; a janitor where stages run on a cluster.

    `artifacts` is where artifacts are, if not under the root: a folder or any fsspec URI.
    `mlflow_ui` is where people look at MLflow, if not where run workers reach it.
    """
    return dg.Definitions(
        assets=build_assets(union_of_recipes()),
        jobs=build_jobs(),
        sensors=[self_distillation, recipe_changes, automation, *([janitor] * on_cluster())],
        schedules=[nightly],
        resources={
            "workspace": Workspace(root=root, artifacts=artifacts),
            "launcher": StageLauncher(root=root),
            "tracking": Tracking(root=root, ui=mlflow_ui),
        },
        executor=dg.in_process_executor,
    )


defs = build(default_root(), *(os.environ.get(name, "") for name in (ARTIFACTS, MLFLOW_UI)))
