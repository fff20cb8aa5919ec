"""A climb over an engine that says what it is told to: what becomes of its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hillclimb.environments.sandbox import BubblewrapProvider
from hillclimb.environments.tasks import Problem
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.recipe.climb import ClimbRecipe
from hillclimb.rl.alarms import alarms
from hillclimb.rl.climb import Climb
from hillclimb.rl.grading import Graders
from hillclimb.rl.metrics import Kept
from hillclimb.rl.rollouts import Sampler
from hillclimb.rl.turns import Turns
from hillclimb.rollout.engine import Completion, SamplingParams
from hillclimb.training import runtime
from hillclimb.training.learner import Learner

RIGHT, WRONG, HANGS = "<answer>5/7</answer>", "<answer>1/7</answer>", "<answer>999999999!</answer>"
BOXED = r"\boxed{5/7}"
RECIPE = {
    "groups": {"early": 4, "full": 8},
    "lengths": [{"max_tokens": 64, "steps": 1}],
    "batch_groups": 1,
    "prompts_per_update": 1,
    "staleness": {"steps_per_update": 1},
    "micro_batch_tokens": 4096,
    "stop": {"max_mismatch": 1e-4},
}


class Parrot:
    """Says the texts that a question asks for in turn, with the model's log-probabilities."""

    def __init__(
        self, model: MaiForCausalLM, tokenizer: TextTokenizer, says: dict[str, list[str]]
    ) -> None:
        self.model, self.tokenizer, self.says, self.version = model, tokenizer, says, 0

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        self.version = version

    def interrupt(self) -> None:
        """An answer is never under way for long."""

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        asked: Counter[str] = Counter()
        done = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt)
            question = next(q for q in self.says if f"what {q}\n" in text)
            done.append(self._say(prompt, self.says[question], asked[question]))
            asked[question] += 1
        return done

    @torch.no_grad()
    def _say(self, prompt: list[int], texts: list[str], turn: int) -> Completion:
        said = self.tokenizer.encode(f"</think>{texts[turn % len(texts)]}")
        logits = self.model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        chances = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0]
        every = np.packbits(np.ones((len(said), logits.shape[1]), bool), axis=-1)
        return Completion(said, chances.numpy(), every, "stop", self.version)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(["what f(x) 0123456789/! boxed{}\\"], 300))


@pytest.fixture(scope="module", autouse=True)
def ranks() -> Iterator[None]:
    """DeepSpeed's process group, which a process can have once."""
    runtime.start()
    yield
    runtime.stop()


def make_learner(tokenizer: TextTokenizer) -> Learner:
    """Always the same untrained model."""
    config = MaiConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, dense_ffn_size=64, latent_size=16,
        expert_ffn_size=32, num_experts=4, head_dim=8,
    )  # fmt: skip
    optimizer = ClimbRecipe.model_validate(RECIPE).optimizer.model_dump()
    return Learner(MaiForCausalLM(config).initialise(0), optimizer, 2, 0.0)


@pytest.fixture
def learner(tokenizer: TextTokenizer) -> Learner:
    return make_learner(tokenizer)


@pytest.fixture(scope="module")
def first_norm(tokenizer: TextTokenizer) -> float:
    """The gradient norm of the report's first step."""
    climb, _ = climbed(make_learner(tokenizer), tokenizer, {"0": MIXED})
    return climb.rows[0]["grad_norm"]


def climbed(
    learner: Learner, tokenizer: TextTokenizer, says: dict[str, list[str]],
    task: dict[str, Any] | None = None, **choices: Any,
) -> tuple[Climb, list[list[Kept]]]:  # fmt: skip
    """A climb that has ended, and the rollouts of its updates."""
    config = ClimbRecipe.model_validate({**RECIPE, **choices}).model_dump(mode="json")
    problems = [
        Problem(q, "stem", "fraction", q, f"what {q}",
                {"grader": "math", "answer": "5/7", **(task or {})})
        for q in says
    ]  # fmt: skip
    sampler = Sampler(
        Parrot(learner.model, tokenizer, says), tokenizer, "zero", BubblewrapProvider()
    )
    with Graders() as graders:
        climb = Climb(config, learner, sampler, graders, {"stem": problems}, {"stem": 1.0}, 0)
        return climb, [kept for _, kept in climb.run()]


