"""One climb: sample, grade, filter, learn, until the stop rule speaks (report §3.1).

Sampling and learning take turns in one process; a group may still wait in the buffer for a later
update, and is dropped when it is too old. Everything that decides the future is in `state`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hillclimb.environments.tasks import Problem
from hillclimb.rewards.combine import RewardParts
from hillclimb.rl.curriculum import LengthCurriculum, PromptQueue, in_window
from hillclimb.rl.grading import Graders
from hillclimb.rl.groups import Buffer, Group, make_group, passes, reward_parts
from hillclimb.rl.objective import EntropyControl
from hillclimb.rl.policy import PolicyLoss, micro_batches
from hillclimb.rl.rollouts import Rollout, Sampler
from hillclimb.rl.stop import Stop, decide_stop
from hillclimb.rollout.engine import SamplingParams
from hillclimb.training.learner import Learner

REFILLS = 4
IDLE_UPDATES = 3


@dataclass
class Kept:
    """A rollout with what became of it, for the table of rollouts."""

    rollout: Rollout
    parts: RewardParts | None
    group: int
    sample: int
    status: str


@dataclass
class Update:
    """What one round of sampling brought."""

    kept: list[Kept]
    groups: dict[str, int]
    sampled_tokens: int
    seconds_sampling: float
    seconds_grading: float
    pass_rate: float
    truncated_share: float
    ungraded: int


class Climb:
    """A climb in progress."""

    def __init__(
        self,
        config: dict[str, Any],
        learner: Learner,
        sampler: Sampler,
        graders: Graders,
        problems: dict[str, list[Problem]],
        shares: dict[str, float],
        seed: int,
    ) -> None:
        self.config, self.learner, self.sampler, self.graders = config, learner, sampler, graders
        self.problems, self.seed = problems, seed
        entropy = config["entropy"]
        self.control = EntropyControl(entropy["target"], entropy["delta"], entropy["k_max"])
        self.curriculum = LengthCurriculum(list(config["lengths"]))
        self.queue = PromptQueue({n: len(p) for n, p in problems.items()}, shares, seed)
        self.buffer = Buffer(config["staleness"]["max_updates"])
        self.rows: list[dict[str, float]] = []
        self.update = 0
        self.stop: Stop | None = None

    def run(self) -> Iterator[tuple[list[dict[str, float]], list[Kept]]]:
        """One weight update at a time: the new rows of metrics, and all rollouts drawn for them."""
        while self.stop is None:
            self.sampler.engine.load_weights(self.learner.model.state_dict(), self.update)
            update = self._sample()
            rows = self._learn(update)
            self.rows += rows
            self.update += 1
            yield rows, update.kept

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON and arrays that decide the future, weights and optimiser apart."""
        arrays, meta = self.buffer.state()
        return {
            "rows": self.rows,
            "update": self.update,
            "k": self.control.k,
            "rung": self.curriculum.rung,
            "rung_steps": self.curriculum.steps,
            "taken": self.queue.taken,
            "buffer": meta,
        }, arrays

    def restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self.rows, self.update = state["rows"], state["update"]
        self.control.k = state["k"]
        self.curriculum.rung, self.curriculum.steps = state["rung"], state["rung_steps"]
        self.queue.taken = dict(state["taken"])
        self.buffer = Buffer.restore(self.buffer.max_updates, arrays, state["buffer"])

    def _sample(self) -> Update:
        """Fill the buffer for this update's gradient steps, in at most `REFILLS` draws."""
        wanted = self.config["staleness"]["steps_per_update"] * self.config["batch_groups"]
        found = Update([], dict.fromkeys(("kept", "early_exit", "filtered", "stale"), 0),
                       0, 0.0, 0.0, 0.0, 0.0, 0)  # fmt: skip
        found.groups["stale"] = self.buffer.drop_stale(self.update)
        early_passes: list[bool] = []
        for refill in range(REFILLS):
            if len(self.buffer.groups) >= wanted:
                break
            self._draw(found, early_passes, refill)
        rollouts = [kept.rollout for kept in found.kept]
        found.truncated_share = _share([r.truncated for r in rollouts])
        found.pass_rate = _share(early_passes)
        self.curriculum.observe(found.truncated_share)
        return found

    def _draw(self, found: Update, early_passes: list[bool], refill: int) -> None:
        groups = self.config["groups"]
        prompts = self.queue.take(self.config["prompts_per_update"])
        problems = [self.problems[name][index] for name, index in prompts]
        seed = ((self.seed * 4096 + self.update) * REFILLS + refill) * 2
        early = self._rollouts(found, problems, groups["early"], seed)
        early_passes += [p for group in early for p in passes(group)]
        promising = [
            i
            for i, group in enumerate(early)
            if passes(group) and in_window(passes(group), tuple(groups["early_window"]))
        ]
        more = groups["full"] - groups["early"]
        if more:
            rest = self._rollouts(found, [problems[i] for i in promising], more, seed + 1)
            for i, extra in zip(promising, rest, strict=True):
                early[i] += extra
        for i, group in enumerate(early):
            self._sort(found, group, i in set(promising))

    def _rollouts(
        self, found: Update, problems: list[Problem], size: int, seed: int
    ) -> list[list[Rollout]]:
        if not problems:
            return []
        sampling = self.config["sampling"]
        params = SamplingParams(
            self.curriculum.max_tokens, sampling["temperature"], sampling["top_p"]
        )
        started = time.perf_counter()
        rollouts = self.sampler.run([p for p in problems for _ in range(size)], params, seed)
        sampled = time.perf_counter()
        self.graders.grade(rollouts)
        found.seconds_sampling += sampled - started
        found.seconds_grading += time.perf_counter() - sampled
        found.sampled_tokens += sum(r.drawn_tokens for r in rollouts)
        return [rollouts[i : i + size] for i in range(0, len(rollouts), size)]

    def _sort(self, found: Update, rollouts: list[Rollout], promising: bool) -> None:
        passed = passes(rollouts)
        rate, longest = _share(passed), self.curriculum.max_tokens
        parts = [
            reward_parts(r, self.config["rewards"], longest, rate, self.curriculum.length_penalty)
            for r in rollouts
        ]
        status = "early_exit"
        if promising:
            keep = in_window(passed, tuple(self.config["groups"]["full_window"]))
            status = "trained" if keep else "filtered"
            if keep:
                self.buffer.add(make_group(rollouts, parts, self.config["std_eps"]))
        found.groups["kept" if status == "trained" else status] += 1
        number = len({k.group for k in found.kept})
        found.ungraded += sum(p is None for p in parts)
        found.kept += [
            Kept(r, p, number, s, status)
            for s, (r, p) in enumerate(zip(rollouts, parts, strict=True))
        ]

    def _learn(self, update: Update) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        for _ in range(self.config["staleness"]["steps_per_update"]):
            groups = self.buffer.take(self.config["batch_groups"])
            if not groups:
                break
            rows.append(self._step(groups, update, rows))
            self.stop = decide_stop(
                self.rows + rows, self.config["stop"], self.curriculum.total_steps
            )
            if self.stop:
                break
        if not rows:
            self.stop = self._nothing_left(update)
        return rows

    def _nothing_left(self, update: Update) -> Stop | None:
        """Stop after several updates without a group to learn from; their rollouts are kept."""
        last = int(self.rows[-1]["update"]) if self.rows else -1
        if self.update - last < IDLE_UPDATES:
            return None
        return Stop(
            "solved" if update.pass_rate > 0.5 else "plateau",
            f"no group of the last {IDLE_UPDATES} updates had something to learn from: "
            f"pass rate {update.pass_rate:.3f}",
            len(self.rows),
        )

    def _step(
        self, groups: list[Group], update: Update, before: list[dict[str, float]]
    ) -> dict[str, float]:
        started = time.perf_counter()
        samples = [sample for group in groups for sample in group.samples]
        tokens = int(sum(sample.drawn.sum() for sample in samples))
        clips = self.config["clips"]
        loss = PolicyLoss(
            clips["epsilon"], clips["outer"], self.config["sampling"]["temperature"],
            self.control.k, tokens,
        )  # fmt: skip
        batches = micro_batches(
            samples, self.config["micro_batch_tokens"], self.sampler.tokenizer.vocab_size
        )
        sums = self.learner.step(batches, loss, self.config["learning_rate"])
        row = self._row(sums, tokens, groups, update, before, time.perf_counter() - started)
        self.control.update(row["entropy"])
        self.curriculum.step()
        return row

    def _row(
        self, sums: dict[str, float], tokens: int, groups: list[Group], update: Update,
        before: list[dict[str, float]], seconds: float,
    ) -> dict[str, float]:  # fmt: skip
        parts = [kept.parts for kept in update.kept if kept.parts is not None]
        lengths = [kept.rollout.drawn_tokens for kept in update.kept]
        once = float(not before)
        age = self.update - min(group.version for group in groups)
        fresh = not before and age == 0
        last = (before or self.rows or [{"mismatch": 0.0}])[-1]["mismatch"]
        return {
            "step": len(self.rows) + len(before) + 1,
            "update": self.update,
            "pass_rate": update.pass_rate,
            "entropy": sums["entropy"] / tokens,
            "k": self.control.k,
            "response_tokens": _share(lengths),
            "reward": _share([p.total for p in parts]),
            "reward_task": _share([p.task for p in parts]),
            "reward_language": _share([p.language for p in parts]),
            "reward_length": _share([p.length for p in parts]),
            "trust_clip_share": sums["trust_clipped"] / tokens,
            "outer_clip_share": sums["outer_clipped"] / tokens,
            "mismatch": sums["mismatch"] / tokens if fresh else last,
            "truncated_share": update.truncated_share,
            "ungraded": update.ungraded,
            "grad_norm": sums["grad_norm"],
            "balance_loss": sums["balance_loss"],
            "groups_kept": update.groups["kept"],
            "groups_early_exit": update.groups["early_exit"],
            "groups_filtered": update.groups["filtered"],
            "groups_stale": update.groups["stale"],
            "max_tokens": self.curriculum.max_tokens,
            "age": age,
            "sampled_tokens": once * update.sampled_tokens,
            "learned_tokens": sum(s.length for g in groups for s in g.samples),
            "seconds_sampling": once * update.seconds_sampling,
            "seconds_grading": once * update.seconds_grading,
            "seconds_learning": seconds,
        }


def _share(values: list[Any]) -> float:
    return float(sum(values)) / len(values) if values else 0.0
