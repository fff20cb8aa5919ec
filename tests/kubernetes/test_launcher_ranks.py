"""Stages over several pods: they meet by name, start anew together, end with the first rank."""

from __future__ import annotations

import pytest
from launcher_support import Followed, gated, open_gate, request_for
from toy_stages import toy

from hillclimb.artifacts import Artifact
from hillclimb.launcher import State
from hillclimb.launcher.base import Message

INDEX = "batch.kubernetes.io/job-completion-index"


def notes(told: list[Message]) -> list[str]:
    """The sentences that a stage has said."""
    payloads = [(message.get("params") or {}).get("payload") or {} for message in told]
    return [payload["message"] for payload in payloads if payload.get("type") == "note"]


def rank_pod(cluster, rank: int) -> str:
    """The running pod of a rank."""
    found = cluster.wait_for(
        lambda: [
            pod["metadata"]["name"]
            for pod in cluster.objects("Pod", f"{INDEX}={rank}")
            if pod["status"]["phase"] == "Running"
        ]
    )
    return found[0]


def test_ranks_meet_by_name_and_end_together(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, ranks=3), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    assert followed.until_ended().state is State.DONE
    assert notes(followed.told) == ["rank 0 met ranks [1, 2]"]
    assert followed.steps == list(range(6))
    assert Artifact(request.output).read_text("out.txt") == toy.expected(request.config)
    name = followed.handle.name
    assert cluster.created("JobSet") == [name]
    assert cluster.created("Job") == [f"{name}-learner-0"]
    assert cluster.created("Service") == [name]
    env = cluster.objects("Pod")[0]["spec"]["containers"][0]["env"]
    assert {"name": "MASTER_ADDR", "value": f"{name}-learner-0-0.{name}"} in env


def test_all_ranks_start_anew_when_one_crashes(cluster, launcher_on, tmp_path):
    request = request_for(tmp_path, ranks=2, at=3, do="fail once")
    launcher = launcher_on(max_restarts=1)
    followed = Followed(launcher, launcher.submit(request))
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    assert len(notes(followed.told)) == 2
    assert Artifact(request.output).read_text("out.txt") == toy.expected(request.config)
    status = cluster.get("JobSet", followed.handle.name)["status"]
    assert (status["restarts"], status["restartsCountTowardsMax"]) == (1, 1)
    assert len(cluster.created("Job")) == 2
    assert len(cluster.created("Pod")) == 4


def test_a_crash_too_many_is_told_by_the_rank_that_crashed(cluster, launcher_on, tmp_path):
    request = request_for(tmp_path, ranks=2, **gated(tmp_path, do="fail once"))
    launcher = launcher_on(max_restarts=0)
    followed = Followed(launcher, launcher.submit(request))
    outcome = followed.until_ended()
    assert (outcome.state, outcome.code) == (State.FAILED, 1)
    first, *quoted = outcome.reason.splitlines()
    name = followed.handle.name
    assert first == (
        f"{name}: rank 1: RuntimeError: the disk is on fire (it was restarted as often as "
        "compute.kubernetes.max_restarts allows)"
    )
    assert quoted[-1].startswith(f"log of {name}-learner-0-")


def test_a_refusal_ends_all_ranks_at_once(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, ranks=2, at=3, do="refuse"), launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    outcome = followed.until_ended()
    assert (outcome.state, outcome.code) == (State.FAILED, 2)
    assert outcome.reason.splitlines()[0].endswith("steps is 3: give it more")
    assert len(cluster.created("Job")) == 1
    reason = cluster.condition("JobSet", followed.handle.name, "Failed")["reason"]
    assert reason == "FailJobSetFailurePolicyAction"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_taken_away_takes_the_others_along_and_is_no_failure(
    cluster, launcher_on, tmp_path, rank
):
    """The others notice at once, and it is slow to end: its end has to be seen first."""
    request = request_for(tmp_path, ranks=2, **gated(tmp_path, dying=0.4))
    launcher = launcher_on(max_restarts=0)
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    cluster.evict(rank_pod(cluster, rank), "EvictionByEvictionAPI")
    followed.until(lambda _: len(notes(followed.told)) == 2)
    open_gate(tmp_path)
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    assert Artifact(request.output).read_text("out.txt") == toy.expected(request.config)
    status = cluster.get("JobSet", followed.handle.name)["status"]
    assert (status["restarts"], status["restartsCountTowardsMax"]) == (1, 0)


def test_a_lost_node_of_one_rank_is_no_failure(cluster, launcher_on, tmp_path):
    request = request_for(tmp_path, ranks=2, **gated(tmp_path))
    launcher = launcher_on(max_restarts=0)
    followed = Followed(launcher, launcher.submit(request))
    followed.until_step(3)
    cluster.lose_node(rank_pod(cluster, 1))
    open_gate(tmp_path)
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    status = cluster.get("JobSet", followed.handle.name)["status"]
    assert (status["restarts"], status["restartsCountTowardsMax"]) == (1, 0)


def test_ranks_wait_for_room_together(cluster, launcher_on, tmp_path):
    cluster.unschedulable()
    launcher = launcher_on()
    followed = Followed(launcher, launcher.submit(request_for(tmp_path, ranks=2)))
    assert followed.until(lambda seen: "no node fits" in seen.reason).state is State.QUEUED
    cluster.schedulable()
    assert followed.until_ended().state is State.DONE


def test_jobs_that_a_jobset_cannot_make_are_told(cluster, launcher_on, tmp_path):
    cluster.refuse_pods()
    launcher = launcher_on()
    followed = Followed(launcher, launcher.submit(request_for(tmp_path, ranks=2)))
    outcome = followed.until(lambda seen: "ResourceQuota is used up" in seen.reason)
    assert outcome.state is State.QUEUED
