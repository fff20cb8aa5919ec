"""The objective against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.rl.objective import EntropyControl, advantages, policy_objective


def objective(ratio: float, advantage: float, k: float = 0.0, outer: float = 50.0):
    old = torch.tensor([-1.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    value, sums = policy_objective(
        new, old, torch.tensor([advantage], dtype=torch.float64), epsilon=0.6, k=k, outer=outer
    )
    value.sum().backward()
    assert new.grad is not None
    return float(value), float(new.grad), sums


def test_advantages_of_a_small_group():
    found = advantages(torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), std_eps=0.0)
    assert found.tolist() == [1.0, -1.0, -1.0, 1.0]


def test_equal_rewards_have_no_advantage():
    assert advantages(torch.full((8,), 0.7, dtype=torch.float64)).abs().max() < 1e-9


def test_inside_the_trust_region_the_gradient_is_the_ratio_times_the_advantage():
    value, grad, sums = objective(1.5, 2.0)
    assert value == pytest.approx(3.0)
    assert grad == pytest.approx(3.0)
    assert float(sums["trust_clipped"]) == 0


def test_a_good_token_over_the_upper_bound_stops_at_it():
    value, grad, sums = objective(3.0, 1.0)
    assert value == pytest.approx(2.5)  # 1 / (1 - 0.6)
    assert grad == 0.0
    assert float(sums["trust_clipped"]) == 1


def test_k_widens_the_upper_bound():
    value, grad, _ = objective(3.0, 1.0, k=1.0)
    assert value == pytest.approx(3.0)
    assert grad == pytest.approx(3.0)


def test_a_bad_token_under_the_lower_bound_stops_at_it():
    value, grad, _ = objective(0.2, -1.0)
    assert value == pytest.approx(-0.4)
    assert grad == 0.0


def test_a_bad_token_over_the_trust_region_still_learns_up_to_the_outer_clip():
    value, grad, _ = objective(20.0, -1.0)
    assert (value, grad) == (pytest.approx(-20.0), pytest.approx(-20.0))
    value, grad, sums = objective(80.0, -1.0)
    assert value == pytest.approx(-50.0)
    assert grad == 0.0
    assert float(sums["outer_clipped"]) == 1


def test_entropy_is_weighted_by_the_ratio():
    _, _, sums = objective(2.0, 1.0)
    assert float(sums["entropy"]) == pytest.approx(-(-1.0 + math.log(2.0)) * 2.0)


def test_the_controller_moves_by_delta_and_stays_in_its_range():
    control = EntropyControl(target=0.3, delta=0.25, k_max=0.5)
    assert [control.update(h) for h in (0.1, 0.1, 0.1, 0.3, 0.9, 0.9, 0.9)] == [
        0.25, 0.5, 0.5, 0.5, 0.25, 0.0, 0.0,
    ]  # fmt: skip


@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=6),
    st.floats(-3, 3),
    st.floats(0, 2.5),
)
def test_the_objective_never_exceeds_the_unclipped_one(shifts, advantage, k):
    old = torch.full((len(shifts),), -2.0, dtype=torch.float64)
    new = old + torch.tensor(shifts, dtype=torch.float64)
    weights = torch.full_like(old, advantage)
    value, _ = policy_objective(new, old, weights, 0.6, k, 1e9)
    assert bool((value <= (new - old).exp() * weights + 1e-9).all())
