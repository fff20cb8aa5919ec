"""The janitor removes what no run waits for, and nothing else."""

from __future__ import annotations

import os
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from fake_cluster.store import editing
from kubernetes import client
from stage_life import STAGE, Life, cluster, life, runs

from hillclimb.artifacts import Store
from hillclimb.dagster_runs import origin
from hillclimb.definitions import build
from hillclimb.experiments import Experiment
from hillclimb.jobs import janitor
from hillclimb.jobs.janitor import GRACE
from hillclimb.launcher import State
from hillclimb.launcher.kubernetes.orphans import Launches
from hillclimb.resources import Workspace
from hillclimb.resources.launching import CHOICE, orchestrator

__all__ = ["cluster", "life", "runs"]
Status = dg.DagsterRunStatus
HOUR = 3600.0


def record(life: Life, status: dg.DagsterRunStatus, *stages: str, partition: str = "") -> str:
    """A run of these stages, or of the whole graph."""
    run = dg.DagsterRun(
        "everything",
        run_id=str(uuid.uuid4()),
        status=status,
        tags={"dagster/partition": partition or life.experiment.name},
        asset_selection=frozenset(dg.AssetKey(name.split("/")) for name in stages) or None,
        remote_job_origin=origin("everything"),
    )
    life.instance.add_run(run)
    return run.run_id


def launched(life: Life, run_id: str, age: float = 0.0, **marks: str) -> Path:
    """The stage, launched by a run and followed until `age` seconds ago; returns its folder."""
    life.cluster.unschedulable()
    request = life.experiment.plan().request(STAGE, Store(str(life.root)))
    known = {"orchestrator": orchestrator(life.instance), "run_id": run_id}
    tracking = {**request.tracking, **known, **marks}
    handle = life.launcher().submit(request.model_copy(update={"tracking": tracking}))
    since = time.time() - age
    with editing(life.cluster.store, life.cluster.get("Job", life.job) or {}) as made:
        stamp = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        made["metadata"]["creationTimestamp"] = stamp
    return Path(handle.where)


def swept(life: Life) -> str:
    """What the janitor says after a look."""
    workspace = {"workspace": Workspace(root=str(life.root))}
    with dg.build_sensor_context(instance=life.instance, resources=workspace) as context:
        said: Any = janitor(context)
    return str(said.skip_message)


def there(life: Life) -> bool:
    """Whether the stage's object is not being deleted."""
    made = life.cluster.get("Job", life.job)
    return made is not None and "deletionTimestamp" not in made["metadata"]


@pytest.mark.parametrize(
    ("status", "age", "removed"),
    [
        (Status.FAILURE, HOUR / 2, False),
        (Status.FAILURE, 1.1 * HOUR, True),
        (Status.CANCELED, 60, False),
        (Status.CANCELED, 150, True),
        (None, HOUR / 2, False),
        (None, 1.1 * HOUR, True),
    ],
)
def test_what_a_run_that_is_over_or_deleted_has_left_goes_in_time(
    life: Life, status: dg.DagsterRunStatus | None, age: float, removed: bool
) -> None:
    run = record(life, status or Status.STARTED, STAGE)
    if status is None:
        life.instance.delete_run(run)
    launched(life, run, age)
    said = swept(life)
    assert f"runs wait for 0 of 1 stages; Job {life.job}, whose run {run} is " in said
    assert (status.value.lower() if status else "not known") in said
    assert ("was removed" in said) is removed
    assert ("unless a run attaches" in said) is not removed
    assert there(life) is not removed
    if removed:
        life.wait_for(lambda: not life.cluster.get("Job", life.job))
        assert not life.cluster.objects("Pod")
        assert "runs wait for 0 of 0 stages" in swept(life)


def test_the_grace_can_be_set(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(life, record(life, Status.FAILURE, STAGE), 20)
    monkeypatch.setenv(GRACE, "30")
    swept(life)
    assert there(life)
    monkeypatch.setenv(GRACE, "10")
    swept(life)
    assert not there(life)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.NOT_STARTED, Status.STARTED])
@pytest.mark.parametrize("stages", [(STAGE,), ()])
def test_what_another_run_is_to_make_stays(
    life: Life, status: dg.DagsterRunStatus, stages: tuple[str, ...]
) -> None:
    launched(life, record(life, Status.CANCELED, STAGE), 2 * HOUR)
    again = record(life, status, *stages)
    assert "runs wait for 1 of 1 stages" in swept(life)
    record(life, Status.STARTED, "helpfulness_problems")
    life.instance.delete_run(again)
    assert "was removed" in swept(life)


def test_what_its_own_run_waits_for_stays(life: Life) -> None:
    launched(life, record(life, Status.STARTED, STAGE, partition="gone"), 2 * HOUR)
    assert "runs wait for 1 of 1 stages" in swept(life)
    assert there(life)


