"""What the API tells, in one plain sentence with the fix: objects as clusters write them."""

from __future__ import annotations

from typing import Any

import pytest

from hillclimb.launcher.kubernetes import explain
from hillclimb.launcher.kubernetes.waiting import Waiting, waiting

Object = dict[str, Any]
JOB: Object = {"kind": "Job", "metadata": {"name": "toy-1"}, "spec": {}, "status": {}}
FIX, TAKEN = "compute.kubernetes", "DisruptionTarget"


def pod(phase: str, *states: Object, name: str = "toy-1-0-x", **status: Any) -> Object:
    """A pod whose container is in each of `states`, the last of them now."""
    containers = [
        {"name": "stage", "image": "train:1", "state": state, "lastState": {}} for state in states
    ]
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-11-25T10:00:00Z"},
        "spec": {
            "nodeName": "node-7",
            "containers": [{"image": "train:1", "resources": {"limits": {"memory": "8Gi"}}}],
        },
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }  # fmt: skip


def ended(
    code: int, reason: str = "Error", at: str = "2026-11-25T10:00:05Z", **more: Any
) -> Object:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": at, **more}}


def holds(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def true(kind: str, reason: str, message: str = "") -> Object:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


def failed(reason: str, message: str = "", kind: str = "Job") -> Object:
    return {**JOB, "kind": kind, "status": {"conditions": [true("Failed", reason, message)]}}


def of_jobset(made: Object, role: str, index: int) -> Object:
    labels = {"jobset.sigs.k8s.io/replicatedjob-name": role}
    meta = {**made["metadata"], "name": f"toy-1-{role}-0-{index}-x", "labels": labels}
    return {**made, "metadata": meta}


@pytest.mark.parametrize(
    ("state", "words", "hopeless"),
    [
        (holds("ErrImagePull", "not found"), "cannot be pulled (not found): push it", False),
        (holds("ImagePullBackOff"), "train:1 cannot be pulled: push it", False),
        (holds("ErrImageNeverPull"), "train:1 cannot be pulled", True),
        (holds("InvalidImageName"), "train:1 cannot be pulled", True),
        (holds("CreateContainerConfigError", 'secret "s" not found'), f"correct {FIX}.secr", False),
    ],
)
def test_what_somebody_has_to_mend_is_stuck(state, words, hopeless):
    found = waiting(JOB, [pod("Pending", state)], [], None)
    assert words in found.sentence
    assert (found.stuck, found.hopeless) == (True, hopeless)


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("0/9 nodes are available: 9 Insufficient nvidia.com/gpu.", "ask for fewer ranks a node"),
        ("0/9 nodes are available: 9 Insufficient memory.", f"lower {FIX}.cpu and {FIX}.memory"),
        ("9 node(s) didn't match Pod's node affinity/selector.", f"correct {FIX}.node_selector"),
        ("9 node(s) had untolerated taint {gpu: true}.", f"add the taint to {FIX}.tolerations"),
        ('persistentvolumeclaim "hillclimb-root" not found.', "create the claim"),
        ("9 node(s) were unschedulable.", "wait, or make room"),
    ],
)
def test_a_pod_that_fits_nowhere_waits_with_its_fix(said, fix):
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    found = waiting(JOB, [pod("Pending", conditions=[{**condition, "message": said}])], [], None)
    assert found.sentence.startswith(f"no node fits ({said.rstrip('.')}): ")
    assert fix in found.sentence
    assert not found.stuck


@pytest.mark.parametrize(
    ("said", "words", "stuck"),
    [
        ("exceeded quota: gpus, requested: 8", "larger ResourceQuota", False),
        ('error looking up service account x/y: serviceaccount "y"', "apply k8s/base", True),
        ('violates PodSecurity "restricted:latest": hostPath volumes', "use claims", True),
        ("admission webhook denied the request", f"correct {FIX}", True),
    ],
)
def test_pods_that_are_not_made_are_told_apart(said, words, stuck):
    older = {"reason": "FailedCreate", "message": "something else"}
    events = [older, {"reason": "FailedCreate", "message": said}, {"reason": "Resumed"}]
    found = waiting(JOB, [], events, None)
    assert words in found.sentence
    assert said in found.sentence
    assert found.stuck is stuck
    assert waiting(JOB, [], [], None) == Waiting("its pods are being created")


