"""A climb by the stages as they are, on one GPU in turns and on two at once: throughput and curves.

    hillclimb climb --recipe recipes/h200.yaml --select mai_base_16k --select stem_problems
    HILLCLIMB_ENGINE=vllm python benchmarks/real_climb.py --recipe recipes/h200.yaml \
        --root .hillclimb --base mai_base_16k --out build/real_climb

A base of the root climbs the recipe's STEM problems, once in turns with its engine and once with
the engine ahead, and is scored on held-out problems before and after. Where there are two GPUs the
engine has one for itself. What is finished is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import held_out
import stage_runs

from hillclimb.artifacts import Artifact
from hillclimb.recipe.graph import StageSpec, stage_specs
from hillclimb.recipe.load import load_recipe

FIELDS, STAGE, SAMPLES = "specialists.stem.climbs.0", "stem/round_0/climb", 4
START = "mai_base_256k"
MODES = {"in turns": 0, "ahead": 1}
CURVE = (
    "step", "pass_rate", "entropy", "k", "grad_norm", "mismatch", "routed_share", "age",
    "response_tokens", "groups_early_exit",
)  # fmt: skip
STEADY = (
    "seconds", "sampled_per_second", "learned_per_second", "learner_waited", "generation_waited",
)  # fmt: skip
WORK = ("seconds_sampling", "seconds_grading", "seconds_learning")


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, then print what each climb did."""
    args = _parser().parse_args(argv)
    made = {name: held_out.artifact(args.root, name) for name in ("tokenizer", "stem_problems")}
    made[START] = held_out.artifact(args.root, args.base)
    print(f"base: {scores(made[START], args)}", flush=True)
    for mode in args.modes:
        started = time.perf_counter()
        climb = stage_runs.make(spec_of(args.recipe, mode, args.set), made, args.out)
        seconds = time.perf_counter() - started
        print(f"\n{mode}, {seconds:.0f} s with its start\n\n{told(climb)}", flush=True)
        print(f"held out: {scores(climb, args)}", flush=True)


def spec_of(recipe: str, mode: str, changes: Sequence[str]) -> StageSpec:
    """The climb's stage."""
    overrides = [f"{FIELDS}.{change}" for change in (*changes, f"staleness.ahead={MODES[mode]}")]
    return stage_specs(load_recipe(recipe, overrides), 0)[STAGE]


def scores(model: Artifact, args: argparse.Namespace) -> str:
    """Of sampled and greedy answers to held-out problems."""
    longest = load_recipe(args.recipe).evaluation.max_tokens
    row = held_out.kept_scores(model, args.root, args.out, longest, SAMPLES)
    return f"sampled {row['pass_at_1']:.3f}, greedy {row['greedy']:.3f}"


def told(climb: Artifact) -> str:
    """Markdown: the curve, then medians over all updates but the first fifth.

    Work ahead of the learner is done side by side: its seconds add up to more than an update took.
    """
    rows = [json.loads(line) for line in climb.read_text("metrics.jsonl").splitlines()]
    lines = [f"| {' | '.join(CURVE)} |", "|---:" * len(CURVE) + "|"]
    for row in [*rows[:: max(1, len(rows) // 12)], rows[-1]]:
        lines.append("| " + " | ".join(f"{row[name]:.3g}" for name in CURVE) + " |")
    updates = [list(found) for _, found in groupby(rows, key=lambda row: row["update"])]
    steady = updates[len(updates) // 5 :]
    seconds = sum(found[-1]["seconds"] for found in updates)
    lines += ["", f"updates: {len(updates)} in {seconds:.0f} s"]
    for name in STEADY:
        lines.append(f"{name}: {_median(found[-1][name] for found in steady)}")
    for name in WORK:
        lines.append(f"{name}: {_median(sum(row[name] for row in found) for found in steady)}")
    gap = [row["mismatch"] for row in rows]
    lines.append(f"mismatch: median {statistics.median(gap):.2e}, largest {max(gap):.2e}")
    lines.append(f"stop: {climb.json('stop.json')}")
    return "\n".join(lines)


def _median(values: Iterable[float]) -> str:
    return f"{statistics.median(values):,.4g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/real_climb.py")
    parser.add_argument("--recipe", default="toy", help="name or file")
    parser.add_argument("--root", type=Path, default=Path(".hillclimb"), help="with a base")
    parser.add_argument("--base", default=START, help="its stage: where the climb starts")
    parser.add_argument("--out", type=Path, default=Path("build/real_climb"))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE",
                        help="changes of the climb")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
