"""On-policy distillation: the student draws, its teachers say how likely they find each token.

Each token's advantage is log p_teacher - log p_student, so that a step goes down the reverse KL
between student and teacher on what the student itself does. One student learns from several
teachers, each in the problems that it is a specialist of. A token is learnt from once, by the
weights that drew it: there is nothing to clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hillclimb.artifacts import ArtifactWriter
from hillclimb.environments.tasks import Problem
from hillclimb.environments.templates import Template, render
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl.curriculum import PromptQueue
from hillclimb.rl.groups import Sample, no_routes, sample_of
from hillclimb.rl.objective import Objective
from hillclimb.rl.policy import PolicyLoss, micro_batches, packs, with_old_logprobs
from hillclimb.rl.rollouts import Rollout, Sampler
from hillclimb.rollout.engine import SamplingParams
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.learner import Learner
from hillclimb.training.spans import Spans

Row = dict[str, float]
OBJECTIVE = Objective(low=0.0, high=float("inf"))


@dataclass(frozen=True)
class Teacher:
    """A specialist, and the template that it is prompted with."""

    model: MaiForCausalLM
    template: Template


class OnPolicyDistiller:
    """Steps on rollouts of the learner's own, with exact resume.

    Args:
        sampler: draws with the learner's weights, in the student's template.
        problems: by specialist, as `teachers` and `shares` are.
        config: the recipe's `consolidation.on_policy`.
    """

    def __init__(
        self,
        learner: Learner,
        sampler: Sampler,
        teachers: Mapping[str, Teacher],
        problems: Mapping[str, list[Problem]],
        shares: dict[str, float],
        config: dict[str, Any],
        seed: int,
    ) -> None:
        self.learner, self.sampler, self.teachers = learner, sampler, teachers
        self.problems, self.config, self.seed = problems, config, seed
        self.queue = PromptQueue({n: len(p) for n, p in problems.items()}, shares, seed)
        self.rows: list[Row] = []

    def run(self, out: ArtifactWriter) -> Iterator[Row]:
        """Train to the end from the newest checkpoint; yields each step's row."""
        self.spans, steps = Spans(out), self.config["steps"]
        with Checkpointer(out, self.learner) as checkpoints:
            if state := checkpoints.load():
                self.rows, self.queue.taken = state["rows"], dict(state["taken"])
            for step in range(len(self.rows), steps):
                with self.spans.span("step", step):
                    self.rows.append(self._step(step))
                yield self.rows[-1]
                if (step + 1) % self.config["checkpoint_every"] == 0 and step + 1 < steps:
                    with self.spans.span("checkpoint", step):
                        state = {"rows": self.rows, "taken": self.queue.taken}
                        checkpoints.save(step + 1, state)

    def _step(self, step: int) -> Row:
        rollouts = self._draw(step)
        samples = [sample for name in self.queue.names for sample in self._told(name, rollouts)]
        tokens = int(sum(sample.drawn.sum() for sample in samples))
        packed = packs(self.learner.model)
        batches = micro_batches(samples, self.config["micro_batch_tokens"], False, packed)
        loss = PolicyLoss(OBJECTIVE, 1.0, tokens)
        sums = self.learner.step(batches, loss, self.config["learning_rate"])
        return {
            "step": step + 1,
            "loss": -float(np.concatenate([s.advantage for s in samples]).mean()),
            "learned_tokens": sum(sample.length for sample in samples),
            "response_tokens": tokens / len(samples),
            "truncated_share": sum(r.truncated for r in rollouts) / len(rollouts),
            "entropy": sums["entropy"] / tokens,
            "mismatch": sums["mismatch"] / tokens,
            "grad_norm": sums["grad_norm"],
            "balance_loss": sums["balance_loss"],
        }

    def _draw(self, step: int) -> list[Rollout]:
        """The whole distribution, since that is what the teachers are compared with."""
        self.sampler.engine.load_weights(self.learner.model.state_dict(), step)
        prompts = self.queue.take(self.config["batch_prompts"])
        params = SamplingParams(self.config["max_tokens"], top_p=1.0, routes=True)
        problems = [self.problems[name][index] for name, index in prompts]
        return self.sampler.run(problems, params, self.seed * 1_000_003 + step)

    def _told(self, name: str, rollouts: list[Rollout]) -> list[Sample]:
        """The rollouts of one specialist's problems, with its opinion of every drawn token."""
        teacher, tokens = self.teachers[name], self.config["micro_batch_tokens"]
        own = [r for r in rollouts if r.problem.specialist == name]
        samples = [sample_of(rollout, 0.0) for rollout in own]
        asked = [
            replace(sample, prompt=self._prompt(rollout, teacher), routes=no_routes())
            for rollout, sample in zip(own, samples, strict=True)
        ]
        judged = with_old_logprobs(teacher.model, asked, tokens, False, 1.0)
        return [
            replace(sample, advantage=opinion.old - sample.logprobs[sample.drawn])
            for sample, opinion in zip(samples, judged, strict=True)
        ]

    def _prompt(self, rollout: Rollout, teacher: Teacher) -> np.ndarray:
        text = render(rollout.problem.question, teacher.template)
        return np.asarray(self.sampler.tokenizer.encode(text), np.int32)
