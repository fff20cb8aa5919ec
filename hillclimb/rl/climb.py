"""One climb: sample, grade, filter, learn, until the stop rule speaks (report §3.1, §3.6).

The loop here is the learner's: it takes batches of groups from a source, steps, and publishes
weights. The source draws in turns with it (`turns.py`), or runs ahead of it (`ahead.py`). A group
may wait in the buffer, and is dropped when it is too old. Everything that decides the future is in
`state`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hillclimb.rl.ahead import Ahead
from hillclimb.rl.apart import Apart
from hillclimb.rl.curriculum import LengthCurriculum, PromptQueue
from hillclimb.rl.grading import Graders
from hillclimb.rl.groups import Buffer, Group, Sample
from hillclimb.rl.learned import Learned, learned_from
from hillclimb.rl.metrics import Kept, Row, Update, age_columns, step_columns
from hillclimb.rl.objective import EntropyControl, Objective
from hillclimb.rl.policy import PolicyLoss, micro_batches, packs, with_old_logprobs, with_routes
from hillclimb.rl.rollouts import Sampler
from hillclimb.rl.stop import Stop, decide_stop, signalled
from hillclimb.rl.turns import Problems, Source, Turns
from hillclimb.rl.workers import ProblemWorker
from hillclimb.training.learner import Learner

IDLE_UPDATES = 3
GAP_SAMPLES = 16


class Climb:
    """A climb in progress."""

    def __init__(
        self,
        config: dict[str, Any],
        learner: Learner,
        sampler: Sampler,
        graders: Graders,
        problems: Problems,
        shares: dict[str, float],
        seed: int,
    ) -> None:
        self.config, self.learner, self.sampler = config, learner, sampler
        self.control = EntropyControl.of(config["entropy"])
        self.curriculum = LengthCurriculum(list(config["lengths"]))
        self.queue = PromptQueue({n: len(p) for n, p in problems.items()}, shares, seed)
        self.buffer = Buffer(config["staleness"]["max_updates"])
        self.source: Source = self._source(graders, problems, seed)
        self.rows: list[Row] = []
        self.learned: list[Learned] = []
        self.update = 0
        self.stop: Stop | None = None
        self._waited = 0.0

    def _source(self, graders: Graders, problems: Problems, seed: int) -> Source:
        """In turns, or ahead with episodes that each go on by themselves."""
        config, sampler = self.config, self.sampler
        if not config["staleness"]["ahead"]:
            worker = ProblemWorker(config, sampler, graders, self.curriculum)
            return Turns(config, worker, self.queue, self.buffer, problems, seed)
        apart = Apart(sampler)
        worker = ProblemWorker(config, apart, graders, self.curriculum)
        return Ahead(config, worker, self.queue, self.buffer, problems, seed, apart)

    def run(self) -> Generator[tuple[list[Row], list[Kept]], None, None]:
        """One weight update at a time: the new rows of metrics, and all rollouts drawn for them.

        Leave it with `close` or to its end: generation that runs ahead stops with it.
        """
        try:
            while self.stop is None:
                started = time.perf_counter()
                self.sampler.engine.load_weights(self.learner.model.state_dict(), self.update)
                update = self._begin()
                rows = self._learn(update)
                self._account(rows, update, time.perf_counter() - started)
                self.rows += rows
                self.update += 1
                if self.stop is not None:
                    self.source.close()
                yield rows, update.kept
        finally:
            self.source.close()

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON and arrays that decide the future, weights and optimiser apart.

        Between two updates: what the source has not handed over by then, it draws again.
        """
        arrays, meta = self.buffer.state()
        return {
            "rows": self.rows,
            "update": self.update,
            "k": self.control.k,
            "rung": self.curriculum.rung,
            "rung_steps": self.curriculum.steps,
            "buffer": meta,
            **self.source.state(),
        }, arrays

    def restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self.rows, self.update = state["rows"], state["update"]
        self.control.k = state["k"]
        self.curriculum.rung, self.curriculum.steps = state["rung"], state["rung_steps"]
        self.buffer.groups = Buffer.restore(self.buffer.max_updates, arrays, state["buffer"]).groups
        self.source.restore(state)

    def _begin(self) -> Update:
        started = time.perf_counter()
        found = self.source.begin(self.update)
        self._waited = time.perf_counter() - started
        self.curriculum.observe(found.truncated_share)
        if self.config["replay"]["routes"]:
            self.buffer.groups = [self._with_routes(group) for group in self.buffer.groups]
        return found

    def _with_routes(self, group: Group) -> Group:
        """What an engine that tells no routes leaves out, while the weights are still its own."""
        tokens = self.config["micro_batch_tokens"]
        samples = with_routes(self.learner.model, group.samples, tokens, self.update)
        return replace(group, samples=tuple(samples))

    def _learn(self, update: Update) -> list[Row]:
        rows: list[Row] = []
        self.learned = []
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

    def _batches(self) -> Iterator[list[Group]]:
        """The groups of each step; waiting for them is counted."""
        batches = self.source.batches(self._with_old_logprobs)
        while True:
            started = time.perf_counter()
            groups = next(batches, None)
            self._waited += time.perf_counter() - started
            if groups is None:
                return
            yield groups

    def _with_old_logprobs(self, groups: list[Group]) -> list[Group]:
        """With the old policy's log-probabilities, where the recipe corrects the engine's."""
        if self.config["correction"]["type"] == "none":
            return groups
        return [replace(group, samples=tuple(self._old(group.samples))) for group in groups]

    def _old(self, samples: Sequence[Sample]) -> list[Sample]:
        return with_old_logprobs(
            self.learner.model, samples, self.config["micro_batch_tokens"],
            self.config["replay"]["nucleus"], self.config["sampling"]["temperature"],
        )  # fmt: skip

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
        gap = self._gap(samples) if not before else None
        objective = Objective.of(self.config, self.control.k)
        loss = PolicyLoss(objective, self.config["sampling"]["temperature"], tokens)
        batches = micro_batches(
            samples,
            self.config["micro_batch_tokens"],
            self.config["replay"]["nucleus"],
            packs(self.learner.model),
        )
        sums = self.learner.step(batches, loss, self.config["learning_rate"])
        self.learned += learned_from(groups, loss.seen, batches, self.update, len(before))
        row = self._row(sums, tokens, groups, update, before)
        row["mismatch"] = row["mismatch"] if gap is None else gap
        row["seconds_learning"] = time.perf_counter() - started
        self.control.update(row["entropy"])
        self.curriculum.step()
        return row

    def _row(
        self, sums: Row, tokens: int, groups: list[Group], update: Update, before: list[Row]
    ) -> Row:
        ages = age_columns(groups, self.update)
        fresh = not before and ages["age"] == 0
        last = (before or self.rows or [{"mismatch": 0.0}])[-1]["mismatch"]
        return {
            "step": len(self.rows) + len(before) + 1,
            "update": self.update,
            "k": self.control.k,
            **update.columns(),
            **step_columns(sums, tokens, groups, self.rows + before),
            "mismatch": sums["mismatch"] / tokens if fresh else last,
            "max_tokens": self.curriculum.max_tokens,
            **ages,
            **update.untold(),
        }

    def _gap(self, samples: list[Sample]) -> float | None:
        """The mean |log-probability gap| of tokens that the learner's present weights drew.

        For a batch that is not all of them: few samples tell. None where there are no such tokens,
        or the step itself tells.
        """
        fresh = [sample.versions == self.update for sample in samples]
        if all(each.all() for each in fresh):
            return None
        chosen = [s for s, each in zip(samples, fresh, strict=True) if each[s.drawn].any()]
        gaps = [
            np.abs(sample.old - sample.logprobs[sample.drawn])[
                (sample.versions == self.update)[sample.drawn]
            ]
            for sample in self._old(chosen[:GAP_SAMPLES])
            if sample.old is not None
        ]
        return float(np.concatenate(gaps).mean()) if gaps else None

    def _account(self, rows: list[Row], update: Update, seconds: float) -> None:
        """The columns of throughput and waiting, which all rows of an update share."""
        learned = sum(row["learned_tokens"] for row in rows)
        columns = {
            "seconds": seconds,
            "sampled_per_second": update.sampled_tokens / seconds,
            "learned_per_second": learned / seconds,
            "learner_waited": self._waited / seconds,
            "generation_waited": self.source.stood_still(),
        }
        for row in rows:
            row |= columns
