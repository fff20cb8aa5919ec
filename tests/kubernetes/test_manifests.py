"""Every object that recipes make on a cluster, held against client, schemas and our own rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from k8s_pods import PodTemplate, pod_errors, pods
from k8s_schemas import SUPPORTED, schema_errors
from kubernetes.client import ApiClient

from hillclimb.artifacts import Store
from hillclimb.experiments import Experiment, Plan
from hillclimb.launcher.kubernetes.layout import layout
from hillclimb.launcher.kubernetes.manifests import stage_manifest
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.load import load_recipe
from hillclimb.stages.registry import KINDS
from hillclimb.stages.request import Request

Object = dict[str, Any]
SECTION = {
    "image": "registry/training:1", "control_image": "registry/control:1",
    "rollout_image": "registry/rollout:1", "runs": "/data/runs",
    "volumes": [{"name": "data", "mount": "/data", "claim": "hillclimb-root"}],
    "cpu": "2", "memory": "8Gi", "shm": "1Gi",
}  # fmt: skip
CPUS = {**SECTION, "gpus_per_node": 0}
GPUS = {
    **SECTION, "gpus_per_node": 1, "queue": "gpus", "secrets": ["store"], "rdma": {"rdma/hca": 2},
    "topology_key": "rack", "priority_class": "research", "node_selector": {"gpu": "h200"},
    "tolerations": [{"key": "nvidia.com/gpu"}],
}  # fmt: skip
SPREAD = {
    "base_ranks": 2, "climb_ranks": 1, "climb_rollout_accelerators": 2, "kubernetes": GPUS,
}  # fmt: skip
CASES = {
    "smoke": ("smoke", {"kubernetes": CPUS}),
    "toy": ("toy", SPREAD),
    "mai-thinking-1": ("mai-thinking-1", {}),
}
KEY = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
HOST = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
ARGUMENT, OBJECT = 128 * 1024, 1024 * 1024


@cache
def requests(case: str) -> tuple[Compute, list[Request]]:
    """A recipe's compute section, and a request for every stage that it asks for."""
    name, changes = CASES[case]
    recipe = load_recipe(name)
    compute = recipe.compute.model_copy(update=Compute(**changes).model_dump(include=set(changes)))
    recipe = recipe.model_copy(update={"compute": Compute.model_validate(compute.model_dump())})
    plan = Plan(Experiment(name=f"{name}-seed0", recipe=name), recipe)
    return recipe.compute, [plan.draft(stage, Store("/data")) for stage in plan.specs]


@cache
def manifests(case: str) -> dict[str, Object]:
    """Every object of a recipe by its stage's name."""
    compute, asked = requests(case)
    return {request.name: stage_manifest(request, compute) for request in asked}


def jobs(made: Object) -> Iterator[tuple[str, int, Object]]:
    """The Jobs of an object: name of the last, how many, and spec."""
    if made["kind"] == "Job":
        yield made["metadata"]["name"], 1, made["spec"]
        return
    for part in made["spec"]["replicatedJobs"]:
        count = part["replicas"]
        name = f"{made['metadata']['name']}-{part['name']}-{count - 1}"
        yield name, count, part["template"]["spec"]


def containers(case: str) -> Iterator[tuple[PodTemplate, Object]]:
    for pod in pods(manifests(case).values()):
        yield from ((pod, container) for container in pod.containers)


each_recipe = pytest.mark.parametrize("case", CASES)


@each_recipe
def test_the_client_takes_every_field(case):
    api = ApiClient()
    for made in manifests(case).values():
        for _, _, spec in jobs(made):
            answer = type("Answer", (), {"data": json.dumps(spec)})()
            read = api.deserialize(answer, "V1JobSpec")
            assert api.sanitize_for_serialization(read) == spec


@each_recipe
def test_every_supported_version_takes_them(case):
    found = list(manifests(case).values())
    assert [error for version in SUPPORTED for error in schema_errors(found, version)] == []


@each_recipe
def test_pods_are_restricted_limited_and_pinned(case):
    found = manifests(case).values()
    assert [error for pod in pods(found) for error in pod_errors(pod)] == []


