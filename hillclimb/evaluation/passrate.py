"""pass@1 of a model on problems, sampled and greedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hillclimb.environments.tasks import Problem
from hillclimb.rl.grading import Graders
from hillclimb.rl.rollouts import Rollout, Sampler
from hillclimb.rollout.engine import SamplingParams


@dataclass(frozen=True)
class Score:
    """Mean task reward of graded answers.

    Attributes:
        pass_at_1: over all sampled answers; greedy: over greedy ones.
        n: problems; ungraded: answers that could not be graded and do not count.
    """

    pass_at_1: float
    greedy: float
    n: int
    ungraded: int


def score_model(
    sampler: Sampler,
    graders: Graders,
    problems: Sequence[Problem],
    params: SamplingParams,
    samples: int,
    seed: int,
) -> tuple[Score, list[tuple[str, Rollout]]]:
    """Answer every problem `samples` times by sampling and once greedily.

    Returns:
        The score, and all answers with their mode (`sampled` or `greedy`).
    """
    sampled = sampler.run([p for p in problems for _ in range(samples)], params, seed)
    greedy = sampler.run(list(problems), replace(params, greedy=True), seed)
    graders.grade(sampled)
    graders.grade(greedy)
    missing = sum(r.graded is None or r.graded.score is None for r in [*sampled, *greedy])
    score = Score(_mean(sampled), _mean(greedy), len(problems), missing)
    return score, [("sampled", r) for r in sampled] + [("greedy", r) for r in greedy]


def _mean(rollouts: list[Rollout]) -> float:
    scores = [r.graded.score for r in rollouts if r.graded and r.graded.score is not None]
    return sum(scores) / len(scores) if scores else 0.0
