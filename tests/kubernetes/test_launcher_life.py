"""The life of a stage on a cluster: queued, running, taken away, begun anew, gone."""

from __future__ import annotations

import time

import pytest
from fake_cluster.store import set_condition
from launcher_support import (
    Followed,
    compute_for,
    gated,
    name_of,
    open_gate,
    pod_of,
    request_for,
    steps_of,
)
from toy_stages import toy

from hillclimb.artifacts import Artifact
from hillclimb.launcher import State
from hillclimb.launcher.kubernetes import KubernetesLauncher, api
from hillclimb.launcher.kubernetes.api import Api


def done_as_undisturbed(request) -> bool:
    """Whether the artifact holds what an undisturbed stage would have written."""
    return Artifact(request.output).read_text("out.txt") == toy.expected(request.config)


def test_a_stage_behind_quota_is_queued_with_a_sentence_and_without_end(
    cluster, launcher_on, tmp_path
):
    cluster.hold_queue()
    request, launcher = request_for(tmp_path), launcher_on(queue="gpus", patience=0.1, stuck=0.1)
    followed = Followed(launcher, launcher.submit(request))
    outcome = followed.until(lambda seen: "quota" in seen.reason)
    assert outcome.state is State.QUEUED
    assert outcome.reason.startswith("it waits for quota in the queue gpus (couldn't assign")
    time.sleep(0.3)
    assert followed.beat().state is State.QUEUED
    cluster.release_queue()
    assert followed.until_ended().state is State.DONE
    assert len(cluster.created("Pod")) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stage_that_a_queue_takes_back_is_queued_and_goes_on(
    cluster, launcher_on, tmp_path, ranks
):
    request = request_for(tmp_path, ranks=ranks, **gated(tmp_path))
    launcher = launcher_on(queue="gpus", max_restarts=0)
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    kind = "Job" if ranks == 1 else "JobSet"
    cluster.hold_queue()
    cluster.preempt(kind, followed.handle.name)
    outcome = followed.until(lambda seen: seen.state is State.QUEUED)
    assert "it waits for quota" in outcome.reason
    cluster.wait_for(lambda: not cluster.objects("Pod"))
    open_gate(tmp_path)
    cluster.release_queue()
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    assert followed.count("opened") == 2
    assert done_as_undisturbed(request)
    assert not cluster.condition(kind, followed.handle.name, "Failed")


@pytest.mark.parametrize("reason", ["PreemptionByScheduler", "EvictionByEvictionAPI", "lost node"])
def test_a_pod_that_is_taken_away_is_no_failure(cluster, launcher_on, tmp_path, reason):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on(max_restarts=0)
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    first = pod_of(cluster)
    if reason == "lost node":
        cluster.lose_node(first)
    else:
        cluster.evict(first, reason)
    cluster.wait_for(lambda: len(cluster.created("Pod")) == 2)
    open_gate(tmp_path)
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    assert done_as_undisturbed(request)
    assert len(cluster.created("Job")) == 1
    assert len(cluster.created("Pod")) == 2
    assert "failed" not in cluster.get("Job", followed.handle.name)["status"]


@pytest.mark.parametrize("kind", ["Job", "JobSet"])
def test_a_stage_that_is_taken_away_too_often_is_given_up(cluster, launcher_on, tmp_path, kind):
    request = request_for(tmp_path, ranks=1 if kind == "Job" else 2, **gated(tmp_path))
    launcher = launcher_on(max_preemptions=1, queue="gpus")
    followed = Followed(launcher, launcher.submit(request))
    for opened in (1, 2):
        followed.until(lambda _, least=opened: followed.count("opened") == least)
        followed.until_step(3)
        cluster.preempt(kind, followed.handle.name)
    outcome = followed.until_ended()
    assert outcome.state is State.FAILED
    assert outcome.resumable
    assert "was taken away 2 times, more than compute.kubernetes.max_preem" in outcome.reason
    cluster.wait_for(lambda: cluster.get(kind, followed.handle.name) is None)
    assert launcher.poll(followed.handle) == outcome


def test_a_stage_that_crashes_is_restarted_as_often_as_asked(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, at=3, do="fail once"), launcher_on(max_restarts=1)
    followed = Followed(launcher, launcher.submit(request))
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    assert done_as_undisturbed(request)
    assert len(cluster.created("Pod")) == 2


def test_a_stage_that_waits_for_a_node_is_queued(cluster, launcher_on, tmp_path):
    cluster.unschedulable()
    request, launcher = request_for(tmp_path), launcher_on(stuck=0.1)
    followed = Followed(launcher, launcher.submit(request))
    outcome = followed.until(lambda seen: "no node fits" in seen.reason)
    assert outcome.state is State.QUEUED
    cluster.schedulable()
    assert followed.until_ended().state is State.DONE


def test_an_object_deleted_by_somebody_is_lost_and_can_be_asked_for_again(
    cluster, launcher_on, tmp_path
):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    cluster.remove("Job", followed.handle.name)
    outcome = followed.until_ended()
    assert outcome.state is State.LOST
    assert outcome.resumable
    assert "somebody deleted it: ask again" in outcome.reason
    cluster.wait_for(lambda: not cluster.objects("Pod"))
    open_gate(tmp_path)
    again = Followed(launcher, launcher.submit(request))
    assert again.until_ended().state is State.DONE
    assert again.steps == [4, 5]
    assert done_as_undisturbed(request)


def test_an_object_that_outlived_its_time_is_known_by_its_artifact(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path), launcher_on()
    Followed(launcher, launcher.submit(request)).until_ended()
    cluster.remove("Job", name_of(request))
    other = launcher_on()
    followed = Followed(other, other.find(request.name, request.fingerprint))
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))


