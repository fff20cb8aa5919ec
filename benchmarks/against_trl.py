"""hillclimb's climb against TRL's GRPOTrainer: `make trl`, `python benchmarks/against_trl.py`.

Both begin with the toy's base of `--root`, answer the same STEM problems, are graded by the same
graders with the task's reward alone, and are scored on the same held-out problems by the same code,
whose time does not count. Each run has a process of its own; the sides take turns, seed by seed.

    python benchmarks/against_trl.py --root .hillclimb --out build/against_trl
    HILLCLIMB_ENGINE=vllm python benchmarks/against_trl.py --device cuda --root .hillclimb ...

On a GPU name a root with a base that is worth it, such as that of `recipes/h200.yaml`, and rates
that it can reach, such as --targets 0.5 0.55 0.6.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from climb_course import Course, Point

HERE = Path(__file__).parent
TRL = HERE.parent / ".venv-trl" / "bin" / "python"
WIDE = {"groups.early_window": [0.01, 0.99], "groups.full_window": [0.01, 0.99]}
FOUR = {**WIDE, "batch_groups": 4}
AT_ONCE = {**FOUR, "groups.early": 16, "prompts_per_update": 8, "draws_per_update": 1}
AHEAD = "hillclimb, ahead"
SIDES: dict[str, dict[str, Any]] = {
    "TRL": {"per_device_train_batch_size": 64},
    "hillclimb": AT_ONCE,
    AHEAD: {**AT_ONCE, "staleness.ahead": 1},
    "hillclimb, early exit": {**FOUR, "prompts_per_update": 12},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs that are missing, then print the table."""
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads < 2 and AHEAD in args.sides:
        sys.exit(
            f"{AHEAD!r} needs a thread for each of its processes: --threads 2, or name --sides"
        )
    sides = {name: {**SIDES.get(name, {}), **args.settings} for name in args.sides}
    courses: dict[str, list[Course]] = {}
    for seed in args.seeds:
        for name, settings in sides.items():
            path = args.out / f"{name.replace(' ', '_').replace(',', '')}-{seed}.json"
            if not path.exists() and not args.table:
                run(name, settings, seed, path, args)
            if path.exists():
                courses.setdefault(name, []).append(Course.read(path))
    print(table(courses, args.targets))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/against_trl.py")
    parser.add_argument("--root", type=Path, default=Path(".hillclimb"), help="with a base")
    parser.add_argument("--out", type=Path, default=Path("build/against_trl"))
    parser.add_argument("--base", help="URI of another start than the root's mai_base_256k")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of each side, in all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20, help="gradient steps")
    parser.add_argument("--every", type=int, default=2, help="steps between scores")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), metavar="NAME")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON",
                        help="fields of the climb's recipe, or of GRPOConfig")  # fmt: skip
    parser.add_argument("--targets", type=float, nargs="+", default=[0.8, 0.9, 0.95],
                        metavar="RATE", help="pass rates to reach")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser


def run(
    name: str, settings: dict[str, Any], seed: int, path: Path, args: argparse.Namespace
) -> None:
    """One side, one seed."""
    theirs = name.startswith("TRL")
    script = "against_trl_theirs.py" if theirs else "against_trl_ours.py"
    python = str(TRL) if theirs else sys.executable
    words = [python, str(HERE / script), "--side", name, "--seed", str(seed), "--out", str(path)]
    for option in ("root", "threads", "device", "steps", "every", "max_tokens", "learning_rate"):
        words += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    words += ["--settings", json.dumps(settings)]
    words += ["--base", args.base] if args.base else []
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "PYTHONPATH": os.pathsep.join(
            [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "TOKENIZERS_PARALLELISM": "false",
    }
    subprocess.run(words, check=True, stdout=sys.stderr, env=env)


def seconds_to(course: Course, rate: float, clock: Callable[[Point], float]) -> float:
    """When the sampled pass rate was first there, on a line between scores; infinite for never."""
    if course.points[0].pass_at_1 >= rate:
        return 0.0
    for before, after in zip(course.points, course.points[1:], strict=False):
        if after.pass_at_1 >= rate:
            part = (rate - before.pass_at_1) / (after.pass_at_1 - before.pass_at_1)
            return clock(before) + part * (clock(after) - clock(before))
    return float("inf")


Measure = tuple[str, Callable[[Course], float], str, bool]
SPEEDS: tuple[Measure, ...] = (
    ("tokens/s sampled", lambda c: c.sampled / c.sampling, "{:,.0f}", True),
    ("tokens/s learnt", lambda c: c.learned / c.learning, "{:,.0f}", True),
)
ENDS: tuple[Measure, ...] = (
    ("tokens sampled, k", lambda c: c.sampled / 1000, "{:.0f}", False),
    ("without advantage, %", lambda c: 100 * c.idle / c.learned, "{:.0f}", False),
    ("last sampled", lambda c: c.points[-1].pass_at_1, "{:.3f}", True),
    ("last greedy", lambda c: c.points[-1].greedy, "{:.3f}", True),
    ("gap of log-probabilities", lambda c: c.gap, "{:.0e}", False),
    ("load", lambda c: c.load[0], "{:.1f}", False),
)


def measures(targets: Sequence[float]) -> list[Measure]:
    """What the table tells, each with its form and whether more is better."""
    clocks = (("s", _wall), ("CPU s", _cpu))
    times: list[Measure] = [
        (f"{name} to {rate}", partial(seconds_to, rate=rate, clock=clock), "{:.1f}", False)
        for name, clock in clocks
        for rate in targets
    ]
    return [*SPEEDS, *times, *ENDS]


def _wall(point: Point) -> float:
    return point.seconds


def _cpu(point: Point) -> float:
    return point.cpu


def table(courses: dict[str, list[Course]], targets: Sequence[float]) -> str:
    """Markdown: mean ± standard deviation over the seeds, and how often TRL's in brackets."""
    lines = [f"| | {' | '.join(courses)} |", f"|---|{'---:|' * len(courses)}"]
    for title, measure, form, more_is_better in measures(targets):
        values = {name: [measure(course) for course in runs] for name, runs in courses.items()}
        cells = []
        for name, found in values.items():
            cell = _spread(found, form)
            if "TRL" in values and name != "TRL" and title.split()[0] in ("tokens/s", "s", "CPU"):
                cell += _ratio(found, values["TRL"], more_is_better)
            cells.append(cell)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    if float("inf") in values:
        return f"never in {sum(value == float('inf') for value in values)} of {len(values)}"
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def _ratio(ours: list[float], theirs: list[float], more_is_better: bool) -> str:
    if float("inf") in (*ours, *theirs):
        return ""
    ratio = statistics.fmean(ours) / statistics.fmean(theirs)
    return f" ({ratio if more_is_better else 1 / ratio:.2f}×)"


if __name__ == "__main__":
    main()
