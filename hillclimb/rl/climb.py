"""One climb: sample, grade, filter, learn, until the stop rule speaks (report §3.1).

Sampling and learning take turns in one process; a group may still wait in the buffer for a later
update, and is dropped when it is too old. Everything that decides the future is in `state`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from hillclimb.environments.tasks import Problem
from hillclimb.rl.canaries import canary
from hillclimb.rl.curriculum import LengthCurriculum, PromptQueue, in_window
from hillclimb.rl.grading import Graders
from hillclimb.rl.groups import Buffer, Group, make_group, passes, reward_parts
from hillclimb.rl.metrics import Kept, Row, Update, share, step_columns
from hillclimb.rl.objective import EntropyControl, Objective
from hillclimb.rl.policy import PolicyLoss, micro_batches, with_old_logprobs, with_routes
from hillclimb.rl.rollouts import Rollout, Sampler
from hillclimb.rl.stop import Stop, decide_stop, signalled
from hillclimb.rollout.engine import SamplingParams
from hillclimb.training.learner import Learner

SEEDS = 4
IDLE_UPDATES = 3


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
        self.control = EntropyControl.of(config["entropy"])
        self.curriculum = LengthCurriculum(list(config["lengths"]))
        self.queue = PromptQueue({n: len(p) for n, p in problems.items()}, shares, seed)
        self.buffer = Buffer(config["staleness"]["max_updates"])
        self.rows: list[Row] = []
        self.update = 0
        self.stop: Stop | None = None

    def run(self) -> Iterator[tuple[list[Row], list[Kept]]]:
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
        """Fill the buffer for this update's gradient steps."""
        wanted = self.config["staleness"]["steps_per_update"] * self.config["batch_groups"]
        found, draws = Update(), 0
        found.groups["stale"] = self.buffer.drop_stale(self.update)
        while len(self.buffer.groups) < wanted and self._may_draw(found, draws):
            self._draw(found, draws)
            draws += 1
        self.curriculum.observe(found.truncated_share)
        return found

    def _may_draw(self, found: Update, draws: int) -> bool:
        """Whether draws are left where they are limited, and problems not tried where not.

        Shares may keep the rest of a large specialist waiting: two passes' worth is enough.
        """
        most = self.config["draws_per_update"]
        if most is not None:
            return draws < int(most)
        problems = sum(self.queue.sizes[name] for name in self.queue.names)
        return len(found.tried) < problems and found.prompts < 2 * problems

    def _seed(self, draw: int) -> int:
        """A seed for each draw: even, since the early samples' is this one and the rest's the next.

        Draws beyond the first `SEEDS` would repeat those of the next update.
        """
        if draw < SEEDS:
            return ((self.seed * 4096 + self.update) * SEEDS + draw) * 2
        told = f"{self.seed} {self.update} {draw}".encode()
        return int.from_bytes(hashlib.sha256(told).digest()[:6]) * 2

    def _draw(self, found: Update, draw: int) -> None:
        groups = self.config["groups"]
        prompts = self.queue.take(self.config["prompts_per_update"])
        problems = [self.problems[name][index] for name, index in prompts]
        found.prompts += len(prompts)
        found.tried.update(prompts)
        seed = self._seed(draw)
        early = self._rollouts(found, problems, groups["early"], seed)
        found.early_passes += [p for group in early for p in passes(group)]
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
            self.curriculum.max_tokens, sampling["temperature"], sampling["top_p"],
            routes=self.config["replay"]["routes"],
        )  # fmt: skip
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
        rate, longest = share(passed), self.curriculum.max_tokens
        parts = [
            reward_parts(r, self.config["rewards"], longest, rate, self.curriculum.length_penalty)
            for r in rollouts
        ]
        status = "early_exit"
        if promising:
            keep = in_window(passed, tuple(self.config["groups"]["full_window"]))
            keep = keep and not rollouts[0].problem.task.get("canary")
            status = "trained" if keep else "filtered"
            if keep:
                group = make_group(rollouts, parts, self.config["std_eps"])
                self.buffer.add(self._with_routes(group))
        found.groups["kept" if status == "trained" else status] += 1
        number = sum(found.groups.values()) - found.groups["stale"] - 1
        found.kept += [
            Kept(r, p, number, s, status, canary(r))
            for s, (r, p) in enumerate(zip(rollouts, parts, strict=True))
        ]

    def _learn(self, update: Update) -> list[Row]:
        rows: list[Row] = []
        for groups in self._batches():
            rows.append(self._step(groups, update, rows))
            self.stop = decide_stop(
                self.rows + rows, self.config["stop"], self.curriculum.total_steps
            )
            if self.stop:
                break
        if not rows:
            self.stop = self._nothing_left(update)
        return rows

    def _batches(self) -> list[list[Group]]:
        """The groups of this update's steps; fewer than a batch wait, unless draws are limited."""
        size, limited = self.config["batch_groups"], self.config["draws_per_update"] is not None
        batches: list[list[Group]] = []
        while len(batches) < self.config["staleness"]["steps_per_update"] and (
            len(self.buffer.groups) >= (1 if limited else size)
        ):
            batches.append(self.buffer.take(size))
        if self.config["correction"]["type"] == "none":
            return batches
        return [[self._with_old_logprobs(group) for group in groups] for groups in batches]

    def _with_old_logprobs(self, group: Group) -> Group:
        samples = with_old_logprobs(
            self.learner.model, group.samples, self.config["micro_batch_tokens"], self._vocab(),
            self.config["sampling"]["temperature"],
        )  # fmt: skip
        return replace(group, samples=tuple(samples))

    def _vocab(self) -> int | None:
        replayed = self.config["replay"]["nucleus"]
        return self.sampler.tokenizer.vocab_size if replayed else None

    def _with_routes(self, group: Group) -> Group:
        """What an engine that tells no routes leaves out, while the weights are still its own."""
        if not self.config["replay"]["routes"]:
            return group
        samples = with_routes(
            self.learner.model, group.samples, self.config["micro_batch_tokens"], self.update
        )
        return replace(group, samples=tuple(samples))

    def _nothing_left(self, update: Update) -> Stop | None:
        """Stop after updates without a batch to learn from; their rollouts are kept.

        One is enough where it went through all problems, or where a signal halts: a policy that
        cheats everywhere passes everywhere, and leaves nothing to learn from either.
        """
        if stop := signalled(update.columns(), self.config["stop"], len(self.rows)):
            return stop
        last = int(self.rows[-1]["update"]) if self.rows else -1
        idle = IDLE_UPDATES if self.config["draws_per_update"] is not None else 1
        if self.update - last < idle:
            return None
        told = f"no group of the last {idle} updates had something to learn from"
        if idle == 1:
            told = f"{len(update.tried)} problems gave less than a batch to learn from"
        return Stop(
            "solved" if update.pass_rate > 0.5 else "plateau",
            f"{told}: pass rate {update.pass_rate:.3f}",
            len(self.rows),
        )

    def _step(self, groups: list[Group], update: Update, before: list[Row]) -> Row:
        started = time.perf_counter()
        samples = [sample for group in groups for sample in group.samples]
        tokens = int(sum(sample.drawn.sum() for sample in samples))
        objective = Objective.of(self.config, self.control.k)
        loss = PolicyLoss(objective, self.config["sampling"]["temperature"], tokens)
        batches = micro_batches(samples, self.config["micro_batch_tokens"], self._vocab())
        sums = self.learner.step(batches, loss, self.config["learning_rate"])
        row = self._row(sums, tokens, groups, update, before)
        row["seconds_learning"] = time.perf_counter() - started
        self.control.update(row["entropy"])
        self.curriculum.step()
        return row

    def _row(
        self, sums: Row, tokens: int, groups: list[Group], update: Update, before: list[Row]
    ) -> Row:
        once = float(not before)
        age = self.update - min(group.version for group in groups)
        fresh = not before and age == 0
        last = (before or self.rows or [{"mismatch": 0.0}])[-1]["mismatch"]
        return {
            "step": len(self.rows) + len(before) + 1,
            "update": self.update,
            "k": self.control.k,
            **update.columns(),
            **step_columns(sums, tokens, groups, self.rows + before),
            "mismatch": sums["mismatch"] / tokens if fresh else last,
            "max_tokens": self.curriculum.max_tokens,
            "age": age,
            "sampled_tokens": once * update.sampled_tokens,
            "seconds_sampling": once * update.seconds_sampling,
            "seconds_grading": once * update.seconds_grading,
        }
