"""The objective against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hillclimb.recipe.climb import ClimbRecipe
from hillclimb.rl.objective import (
    DrawnTokens,
    EntropyControl,
    Objective,
    advantages,
    policy_objective,
)

REPORT = Objective(0.4, 2.5, 50.0)
TOKENS = {"lengths": [{"max_tokens": 8, "steps": 1}], "batch_groups": 1, "prompts_per_update": 1,
          "micro_batch_tokens": 64}  # fmt: skip


def drawn(old: Tensor, advantage: Tensor, engine: Tensor | None = None, rows: Any = None):
    """Tokens of one sequence, unless `rows` says otherwise."""
    where = torch.zeros(len(old), dtype=torch.long) if rows is None else torch.tensor(rows)
    return DrawnTokens(
        old if engine is None else engine, old, advantage, where, int(where.max()) + 1
    )


def one(ratio: float, advantage: float, objective: Objective = REPORT):
    """Value, gradient and sums of one token."""
    values, grads, sums = many([ratio], [advantage], objective)
    return values[0], grads[0], sums


def many(
    ratios: list[float], advantage: list[float], objective: Objective,
    weights: list[float] | None = None, rows: list[int] | None = None,
):  # fmt: skip
    """Values, gradients by log pi, and sums; `weights` are pi_old / pi_engine."""
    old = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    engine = old - torch.tensor(weights or [1.0] * len(ratios), dtype=torch.float64).log()
    new = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    tokens = drawn(old, torch.tensor(advantage, dtype=torch.float64), engine, rows)
    value, sums = policy_objective(new, tokens, objective)
    value.sum().backward()
    assert new.grad is not None
    return value.tolist(), new.grad.tolist(), {key: float(total) for key, total in sums.items()}


def test_advantages_of_a_small_group():
    found = advantages(torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), std_eps=0.0)
    assert found.tolist() == [1.0, -1.0, -1.0, 1.0]


def test_equal_rewards_have_no_advantage():
    assert advantages(torch.full((8,), 0.7, dtype=torch.float64)).abs().max() < 1e-9


def test_inside_the_trust_region_the_gradient_is_the_ratio_times_the_advantage():
    value, grad, sums = one(1.5, 2.0)
    assert value == pytest.approx(3.0)
    assert grad == pytest.approx(3.0)
    assert sums["trust_clipped"] == 0


def test_a_good_token_over_the_upper_bound_stops_at_it():
    value, grad, sums = one(3.0, 1.0)
    assert value == pytest.approx(2.5)  # 1 / (1 - 0.6)
    assert grad == 0.0
    assert sums["trust_clipped"] == 1


def climb(**choices: Any) -> dict[str, Any]:
    """A climb's config with other choices than the report's."""
    return ClimbRecipe.model_validate({**TOKENS, **choices}).model_dump(mode="json")


def test_the_report_s_objective_is_the_default_and_k_widens_its_upper_bound():
    default = Objective.of(climb(), k=0.0)
    assert (default.low, default.high, default.outer) == (0.4, pytest.approx(2.5), 50.0)
    assert (default.ratio, default.cap) == ("token", None)
    value, grad, _ = one(3.0, 1.0, Objective.of(climb(), k=1.0))
    assert value == pytest.approx(3.0)
    assert grad == pytest.approx(3.0)


def test_a_bad_token_under_the_lower_bound_stops_at_it():
    value, grad, _ = one(0.2, -1.0)
    assert value == pytest.approx(-0.4)
    assert grad == 0.0


def test_a_bad_token_over_the_trust_region_still_learns_up_to_the_outer_clip():
    value, grad, _ = one(20.0, -1.0)
    assert (value, grad) == (pytest.approx(-20.0), pytest.approx(-20.0))
    value, grad, sums = one(80.0, -1.0)
    assert value == pytest.approx(-50.0)
    assert grad == 0.0
    assert sums["outer_clipped"] == 1


def test_without_an_outer_clip_a_bad_token_learns_at_any_ratio():
    free = Objective.of(climb(clips={"type": "adaptive", "outer": None}), k=0.0)
    value, grad, sums = one(80.0, -1.0, free)
    assert (value, grad) == (pytest.approx(-80.0), pytest.approx(-80.0))
    assert sums["outer_clipped"] == 0


def test_clip_higher_has_its_own_two_bounds_whatever_k_is():
    clips = {"type": "fixed", "low": 0.2, "high": 0.28}
    objective = Objective.of(climb(clips=clips, entropy=None), k=2.0)
    assert one(1.27, 1.0, objective)[:2] == (pytest.approx(1.27), pytest.approx(1.27))
    assert one(1.29, 1.0, objective)[:2] == (pytest.approx(1.28), 0.0)
    assert one(0.81, -1.0, objective)[:2] == (pytest.approx(-0.81), pytest.approx(-0.81))
    assert one(0.79, -1.0, objective)[:2] == (pytest.approx(-0.8), 0.0)


def test_a_sequence_s_ratio_is_the_geometric_mean_of_its_tokens():
    objective = Objective.of(climb(ratio="sequence"), k=0.0)
    # Ratios 4 and 1 of the first sequence have the mean 2; the second has one token.
    values, grads, _ = many([4.0, 1.0, 0.5], [1.0, 1.0, -1.0], objective, rows=[0, 0, 1])
    assert values == pytest.approx([2.0, 2.0, -0.5])
    assert grads == pytest.approx([2.0, 2.0, -0.5])


def test_a_sequence_is_clipped_as_one():
    objective = Objective.of(climb(ratio="sequence"), k=0.0)
    values, grads, sums = many([16.0, 1.0], [1.0, 1.0], objective)  # the mean 4 is over 2.5
    assert values == pytest.approx([2.5, 2.5])
    assert grads == [0.0, 0.0]
    assert sums["trust_clipped"] == 2


def test_the_engine_s_error_is_weighted_away_up_to_the_cap():
    correction = {"type": "truncated", "cap": 2.0}
    objective = Objective.of(climb(correction=correction), k=0.0)
    values, grads, sums = many([1.5, 1.5, 1.5], [1.0] * 3, objective, weights=[0.5, 1.25, 8.0])
    assert values == pytest.approx([0.75, 1.875, 3.0])
    assert grads == pytest.approx([0.75, 1.875, 3.0])
    assert sums["weight_capped"] == 1
    assert sums["mismatch"] == pytest.approx(sum(abs(math.log(1.5 * w)) for w in (0.5, 1.25, 8)))


def test_entropy_is_weighted_by_the_ratio_to_the_policy_that_drew():
    _, _, sums = one(2.0, 1.0)
    assert sums["entropy"] == pytest.approx(-(-1.0 + math.log(2.0)) * 2.0)
    _, _, sums = many([2.0], [1.0], Objective(0.4, 2.5, cap=2.0), weights=[3.0])
    assert sums["entropy"] == pytest.approx(-(-1.0 + math.log(2.0)) * 2.0 * 3.0)


def test_the_controller_moves_by_delta_and_stays_in_its_range():
    control = EntropyControl(target=0.3, delta=0.25, k_max=0.5)
    assert [control.update(h) for h in (0.1, 0.1, 0.1, 0.3, 0.9, 0.9, 0.9)] == [
        0.25, 0.5, 0.5, 0.5, 0.25, 0.0, 0.0,
    ]  # fmt: skip
    none = EntropyControl.of(climb(entropy=None)["entropy"])
    assert [none.update(h) for h in (0.0, 0.1, 9.0)] == [0.0, 0.0, 0.0]


VARIANTS = st.builds(
    Objective,
    low=st.floats(0.0, 0.9),
    high=st.floats(1.1, 6.0),
    outer=st.sampled_from([8.0, 50.0, math.inf]),
    ratio=st.sampled_from(["token", "sequence"]),
    cap=st.sampled_from([None, 0.5, 2.0]),
)
BATCHES = st.lists(
    st.tuples(
        st.floats(0.05, 60.0), st.floats(-3, 3), st.floats(0.1, 10.0), st.integers(0, 2)
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


@given(VARIANTS, BATCHES)
def test_the_objective_never_exceeds_the_unclipped_one(variant: Objective, batch: Any):
    ratios, advantage, weights, rows = (list(column) for column in zip(*batch, strict=True))
    free = Objective(0.0, math.inf, math.inf, variant.ratio, variant.cap)
    clipped = many(ratios, advantage, variant, weights, rows)[0]
    unclipped = many(ratios, advantage, free, weights, rows)[0]
    if variant.outer == math.inf:
        assert all(a <= b + 1e-9 for a, b in zip(clipped, unclipped, strict=True))
    assert all(
        a <= b + 1e-9 for a, b, s in zip(clipped, unclipped, advantage, strict=True) if s > 0
    )


@given(VARIANTS, BATCHES)
def test_a_token_s_gradient_is_its_level_times_its_advantage_or_nothing(
    variant: Objective, batch: Any
):
    ratios, advantage, weights, rows = (list(column) for column in zip(*batch, strict=True))
    if variant.ratio == "sequence":  # one advantage a sequence, as a group gives them
        advantage = [dict(zip(rows, advantage, strict=True))[row] for row in rows]
    levels = ratios
    if variant.ratio == "sequence":
        of = {row: [r for r, at in zip(ratios, rows, strict=True) if at == row] for row in rows}
        levels = [math.exp(sum(map(math.log, of[row])) / len(of[row])) for row in rows]
    _, grads, _ = many(ratios, advantage, variant, weights, rows)
    for index, (level, sign) in enumerate(zip(levels, advantage, strict=True)):
        if any(abs(level - edge) < 1e-6 for edge in (variant.low, variant.high, variant.outer)):
            continue
        bad = level < variant.low or level > variant.outer
        clipped = level > variant.high if sign > 0 else bad
        free = level * sign * _weight(variant, rows, index, weights)
        assert grads[index] == pytest.approx(0.0 if clipped else free, abs=1e-9)


def _weight(variant: Objective, rows: list[int], index: int, weights: list[float]) -> float:
    """What corrects the engine; a sequence's tokens share theirs evenly."""
    if variant.cap is None:
        return 1.0
    mine = [min(w, variant.cap) for w, row in zip(weights, rows, strict=True) if row == rows[index]]
    return min(weights[index], variant.cap) if variant.ratio == "token" else sum(mine) / len(mine)


@given(BATCHES, VARIANTS)
def test_at_a_ratio_of_one_all_variants_give_the_report_s_gradient(batch: Any, variant: Objective):
    _, advantage, _, rows = (list(column) for column in zip(*batch, strict=True))
    if variant.ratio == "sequence":
        advantage = [dict(zip(rows, advantage, strict=True))[row] for row in rows]
    ones = [1.0] * len(rows)
    cap = None if variant.cap is None else max(1.0, variant.cap)
    same = Objective(variant.low, variant.high, variant.outer, variant.ratio, cap)
    assert many(ones, advantage, same, ones, rows)[1] == pytest.approx(
        many(ones, advantage, REPORT, ones, rows)[1]
    )
