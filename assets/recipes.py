"""What recipes say, as events of external assets: so that a change shows what it makes stale."""

from __future__ import annotations

import dagster as dg

from hillclimb.artifacts import fingerprint
from hillclimb.assets.graph import recipe_key
from hillclimb.experiments import Plan


def recipe_events(
    plan: Plan, known: dict[str, str]
) -> list[dg.AssetMaterialization | dg.AssetObservation]:
    """What has changed in the recipe of an experiment; brings `known` up to date.

    Each change is two events: Dagster's staleness of an external asset follows observations, its
    automation conditions follow materialisations. The observation comes first, so that what is
    made afterwards has seen both.

    Args:
        plan: the experiment as its recipe stands now.
        known: data versions by stage, as they were told last.
    """
    events: list[dg.AssetMaterialization | dg.AssetObservation] = []
    for name, spec in plan.specs.items():
        said = {"config": spec.config, "seed": spec.seed, "ranks": spec.ranks}
        version = fingerprint(said)[:16]
        if known.get(name) != version:
            known[name] = version
            events += [
                event(
                    recipe_key(name),
                    partition=plan.experiment.name,
                    metadata={"says": dg.MetadataValue.json(said)},
                    tags={"dagster/data_version": version},
                )
                for event in (dg.AssetObservation, dg.AssetMaterialization)
            ]
    return events