@each_recipe
def test_names_and_labels_are_valid_down_to_the_last_pod(case):
    for made in manifests(case).values():
        assert HOST.fullmatch(made["metadata"]["name"])
        for name, _, spec in jobs(made):
            assert HOST.fullmatch(f"{name}-{spec['completions'] - 1}-abcde")
        for holder in (made, *(spec["template"] for _, _, spec in jobs(made))):
            for key, value in holder["metadata"]["labels"].items():
                assert KEY.fullmatch(key)
                assert VALUE.fullmatch(value)
    assert len({made["metadata"]["name"] for made in manifests(case).values()}) == len(
        manifests(case)
    )


@each_recipe
def test_a_stage_gets_the_accelerators_of_its_layout(case):
    compute, asked = requests(case)
    for request in asked:
        count = gpus = 0
        for _, replicas, spec in jobs(manifests(case)[request.name]):
            limits = spec["template"]["spec"]["containers"][0]["resources"]["limits"]
            count += replicas * spec["completions"]
            each = int(limits.get("nvidia.com/gpu", "0"))
            gpus += replicas * spec["completions"] * each
        laid_out = layout(request, compute)
        assert (count, gpus) == (laid_out.pods, laid_out.all_gpus)


@each_recipe
def test_commands_environments_and_sizes_are_what_a_node_can_start(case):
    for pod, container in containers(case):
        names = [entry["name"] for entry in container["env"]]
        assert len(names) == len(set(names))
        assert all(len(entry.get("value", "")) < ARGUMENT for entry in container["env"])
        if container["name"] == "stage":
            *start, kind, flag, place = container["command"]
            assert start == ["python", "-m", "hillclimb.stages"]
            assert kind in KINDS
            assert flag == "--request"
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert any(place.startswith(f"{mount}/") for mount in mounts)
        assert pod.spec["volumes"][-1] == {
            "name": "shm",
            "emptyDir": {
                "medium": "Memory",
                "sizeLimit": requests(case)[0].kubernetes.shm,
            },
        }
    assert all(len(json.dumps(made)) < OBJECT for made in manifests(case).values())


@each_recipe
def test_only_stages_with_sandboxes_hold_a_token_of_the_api(case):
    sandboxed = requests(case)[0].kubernetes.sandboxes is not None
    for pod, container in containers(case):
        kind = container["command"][3] if container["name"] == "stage" else ""
        asks = sandboxed and kind in ("problems", "climb", "scorecard")
        assert pod.spec["automountServiceAccountToken"] is asks


@each_recipe
def test_a_failure_policy_is_one_that_controllers_apply(case):
    """A Job's policy needs pods that are never restarted in place; a JobSet's needs known roles."""
    for made in manifests(case).values():
        for _, _, spec in jobs(made):
            if "podFailurePolicy" in spec:
                assert spec["template"]["spec"]["restartPolicy"] == "Never"
                names = {c["name"] for c in spec["template"]["spec"]["containers"]}
                for rule in spec["podFailurePolicy"]["rules"]:
                    assert (
                        rule.get("onExitCodes", {"containerName": "stage"})["containerName"]
                        in names
                    )
        if made["kind"] == "JobSet":
            roles = {part["name"] for part in made["spec"]["replicatedJobs"]}
            rules = made["spec"]["failurePolicy"]["rules"]
            assert all(roles.issuperset(rule["targetReplicatedJobs"]) for rule in rules)
            assert roles.issuperset(made["spec"]["successPolicy"]["targetReplicatedJobs"])


def test_a_stage_has_the_same_manifest_each_time():
    compute, asked = requests("toy")
    for request in asked:
        assert stage_manifest(request, compute) == stage_manifest(request, compute)


def test_nothing_of_a_cluster_is_identity():
    on_cluster = {request.name: request.fingerprint for request in requests("toy")[1]}
    plan = Plan(Experiment(name="toy-seed0", recipe="toy"), load_recipe("toy"))
    assert on_cluster == plan.fingerprints


