"""What each choice of the climb's recipe does: `python benchmarks/ablations.py --root .hillclimb`.

Every variant is the toy's STEM climb, from the base that the root holds, with some fields of the
recipe changed, made by the real stages in processes of their own; then it is scored on held-out
problems. What is finished under `--out` is not made again. `--table` only prints what there is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import held_out
import stage_runs
import torch

from hillclimb.artifacts import Artifact
from hillclimb.recipe.graph import StageSpec, stage_specs
from hillclimb.recipe.load import load_recipe

FIRST, SECOND = "specialists.stem.climbs.0", "specialists.stem.climbs.1"
SAMPLES = 4
GOOD = 0.8


@dataclass(frozen=True)
class Variant:
    """Overrides of the recipe, and the last stage of the chain that is made with them."""

    name: str
    overrides: tuple[str, ...] = ()
    last: str = "stem/round_0/climb"


CUT = "stem/round_1/climb"
VARIANTS = (
    Variant("full recipe"),
    Variant("no entropy controller", (f"{FIRST}.entropy=null",)),
    Variant("no outer clip", (f"{FIRST}.clips.outer=null",)),
    Variant("no nucleus replay", (f"{FIRST}.replay.nucleus=false",)),
    Variant("no language reward", (f"{FIRST}.rewards.language=0",)),
    Variant("no length reward", (f"{FIRST}.rewards.length=0",)),
    Variant("no early exit", (f"{FIRST}.groups.early=16",)),
    Variant("self-distillation, two rounds", (f"{SECOND}.stop.plateau_floor=1",), CUT),
    Variant(
        "no self-distillation, as many steps",
        (
            f"{FIRST}.stop.plateau_floor=1",
            f"{FIRST}.lengths=[{{max_tokens: 48, steps: 12}}, {{max_tokens: 64, steps: 40}}]",
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, then print the tables."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)
    chosen = [v for v in VARIANTS if not args.only or v.name in args.only]
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for variant in chosen:
            row = measure(variant, seed, args.root, args.out, tuple(args.set), args.table)
            if row is not None:
                found.setdefault(variant.name, []).append(row)
                print(f"{variant.name}, seed {seed}: {row['pass_at_1']:.3f}", file=sys.stderr)
    print(tables(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/ablations.py")
    parser.add_argument("--root", type=Path, default=Path(".hillclimb"), help="with a toy's base")
    parser.add_argument("--out", type=Path, default=Path("build/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants, by their names")
    parser.add_argument("--set", nargs="+", default=[], metavar="SECTION.FIELD=VALUE",
                        help="changes of the recipe under all variants alike")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="make nothing")
    return parser


def measure(
    variant: Variant, seed: int, root: Path, out: Path, common: tuple[str, ...], only_read: bool
) -> dict[str, Any] | None:
    """The numbers of one run; None where it is to be read and is not there."""
    recipe = load_recipe("toy", (*common, *variant.overrides))
    specs = stage_specs(recipe, seed)
    inputs = {
        name: held_out.artifact(root, name)
        for name in ("mai_base_256k", "tokenizer", "stem_problems")
    }
    chain = _chain(specs, variant.last, set(inputs))
    made = dict(inputs)
    for name in chain:
        step = stage_runs.find if only_read else stage_runs.make
        artifact = step(specs[name], made, out)
        if artifact is None:
            return None
        made[name] = artifact
    climbs = [made[name] for name in chain if specs[name].kind == "climb"]
    if only_read and not held_out.scores_path(climbs[-1], out).exists():
        return None
    longest = recipe.evaluation.max_tokens
    return {
        **_summary(climbs),
        **held_out.kept_scores(climbs[-1], root, out, longest, SAMPLES),
    }


def _chain(specs: dict[str, StageSpec], last: str, given: set[str]) -> list[str]:
    """The stages up to `last` that are not given, inputs first."""
    names = [last]
    for name in names:
        names += [n for n in specs[name].inputs.values() if n not in given and n not in names]
    return [name for name in specs if name in names]


def _summary(climbs: list[Artifact]) -> dict[str, Any]:
    """What the climbs of one chain say of themselves; steps and tokens are added up."""
    rows = [row for climb in climbs for row in _rows(climb)]
    last = _rows(climbs[-1])
    late = last[-max(1, len(last) // 10) :]
    return {
        "steps": len(rows),
        "stop": climbs[-1].json("stop.json")["reason"],
        "weights": _weights(climbs[-1]),
        "sampled_tokens": sum(climb.manifest.metrics["sampled_tokens"] for climb in climbs),
        "tokens_to_good": _tokens_until(rows, GOOD),
        "seconds": sum(climb.manifest.run["seconds"] for climb in climbs),
        "area": statistics.fmean(row["pass_rate"] for row in rows),
        "train_entropy": statistics.fmean(row["entropy"] for row in late),
        "least_entropy": min(row["entropy"] for row in rows),
        "k": statistics.fmean(row["k"] for row in rows),
        "grad_norm": statistics.median(row["grad_norm"] for row in rows),
        "grad_ratio": max(row["grad_norm_ratio"] for row in rows),
        "clipped": statistics.fmean(row["trust_clip_share"] for row in rows),
        "outer_clipped": statistics.fmean(row["outer_clip_share"] for row in rows),
        "mismatch": max(row["mismatch"] for row in rows),
        "truncated": max(row["truncated_share"] for row in rows),
        "language": statistics.fmean(row["reward_language"] for row in late),
        "alarms": sorted(
            alarm["signal"]
            for alarm in climbs[-1].manifest.summary["alarms"]
            if alarm["steps"]
        ),
    }  # fmt: skip


def _weights(climb: Artifact) -> str:
    """The beginning of their SHA-256: equal ones show that a change changed nothing."""
    files = {entry.path: entry.sha256 for entry in climb.manifest.files}
    return files["model/model.safetensors"][:8]


def _rows(climb: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in climb.read_text("metrics.jsonl").splitlines()]


def _tokens_until(rows: list[dict[str, float]], rate: float) -> float:
    """Tokens sampled until an update's pass rate is there; infinite for never."""
    total = 0.0
    for row in rows:
        total += row["sampled_tokens"]
        if row["pass_rate"] >= rate:
            return total
    return float("inf")


