"""Goodput under kills: `python benchmarks/goodput.py`.

Measured: a base phase on two ranks, made through the local launcher as `climb` makes it. Its ranks
are killed with SIGKILL, one at random each time, after exponentially distributed waits, and the
stage is asked for again at once, until it is made. The account is that of the stage itself, from
its `goodput.json`. Interpreters are fresh, as on GPU machines and in pods; `--warm` forks them from
the launcher's warm one.

Simulated: days of training with a kill every ten minutes, from the step, checkpoint and restart
times that the measured run had, at the checkpoint interval of Young (1974) and Daly (2006). The
same for a job whose times are given on the command line: those rows measure nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hillclimb.artifacts import ArtifactWriter, Store
from hillclimb.experiments import Experiment
from hillclimb.launcher import Handle, LocalLauncher, State, records
from hillclimb.recipe.graph import upstream
from hillclimb.stages.request import Request
from hillclimb.training.goodput import STALLS, Goodput, summarise
from hillclimb.training.spans import Span, read_spans
from hillclimb.training.writer import LATEST

NAME = "mai_base_16k"
RECIPE = (
    "compute.base_ranks=2", "base.batch_tokens=8192",
    "base.micro_batch_tokens=4096", "base.phase_16k.sequence_length=128",
    "corpus.sources.0.max_chars=2000000", "pretraining_mixture.weights.code=0.8",
)  # fmt: skip
DAYS = 5.0
STEADY = ("data", "slow_steps", "other")


@dataclass(frozen=True)
class Costs:
    """Seconds: a step, a checkpoint's cost to it, its write behind it, a restart."""

    step: float
    checkpoint: float
    write: float
    restart: float


