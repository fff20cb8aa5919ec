"""What happens by itself: rounds by the rule, re-making by changed data versions only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from slow_climb import HERE, OVERRIDES, experiment

from hillclimb.artifacts import ArtifactWriter, Manifest
from hillclimb.assets import EXPERIMENTS
from hillclimb.assets.graph import recipe_key
from hillclimb.assets.stages import changed
from hillclimb.definitions import build
from hillclimb.experiments import Experiment, Plan
from hillclimb.jobs import recipe_changes, self_distillation
from hillclimb.recipe.climb import Signal
from hillclimb.resources import Workspace
from hillclimb.self_distillation import PERSON, REASONS, decide, next_climb, next_round

ROUNDS = dg.StaticPartitionsDefinition(["one"])


@pytest.fixture
def plan() -> Plan:
    return experiment().plan()


def commit(workspace: Workspace, plan: Plan, name: str, **files: Any) -> None:
    """An artifact with these JSON files."""
    writer = ArtifactWriter(workspace.store.uri(name, plan.fingerprints[name]))
    for path, value in files.items():
        writer.write_json(path.replace("_", "."), value)
    spec = plan.specs[name]
    writer.commit(
        Manifest(
            name=name, kind=spec.kind, fingerprint=plan.fingerprints[name], code_version="1",
            seed=spec.seed, inputs={}, config={}, files=[], metrics={}, summary={}, run={},
        )
    )  # fmt: skip


@pytest.mark.parametrize("reason", list(REASONS))
def test_every_known_reason_opens_the_next_round(plan: Plan, reason: str) -> None:
    decision = decide(plan, "stem/round_0/climb", {"reason": reason, "sentence": "it went so"})
    assert decision.opens
    assert "it went so" in decision.reason


@pytest.mark.parametrize("reason", list(PERSON))
def test_doubted_grades_wait_for_a_person(plan: Plan, reason: str) -> None:
    stop = {"reason": reason, "sentence": "it went so"}
    decision = decide(plan, "stem/round_0/climb", stop)
    assert not decision.opens
    assert "waits for a person" in decision.reason
    assert "it went so" in decision.reason


def test_every_way_to_stop_is_known_to_the_rule() -> None:
    assert {*REASONS, *PERSON} == {"steps", "plateau", "solved", *get_args(Signal)}
    assert not {*REASONS} & {*PERSON}


def test_the_rule_says_why_a_round_stays_closed(plan: Plan) -> None:
    stop = {"reason": "plateau"}
    assert "last round" in decide(plan, "stem/round_1/climb", stop).reason
    assert "last round" in decide(plan, "helpfulness/round_0/climb", stop).reason
    assert "last round" in decide(plan, "mai_thinking", stop).reason
    assert "has not ended" in decide(plan, "stem/round_0/climb", None).reason
    unknown = decide(plan, "stem/round_0/climb", {"reason": "boredom"})
    assert not unknown.opens
    assert "boredom" in unknown.reason


def test_rounds_follow_each_other() -> None:
    assert next_climb("stem/round_9/climb") == "stem/round_10/climb"
    assert next_climb("mai_thinking") is None
    assert next_round("stem/round_0/climb") == [
        "stem/round_0/traces",
        "stem/round_1/student",
        "stem/round_1/climb",
        "stem/round_1/traces",
    ]


def _evaluate(root: Path, partitions: list[str]) -> Any:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(EXPERIMENTS.name or "", partitions)
        with (
            dg.build_sensor_context(
                instance=instance,
                resources={"workspace": Workspace(root=str(root))},
                repository_def=build(str(root)).get_repository_def(),
            ) as context,
            partition_loading_context(dynamic_partitions_store=instance),
        ):
            return self_distillation.evaluate_tick(context)


def test_the_sensor_asks_once_per_data_version(tmp_path: Path) -> None:
    workspace = Workspace(root=str(tmp_path))
    plans = [experiment(seed).plan() for seed in (0, 1)]
    for plan in plans:
        plan.experiment.save(tmp_path)
    commit(workspace, plans[0], "stem/round_0/climb", stop_json={"reason": "plateau"})
    names = [plan.experiment.name for plan in plans]
    (request,) = _evaluate(tmp_path, names).run_requests
    version = plans[0].fingerprints["stem/round_0/climb"][:16]
    assert request.run_key == f"{names[0]}:stem/round_0/climb:{version}"
    assert request.partition_key == names[0]
    asked = [key.to_user_string() for key in request.asset_selection]
    assert asked == next_round("stem/round_0/climb")


def test_the_sensor_asks_only_for_what_is_left(tmp_path: Path) -> None:
    workspace, plan = Workspace(root=str(tmp_path)), experiment().plan()
    plan.experiment.save(tmp_path)
    commit(workspace, plan, "stem/round_0/climb", stop_json={"reason": "steps"})
    for name in next_round("stem/round_0/climb"):
        commit(workspace, plan, name, stop_json={"reason": "steps"})
    tick = _evaluate(tmp_path, [plan.experiment.name])
    assert not tick.run_requests
    assert "agentic/round_0/climb has not ended" in tick.skip_message


def test_the_sensors_survive_a_broken_experiment(tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text("name: broken\n")
    Experiment(name="broken", recipe=str(recipe)).save(tmp_path)
    of = experiment()
    of.save(tmp_path)
    tick = _evaluate(tmp_path, ["nobody-knows", "broken"])
    assert "there is no experiment nobody-knows" in tick.skip_message
    assert "broken.yaml has" in tick.skip_message
    assert len(_told(tmp_path, None).asset_events) == 2 * len(of.plan().specs)


class _Graph:
    """A source, a recipe, and their product under the condition that all assets have."""

    def __init__(self) -> None:
        self.version = "1"
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor = None

        @dg.asset(partitions_def=ROUNDS)
        def source() -> dg.MaterializeResult[Any]:
            return dg.MaterializeResult(data_version=dg.DataVersion(self.version))

        recipe = dg.AssetSpec("recipe", partitions_def=ROUNDS)

        @dg.asset(partitions_def=ROUNDS, deps=[source, recipe], automation_condition=changed([]))
        def product() -> None: ...

        self.definitions = dg.Definitions([source, recipe, product])
        self.source = source

    def make_source(self, version: str) -> None:
        self.version = version
        dg.materialize([self.source], instance=self.instance, partition_key="one")

    def say(self, version: str) -> None:
        for event in (dg.AssetMaterialization, dg.AssetObservation):
            told = event("recipe", partition="one", tags={"dagster/data_version": version})
            self.instance.report_runless_asset_event(told)

    def wanted(self) -> int:
        found = dg.evaluate_automation_conditions(
            self.definitions, instance=self.instance, cursor=self.cursor
        )
        self.cursor = found.cursor
        return found.total_requested


def test_a_changed_version_is_acted_on_and_a_repetition_is_not() -> None:
    graph = _Graph()
    assert graph.wanted() == 0
    graph.make_source("1")
    assert graph.wanted() == 0, "the recipe is not known yet"
    graph.say("1")
    graph.wanted()
    graph.make_source("1")
    assert graph.wanted() == 0
    graph.make_source("2")
    assert graph.wanted() == 1
    graph.make_source("2")
    assert graph.wanted() == 0
    graph.say("2")
    assert graph.wanted() == 1
    graph.say("2")
    assert graph.wanted() == 0


def test_stops_are_read_from_the_artifact(tmp_path: Path) -> None:
    workspace, plan = Workspace(root=str(tmp_path)), experiment().plan()
    assert workspace.stop_of(plan, "stem/round_0/climb") is None
    commit(workspace, plan, "stem/round_0/climb", stop_json={"reason": "entropy"})
    assert json.dumps(workspace.stop_of(plan, "stem/round_0/climb")) == '{"reason": "entropy"}'


def _told(root: Path, cursor: str | None) -> dg.SensorResult:
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"workspace": Workspace(root=str(root))}
        ) as context,
    ):
        return recipe_changes(context)  # type: ignore[return-value]


def test_a_changed_recipe_is_told_where_it_has_changed(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text((HERE.parent / "recipe" / "small.yaml").read_text())
    of = Experiment.make(str(recipe), label="edited", overrides=OVERRIDES)
    of.save(tmp_path)
    first = _told(tmp_path, None)
    assert len(first.asset_events) == 2 * len(of.plan().specs)
    (request,) = first.dynamic_partitions_requests or ()
    assert request.partition_keys == [of.name]
    assert not _told(tmp_path, first.cursor).asset_events
    text = recipe.read_text()
    assert "learning_rate: 1e-4" in text
    recipe.write_text(text.replace("learning_rate: 1e-4", "learning_rate: 3e-4"))
    changes = _told(tmp_path, first.cursor).asset_events
    assert {(e.asset_key, e.partition) for e in changes} == {
        (recipe_key("stem/round_1/climb"), of.name)
    }