Column = tuple[str, Callable[[dict[str, Any]], float], str]
SCORES: tuple[Column, ...] = (
    ("sampled", lambda r: r["pass_at_1"], "{:.3f}"),
    ("greedy", lambda r: r["greedy"], "{:.3f}"),
    ("mean over the climb", lambda r: r["area"], "{:.3f}"),
    ("tokens sampled, k", lambda r: r["sampled_tokens"] / 1000, "{:.0f}"),
    (f"k tokens until {GOOD}", lambda r: r["tokens_to_good"] / 1000, "{:.0f}"),
    ("response tokens", lambda r: r["response_tokens"], "{:.1f}"),
)
HEALTH: tuple[Column, ...] = (
    ("entropy held out", lambda r: r["entropy"], "{:.3f}"),
    ("in training, last", lambda r: r["train_entropy"], "{:.3f}"),
    ("k", lambda r: r["k"], "{:.2f}"),
    ("gradient norm", lambda r: r["grad_norm"], "{:.2f}"),
    ("worst over median", lambda r: r["grad_ratio"], "{:.1f}"),
    ("trust-clipped, %", lambda r: 100 * r["clipped"], "{:.2f}"),
    ("outer-clipped, ppm", lambda r: 1e6 * r["outer_clipped"], "{:.1f}"),
    ("mismatch", lambda r: r["mismatch"], "{:.1e}"),
    ("language", lambda r: r["language"], "{:.4f}"),
)


def tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean ± standard deviation over the seeds."""
    ends = ["", "| variant | weights | steps | stopped by | alarms |", "|---|---|---|---|---|"]
    for name, rows in found.items():
        alarms = ", ".join(sorted({signal for row in rows for signal in row["alarms"]})) or "none"
        cells = [_each(row[key] for row in rows) for key in ("weights", "steps", "stop")]
        ends.append(f"| {name} | {' | '.join(cells)} | {alarms} |")
    return "\n".join([*_table(found, SCORES), "", *_table(found, HEALTH), *ends])


def _each(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _table(found: dict[str, list[dict[str, Any]]], columns: Sequence[Column]) -> list[str]:
    lines = [f"| variant | {' | '.join(name for name, _, _ in columns)} |"]
    lines.append(f"|---|{'---:|' * len(columns)}")
    for name, rows in found.items():
        cells = [_spread([value(row) for row in rows], form) for _, value, form in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _spread(values: list[float], form: str) -> str:
    if float("inf") in values:
        return f"never in {sum(value == float('inf') for value in values)} of {len(values)}"
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
