"""The fake cluster behaves as Kubernetes documents it, seen through the official client."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, MaxRetryError

NS = "hillclimb"
JOBSETS = ("jobset.x-k8s.io", "v1alpha2", NS, "jobsets")
LOOP = "echo up; while true; do sleep 0.02; done"
FOREVER = f"trap 'echo told to end; exit 143' TERM; {LOOP}"
APPLY = {"field_manager": "hillclimb", "_content_type": "application/apply-patch+yaml"}
POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}},
    ]
}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    with FakeCluster(tmp_path / "cluster") as made:
        yield made


@pytest.fixture
def api(cluster: FakeCluster) -> client.ApiClient:
    return client.ApiClient(cluster.configuration())


@pytest.fixture
def batch(api: client.ApiClient) -> client.BatchV1Api:
    return client.BatchV1Api(api)


@pytest.fixture
def core(api: client.ApiClient) -> client.CoreV1Api:
    return client.CoreV1Api(api)


@pytest.fixture
def custom(api: client.ApiClient) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(api)


def pod_spec(script: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "stage:1", "command": ["sh", "-c", script]}
    return {"restartPolicy": "Never", "containers": [container | spec.pop("container", {})], **spec}


def job_spec(script: str, pod: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    template = {"spec": pod_spec(script, **(pod or {}))}
    return {"completionMode": "Indexed", "template": template, **spec}


def job(name: str, script: str, **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "labels": spec.pop("labels", {})}
    made = job_spec(script, **spec)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": made}


def jobset(name: str, roles: dict[str, dict[str, Any]], **spec: Any) -> dict[str, Any]:
    labels = spec.pop("labels", {})
    parts = [{"name": r, "replicas": 1, "template": {"spec": s}} for r, s in roles.items()]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
        "metadata": {"name": name, "labels": labels}, "spec": {"replicatedJobs": parts, **spec},
    }  # fmt: skip


def pods(cluster: FakeCluster, phase: str = "Running", labels: str = "") -> list[str]:
    found = cluster.objects("Pod", labels)
    return [pod["metadata"]["name"] for pod in found if pod["status"]["phase"] == phase]


def running(cluster: FakeCluster, count: int = 1) -> list[str]:
    """The running pods, once all have said that they are up."""

    def ready() -> list[str]:
        names = pods(cluster)
        return names if len(names) == count and all(cluster.log(n) for n in names) else []

    return cluster.wait_for(ready)


def failed(cluster: FakeCluster, kind: str, name: str) -> dict[str, Any]:
    return cluster.wait_for(lambda: cluster.condition(kind, name, "Failed"))


def status_of(call: Callable[[], object]) -> int:
    with pytest.raises(ApiException) as refused:
        call()
    return int(refused.value.status)


def events(core: client.CoreV1Api, name: str) -> dict[str, str]:
    found = core.list_namespaced_event(NS, field_selector=f"involvedObject.name={name}").items
    return {event.reason: event.message for event in found}


def ended(core: client.CoreV1Api, pod: str) -> tuple[int, str]:
    state = core.read_namespaced_pod(pod, NS).status.container_statuses[0].state.terminated
    return state.exit_code, state.reason


def log_of(core: client.CoreV1Api, pod: str, **options: Any) -> str:
    """The log as the server sends it: the client would show its bytes as Python writes them."""
    answer = core.read_namespaced_pod_log(pod, NS, _preload_content=False, **options)
    return str(answer.data.decode())


def waiting(cluster: FakeCluster) -> set[str]:
    found = [pod["status"].get("containerStatuses", []) for pod in cluster.objects("Pod")]
    return {status["state"].get("waiting", {}).get("reason", "") for s in found for status in s}


def processes_with(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def test_objects_have_identity_and_are_found_by_label(cluster, batch, core):
    made = batch.create_namespaced_job(NS, job("a", "true", labels={"stage": "tokenizer"}))
    assert made.metadata.uid
    assert made.metadata.creation_timestamp
    batch.create_namespaced_job(NS, job("b", "true"))
    for labels, names in {
        "stage=tokenizer": ["a"], "stage!=tokenizer": ["b"], "!stage": ["b"],
        "stage in (tokenizer, other)": ["a"], "stage notin (tokenizer)": ["b"], "": ["a", "b"],
    }.items():  # fmt: skip
        found = batch.list_namespaced_job(NS, label_selector=labels).items
        assert [one.metadata.name for one in found] == names, labels
    assert not batch.list_namespaced_job("elsewhere").items
    assert len(batch.list_job_for_all_namespaces().items) == 2
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))
    later = batch.read_namespaced_job("a", NS)
    assert int(later.metadata.resource_version) > int(made.metadata.resource_version)
    assert later.metadata.uid == made.metadata.uid
    assert "SuccessfulCreate" in events(core, "a")


def test_a_name_is_taken_once_and_free_again_after_deletion(cluster, batch, core):
    first = batch.create_namespaced_job(NS, job("a", "true"))
    assert status_of(lambda: batch.create_namespaced_job(NS, job("a", "true"))) == 409
    batch.delete_namespaced_job("a", NS, propagation_policy="Background")
    assert status_of(lambda: batch.read_namespaced_job("a", NS)) == 404
    cluster.wait_for(lambda: not cluster.objects("Pod"))
    assert batch.create_namespaced_job(NS, job("a", "true")).metadata.uid != first.metadata.uid
    assert cluster.created("Job") == ["a", "a"]
    assert [seen.status for seen in cluster.requests[:3]] == [201, 409, 200]


def test_server_side_apply_creates_and_merges(cluster, custom, core):
    body = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "1"}},
        "data": {"x": "1"},
    }  # fmt: skip
    core.patch_namespaced_config_map("c", NS, body, **APPLY)
    body |= {"metadata": {"name": "c", "labels": {"b": "2"}}, "data": {"y": "2"}}
    merged = core.patch_namespaced_config_map("c", NS, body, **APPLY)
    assert merged.metadata.labels == {"a": "1", "b": "2"}
    assert merged.data == {"x": "1", "y": "2"}
    assert cluster.created("ConfigMap") == ["c"]
    kind = {"_content_type": APPLY["_content_type"]}
    assert status_of(lambda: core.patch_namespaced_config_map("c", NS, body, **kind)) == 422
    made = jobset("s", {"learner": job_spec("sleep 60")}, labels={"kueue.x-k8s.io/queue-name": "q"})
    custom.patch_namespaced_custom_object(*JOBSETS, "s", made, **APPLY)
    cluster.wait_for(lambda: pods(cluster))
    made["spec"]["suspend"] = True
    again = partial(custom.patch_namespaced_custom_object, *JOBSETS, "s", made, **APPLY)
    assert status_of(again) == 409
    again(force=True)


def test_another_manager_may_not_change_what_is_there(cluster, batch):
    first, second = ({**APPLY, "field_manager": name} for name in ("first", "second"))
    made = job("a", FOREVER, labels={"run": "1"})
    before = batch.patch_namespaced_job("a", NS, made, **first)
    batch.patch_namespaced_job("a", NS, made, **second)
    made["metadata"]["labels"] = {"run": "2"}
    assert status_of(lambda: batch.patch_namespaced_job("a", NS, made, **second)) == 409
    assert batch.read_namespaced_job("a", NS).metadata.labels == {"run": "1"}
    batch.patch_namespaced_job("a", NS, made, **first)
    after = batch.read_namespaced_job("a", NS)
    assert after.metadata.labels == {"run": "2"}
    assert after.metadata.uid == before.metadata.uid
    assert cluster.created("Job") == ["a"]


def test_merge_patch_removes_and_conflicts_on_an_old_version(cluster, batch, custom):
    made = batch.create_namespaced_job(NS, job("a", "sleep 60", labels={"x": "1"}))
    version = made.metadata.resource_version
    batch.patch_namespaced_job("a", NS, {"metadata": {"labels": {"x": None, "y": "2"}}})
    assert batch.read_namespaced_job("a", NS).metadata.labels == {"y": "2"}
    old = {"metadata": {"resourceVersion": version, "annotations": {"z": "3"}}}
    assert status_of(lambda: batch.patch_namespaced_job("a", NS, old)) == 409
    other = {"spec": {"completions": 2}}
    assert status_of(lambda: batch.patch_namespaced_job("a", NS, other)) == 422


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda made: made["metadata"]["labels"].update(stage="stem/round_0/climb"), "labels"),
        (lambda made: made["metadata"].update(name="Under_score"), "metadata.name"),
        (lambda made: made["metadata"].update(name="a" * 63), "metadata.name"),
        (lambda made: made["spec"]["template"]["spec"].update(restartPolicy="Always"), "restart"),
        (lambda made: made["spec"]["template"]["spec"].update(containers=[]), "containers"),
    ],
)
def test_wrong_manifests_are_refused(cluster, batch, spoil, field):
    made = job("a", "true")
    spoil(made)
    with pytest.raises(ApiException) as refused:
        batch.create_namespaced_job(NS, made)
    assert refused.value.status == 422
    assert field in refused.value.body
    assert not cluster.created("Job")


def test_a_jobset_whose_pods_would_have_too_long_names_is_refused(cluster, custom):
    made = jobset("a" * 50, {"learner": job_spec("true", completions=2, parallelism=2)})
    assert status_of(lambda: custom.create_namespaced_custom_object(*JOBSETS, made)) == 422


def test_a_job_runs_its_command_with_its_environment_alone(cluster, batch, core, monkeypatch):
    monkeypatch.setenv("OF_THE_TEST", "seen")
    core.create_namespaced_secret(NS, {"metadata": {"name": "keys"}, "stringData": {"KEY": "k1"}})
    env = [
        {"name": "PLACE", "value": "here"},
        {"name": "BOTH", "value": "$(PLACE) and $(KEY)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    names = ("BOTH", "POD", "JOB_COMPLETION_INDEX", "OF_THE_TEST")
    code = f"import os; print(*[os.environ.get(name) for name in {names}])"
    container = {"command": ["python", "-c", code], "env": env}
    container |= {"envFrom": [{"secretRef": {"name": "keys"}}]}
    batch.create_namespaced_job(NS, job("a", "", pod={"container": container}))
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))
    (pod,) = pods(cluster, "Succeeded")
    assert cluster.log(pod) == f"here and k1 {pod} 0 None\n"
    found = batch.read_namespaced_job("a", NS).status.conditions
    assert [condition.type for condition in found] == ["SuccessCriteriaMet", "Complete"]
    assert ended(core, pod) == (0, "Completed")


def test_an_indexed_job_has_one_pod_for_each_index(cluster, batch, core):
    script = "echo one; echo two; echo index $JOB_COMPLETION_INDEX on $HOSTNAME"
    batch.create_namespaced_job(NS, job("a", script, completions=3, parallelism=2))
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))
    status = batch.read_namespaced_job("a", NS).status
    assert (status.succeeded, status.completed_indexes) == (3, "0,1,2")
    for index in range(3):
        labels = f"job-name=a,batch.kubernetes.io/job-completion-index={index}"
        (pod,) = core.list_namespaced_pod(NS, label_selector=labels).items
        last = log_of(core, pod.metadata.name, tail_lines=1)
        assert last == f"index {index} on a-{index}\n"
    assert log_of(core, pod.metadata.name).startswith("one\ntwo\n")


def test_a_failing_job_is_tried_again_up_to_its_limit(cluster, batch):
    batch.create_namespaced_job(NS, job("a", "exit 3", backoffLimit=1))
    assert failed(cluster, "Job", "a")["reason"] == "BackoffLimitExceeded"
    assert len(cluster.created("Pod")) == 2
    assert cluster.get("Job", "a")["status"]["failed"] == 2
    assert cluster.condition("Job", "a", "FailureTarget")


def test_a_container_that_restarts_in_its_pod_counts_too(cluster, batch):
    pod = {"restartPolicy": "OnFailure"}
    batch.create_namespaced_job(NS, job("a", "exit 3", pod=pod, backoffLimit=2))
    assert failed(cluster, "Job", "a")["reason"] == "BackoffLimitExceeded"
    assert len(cluster.created("Pod")) == 1


def test_pod_failure_policy_ends_the_job_on_an_exit_code(cluster, batch):
    batch.create_namespaced_job(NS, job("a", "exit 2", podFailurePolicy=POLICY))
    why = failed(cluster, "Job", "a")
    assert why["reason"] == "PodFailurePolicy"
    assert "exit code 2" in why["message"]
    assert len(cluster.created("Pod")) == 1


def test_a_job_over_its_deadline_fails(cluster, batch):
    made = job("a", FOREVER, activeDeadlineSeconds=1)
    batch.create_namespaced_job(NS, made)
    assert failed(cluster, "Job", "a")["reason"] == "DeadlineExceeded"
    assert not pods(cluster)


def test_foreground_deletion_ends_pods_before_the_job(cluster, batch):
    script = FOREVER.replace("exit", "sleep 0.3; exit")
    batch.create_namespaced_job(NS, job("a", script))
    (pod,) = running(cluster)
    batch.delete_namespaced_job("a", NS, propagation_policy="Foreground")
    assert cluster.get("Job", "a")["metadata"]["deletionTimestamp"]
    cluster.wait_for(lambda: cluster.get("Job", "a") is None)
    assert cluster.get("Pod", pod) is None
    assert "told to end" in cluster.log(pod)
    assert cluster.created("Pod") == [pod]


def test_deletion_without_a_policy_leaves_a_jobs_pods_running(cluster, batch):
    batch.create_namespaced_job(NS, job("a", FOREVER))
    (pod,) = running(cluster)
    batch.delete_namespaced_job("a", NS)
    assert cluster.get("Job", "a") is None
    time.sleep(0.2)
    assert pods(cluster) == [pod]


def test_a_deaf_pod_is_killed_after_its_grace_period(cluster, batch, core):
    pod = {"terminationGracePeriodSeconds": 1}
    batch.create_namespaced_job(NS, job("a", f"trap '' TERM; {LOOP}", pod=pod))
    running(cluster)
    began = time.monotonic()
    batch.delete_namespaced_job("a", NS, propagation_policy="Foreground")
    cluster.wait_for(lambda: cluster.get("Job", "a") is None)
    assert 1.0 <= time.monotonic() - began < 5


def test_suspension_ends_pods_and_is_no_failure(cluster, batch):
    batch.create_namespaced_job(NS, job("a", FOREVER, suspend=True, backoffLimit=0))
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Suspended"))
    assert not cluster.created("Pod")
    batch.patch_namespaced_job("a", NS, {"spec": {"suspend": False}})
    running(cluster)
    batch.patch_namespaced_job("a", NS, {"spec": {"suspend": True}})
    cluster.wait_for(lambda: not cluster.objects("Pod"))
    batch.patch_namespaced_job("a", NS, {"spec": {"suspend": False}})
    running(cluster)
    assert "failed" not in cluster.get("Job", "a")["status"]


MEET = """
import os, socket, sys, time
place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if os.environ["JOB_COMPLETION_INDEX"] == "0":
    with socket.create_server(place) as server:
        other, _ = server.accept()
        print(other.recv(9).decode())
