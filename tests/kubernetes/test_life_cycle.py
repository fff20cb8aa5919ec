"""What becomes of a stage on a cluster, whatever happens, as Dagster and MLflow see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from fake_cluster import FakeCluster
from stage_life import (
    STAGE,
    Life,
    cluster,
    environment,
    life,
    runs,
)

from hillclimb.artifacts import Store
from hillclimb.dagster_runs import CONFIG, Runs
from hillclimb.definitions import build
from hillclimb.runner import Event, climb
from hillclimb.tracking import Outbox

__all__ = ["cluster", "life", "runs"]
Status = dg.DagsterRunStatus


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Dagster leaves its handlers behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def terminate() -> None:
    """What the kubelet does to a run worker."""
    os.kill(os.getpid(), signal.SIGTERM)


def materialised(life: Life) -> dg.AssetMaterialization:
    event = life.instance.get_latest_materialization_event(dg.AssetKey(STAGE))
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization


def made_once(life: Life) -> None:
    """The artifact is there, and every beat was tracked, in order and once."""
    assert Store(str(life.root)).find(STAGE, life.fingerprint)
    tracked = [record["step"] for record in life.tracked("metrics")]
    assert tracked == list(range(max(life.beats()) + 1))


@pytest.mark.slow("MLflow's migrations")
def test_failures_and_preemptions_are_attempts_of_one_run(life: Life) -> None:
    life.hold()
    with life.making():
        life.await_beats()
        life.cluster.oom_kill(life.pod())
        life.wait_for(lambda: "attempt 2 has begun" in "\n".join(life.said()))
        life.cluster.evict(life.pod(), "PreemptionByScheduler")
        life.await_beats()
        life.go_on()
    (result,) = life.results
    assert result.success
    made_once(life)
    assert life.cluster.created("Job") == [life.job]
    notes = [line.split(":")[0] for line in life.said() if line.startswith("attempt")]
    assert notes == ["attempt 2 has begun", "attempt 3 has begun"]
    assert materialised(life).metadata["attempts"].value == 3
    one_run_in_mlflow(life, "3")


def one_run_in_mlflow(life: Life, attempts: str) -> None:
    """A real store has one finished run of the stage, with all of its attempts."""
    from mlflow import MlflowClient

    from hillclimb.tracking.delivery import deliver

    uri = f"sqlite:///{life.root}/mlflow.db"
    assert deliver(Outbox(life.root), uri) == ("", 0)
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'hillclimb'")
    wanted = f"tags.`hillclimb.fingerprint` = '{life.fingerprint}'"
    (run,) = client.search_runs([experiment.experiment_id], wanted)
    assert run.info.status == "FINISHED"
    assert run.data.tags["hillclimb.attempts"] == attempts
    assert run.data.tags["dagster/run_id"] == life.run().run_id
    assert len(client.get_metric_history(run.info.run_id, "beat")) == max(life.beats()) + 1


def test_what_fails_too_often_is_launched_again_by_the_same_run(life: Life) -> None:
    life.change(max_restarts=0)
    life.hold()
    with life.making():
        life.await_beats()
        life.cluster.oom_kill(life.pod())
        life.await_beats()
        life.go_on()
    (result,) = life.results
    assert result.success
    made_once(life)
    assert life.cluster.created("Job") == [life.job, life.job]
    assert materialised(life).metadata["attempts"].value == 2
    again = life.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
    assert "killed for its memory" in str(again[0].dagster_event)
    assert life.ends() == ["FINISHED"]


def test_a_cancelled_run_deletes_its_job_and_a_later_one_goes_on(life: Life) -> None:
    life.hold()

    def cancel() -> None:
        life.instance.report_run_canceling(life.run())
        terminate()

    with life.meanwhile(life.reached(5), cancel):
        result = life.make()
    assert result.cancelled
    life.wait_for(lambda: not life.cluster.get("Job", life.job) and not life.running())
    assert life.ends() == ["KILLED"]
    with life.making():
        life.await_beats()
        life.go_on()
    assert life.results[-1].success
    made_once(life)
    assert sorted(set(life.beats())) == life.beats()


def test_a_run_that_is_cancelled_while_it_launches_ends_what_it_launched(life: Life) -> None:
    life.hold()
    life.cluster.hang(1.0, verb="patch", kind="Job")
    with life.making():
        life.wait_for(lambda: life.messages.parent.exists())
        life.instance.report_run_canceling(life.run())
    assert life.results[0].cancelled
    life.wait_for(lambda: not life.cluster.get("Job", life.job))


def test_a_drained_run_worker_leaves_the_job_and_the_next_run_attaches(life: Life) -> None:
    life.hold()
    with life.meanwhile(life.reached(5), terminate):
        drained = life.make()
    assert not drained.cancelled
    assert life.run().status is Status.FAILURE
    assert life.running()
    assert not life.ends()
    with life.making():
        life.await_beats()
        life.go_on()
    assert life.results[-1].success
    made_once(life)
    assert life.cluster.created("Job") == [life.job]
    assert materialised(life).metadata["attempts"].value == 1
    assert life.ends() == ["FINISHED"]


def test_a_stage_is_shown_as_queued_and_waited_for_without_end(life: Life) -> None:
    life.change(queue="research")
    life.go_on()
    life.cluster.hold_queue("8 more needed")
    waits = "queued: it waits for quota in the queue research (8 more needed)"
    with life.making():
        life.wait_for(lambda: any(line.startswith(waits) for line in life.said()))
        assert life.run().status is Status.STARTED
        life.cluster.release_queue()
    assert life.results[0].success
    assert "running: it has a place" in life.said()


def test_outages_of_the_api_its_history_and_the_message_store_are_survived(life: Life) -> None:
    life.hold()
    store, away = life.root / "messages", life.root / "messages-away"
    checkpoint = Path(Store(str(life.root)).uri(STAGE, life.fingerprint)) / "resume" / "step"
    with life.making():
        life.await_beats()
        life.cluster.down()
        life.await_beats()
        life.wait_for(lambda: "nobody can look at it now" in "\n".join(life.said()))
        life.cluster.up()
        life.cluster.expire_watches()
        life.cluster.answer(410, times=2)
        life.cluster.answer(503, times=2)
        store.rename(away)
        reached = int(checkpoint.read_text())
        life.wait_for(lambda: int(checkpoint.read_text() or 0) > reached + 10)
        away.rename(store)
        life.go_on()
    assert life.results[0].success
    made_once(life)
    assert life.beats() == list(range(len(life.beats())))
    assert len(life.cluster.created("Pod")) == 1


def test_a_deleted_run_is_survived(life: Life) -> None:
    life.hold()
    with life.making():
        life.await_beats()
        life.instance.delete_run(life.run().run_id)
        life.await_beats()
        life.go_on()
    made_once(life)
    assert life.cluster.created("Job") == [life.job]
    assert life.make().success


def test_a_stage_that_another_run_has_cancelled_is_asked_for_again(life: Life) -> None:
    life.hold()
    with life.making():
        life.await_beats()
        with life.making():
            life.wait_for(lambda: len(life.all_runs()) == 2)
            life.wait_for(lambda: "is made by" in "\n".join(life.said()))
            life.instance.report_run_canceling(life.run())
            handle = life.launcher().find(STAGE, life.fingerprint)
            assert handle is not None
            life.launcher().cancel(handle)
        life.go_on()
    assert [run.status for run in life.all_runs()] == [Status.CANCELED, Status.SUCCESS]
    assert Store(str(life.root)).find(STAGE, life.fingerprint)
    assert life.cluster.created("Job") == [life.job, life.job]


def test_ctrl_c_ends_the_pods_and_the_next_call_goes_on(life: Life) -> None:
    life.change(queue="research")
    life.hold()
    life.cluster.hold_queue()
    told: list[str] = []

    def interrupt(event: Event) -> None:
        told.append(event.message)
        if event.type == "note" and "waits for quota" in event.message:
            life.cluster.release_queue()
        if event.type == "metrics" and event.step == 3:
            raise KeyboardInterrupt

    summary = climb(life.root, life.experiment, [STAGE], on_event=interrupt)
    assert summary.cancelled
    assert life.run().status is Status.CANCELED
    life.wait_for(lambda: not life.cluster.get("Job", life.job) and not life.running())
    assert "it has a place" in told
    life.go_on()
    assert climb(life.root, life.experiment, [STAGE]).complete
    made_once(life)


@pytest.mark.slow("three run workers")
def test_a_run_whose_worker_is_drained_and_then_killed_is_resumed_under_its_id(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    """The commands are those of K8sRunLauncher; run monitoring gives the second one."""
    root = tmp_path / "root"
    (root / "dagster").mkdir(parents=True)
    (root / "dagster" / "dagster.yaml").write_text(yaml.safe_dump({**CONFIG, **on_pods(cluster)}))
    life = Life(cluster, Runs(root), root)
    life.hold()
    run = stored_run(life)
    first = worker(life, ExecuteRunArgs, run)
    life.await_beats()
    first.send_signal(signal.SIGTERM)
    first.wait(60)
    assert life.run().status is Status.STARTED, life.said()
    second = worker(life, ResumeRunArgs, run)
    life.wait_for(lambda: sum("is made by" in line for line in life.said()) == 2)
    second.kill()
    second.wait()
    third = worker(life, ResumeRunArgs, run)
    life.wait_for(lambda: sum("is made by" in line for line in life.said()) == 3)
    life.go_on()
    assert third.wait(60) == 0
    assert [run.status for run in life.all_runs()] == [Status.SUCCESS]
    made_once(life)
    assert cluster.created("Job") == [life.job]
    assert life.ends() == ["FINISHED"]


def on_pods(cluster: FakeCluster) -> dict[str, Any]:
    """Run workers as pods, as k8s/base has them."""
    config = {
        "service_account_name": "hillclimb-run", "job_image": "control:1",
        "instance_config_map": "dagster-instance", "dagster_home": "/opt/dagster",
        "load_incluster_config": False, "kubeconfig_file": str(cluster.kubeconfig()),
    }  # fmt: skip
    launcher = {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config}
    return {
        "run_launcher": launcher,
        "run_monitoring": {"enabled": True, "max_resume_run_attempts": 5},
    }


def stored_run(life: Life) -> dg.DagsterRun:
    """A run as the daemon hands it to a run worker."""
    pointer = ModuleCodePointer("hillclimb.definitions", "defs", None)
    origin = JobPythonOrigin("everything", RepositoryPythonOrigin(sys.executable, pointer))
    keys = frozenset({dg.AssetKey(STAGE)})
    return life.instance.create_run_for_job(
        build(str(life.root)).resolve_job_def("everything").get_subset(asset_selection=keys),
        asset_selection=keys,
        tags={"dagster/partition": life.experiment.name},
        job_code_origin=origin,
    )


def worker(life: Life, arguments: Any, run: dg.DagsterRun) -> subprocess.Popen[bytes]:
    """A run worker's process, with the command of its container."""
    asked = arguments(run.job_code_origin, run.run_id, life.instance.get_ref(), True)
    command = [sys.executable, *asked.get_command_args()[1:]]
    env = {**environment(life.cluster), "HILLCLIMB_ROOT": str(life.root)}
    with (life.root / "worker.log").open("ab") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log)