def test_an_object_that_is_gone_is_not_lost_while_the_store_is_away(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    runs = (tmp_path / "runs").rename(tmp_path / "away")
    cluster.remove("Job", followed.handle.name)
    outcome = followed.until(lambda seen: "nobody can look at it now" in seen.reason)
    assert outcome.state is State.RUNNING
    runs.rename(tmp_path / "runs")
    assert followed.until_ended().state is State.LOST


def test_an_api_that_is_away_hides_the_stage_and_ends_nothing(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    cluster.down()
    outcome = followed.until(lambda seen: seen.reason)
    assert outcome.state is State.RUNNING
    assert outcome.reason.startswith("nobody can look at it now: the cluster's API does not answer")
    open_gate(tmp_path)
    followed.until_step(5)
    assert not followed.beat().ended
    cluster.up()
    assert followed.until_ended().state is State.DONE
    assert len(cluster.created("Pod")) == 1


def test_an_api_that_hangs_is_not_waited_for(cluster, launcher_on, tmp_path, monkeypatch):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    monkeypatch.setattr(api, "_TIMEOUT", (2.0, 0.3))
    cluster.hang(1.0, times=2, verb="get", kind="Job")
    outcome = followed.until(lambda seen: "ReadTimeoutError" in seen.reason)
    assert outcome.state is State.RUNNING
    monkeypatch.undo()
    open_gate(tmp_path)
    assert followed.until_ended().state is State.DONE


@pytest.mark.parametrize("status", [401, 403, 404, 409, 410, 429, 500, 503])
def test_whatever_the_api_answers_to_a_look_ends_nothing(cluster, launcher_on, tmp_path, status):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    followed.until(lambda seen: seen.state is State.RUNNING and not seen.reason)
    cluster.answer(status, times=3, verb="get", kind="Job")
    outcome = followed.until(lambda seen: seen.reason)
    assert outcome.state is State.RUNNING
    assert outcome.reason.startswith("nobody can look at it now: ")
    followed.until(lambda seen: not seen.reason)
    open_gate(tmp_path)
    assert followed.until_ended().state is State.DONE


def test_credentials_may_be_renewed_while_a_stage_runs(cluster, launcher_on, tmp_path, monkeypatch):
    cluster.token = "first"
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    request = request_for(tmp_path, **gated(tmp_path))
    launcher = KubernetesLauncher(compute_for(tmp_path), beat=0.05)
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    cluster.token = "second"
    assert "renew the credentials" in followed.until(lambda seen: seen.reason).reason
    cluster.kubeconfig()
    followed.until(lambda seen: seen.state is State.RUNNING and not seen.reason)
    open_gate(tmp_path)
    assert followed.until_ended().state is State.DONE


def test_a_store_of_messages_that_is_away_loses_and_repeats_nothing(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    away = (tmp_path / "runs").rename(tmp_path / "away")
    open_gate(tmp_path)
    cluster.wait_for((tmp_path / "artifacts").joinpath("toy").exists)
    cluster.wait_for(lambda: list(tmp_path.glob("artifacts/toy/*/manifest.json")))
    assert not followed.beat().ended
    away.rename(tmp_path / "runs")
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    assert followed.count("opened") == followed.count("closed") == 1


def test_an_orchestrator_that_comes_later_hears_the_launch_from_its_start(
    cluster, launcher_on, tmp_path
):
    request, first = request_for(tmp_path, at=3, do="fail once"), launcher_on(max_restarts=0)
    Followed(first, first.submit(request)).until_ended()
    handle = first.submit(request)
    Followed(first, handle).until_ended()
    other = launcher_on()
    told, offset = other.messages(other.submit(request), 0)
    assert steps_of(told) == [4, 5]
    assert other.messages(handle, offset) == ([], offset)


def test_the_latest_event_is_the_last_whichever_api_it_was_written_through(cluster):
    about = cluster.store.create({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "hillclimb"}
    })  # fmt: skip
    for number, source in enumerate(("default-scheduler", "kubelet", "default-scheduler")):
        cluster.store.event(about, "Normal", f"R{number}", "so", source)
        (event,) = [e for e in cluster.objects("Event") if e["reason"] == f"R{number}"]
        field = "eventTime" if source == "default-scheduler" else "lastTimestamp"
        cluster.store.save({**event, field: f"2026-11-25T10:00:0{number}Z"})
    found = Api("hillclimb", cluster.configuration).events(about)
    assert [event["reason"] for event in found] == ["R0", "R1", "R2"]


def test_half_a_message_waits_for_its_other_half(cluster, launcher_on, tmp_path):
    cluster.unschedulable()
    request, launcher = request_for(tmp_path), launcher_on()
    handle = launcher.submit(request)
    lines = tmp_path / "runs" / "toy" / request.fingerprint[:16] / "messages.jsonl"
    lines.write_text('{"method": "opened"}\n{"method": "clo')
    told, offset = launcher.messages(handle, 0)
    assert [message["method"] for message in told] == ["opened"]
    assert launcher.messages(handle, offset) == ([], offset)
    with lines.open("a") as stream:
        stream.write('sed"}\n')
    told, offset = launcher.messages(handle, offset)
    assert [message["method"] for message in told] == ["closed"]
    assert offset == lines.stat().st_size


def test_a_failure_of_a_cancelled_stage_is_no_failure(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    launcher.cancel(followed.handle)
    with cluster.store.lock:
        if (job := cluster.get("Job", followed.handle.name)) is not None:
            set_condition(job, "Failed", True, "BackoffLimitExceeded", "it was told to end")
            cluster.store.save(job)
    assert followed.until_ended().state is State.STOPPED
