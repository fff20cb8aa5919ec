"""A climb over an engine that says what it is told to: what becomes of its answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from climb_support import (
    BOXED,
    EASY,
    HANGS,
    HARD,
    MIXED,
    RIGHT,
    WRONG,
    Parrot,
    climbed,
    make_climb,
    make_learner,
    make_tokenizer,
    pool,
)

from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.rl.alarms import alarms
from hillclimb.rl.grading import Graders
from hillclimb.rl.turns import Turns
from hillclimb.training import runtime
from hillclimb.training.learner import Learner


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def ranks() -> Iterator[None]:
    """DeepSpeed's process group, which a process can have once."""
    runtime.start()
    yield
    runtime.stop()


@pytest.fixture
def learner(tokenizer: TextTokenizer) -> Learner:
    return make_learner(tokenizer)


@pytest.fixture(scope="module")
def first_norm(tokenizer: TextTokenizer) -> float:
    """The gradient norm of the report's first step."""
    climb, _ = climbed(make_learner(tokenizer), tokenizer, {"0": MIXED})
    return climb.rows[0]["grad_norm"]


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


def test_an_update_that_draws_nothing_repeats_what_the_last_rollouts_told(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    choices = {**STEPS, "prompts_per_update": 4, "stop": {"max_mismatch": 1.0}}
    parrot = Parrot(learner.model, tokenizer, pool(*range(12)))
    with Graders() as graders:
        climb, again = (make_climb(learner, parrot, graders, {}, **choices) for _ in range(2))
        updates = climb.run()
        next(updates)
        again.restore(*climb.state())
        for going_on in (updates, again.run()):
            (row,), kept = next(going_on)
            assert not kept
            assert row["sampled_tokens"] == 0
            assert (row["pass_rate"], row["reward_task"]) == (0.5, 0.5)
            assert row["response_tokens"] > 0


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
        {"replay": {"nucleus": False}},
        {"replay": {"routes": False}},
        {"correction": {"type": "truncated", "cap": 1.5}},
        {"clips": {"type": "fixed"}, "entropy": None, "ratio": "sequence",
         "replay": {"nucleus": False, "routes": False}, "correction": {"type": "truncated"}},
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
    assert climb.rows[0]["routed_share"] == choices.get("replay", {}).get("routes", True)
