"""From graded rollouts to samples with advantages, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hillclimb.environments.episodes import Ending
from hillclimb.environments.tasks import Problem
from hillclimb.recipe.climb import RewardWeights
from hillclimb.rewards.graded import Graded
from hillclimb.rl.groups import make_group, passes, reward_parts
from hillclimb.rl.rollouts import Rollout
from hillclimb.rollout.nuclei import Nuclei

WEIGHTS = RewardWeights(language=0.5, language_alpha=0.1, length=0.25).model_dump()


def rollout(score: float | None, response: str, drawn: int = 4) -> Rollout:
    """An answer of so many drawn tokens and one of an observation."""
    made = Rollout(
        Problem("p", "stem", "k", "k", "q", {"grader": "math"}), [1, 2],
        tokens=[*range(drawn), 9], drawn=[True] * drawn + [False],
        logprobs=[np.full(drawn, -0.5, np.float32), np.zeros(1, np.float32)],
        nucleus=[Nuclei.free(drawn + 1)],
        versions=[np.full(drawn + 1, 3, np.int32)],
        ending=Ending(response, response), graded=Graded(score),
    )  # fmt: skip
    made.version = 3
    return made


def test_a_reward_has_three_parts() -> None:
    english = reward_parts(rollout(1.0, "so</think><answer>5</answer>"), WEIGHTS, 16, 0.5, True)
    assert english is not None
    assert (english.task, english.language) == (1.0, 1.0)
    assert english.length == pytest.approx(0.5 * 4 / 16)
    assert english.total == pytest.approx(1 + 0.5 - 0.25 * 0.125)
    mixed = reward_parts(
        rollout(0.0, "因为</think><answer>ответ</answer>"), WEIGHTS, 16, 0.5, False
    )
    assert mixed is not None
    assert mixed.language == pytest.approx(0.8), "two words of the thought; the answer is free"
    assert mixed.total == pytest.approx(0.4)
    assert reward_parts(rollout(None, "so"), WEIGHTS, 16, 0.5, True) is None


def test_what_could_not_be_graded_is_left_out_of_its_group() -> None:
    texts = [(1.0, "a</think>"), (None, "b</think>"), (0.0, "c</think>"), (1.0, "d</think>")]
    rollouts = [rollout(score, text) for score, text in texts]
    assert passes(rollouts) == [True, False, True]
    parts = [reward_parts(r, WEIGHTS, 16, 2 / 3, True) for r in rollouts]
    group = make_group(rollouts, parts, std_eps=0.0)
    assert len(group.samples) == 3
    assert (group.version, group.pass_rate) == (3, pytest.approx(2 / 3))
    found = [sample.advantage for sample in group.samples]
    assert found == pytest.approx([0.5**0.5, -(2**0.5), 0.5**0.5])
    assert group.samples[0].length == 7
    assert group.samples[0].logprobs.tolist() == [-0.5] * 4 + [0.0]
