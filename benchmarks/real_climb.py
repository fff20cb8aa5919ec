"""A climb by the stages as they are, on one GPU in turns and on two at once: throughput and curves.

    hillclimb climb --recipe recipes/h200.yaml --select mai_base_256k --select stem_problems
    HILLCLIMB_ENGINE=vllm python benchmarks/real_climb.py --recipe recipes/h200.yaml \
        --root .hillclimb --out build/real_climb

The base of the root climbs the recipe's STEM problems, once in turns with its engine and once with
the engine ahead, and is scored on held-out problems before and after. Where there are two GPUs the
engine has one for itself. What is finished is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import held_out
import stage_runs

from hillclimb.artifacts import Artifact
from hillclimb.recipe.graph import StageSpec, stage_specs
from hillclimb.recipe.load import load_recipe

FIELDS, STAGE, SAMPLES = "specialists.stem.climbs.0", "stem/round_0/climb", 4
MODES = {"in turns": 0, "ahead": 1}
CURVE = (
    "step", "pass_rate", "entropy", "k", "grad_norm", "mismatch", "routed_share", "age",
    "response_tokens", "groups_early_exit",
)  # fmt: skip
STEADY = (
    "seconds", "seconds_sampling", "seconds_grading", "seconds_learning", "sampled_per_second",
    "learned_per_second", "learner_waited", "generation_waited",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, then print what each climb did."""
    args = _parser().parse_args(argv)
    names = ("tokenizer", "stem_problems", "mai_base_256k")
    made = {name: held_out.artifact(args.root, name) for name in names}
    print(f"base: {scores(made['mai_base_256k'], args)}", flush=True)
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
    """Markdown: the curve, then medians over all updates but the first fifth."""
    rows = [json.loads(line) for line in climb.read_text("metrics.jsonl").splitlines()]
    lines = [f"| {' | '.join(CURVE)} |", "|---:" * len(CURVE) + "|"]
    for row in [*rows[:: max(1, len(rows) // 12)], rows[-1]]:
        lines.append("| " + " | ".join(f"{row[name]:.3g}" for name in CURVE) + " |")
    steady = rows[len(rows) // 5 :]
    lines += ["", *(f"{name}: {_median(steady, name):,.4g}" for name in STEADY)]
    gap = [row["mismatch"] for row in rows]
    lines.append(f"mismatch: median {statistics.median(gap):.2e}, largest {max(gap):.2e}")
    lines.append(f"stop: {climb.json('stop.json')}")
    return "\n".join(lines)


def _median(rows: list[dict[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/real_climb.py")
    parser.add_argument("--recipe", default="toy", help="name or file")
    parser.add_argument("--root", type=Path, default=Path(".hillclimb"), help="with its base")
    parser.add_argument("--out", type=Path, default=Path("build/real_climb"))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE",
                        help="changes of the climb")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