else:
    for _ in range(200):
        try:
            with socket.create_connection(place) as link:
                link.sendall(b"I am here")
            sys.exit()
        except OSError:
            time.sleep(0.05)
    sys.exit(1)
"""


def test_a_jobset_meets_succeeds_with_its_learner_and_ends_the_rest(cluster, custom, core):
    env = [
        {"name": "MASTER_ADDR", "value": "s-learner-0-0.s"},
        {"name": "MASTER_PORT", "value": "29500"},
    ]
    container = {"command": ["python", "-c", MEET], "env": env}
    roles = {
        "learner": job_spec("", pod={"container": container}, completions=2, parallelism=2),
        "rollout": job_spec(FOREVER),
    }
    policy = {"operator": "All", "targetReplicatedJobs": ["learner"]}
    made = jobset("s", roles, successPolicy=policy)
    custom.create_namespaced_custom_object(*JOBSETS, made)
    cluster.wait_for(lambda: cluster.condition("JobSet", "s", "Completed"))
    labels = "jobset.sigs.k8s.io/jobset-name=s,jobset.sigs.k8s.io/replicatedjob-name=learner"
    found = core.list_namespaced_pod(NS, label_selector=labels).items
    first, second = sorted(found, key=lambda pod: pod.metadata.name)
    assert cluster.log(first.metadata.name) == "I am here\n"
    assert (first.spec.hostname, second.spec.hostname) == ("s-learner-0-0", "s-learner-0-1")
    assert first.spec.subdomain == "s"
    assert core.read_namespaced_service("s", NS).spec.cluster_ip == "None"
    cluster.wait_for(lambda: not pods(cluster))
    assert cluster.get("JobSet", "s")["status"]["terminalState"] == "Completed"
    custom.delete_namespaced_custom_object(*JOBSETS, "s", propagation_policy="Foreground")
    cluster.wait_for(lambda: not cluster.objects("Pod") and cluster.get("JobSet", "s") is None)
    assert cluster.get("Service", "s") is None


def test_one_failed_rank_restarts_all_ranks_up_to_the_limit(cluster, custom):
    script = f"echo up; test $JOB_COMPLETION_INDEX = 0 && exit 1; {FOREVER}"
    ranks = job_spec(script, completions=2, parallelism=2, backoffLimit=0)
    made = jobset("s", {"learner": ranks}, failurePolicy={"maxRestarts": 1})
    custom.create_namespaced_custom_object(*JOBSETS, made)
    assert failed(cluster, "JobSet", "s")["reason"] == "ReachedMaxRestarts"
    status = cluster.get("JobSet", "s")["status"]
    assert (status["restarts"], status["restartsCountTowardsMax"]) == (1, 1)
    assert cluster.created("Job") == ["s-learner-0", "s-learner-0"]
    assert len(cluster.created("Pod")) == 4
    (job,) = cluster.objects("Job")
    assert job["metadata"]["labels"]["jobset.sigs.k8s.io/restart-attempt"] == "1"
    assert not pods(cluster)


def test_a_failure_policy_rule_ends_the_jobset_at_once(cluster, custom):
    rule = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    policy = {"maxRestarts": 3, "rules": [rule]}
    ranks = job_spec("exit 2", podFailurePolicy=POLICY)
    made = jobset("s", {"learner": ranks}, failurePolicy=policy)
    custom.create_namespaced_custom_object(*JOBSETS, made)
    assert failed(cluster, "JobSet", "s")["reason"] == "FailJobSetFailurePolicyAction"
    assert len(cluster.created("Pod")) == 1


def test_a_failure_policy_rule_reads_the_message(cluster, custom):
    rule = {"onJobFailureReasons": ["PodFailurePolicy"]}
    rules = [
        {**rule, "action": "FailJobSet", "onJobFailureMessagePatterns": ["exit code 2 "]},
        {
            **rule,
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureMessagePatterns": ["DisruptionTarget"],
        },
    ]
    taken = {"action": "FailJob", "onPodConditions": POLICY["rules"][0]["onPodConditions"]}
    codes = {"rules": [POLICY["rules"][1], taken]}
    ranks = job_spec(FOREVER, podFailurePolicy=codes, backoffLimit=0)
    made = jobset("s", {"learner": ranks}, failurePolicy={"maxRestarts": 0, "rules": rules})
    custom.create_namespaced_custom_object(*JOBSETS, made)
    (pod,) = running(cluster)
    cluster.evict(pod, "EvictionByEvictionAPI")
    cluster.wait_for(lambda: set(running(cluster)) - {pod})
    status = cluster.get("JobSet", "s")["status"]
    assert (status["restarts"], status["restartsCountTowardsMax"]) == (1, 0)
    assert cluster.created("Job") == ["s-learner-0", "s-learner-0"]


@pytest.mark.parametrize("kind", ["Job", "JobSet"])
def test_a_held_queue_suspends_and_says_why(cluster, batch, custom, core, kind):
    labels = {"kueue.x-k8s.io/queue-name": "gpus"}
    cluster.hold_queue()
    if kind == "Job":
        batch.create_namespaced_job(NS, job("a", FOREVER, labels=labels, backoffLimit=0))
    else:
        made = jobset("a", {"learner": job_spec(FOREVER)}, labels=labels)
        custom.create_namespaced_custom_object(*JOBSETS, made)
    cluster.wait_for(lambda: cluster.condition(kind, "a", "Suspended"))
    (queued,) = cluster.wait_for(lambda: cluster.objects("Workload"))
    assert queued["spec"]["queueName"] == "gpus"
    assert "insufficient unused quota" in events(core, queued["metadata"]["name"])["Pending"]
    assert not cluster.created("Pod")
    cluster.release_queue()
    (pod,) = running(cluster)
    cluster.hold_queue()
    cluster.preempt(kind, "a")
    cluster.wait_for(lambda: not cluster.objects("Pod"))
    (queued,) = cluster.objects("Workload")
    evicted = [c for c in queued["status"]["conditions"] if c["type"] == "Evicted"]
    assert evicted[0]["reason"] == "Preempted"
    cluster.release_queue()
    assert running(cluster) != [pod]
    assert not cluster.condition(kind, "a", "Failed")


def test_a_watch_streams_changes_from_a_version(cluster, batch):
    start = batch.list_namespaced_job(NS).metadata.resource_version
    batch.create_namespaced_job(NS, job("a", "true"))
    batch.create_namespaced_job("elsewhere", job("b", "true"))
    seen = []
    options = {"resource_version": start, "timeout_seconds": 20}
    for event in watch.Watch().stream(batch.list_namespaced_job, NS, **options):
        seen.append((event["type"], event["object"].metadata.name))
        if any(c.type == "Complete" for c in event["object"].status.conditions or []):
            break
    assert seen[0] == ("ADDED", "a")
    assert set(seen[1:]) == {("MODIFIED", "a")}


def test_an_expired_watch_is_gone(cluster, batch):
    start = batch.list_namespaced_job(NS).metadata.resource_version
    cluster.expire_watches()
    stream = watch.Watch().stream(batch.list_namespaced_job, NS, resource_version=start)
    assert status_of(lambda: next(stream)) == 410
    fresh = batch.list_namespaced_job(NS).metadata.resource_version
    options = {"resource_version": fresh, "timeout_seconds": 1}
    assert list(watch.Watch().stream(batch.list_namespaced_job, NS, **options)) == []


def test_whoever_does_not_bear_the_token_is_not_known(cluster, batch):
    cluster.token = "secret"
    assert status_of(lambda: batch.list_namespaced_job(NS)) == 401
    known = config.new_client_from_config(str(cluster.kubeconfig()))
    assert client.BatchV1Api(known).list_namespaced_job(NS).items == []


def test_an_absent_object_is_told_apart_from_an_absent_kind(cluster, batch, custom):
    with pytest.raises(ApiException) as refused:
        batch.read_namespaced_job("a", NS)
    assert json.loads(refused.value.body)["details"] == {"name": "a", "kind": "jobs"}
    with pytest.raises(ApiException) as refused:
        custom.get_namespaced_custom_object("jobset.x-k8s.io", "v9", NS, "jobsets", "a")
    assert json.loads(refused.value.body)["details"] == {}


@pytest.mark.parametrize("status", [409, 410, 500, 503])
def test_injected_answers_hit_what_they_are_for(cluster, batch, core, status):
    cluster.answer(status, times=2, verb="get", kind="Job")
    batch.create_namespaced_job(NS, job("a", "true"))
    core.list_namespaced_pod(NS)
    for _ in range(2):
        assert status_of(lambda: batch.read_namespaced_job("a", NS)) == status
    assert batch.read_namespaced_job("a", NS).metadata.name == "a"


def test_too_many_requests_say_when_to_come_back(cluster, batch):
    cluster.answer(429)
    assert batch.list_namespaced_job(NS).items == []
    assert [seen.status for seen in cluster.requests] == [429, 200]


def test_a_lost_answer_was_carried_out(cluster, batch):
    cluster.lose_answers(verb="create")
    with pytest.raises(HTTPError):
        batch.create_namespaced_job(NS, job("a", "true"))
    assert status_of(lambda: batch.create_namespaced_job(NS, job("a", "true"))) == 409


def test_a_hanging_api_runs_into_the_clients_timeout(cluster, batch):
    cluster.hang(2, verb="create")
    with pytest.raises(HTTPError):
        batch.create_namespaced_job(NS, job("a", "true"), _request_timeout=0.3)
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))


def test_pods_run_on_while_the_api_is_away(cluster, batch):
    batch.create_namespaced_job(NS, job("a", "sleep 0.5; echo done"))
    (pod,) = cluster.wait_for(lambda: pods(cluster))
    host = cluster.host
    cluster.down()
    with pytest.raises(MaxRetryError):
        batch.read_namespaced_job("a", NS)
    cluster.wait_for(lambda: cluster.log(pod) == "done\n")
    assert not cluster.condition("Job", "a", "Complete")
    cluster.up()
    assert cluster.host == host
    cluster.wait_for(lambda: batch.read_namespaced_job("a", NS).status.succeeded)


def test_an_image_that_cannot_be_pulled(cluster, batch, core):
    cluster.break_image("stage:1")
    batch.create_namespaced_job(NS, job("a", "true"))
    cluster.wait_for(lambda: waiting(cluster) == {"ErrImagePull"})
    cluster.wait_for(lambda: waiting(cluster) == {"ImagePullBackOff"})
    (pod,) = pods(cluster, "Pending")
    assert "stage:1" in events(core, pod)["BackOff"]
    assert status_of(lambda: core.read_namespaced_pod_log(pod, NS)) == 400
    cluster.mend_image("stage:1")
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))


def test_a_pod_that_fits_nowhere(cluster, batch, core):
    cluster.unschedulable()
    batch.create_namespaced_job(NS, job("a", "true"))
    (pod,) = cluster.wait_for(lambda: pods(cluster, "Pending"))
    said = cluster.wait_for(lambda: events(core, pod))
    assert "Insufficient nvidia.com/gpu" in said["FailedScheduling"]
    (why,) = core.read_namespaced_pod(pod, NS).status.conditions
    assert (why.type, why.status, why.reason) == ("PodScheduled", "False", "Unschedulable")
    cluster.schedulable()
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))


def test_pods_that_may_not_be_made(cluster, batch, core):
    cluster.refuse_pods()
    batch.create_namespaced_job(NS, job("a", "true"))
    said = cluster.wait_for(lambda: events(core, "a"))
    assert said["FailedCreate"].startswith('Error creating: pods "a-" is forbidden: exceeded quo')
    assert not cluster.created("Pod")
    cluster.allow_pods()
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))


def test_a_volume_that_cannot_be_mounted(cluster, batch, core):
    cluster.break_volumes("MountVolume.SetUp failed")
    batch.create_namespaced_job(NS, job("a", "true"))
    cluster.wait_for(lambda: waiting(cluster) == {"ContainerCreating"})
    (pod,) = pods(cluster, "Pending")
    assert events(core, pod)["FailedMount"] == "MountVolume.SetUp failed"
    cluster.mend_volumes()
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))


def test_events_of_both_apis_have_their_own_time(cluster, batch, core):
    cluster.unschedulable()
    batch.create_namespaced_job(NS, job("a", "true"))
    cluster.wait_for(lambda: pods(cluster, "Pending"))
    found = cluster.wait_for(
        lambda: (
            {e.reason: e for e in core.list_namespaced_event(NS).items}
            if len(core.list_namespaced_event(NS).items) == 2
            else None
        )
    )
    older, newer = found["SuccessfulCreate"], found["FailedScheduling"]
    assert older.last_timestamp
    assert not older.event_time
    assert newer.event_time
    assert not newer.last_timestamp


def test_a_slow_start_shows_as_creating(cluster, batch):
    cluster.slow_start(0.5)
    batch.create_namespaced_job(NS, job("a", "true"))
    cluster.wait_for(lambda: waiting(cluster) == {"ContainerCreating"})
    assert not pods(cluster)
    cluster.wait_for(lambda: cluster.condition("Job", "a", "Complete"))


def test_a_missing_secret_and_a_missing_program_are_told_apart(cluster, batch, core):
    container = {"envFrom": [{"secretRef": {"name": "keys"}}]}
    batch.create_namespaced_job(NS, job("a", "true", pod={"container": container}))
    cluster.wait_for(lambda: waiting(cluster) == {"CreateContainerConfigError"})
    cluster.remove("Job", "a")
    container = {"command": ["/no/such/program"]}
    batch.create_namespaced_job(NS, job("b", "", pod={"container": container}, backoffLimit=0))
    failed(cluster, "Job", "b")
    (pod,) = pods(cluster, "Failed", "job-name=b")
    assert ended(core, pod) == (128, "StartError")


def test_a_pod_over_its_memory_is_killed(cluster, batch, core):
    batch.create_namespaced_job(NS, job("a", FOREVER, backoffLimit=0))
    (pod,) = running(cluster)
    cluster.oom_kill(pod)
    assert failed(cluster, "Job", "a")["reason"] == "BackoffLimitExceeded"
    assert ended(core, pod) == (137, "OOMKilled")


@pytest.mark.parametrize("reason", ["TerminationByKubelet", "PreemptionByScheduler"])
def test_an_evicted_pod_is_replaced_and_not_counted(cluster, batch, core, reason):
    batch.create_namespaced_job(NS, job("a", FOREVER, backoffLimit=0, podFailurePolicy=POLICY))
    (pod,) = running(cluster)
    cluster.evict(pod, reason)
    cluster.wait_for(lambda: "told to end" in cluster.log(pod))
    assert cluster.wait_for(lambda: set(running(cluster)) - {pod})
    assert "failed" not in cluster.get("Job", "a")["status"]
    assert ({"Evicted", "Preempted"} & set(events(core, pod))) != set()
    assert (cluster.get("Pod", pod) is not None) == (reason == "TerminationByKubelet")


def test_a_lost_node_takes_its_pod_without_a_word(cluster, batch):
    batch.create_namespaced_job(NS, job("a", FOREVER, backoffLimit=0, podFailurePolicy=POLICY))
    (pod,) = running(cluster)
    cluster.lose_node(pod)
    cluster.wait_for(lambda: cluster.get("Pod", pod) is None)
    assert "told to end" not in cluster.log(pod)
    assert running(cluster) != [pod]
    assert "failed" not in cluster.get("Job", "a")["status"]


def test_a_pod_deleted_by_hand_counts_as_failed(cluster, batch, core):
    batch.create_namespaced_job(NS, job("a", FOREVER, backoffLimit=0))
    (pod,) = running(cluster)
    core.delete_namespaced_pod(pod, NS)
    assert failed(cluster, "Job", "a")["reason"] == "BackoffLimitExceeded"


def test_an_object_removed_behind_the_back_is_gone_with_its_pods(cluster, custom):
    custom.create_namespaced_custom_object(*JOBSETS, jobset("s", {"learner": job_spec(FOREVER)}))
    running(cluster)
    cluster.remove("JobSet", "s")
    assert status_of(lambda: custom.get_namespaced_custom_object(*JOBSETS, "s")) == 404
    cluster.wait_for(lambda: not cluster.objects("Pod") and not cluster.objects("Job"))


def test_nothing_is_left_running(tmp_path):
    with FakeCluster(tmp_path / "cluster") as cluster:
        batch = client.BatchV1Api(client.ApiClient(cluster.configuration()))
        seconds = str(10**7 + os.getpid())
        script = f"setsid sh -c 'echo up; sleep {seconds}' & sleep {seconds}"
        batch.create_namespaced_job(NS, job("a", script))
        running(cluster)
        assert len(processes_with(seconds)) >= 3
    assert processes_with(seconds) == []


def test_a_kubeconfig_leads_to_the_cluster(cluster, batch):
    batch.create_namespaced_job(NS, job("a", "true"))
    other = config.new_client_from_config(str(cluster.kubeconfig()))
    assert client.BatchV1Api(other).read_namespaced_job("a", NS).metadata.name == "a"
