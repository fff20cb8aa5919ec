"""A climb's choices: the report's by default, each other one field, no number without a use."""

from __future__ import annotations

from pathlib import Path

import pytest

from hillclimb.recipe.climb import (
    AdaptiveClips,
    ClimbRecipe,
    EntropyController,
    FixedClips,
    NoCorrection,
    Replay,
    TruncatedSampling,
)
from hillclimb.recipe.errors import RecipeError
from hillclimb.recipe.graph import stage_specs
from hillclimb.recipe.load import load_recipe
from hillclimb.scaling.plan import plan_recipe

SMALL = Path(__file__).with_name("small.yaml")
CLIMB = "specialists.stem.climbs.0"


def climb(*choices: str) -> ClimbRecipe:
    """The first climb with these fields set."""
    return load_recipe(SMALL, [f"{CLIMB}.{c}" for c in choices]).specialists["stem"].climbs[0]


def test_the_report_s_choices_are_the_default() -> None:
    found = load_recipe("mai-thinking-1").specialists["stem"].climbs[0]
    assert found.clips == AdaptiveClips(epsilon=0.6, outer=50.0)
    assert found.entropy == EntropyController(target=0.3, delta=0.25, k_max=2.5)
    assert (found.ratio, found.correction) == ("token", NoCorrection())
    assert found.replay == Replay(nucleus=True, routes=True)
    assert found.draws_per_update is None
    assert found.stop.halt == ("mismatch", "entropy", "reward_hack")


def test_peers_choices_are_a_field_each() -> None:
    fixed = climb("clips={type: fixed, high: 0.4}", "entropy=null")
    assert fixed.clips == FixedClips(low=0.2, high=0.4, outer=50.0)
    assert climb("clips.outer=null").clips == AdaptiveClips(outer=None)
    assert climb("entropy=null").entropy is None
    assert climb("ratio=sequence").ratio == "sequence"
    assert climb("replay.nucleus=false").replay == Replay(nucleus=False, routes=True)
    assert climb("replay={routes: false}").replay == Replay(nucleus=True, routes=False)
    corrected = climb("correction={type: truncated, cap: 5}").correction
    assert corrected == TruncatedSampling(cap=5.0)
    assert climb("stop.halt=[gradient]").stop.halt == ("gradient",)


@pytest.mark.parametrize(
    ("choices", "field", "words"),
    [
        (["clips={type: fixed, epsilon: 0.3}", "entropy=null"], "clips.epsilon",
         "not a known field"),
        (["clips={type: adaptive, low: 0.3}"], "clips.low", "not a known field"),
        (["clips={epsilon: 0.3}"], "clips.type", "one of adaptive, fixed"),
        (["clips={type: fixed}"], "", "set entropy to null"),
        (["clips={type: fixed, low: 1.5}", "entropy=null"], "clips.low", "at most 1"),
        (["clips.outer=0.5"], "clips.outer", "above 1"),
        (["correction={type: none, cap: 2}"], "correction.cap", "not a known field"),
        (["correction={type: truncated, cap: 0}"], "correction.cap", "above 0"),
        (["ratio=group"], "ratio", "'token' or 'sequence'"),
        (["replay=none"], "replay", "give a section with any of nucleus, routes"),
        (["replay.experts=true"], "replay.experts", "known are nucleus, routes"),
        (["replay.routes=both"], "replay.routes", "true or false"),
        (["draws_per_update=0"], "draws_per_update", "above 0"),
        (["stop.halt=[gradients]"], "stop.halt.0", "give one of mismatch, entropy"),
        (["stop.max_entropy=0.5", "stop.min_entropy=0.6"], "stop",
         "min_entropy=0.6 must be below max_entropy=0.5"),
    ],
)  # fmt: skip
def test_a_number_without_a_use_is_refused(choices: list[str], field: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        climb(*choices)
    [problem] = caught.value.problems
    assert problem.field == f"{CLIMB}.{field}".rstrip(".")
    assert words in str(problem)


ON_POLICY = "{steps: 30, batch_prompts: 8, max_tokens: 64, micro_batch_tokens: 512}"


def test_a_consolidation_learns_from_traces_or_from_teachers() -> None:
    plain = stage_specs(load_recipe(SMALL))["consolidated_model"]
    assert plain.inputs["agentic"] == "agentic/round_1/traces"
    assert set(plain.config) == {"shares", "traces", "sft"}
    recipe = load_recipe(SMALL, [f"consolidation.on_policy={ON_POLICY}"])
    told = stage_specs(recipe)["consolidated_model"]
    assert told.inputs["agentic_teacher"] == "agentic/round_1/climb"
    assert told.inputs["agentic_problems"] == "agentic_problems"
    assert not [name for name in told.inputs.values() if name.endswith("traces")]
    assert set(told.config) == {"shares", "on_policy"}
    (work,) = [stage for stage in plan_recipe(recipe).stages if stage.name == "consolidated_model"]
    assert work.tokens == 2 * 30 * 8 * 32, "drawn and learnt, half as long as they may be"


def test_a_distillation_longer_than_the_base_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMALL, [f"consolidation.on_policy={ON_POLICY.replace('64', '6400000')}"])
    [problem] = caught.value.problems
    assert problem.field == "consolidation.on_policy.max_tokens"
