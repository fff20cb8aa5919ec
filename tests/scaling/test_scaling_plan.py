"""Memory, plans and their refusal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from hillclimb.recipe.load import load_recipe
from hillclimb.scaling.counts import count_parameters
from hillclimb.scaling.ladder import rung
from hillclimb.scaling.memory import (
    GIB,
    rollout_memory,
    training_memory,
    training_state_bytes,
    weights_bytes,
)
from hillclimb.scaling.plan import PlanError, plan_recipe

SMALL = Path(__file__).parent.parent / "recipe" / "small.yaml"
MODEL = rung(12)


@dataclass(frozen=True)
class Sharding:
    zero_stage: int
    expert_parallel: int = 1
    activations: str = "kept"
    weights: str = "fp32"
    offload_optimizer: bool = False


def test_each_zero_stage_shards_one_thing_more() -> None:
    whole, ranks = count_parameters(MODEL, 1000).total, 8
    one, two, three = (training_memory(MODEL, 1000, Sharding(z), ranks, 64, 2) for z in (1, 2, 3))
    assert one.optimizer == two.optimizer == three.optimizer == 12 * whole / ranks
    assert one.gradients == 4 * whole
    assert one.weights == two.weights == 4 * whole
    assert two.gradients == three.gradients < 4 * whole
    assert 4 * whole / ranks < three.weights < 4 * whole
    assert one.total > two.total > three.total
    assert training_memory(MODEL, 1000, Sharding(2, weights="bf16"), 8, 64, 2).weights == 2 * whole


def test_expert_parallelism_splits_the_experts_only() -> None:
    counted = count_parameters(MODEL, 1000)
    memory = training_memory(MODEL, 1000, Sharding(1, expert_parallel=8), 8, 64, 2)
    assert memory.weights == memory.gradients == 4 * (counted.shared + counted.experts / 8)
    assert memory.optimizer == 12 * counted.total / 8
    sharded = training_memory(MODEL, 1000, Sharding(3, expert_parallel=8), 8, 64, 2)
    assert counted.experts / 8 < sharded.weights / 4 < (counted.experts + counted.shared) / 8 * 3


def test_artifacts_and_checkpoints_are_fp32() -> None:
    total = count_parameters(MODEL, 1000).total
    assert weights_bytes(MODEL, 1000) == 4 * total
    assert training_state_bytes(MODEL, 1000) == 12 * total


def test_activations_grow_with_tokens_and_logits_with_the_vocabulary() -> None:
    one, two = (training_memory(MODEL, 1000, Sharding(1), 1, tokens, 4) for tokens in (64, 128))
    assert two.activations == 2 * one.activations
    assert one.logits == 64 * 1000 * 8
    assert training_memory(MODEL, 1000, Sharding(1), 1, 9999, 2).logits == 4096 * 1000 * 8
    assert training_memory(MODEL, 2000, Sharding(1), 1, 64, 4).logits == 2 * one.logits


def test_recomputing_and_the_host_take_activations_and_moments_away() -> None:
    kept, recomputed, on_host = (
        training_memory(MODEL, 1000, Sharding(2, activations=how), 8, 64, 2)
        for how in ("kept", "recomputed", "on_host")
    )
    inputs = 64 * 4 * MODEL.layers * MODEL.hidden
    assert recomputed.activations == on_host.activations + inputs
    assert on_host.activations < kept.activations / MODEL.layers * 2
    offloaded = Sharding(2, offload_optimizer=True)
    assert training_memory(MODEL, 1000, offloaded, 8, 64, 2).optimizer == 0


def test_a_rollout_server_splits_the_weights() -> None:
    alone, shared = (rollout_memory(MODEL, 1000, n, 4, 4096, 2) for n in (1, 8))
    assert alone.weights == 8 * shared.weights
    assert alone.cache == shared.cache


def test_the_plan_of_the_full_recipe() -> None:
    plan = plan_recipe(load_recipe("mai-thinking-1"))
    stages = {stage.name: stage for stage in plan.stages}
    assert not plan.misfits
    assert stages["mai_base_16k"].tokens == 30_000_000_000_000
    assert stages["mai_base_16k"].hours == pytest.approx(459, rel=0.01)
    assert stages["mai_base_256k"].memory.weights < stages["mai_base_64k"].memory.weights
    assert stages["mai_thinking"].accelerators == 4864
    assert sum(1 for name in stages if name.startswith("stem/") and "student" in name) == 10
    models = [stage for stage in plan.stages if stage.checkpoint]
    assert all(stage.checkpoint == 4 * 962_148_861_440 for stage in models)
    assert plan.storage == len(models) * 4 * 962_148_861_440
    assert stages["mai_base_16k"].hours < plan.chain_hours
    assert plan.chain_hours < sum(stage.hours for stage in plan.stages)
    assert plan.usd == pytest.approx(plan.accelerator_hours * 5.0)


def test_tokens_of_a_climb_by_hand() -> None:
    """Two rungs: 6 steps at 32 tokens, 4 at 64; 8 groups of 8 a step, 24 prompts an update of 2."""
    stages = {stage.name: stage for stage in plan_recipe(load_recipe(SMALL)).stages}
    learned = 6 * 8 * 8 * 16 + 4 * 8 * 8 * 32
    sampled = (3 * 24 * 4 + 6 * 8 * 4) * 16 + (2 * 24 * 4 + 4 * 8 * 4) * 32
    assert stages["stem/round_0/climb"].tokens == learned + sampled
    # 400 traces of 32 tokens on average, four epochs.
    assert stages["stem/round_1/student"].tokens == 400 * 32 * 4


def test_a_recipe_that_cannot_fit_is_refused_stage_by_stage() -> None:
    recipe = load_recipe(
        "mai-thinking-1",
        ["compute.accelerator.memory_gib=150", "base.phase_16k.expert_parallel=8"],
    )
    plan = plan_recipe(recipe)
    with pytest.raises(PlanError) as caught:
        plan.require_fit()
    by_stage = {misfit.stage: misfit for misfit in caught.value.misfits}
    first = by_stage["mai_base_16k"]
    assert first.part == "gradients"
    assert "base.phase_16k.zero_stage or base.phase_16k.expert_parallel" in str(first)
    assert first.needs_gib > first.has_gib == 150
    assert "mai_base_256k" not in by_stage
    assert "mai_thinking" in by_stage
    for misfit in by_stage.values():
        assert misfit.needs_gib * GIB == pytest.approx(
            next(s for s in plan.stages if s.name == misfit.stage).memory.total
        )


def test_a_small_accelerator_asks_for_smaller_batches() -> None:
    recipe = load_recipe(SMALL, ["compute.accelerator.memory_gib=0.01"])
    with pytest.raises(PlanError, match=r"base\.micro_batch_tokens"):
        plan_recipe(recipe).require_fit()
