"""Dagster assets of hillclimb: the graph of every recipe, made by one factory."""

from hillclimb.assets.graph import EXPERIMENTS, union_of_recipes
from hillclimb.assets.recipes import recipe_events
from hillclimb.assets.stages import build_assets

__all__ = ["EXPERIMENTS", "build_assets", "recipe_events", "union_of_recipes"]
