"""Tokens with the gap between learner and engine, as the pages draw them."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from hillclimb.report.experiment import Experiment, Row

Place = tuple[int, int, int]


def place(row: Row) -> Place:
    """What a rollout is called in both tables: update, group, sample."""
    return int(row["update"]), int(row["group"]), int(row["sample"])


def view(row: Row) -> dict[str, Any]:
    """A row of the table of tokens for the reader's browser.

    Returns:
        `pieces`; `logprob`, the engine's, and `gap`, the learner's less the engine's, with None
        where nothing was drawn (or there is no finite number); `version` of the weights, one
        number where it is the same for all; `learner`, its version and steps since.
    """
    pairs = zip(row["logprob"], row["learner_logprob"], strict=True)
    versions = row["version"]
    return {
        "pieces": row["pieces"],
        "logprob": [None if v is None else _short(v, 4) or 0.0 for v in row["logprob"]],
        "gap": [None if a is None or b is None else _short(b - a, 2) for a, b in pairs],
        "version": versions[0] if len(set(versions)) == 1 else versions,
        "learner": [row["learner_version"], row["learner_steps"]],
    }


def views(experiment: Experiment, name: str, wanted: Collection[Place]) -> dict[Place, Any]:
    """What the climb `name` tells of the tokens of these rollouts."""
    return {
        place(row): view(row)
        for part in experiment.parts(name, "tokens/")
        for batch in experiment.batches(name, part)
        for row in batch
        if place(row) in wanted
    }


def _short(value: float, digits: int) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