def test_what_is_made_for_another_experiment_stays(life: Life) -> None:
    other = life.experiment.model_copy(update={"name": f"{life.experiment.name}-twin"})
    other.save(life.root)
    launched(life, record(life, Status.CANCELED, STAGE), 2 * HOUR)
    record(life, Status.STARTED, STAGE, partition=other.name)
    assert "runs wait for 1 of 1 stages" in swept(life)


def test_what_somebody_follows_stays_though_no_run_is_known(life: Life) -> None:
    where = launched(life, str(uuid.uuid4()), 2 * HOUR)
    (where / "followed").touch()
    assert "unless a run attaches" in swept(life)
    assert there(life)
    os.utime(where / "followed", (0, time.time() - 1.1 * HOUR))
    assert "was removed" in swept(life)


def test_nothing_goes_while_the_message_store_is_away(life: Life) -> None:
    where = launched(life, record(life, Status.FAILURE, STAGE), 2 * HOUR)
    where.rename(where.with_suffix(".away"))
    where.touch()
    assert "stays while its folder cannot be read" in swept(life)
    assert there(life)
    where.unlink()
    where.with_suffix(".away").rename(where)
    assert "was removed" in swept(life)


def test_what_others_have_launched_is_not_touched(life: Life) -> None:
    launched(life, str(uuid.uuid4()), 2 * HOUR, orchestrator=str(uuid.uuid4()))
    pod = {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x", "command": ["x"]}]}
    job = {"metadata": {"name": "backup"}, "spec": {"template": {"spec": pod}}}
    batch = client.BatchV1Api(client.ApiClient(life.cluster.configuration()))
    batch.create_namespaced_job("hillclimb", job)
    assert "runs wait for 0 of 0 stages" in swept(life)
    assert there(life)
    assert life.cluster.get("Job", "backup")
    deleted = [seen for seen in life.cluster.requests if seen.verb == "delete"]
    assert not deleted


def test_a_stage_of_several_pods_goes_whole(life: Life) -> None:
    life.change(gpus_per_node=1)
    life.cluster.unschedulable()
    request = life.experiment.plan().request(STAGE, Store(str(life.root)))
    marks = {"orchestrator": orchestrator(life.instance), "run_id": str(uuid.uuid4())}
    gang = {"name": "mai_base_16k", "kind": "base_phase", "ranks": 2, "tracking": marks}
    handle = life.launcher().submit(request.model_copy(update=gang))
    life.wait_for(lambda: len(life.cluster.objects("Pod")) == 2)
    (found,) = Launches("hillclimb", marks["orchestrator"]).at_work()
    assert (found.kind.name, found.name) == ("JobSet", handle.name)
    Launches("hillclimb", marks["orchestrator"]).remove(found)
    life.wait_for(lambda: not life.cluster.objects("JobSet"))
    assert not life.cluster.objects("Pod")
    assert life.launcher().poll(handle).state in (State.LOST, State.RUNNING, State.QUEUED)


def test_what_has_ended_is_left_to_its_time_to_live(life: Life) -> None:
    life.go_on()
    assert life.make().success
    assert "runs wait for 0 of 0 stages" in swept(life)
    assert life.cluster.condition("Job", life.job, "Complete")


def test_a_stage_that_is_removed_while_a_run_attaches_is_asked_for_again(life: Life) -> None:
    life.hold()
    with life.making():
        life.await_beats()
        launches = Launches("hillclimb", orchestrator(life.instance))
        (found,) = launches.at_work()
        launches.remove(found)
        life.wait_for(lambda: life.cluster.created("Job") == [life.job, life.job])
        life.go_on()
    assert life.results[0].success


def test_an_api_that_is_away_and_recipes_that_are_broken_are_survived(life: Life) -> None:
    launched(life, record(life, Status.FAILURE, STAGE), 2 * HOUR)
    recipe = life.root / "broken.yaml"
    recipe.write_text("name: 1\n")
    Experiment(name="broken", recipe=str(recipe)).save(life.root)
    life.cluster.down()
    assert "hillclimb: the cluster's API does not answer" in swept(life)
    life.cluster.up()
    life.cluster.answer(403, verb="list")
    assert "is forbidden" in swept(life)
    assert there(life)
    assert "was removed" in swept(life)


def test_there_is_a_janitor_only_where_stages_run_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sensors() -> set[str]:
        return {sensor.name for sensor in build(str(tmp_path)).sensors or ()}

    monkeypatch.setenv(CHOICE, "kubernetes")
    assert "janitor" in sensors()
    monkeypatch.setenv(CHOICE, "local")
    assert "janitor" not in sensors()
