"""What a recipe takes of a cluster, against numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hillclimb.recipe.graph import stage_specs
from hillclimb.recipe.load import load_recipe
from hillclimb.scaling.cluster import Asked, ClusterPlan, misfits, most_at_a_time, plan_cluster
from hillclimb.scaling.plan import Plan, plan_recipe

SMALL = Path(__file__).parent.parent / "recipe" / "small.yaml"
SECTION = """compute.kubernetes=
image: registry/training:1
control_image: registry/control:1
runs: /shared/runs
volumes: [{name: root, mount: /shared, claim: root}]
gpus_per_node: 2
"""
HOURS = {"base_phase": 2.0, "climb": 3.0, "student": 0.5, "consolidation": 1.0, "scorecard": 0.25}
ACCELERATORS = {"base_phase": 4, "climb": 6, "student": 2, "consolidation": 2, "scorecard": 8}
GPUS = {**ACCELERATORS, "scorecard": 1}


def planned(*overrides: str) -> tuple[Plan, ClusterPlan]:
    """The small recipe's graph with the hours and accelerators above."""
    recipe = load_recipe(SMALL, [SECTION, *(f"compute.{override}" for override in overrides)])
    plan = plan_recipe(recipe)
    stages = tuple(
        replace(
            stage,
            hours=HOURS.get(stage.kind, 0.0),
            accelerators=ACCELERATORS.get(stage.kind, 0),
        )
        for stage in plan.stages
    )
    plan = replace(plan, stages=stages)
    gpus = {stage.name: GPUS.get(stage.kind, 0) for stage in stages}
    asked = {name: Asked(max(1, count // 2), count) for name, count in gpus.items()}
    return plan, plan_cluster(plan, stage_specs(recipe), asked)


def test_totals_of_a_small_recipe_by_hand() -> None:
    """3 phases, 6 climbs (stem 2, agentic 2, helpfulness 1, the last), 2 students."""
    plan, found = planned("parallel_stages=2")
    of = {stage.name: stage for stage in found.stages}
    assert list(of) == [stage.name for stage in plan.stages]
    assert (of["mai_base_16k"].pods, of["mai_base_16k"].gpus) == (2, 4)
    assert of["mai_base_16k"].gpu_hours == 8.0
    # The planner has 8 accelerators for a quarter of an hour; one GPU takes 2 hours.
    assert (of["scorecard"].hours, of["scorecard"].gpu_hours) == (2.0, 2.0)
    assert (of["tokenizer"].pods, of["tokenizer"].gpus, of["tokenizer"].hours) == (1, 0, 0.0)
    assert found.gpu_hours == 3 * 8 + 6 * 18 + 2 * 1 + 2 + 2
    assert found.gpu_hours == plan.accelerator_hours
    assert found.hours == 3 * 2.0 + 6 * 3.0 + 2 * 0.5 + 1.0 + 2.0
    # The phases, climb and student and climb of one specialist, the rest.
    assert found.chain_hours == 6.0 + 6.5 + 1.0 + 3.0 + 2.0
    assert found.peak_gpus == 12
    assert {stage.name.split("/")[0] for stage in found.peak} <= {"stem", "agentic", "helpfulness"}


@pytest.mark.parametrize(("stages", "gpus"), [(1, 6), (2, 12), (3, 18), (9, 18)])
def test_no_more_run_beside_each_other_than_the_graph_lets(stages: int, gpus: int) -> None:
    assert planned(f"parallel_stages={stages}")[1].peak_gpus == gpus


def test_stages_that_wait_for_each_other_do_not_add_up() -> None:
    specs = stage_specs(load_recipe(SMALL))
    gpus = dict.fromkeys(specs, 0) | {"mai_base_16k": 5, "mai_base_64k": 7, "mai_thinking": 6}
    assert most_at_a_time(specs, gpus, 3) == ("mai_base_64k",)


def test_two_stages_of_several_pods_need_a_queue_or_room_for_both() -> None:
    def told(*overrides: str) -> list[str]:
        plan, found = planned("parallel_stages=2", *overrides)
        specs = stage_specs(plan.recipe)
        return [str(problem) for problem in misfits(plan, specs, found)]

    [sentence] = told("kubernetes.nodes=5")
    assert sentence.startswith("compute.kubernetes.queue is empty, but stem/round_0/climb and ")
    assert "ask for 12 GPUs of 10" in sentence
    assert "or set compute.parallel_stages to 1" in sentence
    assert told("kubernetes.nodes=6") == []
    assert told("kubernetes.nodes=5", "kubernetes.queue=hillclimb") == []
    assert told("kubernetes.nodes=5", "parallel_stages=1") == []
    assert told() == []


def test_without_gpus_the_ranks_of_a_stage_share_the_memory_of_one_pod() -> None:
    settings = ["compute.kubernetes.gpus_per_node=0", "compute.kubernetes.shm=1Mi"]

    def told(memory: str) -> list[str]:
        sets = [SECTION, *settings, f"compute.kubernetes.memory='{memory}'"]
        plan = plan_recipe(load_recipe(SMALL, sets))
        specs = stage_specs(plan.recipe)
        asked = {name: Asked(1, 0) for name in specs}
        return [str(p) for p in misfits(plan, specs, plan_cluster(plan, specs, asked))]

    plan = plan_recipe(load_recipe(SMALL))
    specs = stage_specs(plan.recipe)
    needs = max(stage.memory.total * specs[stage.name].ranks for stage in plan.stages)
    assert told(f"{int(needs) + 1}") == []
    [sentence] = told(f"{int(needs) - 1}")
    assert sentence.startswith(f"compute.kubernetes.memory is {int(needs) - 1}, but ")
    assert f"needs {needs / 2**30:,.4g} GiB" in sentence


def test_accelerators_that_are_too_small_are_told_with_the_rest() -> None:
    memory = "accelerator.memory_gib=0.05"
    plan, found = planned(memory, "parallel_stages=2", "kubernetes.nodes=5")
    fields = [problem.field for problem in misfits(plan, stage_specs(plan.recipe), found)]
    assert set(fields) == {"compute.accelerator.memory_gib", "compute.kubernetes.queue"}
