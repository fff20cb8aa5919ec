"""Making a stage's object, or attaching to the one that is there; cancelling it."""

from __future__ import annotations

import threading
import time

import pytest
from launcher_support import Followed, gated, name_of, open_gate, pod_of, request_for
from toy_stages import toy

from hillclimb.artifacts import Artifact
from hillclimb.launcher import State
from hillclimb.launcher.kubernetes import api
from hillclimb.launcher.kubernetes.answers import ApiRefused

QUEUE = "kueue.x-k8s.io/queue-name"


def test_a_stage_is_made_under_a_name_that_follows_from_its_fingerprint(
    cluster, launcher_on, tmp_path
):
    request, launcher = request_for(tmp_path), launcher_on()
    handle = launcher.submit(request)
    assert handle.name == name_of(request) == f"toy-{request.fingerprint[:12]}"
    followed = Followed(launcher, handle)
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    artifact = Artifact(request.output)
    assert artifact.read_text("out.txt") == toy.expected(request.config)
    assert cluster.created("Job") == [handle.name]
    job = cluster.get("Job", handle.name)
    assert job["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "hillclimb",
        "hillclimb.dev/stage": "toy",
        "hillclimb.dev/fingerprint": request.fingerprint[:16],
        "hillclimb.dev/experiment": "toy-seed0",
        "hillclimb.dev/run-id": "5f0e",
    }
    assert [seen.verb for seen in cluster.requests if seen.verb not in ("get", "list")] == ["patch"]


def test_what_is_made_already_is_neither_made_nor_run_again(cluster, launcher_on, tmp_path):
    request = request_for(tmp_path)
    Followed(first := launcher_on(), first.submit(request)).until_ended()
    launcher = launcher_on()
    followed = Followed(launcher, launcher.submit(request))
    assert followed.until_ended().state is State.DONE
    assert followed.steps == list(range(6))
    assert len(cluster.created("Job")) == len(cluster.created("Pod")) == 1


