"""A climb in a process of its own, with slow problems: `slow_climb.py ROOT NAME...`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from hillclimb import runner
from hillclimb.experiments import Experiment
from hillclimb.launcher import LocalLauncher
from hillclimb.resources import launching

HERE = Path(__file__).parent
OVERRIDES = tuple(
    f"specialists.{name}.problems.{side}={count}"
    for name in ("stem", "agentic", "helpfulness")
    for side, count in (("train", 12), ("held_out", 6))
)


def experiment(seed: int = 0, label: str = "few", more: tuple[str, ...] = ()) -> Experiment:
    """The small recipe with a handful of problems."""
    recipe = str(HERE.parent / "recipe" / "small.yaml")
    return Experiment.make(recipe, seed, label, (*OVERRIDES, *more))


def with_slow_problems(root: Path) -> LocalLauncher:
    """Have every stage of this process brought up by the nursery with toys."""
    launcher = LocalLauncher(root / "runs", [sys.executable, str(HERE / "nursery_with_toys.py")])
    for module in (launching, runner):
        module.local_launcher = lambda root: launcher  # type: ignore[assignment]
    return launcher


if __name__ == "__main__":
    where = Path(sys.argv[1])
    with_slow_problems(where)
    summary = runner.climb(where, experiment(), sys.argv[2:])
    print(json.dumps({**asdict(summary), "complete": summary.complete}))
