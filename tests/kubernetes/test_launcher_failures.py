"""What keeps a stage from running and how it fails: one plain sentence each, with the fix."""

from __future__ import annotations

import pytest
from launcher_support import Followed, gated, pod_of, request_for

from hillclimb.launcher import State

REFUSED = 2


def queued_for(cluster, launcher_on, tmp_path, words: str) -> Followed:
    """A stage that is submitted and followed until its reason says why it waits."""
    launcher = launcher_on()
    followed = Followed(launcher, launcher.submit(request_for(tmp_path)))
    assert followed.until(lambda seen: words in seen.reason).state is State.QUEUED
    return followed


def test_an_image_that_cannot_be_pulled_is_given_up_after_a_while(cluster, launcher_on, tmp_path):
    cluster.break_image("train:1")
    launcher = launcher_on(stuck=0.3)
    followed = Followed(launcher, launcher.submit(request_for(tmp_path)))
    outcome = followed.until(lambda seen: "cannot be pulled" in seen.reason)
    assert outcome.state is State.QUEUED
    outcome = followed.until_ended()
    assert (outcome.state, outcome.code) == (State.FAILED, REFUSED)
    assert not outcome.resumable
    assert outcome.reason.startswith(
        f"{followed.handle.name} cannot start: the image train:1 cannot be pulled (Back-off"
    )
    assert outcome.reason.endswith("or let nodes log in to its registry")
    cluster.wait_for(lambda: not cluster.objects("Job"))


def test_a_registry_that_is_back_in_time_is_no_failure(cluster, launcher_on, tmp_path):
    cluster.break_image("train:1")
    followed = queued_for(cluster, launcher_on, tmp_path, "cannot be pulled")
    cluster.mend_image("train:1")
    assert followed.until_ended().state is State.DONE


def test_a_stage_that_once_ran_waits_for_a_registry_without_end(cluster, launcher_on, tmp_path):
    launcher = launcher_on(stuck=0.1)
    followed = Followed(launcher, launcher.submit(request_for(tmp_path, **gated(tmp_path))))
    followed.until_step(3)
    cluster.break_image("train:1")
    cluster.lose_node(pod_of(cluster))
    (tmp_path / "gate").touch()
    followed.until(lambda seen: "Back-off" in seen.reason)
    followed.launcher.poll(followed.handle)
    assert followed.until(lambda seen: seen.state is State.QUEUED)
    cluster.mend_image("train:1")
    assert followed.until_ended().state is State.DONE


def test_a_missing_secret_is_named(cluster, launcher_on, tmp_path):
    launcher = launcher_on(stuck=0.1, secrets=("object-store",))
    followed = Followed(launcher, launcher.submit(request_for(tmp_path)))
    outcome = followed.until_ended()
    assert outcome.code == REFUSED
    assert 'its container cannot be made (secret "object-store" not found)' in outcome.reason


def test_a_node_that_is_too_small_is_waited_for(cluster, launcher_on, tmp_path):
    cluster.unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    followed = queued_for(cluster, launcher_on, tmp_path, "no node fits")
    assert followed.outcome.reason == (
        "no node fits (0/3 nodes are available: 3 Insufficient nvidia.com/gpu): wait until GPUs "
        "are free, or ask for fewer ranks a node"
    )


def test_a_resource_quota_is_waited_for(cluster, launcher_on, tmp_path):
    cluster.refuse_pods()
    followed = queued_for(cluster, launcher_on, tmp_path, "ResourceQuota is used up")
    assert "exceeded quota: gpus" in followed.outcome.reason
    assert "it starts by itself when others end" in followed.outcome.reason
    cluster.allow_pods()
    assert followed.until_ended().state is State.DONE


def test_pods_that_admission_refuses_are_given_up(cluster, launcher_on, tmp_path):
    cluster.refuse_pods('violates PodSecurity "restricted:latest": hostPath volumes')
    launcher = launcher_on(stuck=0.1)
    followed = Followed(launcher, launcher.submit(request_for(tmp_path)))
    outcome = followed.until_ended()
    assert outcome.code == REFUSED
    assert "its pods are refused (Error creating" in outcome.reason
    assert "use claims instead of host_path in compute.kubernetes.volumes" in outcome.reason