def queued(workload: Object | None, queue: str = "gpus") -> str:
    labels = {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    made = {**JOB, "metadata": {"name": "toy-1", "labels": labels}, "spec": {"suspend": True}}
    found = waiting(made, [], [], workload)
    assert not found.stuck
    return found.sentence


def workload(message: str, active: bool = True) -> Object:
    condition = {"type": "QuotaReserved", "status": "False", "reason": "x", "message": message}
    spec = {"active": active}
    return {"metadata": {"name": "w"}, "spec": spec, "status": {"conditions": [condition]}}


def test_what_kueue_says_is_told_with_what_to_do():
    assert "waits for quota in the queue gpus (no room): it starts" in queued(workload("no room"))
    assert "waits for quota in the queue gpus: it" in queued({"metadata": {}, "status": {}})
    assert f"correct {FIX}.queue" in queued(workload("LocalQueue gpus doesn't exist"))
    assert "create or start it" in queued(workload("ClusterQueue default is inactive"))
    assert "set that one's spec.active to true" in queued(workload("gone", active=False))
    assert "check that Kueue runs" in queued(None)
    assert "somebody suspended it" in queued(None, queue="")


def test_a_node_that_does_not_answer_is_named():
    taken = true(TAKEN, "DeletionByTaintManager")
    lost = pod("Running", {"running": {}}, conditions=[taken])
    lost["metadata"]["deletionTimestamp"] = "2026-11-25T10:00:00Z"
    found = waiting(JOB, [lost, pod("Running", {"running": {}})], [], None)
    assert found.sentence.startswith("the node node-7 does not answer")
    assert "out-of-service" in found.sentence


def test_running_ended_and_crashing_pods_are_told_apart():
    runs = pod("Running", {"running": {}})
    assert waiting(JOB, [runs, pod("Failed", ended(1))], [], None) is None
    assert (
        "new ones start after a pause" in waiting(JOB, [pod("Failed", ended(1))], [], None).sentence
    )
    assert waiting(JOB, [pod("Pending"), runs], [], None) == Waiting("its pods are starting")
    crashes = pod("Running", holds("CrashLoopBackOff"), name="server-3")
    crashes["status"]["containerStatuses"][0]["lastState"] = ended(137, "OOMKilled")
    found = waiting(JOB, [runs, crashes], [], None)
    assert found.sentence == (
        "the pod server-3 ends each time it starts (OOMKilled, exit code 137): see its log"
    )


def test_a_volume_that_is_not_mounted_is_told_by_the_latest_event():
    events = [{"reason": "FailedMount", "message": word} for word in ("old", "new")]
    found = waiting(JOB, [pod("Pending", holds("ContainerCreating"))], events, None)
    assert found.sentence == f"a volume cannot be mounted (new): correct {FIX}.volumes"


@pytest.mark.parametrize(
    ("one", "code", "words"),
    [
        (pod("Failed", ended(137, "OOMKilled")), 137, f"(limit 8Gi): raise {FIX}.memory"),
        (
            pod("Failed", reason="Evicted", message="The node was low on resource: memory."),
            None,
            f"was evicted (The node was low on resource: memory): raise {FIX}.memory",
        ),
        (
            pod("Failed", reason="Evicted", message='Usage of EmptyDir volume "shm" exceeds 1Gi.'),
            None,
            f"raise {FIX}.shm, and {FIX}.memory with it",
        ),
        (
            pod("Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds x"),
            None,
            "free the node's disk",
        ),
        (pod("Failed", ended(128, "StartError", message="no such file")), 128, "cannot run in tra"),
        (pod("Failed", ended(137)), 137, "it was killed by SIGKILL: see its log"),
        (pod("Failed", ended(255)), 255, "it was killed by signal 127"),
        (
            pod("Failed", reason="UnexpectedAdmissionError", message="no healthy devices"),
            None,
            "its node did not run it (UnexpectedAdmissionError: no healthy devices): ask again",
        ),
        (pod("Failed", ended(75)), 75, "it ended with exit code 75: see its log"),
        (
            pod("Failed", ended(143), conditions=[true(TAKEN, "EvictionByEvictionAPI")]),
            143,
            "evicted when its node was drained: ask again",
        ),
        (
            pod("Failed", conditions=[true(TAKEN, "PreemptionByScheduler")]),
            None,
            f"preempted by a pod of higher priority: raise {FIX}.priority_class",
        ),
        (pod("Failed", conditions=[true(TAKEN, "Unheard")]), None, "was taken away"),
    ],
)  # fmt: skip
def test_a_failed_pod_is_told_by_what_ended_it(one, code, words):
    found = explain.failure(failed("BackoffLimitExceeded"), [one])
    assert found.code == code
    assert words in found.sentence
    assert found.sentence.endswith(f"(it was restarted as often as {FIX}.max_restarts allows)")


def test_what_a_cluster_puts_beside_the_stage_is_not_blamed():
    mesh = {"name": "istio-proxy", "image": "istio", "state": ended(0), "lastState": {}}
    one = pod("Failed", ended(3))
    one["status"]["containerStatuses"].insert(0, mesh)
    assert explain.failure(failed("X"), [one]).code == 3


def test_the_stages_own_words_give_way_only_to_what_it_cannot_know():
    made = failed("BackoffLimitExceeded")
    said = explain.failure(made, [pod("Failed", ended(1))], "the disk is on fire")
    assert said.sentence.startswith("the disk is on fire (it was restarted")
    memory = explain.failure(made, [pod("Failed", ended(137, "OOMKilled"))], "it goes on")
    assert memory.sentence.startswith("it was killed for its memory")
    late = explain.failure(failed("DeadlineExceeded"), [pod("Failed", ended(143))], "it goes on")
    assert "activeDeadlineSeconds" in late.sentence


def test_a_failure_without_pods_is_told_by_the_object():
    refused = explain.failure(failed("FailJobSetFailurePolicyAction", "so", "JobSet"), [], "no")
    assert refused == explain.Failure(2, "no")
    gone = explain.failure(failed("BackoffLimitExceeded", "Job has reached the limit"), [])
    assert gone.code is None
    assert gone.sentence.startswith("Job has reached the limit: ask again (it was restarted")
    assert explain.failure(failed("X"), []).sentence == "it failed: ask again"


def test_of_many_pods_those_that_failed_first_are_blamed():
    early, late = ended(1, at="2026-11-25T10:00:05Z"), ended(1, at="2026-11-25T10:00:07Z")
    learners = [of_jobset(pod("Failed", late), "learner", n) for n in range(4)]
    first = of_jobset(pod("Failed", early), "learner", 4)
    server = of_jobset(pod("Failed", ended(1, at="2026-11-25T10:00:01Z")), "rollout", 0)
    taken = pod("Failed", ended(143, at="2026-11-25T10:00:02Z"))
    taken["status"]["conditions"] = [true(TAKEN, "DeletionByPodGC")]
    disrupted = of_jobset(taken, "learner", 5)
    runs = of_jobset(pod("Running", {"running": {}}), "learner", 6)
    made = failed("ReachedMaxRestarts", kind="JobSet")
    blamed = explain.culprits(made, [*learners, first, server, disrupted, runs])
    assert blamed[0] is first
    assert len(blamed) == 3
    assert explain.culprits(made, [disrupted, server]) == [disrupted]
    assert explain.culprits(made, [server, runs]) == [server]


def test_of_one_pods_attempts_the_last_is_blamed():
    attempts = [pod("Failed", ended(n, at=f"2026-11-25T10:00:0{n}Z")) for n in (1, 3, 2)]
    assert explain.culprits(failed("BackoffLimitExceeded"), attempts) == [attempts[1]]


def test_readiness_is_that_of_all_ranks_and_of_all_servers():
    assert explain.ready(JOB) == (False, True)
    assert explain.ready({**JOB, "status": {"ready": 1}}) == (True, True)
    parts = [{"name": "learner", "replicas": 1}, {"name": "rollout", "replicas": 3}]
    for learner, servers in ((0, 3), (1, 2), (1, 3)):
        counts = [{"name": "rollout", "ready": servers}, {"name": "learner", "ready": learner}]
        made = {
            "kind": "JobSet",
            "spec": {"replicatedJobs": parts},
            "status": {"replicatedJobsStatus": counts},
        }
        assert explain.ready(made) == (learner == 1, servers == 3)
    del made["status"]
    assert explain.ready(made) == (False, False)


def test_logs_and_warnings_are_quoted_with_their_origin():
    events = [
        {"type": "Warning", "reason": "BackOff", "message": "Back-off"},
        {"type": "Normal", "reason": "Started", "message": "Started"},
    ]
    assert explain.quoted(pod("Failed"), "one\ntwo\n", events) == [
        "log of toy-1-0-x: one",
        "log of toy-1-0-x: two",
        "event BackOff: Back-off",
    ]
