"""Dagster jobs, schedule, sensor and automation of hillclimb."""

from hillclimb.jobs.automation import automation, nightly, recipe_changes, self_distillation
from hillclimb.jobs.janitor import janitor
from hillclimb.jobs.selections import JOBS, build_jobs

__all__ = [
    "JOBS", "automation", "build_jobs", "janitor", "nightly", "recipe_changes", "self_distillation",
]  # fmt: skip
