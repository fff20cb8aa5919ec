"""Filters, curriculum, queue, stop rule and buffer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.recipe.climb import StopRule
from hillclimb.rl.curriculum import LengthCurriculum, PromptQueue, in_window
from hillclimb.rl.groups import Buffer, Group, Sample
from hillclimb.rl.stop import decide_stop
from hillclimb.rollout.nuclei import Nuclei

RULE = StopRule(
    plateau_steps=4, plateau_gain=0.05, plateau_floor=0.5, max_mismatch=0.1, min_entropy=0.01
).model_dump()
CALM = {"truncated_share": 0.0, "hacked_share": 0.0, "disagreement": 0.0, "grad_norm_ratio": 1.0}


def test_the_window_is_closed():
    assert in_window([True] * 4 + [False], (0.05, 0.8))
    assert not in_window([True] * 5, (0.05, 0.8))
    assert not in_window([False] * 16, (0.05, 0.8))


def test_the_curriculum_moves_on_after_its_steps_or_at_truncation():
    rungs = [
        {"max_tokens": 8, "steps": 2, "truncated_share": 0.5, "length_penalty": True},
        {"max_tokens": 16, "steps": 2, "truncated_share": 1.0, "length_penalty": False},
    ]
    steps = LengthCurriculum(rungs)
    seen = []
    for _ in range(4):
        seen.append(steps.max_tokens)
        steps.step()
    assert seen == [8, 8, 16, 16]
    early = LengthCurriculum(rungs)
    early.observe(0.6)
    assert (early.max_tokens, early.length_penalty) == (16, False)


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_queue_goes_on_where_it_stood(first, second):
    sizes, shares = {"stem": 7, "agentic": 5}, {"stem": 0.75, "agentic": 0.25}
    whole = PromptQueue(sizes, shares, seed=3).take(first + second)
    broken = PromptQueue(sizes, shares, seed=3)
    head = broken.take(first)
    tail = PromptQueue(sizes, shares, seed=3, taken=dict(broken.taken)).take(second)
    assert head + tail == whole


def test_the_queue_keeps_the_shares_and_passes_over_every_problem():
    taken = PromptQueue({"stem": 6, "agentic": 2}, {"stem": 0.75, "agentic": 0.25}, 0).take(8)
    assert sorted(i for name, i in taken if name == "stem") == list(range(6))
    assert sorted(i for name, i in taken if name == "agentic") == [0, 1]


def rows(*rates: float, entropy: float = 0.3, mismatch: float = 0.0):
    return [{**CALM, "pass_rate": r, "entropy": entropy, "mismatch": mismatch} for r in rates]


def test_a_plateau_stops_the_climb_only_over_its_floor():
    assert decide_stop(rows(0.2, 0.2, 0.2, 0.2), RULE, 99) is None
    stop = decide_stop(rows(0.9, 0.9, 0.9, 0.91), RULE, 99)
    assert stop is not None
    assert stop.reason == "plateau"
    assert decide_stop(rows(0.6, 0.6, 0.9, 0.9), RULE, 99) is None


def test_mismatch_entropy_and_the_end_have_their_own_reasons():
    reasons = [
        decide_stop(rows(0.5, mismatch=0.2), RULE, 99),
        decide_stop(rows(0.5, entropy=0.001), RULE, 99),
        decide_stop(rows(0.5), RULE, 1),
    ]
    assert [stop.reason for stop in reasons if stop] == ["mismatch", "entropy", "steps"]


def group(version: int) -> Group:
    sample = Sample(
        np.array([1, 2], np.int32),
        np.array([3, 4, 5], np.int32),
        np.array([True, False, True]),
        np.array([-0.5, 0.0, -0.25], np.float32),
        Nuclei(np.array([2, 0, 1], np.int32), np.array([3, 7, 5], np.int32)),
        0.5,
    )
    return Group((sample, sample), version, 0.5)


def test_old_groups_are_dropped_and_counted():
    buffer = Buffer(max_updates=2)
    for version in (0, 1, 2, 3):
        buffer.add(group(version))
    assert buffer.drop_stale(version=4) == 2
    assert [g.version for g in buffer.take(9)] == [2, 3]


def test_a_buffer_comes_back_as_it_was():
    buffer = Buffer(max_updates=8, groups=[group(3), group(4)])
    arrays, meta = buffer.state()
    again = Buffer.restore(8, arrays, meta)
    assert [g.version for g in again.groups] == [3, 4]
    before, after = buffer.groups[1].samples[0], again.groups[1].samples[0]
    assert before.nucleus == after.nucleus
    for name in ("prompt", "tokens", "drawn", "logprobs"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert after.advantage == before.advantage