def test_two_launchers_at_once_share_one_object(cluster, launcher_on, tmp_path):
    request = request_for(tmp_path, **gated(tmp_path))
    launchers, handles = [launcher_on() for _ in range(4)], []
    cluster.hang(0.5, times=4, verb="patch")
    runs = iter(range(9))

    def submit(launcher):
        tracking = {"run_id": f"run-{next(runs)}"}
        handles.append(launcher.submit(request.model_copy(update={"tracking": tracking})))

    threads = [threading.Thread(target=submit, args=(launcher,)) for launcher in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(handles) == 4
    assert len(set(handles)) == 1
    patched = [seen.status for seen in cluster.requests if seen.verb == "patch"]
    assert sorted(patched) == [201, 409, 409, 409]
    open_gate(tmp_path)
    for launcher in launchers:
        assert Followed(launcher, handles[0]).until_ended().state is State.DONE
    assert len(cluster.created("Job")) == len(cluster.created("Pod")) == 1


def test_a_running_stage_is_attached_to_whatever_the_recipe_asks_for_by_now(
    cluster, launcher_on, tmp_path
):
    request = request_for(tmp_path, ranks=2, **gated(tmp_path))
    first = launcher_on(gpus_per_node=0)
    handle = first.submit(request)
    Followed(first, handle).until_step(3)
    before = cluster.get("Job", handle.name)
    other = launcher_on(gpus_per_node=1, image="train:2", queue="gpus", max_restarts=0)
    again = request.model_copy(update={"tracking": {"run_id": "another"}})
    followed = Followed(other, other.submit(again))
    assert cluster.get("Job", handle.name)["spec"] == before["spec"]
    assert cluster.get("Job", handle.name)["metadata"]["labels"] == before["metadata"]["labels"]
    open_gate(tmp_path)
    assert followed.until_ended().state is State.DONE
    assert not cluster.created("JobSet")
    assert len(cluster.created("Job")) == 1


def test_a_queued_object_that_was_let_in_is_not_suspended_again(cluster, launcher_on, tmp_path):
    request = request_for(tmp_path, **gated(tmp_path))
    first, second = launcher_on(queue="gpus"), launcher_on(queue="gpus")
    handle = first.submit(request)
    Followed(first, handle).until_step(3)
    cluster.answer(404, verb="get", kind="Job")
    cluster.answer(404, verb="get", kind="JobSet")
    second.submit(request)
    assert cluster.requests[-1].verb == "get"
    assert not cluster.get("Job", handle.name)["spec"]["suspend"]
    open_gate(tmp_path)
    assert Followed(second, handle).until_ended().state is State.DONE
    assert len(cluster.created("Pod")) == 1


def test_a_failed_stage_is_launched_anew_and_goes_on(cluster, launcher_on, tmp_path):
    request = request_for(tmp_path, at=3, do="fail once")
    launcher = launcher_on(max_restarts=0)
    failed = Followed(launcher, launcher.submit(request))
    assert failed.until_ended().state is State.FAILED
    assert failed.outcome.resumable
    again = Followed(launcher, launcher.submit(request))
    assert again.until_ended().state is State.DONE
    assert failed.steps == [0, 1, 2, 3]
    assert again.steps == [4, 5]
    name = name_of(request)
    assert cluster.created("Job") == [name, name]
    notes = cluster.get("Job", name)["metadata"]["annotations"]
    assert notes["hillclimb.dev/attempt"] == "2"
    assert int(notes["hillclimb.dev/messages-from"]) > 0


def test_a_complete_stage_whose_artifact_was_deleted_is_made_again(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path), launcher_on()
    Followed(launcher, launcher.submit(request)).until_ended()
    artifact = Artifact(request.output)
    artifact.fs.rm(artifact.base, recursive=True)
    assert Followed(launcher, launcher.submit(request)).until_ended().state is State.DONE
    assert Artifact(request.output).read_text("out.txt") == toy.expected(request.config)
    assert len(cluster.created("Job")) == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_cancelling_deletes_in_the_foreground(cluster, launcher_on, tmp_path, ranks):
    request = request_for(tmp_path, ranks=ranks, **gated(tmp_path))
    launcher, watcher = launcher_on(max_restarts=0), launcher_on()
    handle = launcher.submit(request)
    followed, other = Followed(launcher, handle), Followed(watcher, handle)
    followed.until_step(3)
    launcher.cancel(handle)
    assert not followed.beat().ended
    assert other.until_ended().state is State.STOPPED
    assert followed.until_ended().state is State.STOPPED
    assert followed.outcome.reason == f"{handle.name} was cancelled"
    cluster.wait_for(lambda: not cluster.objects("Pod") and not cluster.objects("Job"))
    errors = [m for m in followed.told if m["method"] == "report_custom_message"]
    assert "was stopped" in errors[-1]["params"]["payload"]["message"]
    launcher.cancel(handle)


def test_what_was_cancelled_is_made_when_asked_for_again(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    handle = launcher.submit(request)
    Followed(launcher, handle).until_step(3)
    launcher.cancel(handle)
    followed = Followed(launcher, launcher.submit(request))
    open_gate(tmp_path)
    assert followed.until_ended().state is State.DONE
    assert followed.steps == [4, 5]
    assert Artifact(request.output).read_text("out.txt") == toy.expected(request.config)


def test_a_stage_is_found_where_it_was_asked_for(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    assert launcher.find(request.name, request.fingerprint) is None
    handle = launcher.submit(request)
    other = launcher_on()
    assert other.find(request.name, request.fingerprint) == handle
    assert other.find(request.name, "0" * 64) is None
    assert handle.log.startswith("kubectl --namespace hillclimb logs")
    assert pod_of(cluster, labels=handle.log.rpartition("--selector ")[2])


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (403, 'User "me" cannot patch resource "jobs"', "bind the Role of k8s/base"),
        (403, "exceeded quota: jobs, requested: count/jobs.batch=1", "ResourceQuota has no room"),
        (403, 'admission webhook "v" denied the request: no', "an admission rule of the cluster"),
        (404, "the server could not find the requested resource", "knows no Job"),
        (422, "spec.template: Invalid value", "the cluster refuses Job"),
        (400, 'strict decoding error: unknown field "spec.x"', "is refused with 400"),
        (401, "Unauthorized", "renew the credentials"),
    ],
)
def test_what_the_api_will_not_do_is_said_at_once(
    cluster, launcher_on, tmp_path, status, message, words
):
    cluster.answer(status, times=2, verb="patch", message=message)
    with pytest.raises(ApiRefused) as refused:
        launcher_on().submit(request_for(tmp_path))
    assert words in str(refused.value)
    assert message in str(refused.value)
    assert not cluster.created("Job")


@pytest.mark.parametrize("status", [409, 410, 429, 500, 503])
def test_passing_troubles_of_the_api_are_waited_out(cluster, launcher_on, tmp_path, status):
    for verb in ("get", "patch"):
        cluster.answer(status, times=2, verb=verb)
    request, launcher = request_for(tmp_path), launcher_on()
    assert Followed(launcher, launcher.submit(request)).until_ended().state is State.DONE
    assert len(cluster.created("Job")) == 1


def test_a_lost_answer_is_no_second_object(cluster, launcher_on, tmp_path):
    cluster.lose_answers(verb="patch")
    request, launcher = request_for(tmp_path), launcher_on()
    assert Followed(launcher, launcher.submit(request)).until_ended().state is State.DONE
    assert [seen.status for seen in cluster.requests if seen.verb == "patch"] == [0]
    assert len(cluster.created("Job")) == len(cluster.created("Pod")) == 1


def test_a_request_that_times_out_and_is_carried_out_later_makes_one_object(
    cluster, launcher_on, tmp_path, monkeypatch
):
    monkeypatch.setattr(api, "_TIMEOUT", (2.0, 0.3))
    cluster.hang(1.0, verb="patch")
    request, launcher = request_for(tmp_path), launcher_on()
    handle = launcher.submit(request)
    cluster.wait_for(lambda: len([s for s in cluster.requests if s.verb == "patch"]) == 2)
    monkeypatch.undo()
    assert Followed(launcher, handle).until_ended().state is State.DONE
    assert len(cluster.created("Job")) == len(cluster.created("Pod")) == 1


def test_a_lost_answer_to_a_deletion_is_no_second_deletion(cluster, launcher_on, tmp_path):
    request, launcher = request_for(tmp_path, **gated(tmp_path)), launcher_on()
    handle = launcher.submit(request)
    Followed(launcher, handle).until_step(3)
    cluster.lose_answers(verb="delete")
    launcher.cancel(handle)
    assert Followed(launcher, handle).until_ended().state is State.STOPPED
    assert [seen.status for seen in cluster.requests if seen.verb == "delete"] == [0]


def test_an_api_that_stays_away_is_given_up_with_a_sentence(cluster, launcher_on, tmp_path):
    cluster.down()
    with pytest.raises(RuntimeError, match=r"could not launch toy-\w+ in 0 s: the cluster's API"):
        launcher_on(patience=0.2).submit(request_for(tmp_path))


def test_a_launch_waits_for_the_store_of_messages(cluster, launcher_on, tmp_path):
    (tmp_path / "runs").touch()
    request, launcher = request_for(tmp_path), launcher_on()
    done = []
    thread = threading.Thread(target=lambda: done.append(launcher.submit(request)))
    thread.start()
    time.sleep(0.2)
    assert not done
    assert not cluster.created("Job")
    (tmp_path / "runs").unlink()
    thread.join()
    assert Followed(launcher, done[0]).until_ended().state is State.DONE