def test_a_volume_that_cannot_be_mounted_is_named(cluster, launcher_on, tmp_path):
    cluster.break_volumes('MountVolume.SetUp failed for volume "data": no such file or directory')
    followed = queued_for(cluster, launcher_on, tmp_path, "cannot be mounted")
    assert followed.outcome.reason.startswith("a volume cannot be mounted (MountVolume.SetUp")
    cluster.mend_volumes()
    assert followed.until_ended().state is State.DONE


def test_the_stages_own_sentence_comes_first_and_is_not_tried_again(cluster, launcher_on, tmp_path):
    launcher = launcher_on(max_restarts=3)
    request = request_for(tmp_path, at=2, do="refuse")
    followed = Followed(launcher, launcher.submit(request))
    outcome = followed.until_ended()
    assert (outcome.state, outcome.code) == (State.FAILED, REFUSED)
    first, *rest = outcome.reason.splitlines()
    assert first == "steps is 3: give it more"
    assert rest[-1].endswith("ValueError: steps is 3: give it more")
    assert rest[-1].startswith(f"log of {followed.handle.name}-0-")
    assert len(rest) == 10
    assert len(cluster.created("Pod")) == 1


def test_a_crash_is_told_with_the_end_of_its_log(cluster, launcher_on, tmp_path):
    launcher = launcher_on(max_restarts=0)
    followed = Followed(launcher, launcher.submit(request_for(tmp_path, at=2, do="fail")))
    outcome = followed.until_ended()
    assert (outcome.state, outcome.code, outcome.resumable) == (State.FAILED, 1, True)
    first, *rest = outcome.reason.splitlines()
    assert first.startswith(f"{followed.handle.name}: RuntimeError: the disk is on fire")
    assert rest[-1].endswith(": RuntimeError: the disk is on fire")


def test_a_kill_without_a_word_is_told_by_its_signal(cluster, launcher_on, tmp_path):
    launcher = launcher_on(max_restarts=0)
    followed = Followed(launcher, launcher.submit(request_for(tmp_path, at=2, do="die")))
    outcome = followed.until_ended()
    assert (outcome.code, outcome.resumable) == (137, True)
    assert "it was killed by SIGKILL: see its log, and ask again" in outcome.reason
    assert "(it was restarted as often as compute.kubernetes.max_restarts" in outcome.reason


def test_too_little_memory_is_told_with_the_limit(cluster, launcher_on, tmp_path):
    launcher = launcher_on(max_restarts=0, memory="2Gi")
    followed = Followed(launcher, launcher.submit(request_for(tmp_path, **gated(tmp_path))))
    followed.until_step(3)
    cluster.oom_kill(pod_of(cluster))
    outcome = followed.until_ended()
    assert outcome.code == 137
    assert outcome.reason.splitlines()[0].startswith(
        f"{followed.handle.name}: it was killed for its memory (limit 2Gi): raise "
        "compute.kubernetes.memory, or lower the recipe's micro_batch_tokens"
    )


def test_a_pod_that_leaves_no_trace_still_has_a_sentence(cluster, launcher_on, tmp_path):
    launcher = launcher_on(max_restarts=0)
    followed = Followed(launcher, launcher.submit(request_for(tmp_path, **gated(tmp_path))))
    followed.until_step(3)
    cluster.remove("Pod", pod_of(cluster))
    outcome = followed.until_ended()
    assert outcome.state is State.FAILED
    assert outcome.resumable
    assert "was stopped; it goes on from its last checkpoint when asked again" in outcome.reason


@pytest.mark.parametrize("verb", ["log", "list"])
def test_a_failure_is_told_without_what_cannot_be_read(cluster, launcher_on, tmp_path, verb):
    launcher = launcher_on()
    followed = Followed(launcher, launcher.submit(request_for(tmp_path, at=2, do="refuse")))
    followed.until_step(2)
    cluster.answer(403, times=99, verb=verb, kind="Pod" if verb == "log" else "Event")
    said = followed.until_ended().reason.splitlines()
    assert said[0] == "steps is 3: give it more"
    assert len(said) == (1 if verb == "log" else 11)
