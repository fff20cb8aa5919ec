"""Problem sets: made by rule, verified by their own graders, split, written."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa

from hillclimb.environments.sandbox import provider_for
from hillclimb.environments.tasks import Problem, families_of, make_problems
from hillclimb.stages.context import Context
from hillclimb.stages.tables import read_rows, write_table
from hillclimb.stages.verify import verify_problems

PROBLEM_SEED = 0
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "specialist", "kind", "key", "question", "task")]
)


def make_problems_stage(context: Context) -> None:
    """Write `train.parquet` and `held_out.parquet`, with disjoint keys.

    Sandboxes are proven here already: the climbs that need them begin only after the base's
    training.
    """
    config = context.config
    families = families_of(config["specialist"])
    sides = {
        "train": make_problems(families, config["kinds"], config["train"], "train", PROBLEM_SEED),
        "held_out": make_problems(
            families, config["kinds"], config["held_out"], "held_out", PROBLEM_SEED
        ),
    }
    shared = {p.key for p in sides["train"]} & {p.key for p in sides["held_out"]}
    if shared:
        raise ValueError(f"the key {min(shared)!r} is on both sides of the split")
    provider = provider_for()
    provider.check()
    for index, (side, problems) in enumerate(sides.items()):
        context.reporter.progress(index, 2, f"verifying {len(problems)} {side} problems")
        broken = verify_problems(problems, provider)
        if broken:
            raise ValueError(f"{len(broken)} {side} problems are not solvable: {broken[0]}")
        rows = [{**p.row(), "task": json.dumps(p.task, sort_keys=True)} for p in problems]
        write_table(context.out, f"{side}.parquet", rows, SCHEMA)
    kinds = Counter(p.kind for p in sides["train"])
    context.commit(
        {side: len(problems) for side, problems in sides.items()},
        {"kinds": dict(sorted(kinds.items())), "shared_keys": 0},
    )


def read_problems(context: Context, role: str, side: str) -> list[Problem]:
    """The problems of one side of an input artifact."""
    rows = read_rows(context.input(role), f"{side}.parquet")
    return [Problem(**{**row, "task": json.loads(row["task"])}) for row in rows]