def test_a_job_in_full():
    compute, asked = requests("smoke")
    (request,) = (request for request in asked if request.name == "tokenizer")
    name = f"tokenizer-{request.fingerprint[:12]}"
    place = f"/data/runs/tokenizer/{request.fingerprint[:16]}/request.json"
    labels = {
        "app.kubernetes.io/managed-by": "hillclimb",
        "hillclimb.dev/stage": "tokenizer",
        "hillclimb.dev/fingerprint": request.fingerprint[:16],
        "hillclimb.dev/experiment": "smoke-seed0",
    }
    made = stage_manifest(request, compute, attempt=2, messages_from=512)
    template = made["spec"].pop("template")
    assert made == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": "hillclimb",
            "labels": labels,
            "annotations": {
                "hillclimb.dev/stage": "tokenizer",
                "hillclimb.dev/fingerprint": request.fingerprint,
                "hillclimb.dev/output": request.output,
                "hillclimb.dev/attempt": "2",
                "hillclimb.dev/messages-from": "512",
            },
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 3,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": "stage", "operator": "In", "values": [2],
                        },
                    },
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                ]
            },
            "ttlSecondsAfterFinished": 86400,
        },
    }  # fmt: skip
    assert template["metadata"] == {"labels": labels}
    pod = template["spec"]
    (container,) = pod.pop("containers")
    assert pod == {
        "restartPolicy": "Never",
        "serviceAccountName": "hillclimb-stage",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "hillclimb-root"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ],
    }  # fmt: skip
    assert container["command"][3:] == ["tokenizer", "--request", place]
    assert container["image"] == "registry/training:1"
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"cpu": "2", "memory": "8Gi"},
    }
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in container["env"]


def test_a_jobset_in_its_main_fields():
    compute, asked = requests("toy")
    (request,) = (request for request in asked if request.name == "mai_base_16k")
    made = stage_manifest(request, compute)
    name = f"mai-base-16k-{request.fingerprint[:12]}"
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    (learner,) = made["spec"].pop("replicatedJobs")
    assert made["spec"] == {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All", "targetReplicatedJobs": ["learner"]},
        "failurePolicy": {
            "maxRestarts": 3,
            "restartStrategy": "BlockingRecreate",
            "rules": [
                {
                    "name": "refused",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                    "onJobFailureMessagePatterns": ["exit code 2 "],
                    "targetReplicatedJobs": ["learner"],
                },
                {
                    "name": "preempted",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                    "onJobFailureMessagePatterns": ["DisruptionTarget"],
                    "targetReplicatedJobs": ["learner"],
                },
            ],
        },
        "ttlSecondsAfterFinished": 86400,
        "suspend": True,
    }
    job, pod = learner["template"]["spec"], learner["template"]["spec"]["template"]
    assert (learner["name"], learner["replicas"]) == ("learner", 1)
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (2, 2, 0)
    assert [rule["action"] for rule in job["podFailurePolicy"]["rules"]] == ["FailJob", "FailJob"]
    assert pod["metadata"]["annotations"] == {"kueue.x-k8s.io/podset-required-topology": "rack"}
    assert "kueue.x-k8s.io/queue-name" not in pod["metadata"]["labels"]
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"gpu": "h200"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert spec["priorityClassName"] == "research"
    (container,) = spec["containers"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env["HILLCLIMB_NODES"] == "2"
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == (f"{name}-learner-0-0.{name}", "29500")
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert container["resources"]["limits"] == {
        "cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1", "rdma/hca": "2",
    }  # fmt: skip


def test_without_a_queue_pods_of_one_stage_share_a_place_by_affinity():
    compute, asked = requests("toy")
    (request,) = (request for request in asked if request.name == "mai_base_16k")
    without = compute.kubernetes.model_copy(update={"queue": ""})
    made = stage_manifest(request, compute.model_copy(update={"kubernetes": without}))
    assert "suspend" not in made["spec"]
    (learner,) = made["spec"]["replicatedJobs"]
    template = learner["template"]["spec"]["template"]
    assert "annotations" not in template["metadata"]
    (term,) = template["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["topologyKey"] == "rack"
    chosen = term["labelSelector"]["matchLabels"].items()
    assert chosen <= template["metadata"]["labels"].items()