def test_an_answer_that_hangs_its_grader_is_ungraded_and_the_climb_goes_on(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    before = learner.model.embed.weight.detach().clone()
    climb, (kept,) = climbed(learner, tokenizer, {"0": [RIGHT, WRONG, HANGS, WRONG]})
    (row,) = climb.rows
    assert row["ungraded"] == 2
    assert [k.parts.task if k.parts else None for k in kept] == [1.0, 0.0, None, 0.0] * 2
    assert row["pass_rate"] == pytest.approx(1 / 3)
    assert row["reward_task"] == pytest.approx(2 / 6)
    assert climb.stop is not None
    assert climb.stop.reason == "steps"
    assert not torch.equal(before, learner.model.embed.weight)


MIXED, EASY, HARD = [RIGHT, WRONG], [RIGHT], [WRONG]


def test_only_promising_problems_are_sampled_in_full(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    says = {"0": EASY, "1": MIXED, "2": HARD, "3": [RIGHT, RIGHT, RIGHT, WRONG, *[RIGHT] * 4]}
    climb, (kept,) = climbed(learner, tokenizer, says, prompts_per_update=4)
    found = {q: [k for k in kept if k.rollout.problem.id == q] for q in says}
    assert {q: (len(ks), ks[0].status) for q, ks in found.items()} == {
        "0": (4, "early_exit"),
        "1": (8, "trained"),
        "2": (4, "early_exit"),
        "3": (8, "trained"),  # 6 of 8: the full samples begin anew
    }
    assert climb.rows[0]["pass_rate"] == pytest.approx((4 + 2 + 0 + 3) / 16)
    assert climb.rows[0]["groups_early_exit"] == 2


def test_a_full_group_outside_its_window_is_filtered(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    says = {"0": [RIGHT, WRONG, WRONG, WRONG], "1": MIXED}
    groups = {"early": 4, "full": 8, "full_window": [0.4, 0.6]}
    climb, (kept,) = climbed(learner, tokenizer, says, groups=groups, prompts_per_update=2)
    fates = {k.rollout.problem.id: k.status for k in kept}
    assert fates == {"0": "filtered", "1": "trained"}
    assert climb.rows[0]["groups_filtered"] == 1


def pool(*mixed: int, size: int = 12) -> dict[str, list[str]]:
    """Problems, of which these can be learnt from."""
    return {f"{q}x": MIXED if q in mixed else EASY for q in range(size)}


STEPS = {"lengths": [{"max_tokens": 64, "steps": 5}], "batch_groups": 2}


def test_no_step_is_made_with_less_than_a_batch_while_prompts_remain(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    climb, updates = climbed(learner, tokenizer, pool(1, 4, 9), **STEPS)
    assert [row["groups_learned"] for row in climb.rows] == [2] * 5
    assert max(len({k.group for k in kept}) for kept in updates) > 4, "more draws than four"


def test_a_pass_without_a_batch_ends_the_climb(learner: Learner, tokenizer: TextTokenizer) -> None:
    climb, updates = climbed(learner, tokenizer, pool(1), **STEPS)
    assert climb.rows == []
    assert len(updates) == 1
    assert len({k.rollout.problem.id for k in updates[0]}) == 12
    assert len(climb.buffer.groups) == 1
    assert climb.stop is not None
    assert climb.stop.reason == "solved"
    assert "12 problems gave less than a batch" in climb.stop.sentence


def test_limited_draws_learn_from_what_there_is(learner: Learner, tokenizer: TextTokenizer) -> None:
    climb, updates = climbed(learner, tokenizer, pool(1, 4, 9), draws_per_update=4, **STEPS)
    assert min(row["groups_learned"] for row in climb.rows) == 1
    assert max(len({k.group for k in kept}) for kept in updates) == 4


def test_draws_of_all_updates_have_seeds_of_their_own(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    climb, _ = climbed(learner, tokenizer, {"0": MIXED})
    seeds = []
    turns = climb.source
    assert isinstance(turns, Turns)
    for turns.version in range(50):
        seeds += [turns._seed(draw) + second for draw in range(20) for second in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) * 64 < 2**62


def test_the_controller_follows_the_entropy_or_is_left_out(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    says, steps = {"0": MIXED}, [{"max_tokens": 64, "steps": 4}]
    high = {"target": 50.0, "delta": 0.25, "k_max": 0.6}
    climb, _ = climbed(learner, tokenizer, says, entropy=high, lengths=steps)
    assert [row["k"] for row in climb.rows] == [0.0, 0.25, 0.5, 0.6]
    climb, _ = climbed(learner, tokenizer, says, entropy=None, lengths=steps)
    assert [row["k"] for row in climb.rows] == [0.0] * 4


def test_the_lengths_change_with_the_rung_and_so_does_their_penalty(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    lengths = [
        {"max_tokens": 64, "steps": 2},
        {"max_tokens": 128, "steps": 2, "length_penalty": False},
    ]
    climb, updates = climbed(learner, tokenizer, {"0": MIXED}, lengths=lengths)
    assert [row["max_tokens"] for row in climb.rows] == [64, 64, 128, 128]
    first, last = updates[0][0], updates[-1][0]
    assert first.parts is not None
    assert last.parts is not None
    length = 0.5 * first.rollout.drawn_tokens / 64  # half of the group passes
    assert first.parts.length == pytest.approx(length)
    assert first.parts.total == pytest.approx(1 + 0.5 - 0.25 * length)
    assert last.parts.total == pytest.approx(1.5)


def test_rewards_from_outside_the_tags_halt_the_climb(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    steps = [{"max_tokens": 64, "steps": 4}]
    climb, (kept, *_) = climbed(learner, tokenizer, {"0": [BOXED, WRONG]}, lengths=steps)
    assert [k.canary for k in kept[:2]] == ["answer accepted outside its tags: no <answer>", ""]
    assert climb.rows[-1]["hacked_share"] == 0.5
    assert climb.stop is not None
    assert (climb.stop.reason, climb.stop.step) == ("reward_hack", 1)
    assert "50.0%, over 5.0%" in climb.stop.sentence


def test_a_policy_that_cheats_everywhere_has_not_solved_its_problems(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    for draws in (None, 4):
        climb, updates = climbed(learner, tokenizer, {"0": [BOXED]}, draws_per_update=draws)
        assert len(updates) == 1
        assert climb.stop is not None
        assert climb.stop.reason == "reward_hack"


def test_what_only_cheating_wins_is_counted_and_never_learnt(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    climb, updates = climbed(learner, tokenizer, {"0": MIXED}, task={"canary": True})
    assert climb.rows == []
    assert climb.stop is not None
    assert climb.stop.reason == "reward_hack"
    hack = next(a for a in alarms([], climb.config["stop"], climb.stop) if a["steps"])
    assert (hack["signal"], hack["first"]) == ("reward_hack", 1)
    assert "50.0%, over 5.0%" in hack["sentence"]
    assert {k.status for k in updates[0]} == {"filtered"}
    assert [k.canary for k in updates[0][:2]] == ["won what only cheating wins", ""]


@pytest.mark.parametrize(
    "choices",
    [
        {"clips": {"type": "fixed"}, "entropy": None},
        {"clips": {"type": "adaptive", "outer": None}},
        {"ratio": "sequence"},
        {"replay": "none"},
        {"correction": {"type": "truncated", "cap": 1.5}},
        {"clips": {"type": "fixed"}, "entropy": None, "ratio": "sequence", "replay": "none",
         "correction": {"type": "truncated"}},
    ],
)  # fmt: skip
def test_every_choice_climbs(
    learner: Learner, tokenizer: TextTokenizer, choices: dict[str, Any], first_norm: float
) -> None:
    """At the first step all ratios are one: whatever is chosen, it is the report's step."""
    climb, _ = climbed(learner, tokenizer, {"0": MIXED}, learning_rate=1e-4, **choices)
    assert climb.stop is not None
    assert climb.stop.reason == "steps"
    assert climb.rows[0]["grad_norm"] == pytest.approx(first_norm, rel=1e-4)
    assert climb.rows[0]["mismatch"] < 1e-5