def main() -> None:
    """Print the measured account, then the simulated ones."""
    args = parsed()
    print(f"seed {args.seed}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.root or folder)
        account, watch = measured(root, args)
    found = Goodput(
        account["actual_seconds"], account["ideal_seconds"], account["stalls"],
        account["attempts"], account["steps"], account["steps_again"],
    )  # fmt: skip
    kills = len(watch.kills)
    every = found.actual / max(kills, 1)
    print(
        f"\nMEASURED: {found.steps} steps on 2 ranks, {kills} kills, one every {every:.0f} s, "
        f"a checkpoint every {args.every} steps"
    )
    show({"undisturbed part": without_kills(found), "with the kills": found})
    costs = costs_of(found, args.every, watch)
    print(f"\nfrom this run: {told(costs)}")
    minutes = args.kill_every / 60
    print(f"\nSIMULATED: {DAYS:g} days, a kill every {minutes:g} min, times of the measured run")
    best = show_simulations(costs, args)
    steady = sum(found.stalls[part] for part in STEADY)
    share = found.ideal / (found.ideal + steady)
    print(f"with the run's data, slow steps and other on top: {best.goodput * share:.3f}")
    given = Costs(args.step, args.checkpoint, args.write, args.restart)
    print(f"\nSIMULATED from times that were given, not measured: {told(given)}")
    show_simulations(given, args)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number: dict[str, Any] = {"type": float}
    parser.add_argument("--seed", type=int, default=20261126)
    parser.add_argument("--steps", type=int, default=300, help="of the measured run")
    parser.add_argument("--every", type=int, default=20, help="steps between its checkpoints")
    parser.add_argument("--mean", **number, default=40.0, help="seconds between its kills")
    parser.add_argument("--warm", action="store_true", help="fork from a warm interpreter")
    parser.add_argument("--root", help="keep the artifacts here")
    parser.add_argument("--kill-every", **number, default=600.0, help="seconds, simulated")
    parser.add_argument("--step", **number, default=4.0, help="seconds, of the given job")
    parser.add_argument("--checkpoint", **number, default=0.5, help="seconds that a step waits")
    parser.add_argument("--write", **number, default=20.0, help="seconds until it is whole")
    parser.add_argument("--restart", **number, default=90.0, help="seconds from kill to step")
    return parser.parse_args()


def measured(root: Path, args: argparse.Namespace) -> tuple[dict[str, Any], Watch]:
    """Make the phase under kills; its account, and what was seen meanwhile."""
    changes = (*RECIPE, f"base.phase_16k.tokens={args.steps * 8192}",
               f"base.checkpoint_every={args.every}")  # fmt: skip
    plan, store = Experiment.make("smoke", 0, "goodput", changes).plan(), Store(str(root))
    launcher = LocalLauncher(root / "runs", fork=args.warm)
    try:
        for name in upstream(plan.specs, [NAME])[:-1]:
            make(launcher, plan.request(name, store), itertools.repeat(math.inf), args.seed)
        request = plan.request(NAME, store)
        watch = make(launcher, request, waits(args.seed, args.mean), args.seed)
    finally:
        launcher.close()
    made = store.find(NAME, plan.fingerprints[NAME])
    assert made is not None
    return made.json("goodput.json"), watch


class Watch:
    """What the stage's files show while it runs: they go at the commit."""

    def __init__(self, output: str) -> None:
        self.out, self.latest = ArtifactWriter(output), Path(output) / LATEST
        self.whole: dict[float, int] = {}
        self.kills: list[float] = []
        self.spans: list[Span] = []
        self._next = 0.0

    def look(self) -> None:
        """Note which checkpoint is the newest, since when, and now and then all spans."""
        with contextlib.suppress(FileNotFoundError):
            if found := re.search(r"step-(\d+)", self.latest.read_text()):
                self.whole[self.latest.stat().st_mtime] = int(found[1]) - 1
            if time.monotonic() > self._next:
                self.spans, self._next = read_spans(self.out) or self.spans, time.monotonic() + 1.0

    def write(self) -> float:
        """Median seconds from a checkpoint's copy until it is whole."""
        copied = [span for span in self.spans if span.kind == "checkpoint"]
        return median_since(
            (at, [span.end for span in copied if span.step == step])
            for at, step in self.whole.items()
        )

    def restart(self) -> float:
        """Median seconds from a kill to the next step, where no other kill came between."""
        begun: dict[int, float] = {}
        for span in self.spans:
            if span.kind != "start":
                begun.setdefault(span.attempt, span.start)
        return median_since((at, self.kills) for at in begun.values())


def median_since(pairs: Iterable[tuple[float, Sequence[float]]]) -> float:
    """The median time to each moment from the last one before it; 0 where there is none."""
    found = [at - max(b) for at, moments in pairs if (b := [m for m in moments if m <= at])]
    return statistics.median(found) if found else 0.0


def waits(seed: int, mean: float) -> Iterator[float]:
    """Seconds between the kills of a Poisson process."""
    rng = random.Random(seed)
    while True:
        yield rng.expovariate(1 / mean)


def make(launcher: LocalLauncher, request: Request, between: Iterator[float], seed: int) -> Watch:
    """Ask until it is made, killing a rank whenever it is time."""
    rng, watch = random.Random(seed + 1), Watch(request.output)
    next_kill = time.monotonic() + next(between)
    while True:
        handle = launcher.submit(request)
        while not launcher.poll(handle).ended:
            time.sleep(0.05)
            watch.look()
            if time.monotonic() >= next_kill:
                watch.kills += [time.time()] * kill(handle, rng)
                next_kill = time.monotonic() + next(between)
                print(
                    f"kill {len(watch.kills)}, attempt {Path(handle.where).name[8:]}",
                    file=sys.stderr,
                )
        outcome = launcher.poll(handle)
        if outcome.state is State.DONE:
            return watch
        if not outcome.resumable:
            raise RuntimeError(outcome.reason)


def kill(handle: Handle, rng: random.Random) -> bool:
    """SIGKILL to one of the stage's ranks; False while it has none."""
    watcher = records.alive(Path(handle.where))
    if watcher is None:
        return False
    children = Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split()
    if not children:
        return False
    os.kill(int(rng.choice(children)), signal.SIGKILL)
    return True


def costs_of(found: Goodput, every: int, watch: Watch) -> Costs:
    """What a step, a checkpoint and a restart took."""
    checkpoints = (found.steps + found.steps_again) / every
    return Costs(
        found.ideal / found.steps,
        found.stalls["checkpoint"] / checkpoints,
        watch.write(),
        watch.restart(),
    )


def without_kills(found: Goodput) -> Goodput:
    """The same account without restarts and lost steps."""
    stalls = {**found.stalls, "restart": 0.0, "lost_steps": 0.0}
    return Goodput(found.ideal + sum(stalls.values()), found.ideal, stalls, 1, found.steps, 0)


def show_simulations(costs: Costs, args: argparse.Namespace) -> Goodput:
    """At the best interval, which is returned, at half and at twice of it; and the restart that
    0.9 allows."""
    best = interval(costs, args.kill_every)
    found = {
        steps: simulated(costs, steps, args.kill_every, args.seed)
        for steps in (max(1, best // 2), best, 2 * best)
    }
    show({f"checkpoint every {steps} steps": account for steps, account in found.items()})
    longest = longest_restart(costs, best, args)
    print(f"every {best} steps, goodput is 0.9 with a restart of {longest:.0f} s")
    return found[best]


def interval(costs: Costs, kill_every: float) -> int:
    """Steps between checkpoints: Young's sqrt(2 c M), and never sooner than one is written."""
    seconds = max(math.sqrt(2 * costs.checkpoint * kill_every), costs.write)
    return max(1, math.ceil(seconds / costs.step))


def simulated(costs: Costs, every: int, kill_every: float, seed: int) -> Goodput:
    """An account of `DAYS` in which the job is killed every `kill_every` seconds on average.

    A life is a restart, then periods of `every` steps and a checkpoint, one in flight at a time.
    What came after the last checkpoint that became whole is done again. A kill may meet a restart.
    """
    period, saved, now, until = every * costs.step, 0, 0.0, DAYS * 86400
    spans: list[Span] = []
    for attempt, life in enumerate(waits(seed, kill_every)):
        if now >= until:
            break
        death, whole = min(now + life, until), [(now, saved)]
        spans.append(Span("start", now, min(now + costs.restart, death), attempt))
        at, done = now + costs.restart, saved
        while at < death:
            spans.append(Span("step", at, min(at + period, death), attempt, done))
            at, done = at + period, done + 1
            if at < death:
                copied = max(at, whole[-1][0]) + costs.checkpoint
                spans.append(Span("checkpoint", at, min(copied, death), attempt))
                whole.append((copied + costs.write, done))
                at = copied
        saved, now = max(count for when, count in whole if when <= death), death
    return summarise(spans, even_steps=False)


def longest_restart(costs: Costs, every: int, args: argparse.Namespace) -> float:
    """The restart with which goodput is 0.9, by bisection."""
    low, high = 0.0, args.kill_every
    for _ in range(9):
        middle = (low + high) / 2
        tried = Costs(costs.step, costs.checkpoint, costs.write, middle)
        enough = simulated(tried, every, args.kill_every, args.seed).goodput >= 0.9
        low, high = (middle, high) if enough else (low, middle)
    return low


def told(costs: Costs) -> str:
    """The times in words."""
    return (
        f"step {costs.step:.3f} s, checkpoint {costs.checkpoint:.3f} s of waiting and "
        f"{costs.write:.3g} s until it is whole, restart {costs.restart:.1f} s"
    )


def show(rows: dict[str, Goodput]) -> None:
    """A row an account, parts in percent of the actual time."""
    shown = [part for part in STALLS if any(row.stalls[part] for row in rows.values())]
    print(f"{'':26}{'goodput':>9}" + "".join(f"{part.replace('_', ' '):>12}" for part in shown))
    for name, row in rows.items():
        shares = "".join(f"{100 * row.stalls[part] / row.actual:11.2f}%" for part in shown)
        print(f"{name:26}{row.goodput:9.3f}{shares}")


if __name__ == "__main__":
    main()
