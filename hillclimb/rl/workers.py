"""A problem worker: early exit, second draw, grades, filters, advantages (report §3.1.5, §3.6)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from hillclimb.environments.tasks import Problem
from hillclimb.rl.canaries import canary
from hillclimb.rl.curriculum import LengthCurriculum, in_window
from hillclimb.rl.grading import Graders
from hillclimb.rl.groups import Group, make_group, passes, reward_parts
from hillclimb.rl.metrics import Kept, Update, share
from hillclimb.rl.rollouts import Rollout
from hillclimb.rollout.engine import SamplingParams


class Runner(Protocol):
    """What runs episodes: `Sampler`, all in lockstep, or each on its own."""

    def run(self, problems: Sequence[Problem], params: SamplingParams, seed: int) -> list[Rollout]:
        """One rollout a problem."""


class ProblemWorker:
    """Turns problems into groups; several threads may use one.

    Args:
        config: of the climb.
        curriculum: asked for the longest response whenever problems are taken up.
    """

    def __init__(
        self,
        config: dict[str, Any],
        runner: Runner,
        graders: Graders,
        curriculum: LengthCurriculum,
    ) -> None:
        self.config, self.runner, self.graders = config, runner, graders
        self.curriculum = curriculum

    def work(self, found: Update, problems: list[Problem], seed: int) -> list[Group]:
        """The groups to learn from; `found` is told of every rollout.

        Args:
            seed: even; the rest of promising groups is drawn with the next one.
        """
        sizes, longest = self.config["groups"], self.curriculum.max_tokens
        penalty = self.curriculum.length_penalty
        early = self._rollouts(found, problems, sizes["early"], longest, seed)
        found.early_passes += [p for group in early for p in passes(group)]
        promising = [
            i
            for i, group in enumerate(early)
            if passes(group) and in_window(passes(group), tuple(sizes["early_window"]))
        ]
        if more := sizes["full"] - sizes["early"]:
            chosen = [problems[i] for i in promising]
            rest = self._rollouts(found, chosen, more, longest, seed + 1)
            for i, extra in zip(promising, rest, strict=True):
                early[i] += extra
        sorted_ = [
            self._sort(found, group, i in promising, longest, penalty)
            for i, group in enumerate(early)
        ]
        return [group for group in sorted_ if group is not None]

    def _rollouts(
        self, found: Update, problems: list[Problem], size: int, longest: int, seed: int
    ) -> list[list[Rollout]]:
        if not problems:
            return []
        sampling = self.config["sampling"]
        params = SamplingParams(
            longest, sampling["temperature"], sampling["top_p"],
            routes=self.config["replay"]["routes"],
        )  # fmt: skip
        started = time.perf_counter()
        rollouts = self.runner.run([p for p in problems for _ in range(size)], params, seed)
        sampled = time.perf_counter()
        self.graders.grade(rollouts)
        found.seconds_sampling += sampled - started
        found.seconds_grading += time.perf_counter() - sampled
        found.sampled_tokens += sum(r.drawn_tokens for r in rollouts)
        return [rollouts[i : i + size] for i in range(0, len(rollouts), size)]

    def _sort(
        self, found: Update, rollouts: list[Rollout], promising: bool, longest: int, penalty: bool
    ) -> Group | None:
        """What becomes of a group; the group itself where it is to be learnt from."""
        passed = passes(rollouts)
        rate, weights = share(passed), self.config["rewards"]
        parts = [reward_parts(r, weights, longest, rate, penalty) for r in rollouts]
        status, group = "early_exit", None
        if promising:
            keep = in_window(passed, tuple(self.config["groups"]["full_window"]))
            keep = keep and not rollouts[0].problem.task.get("canary")
            status = "trained" if keep else "filtered"
            if keep:
                group = make_group(rollouts, parts, self.config["std_eps"])
        number = found.sorted_groups
        group = group and replace(group, number=number)
        found.groups["kept" if status == "trained" else status] += 1
        found.kept += [
            Kept(r, p, number, s, status, canary(r))
            for s, (r, p) in enumerate(zip(rollouts, parts, strict=True))
        ]
        return group
