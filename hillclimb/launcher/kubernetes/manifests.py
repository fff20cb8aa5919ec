"""What a stage is on a cluster: one Job where a single pod does, else one JobSet.

A JobSet holds the ranks as the replicated job `learner`, and for climbs with rollout accelerators
the rollout servers as `rollout`. It has succeeded when the learner has. When a pod of the learner
fails, all pods start anew, because one lost rank breaks the group; a server comes back alone.
"""

from __future__ import annotations

import re
from typing import Any

from hillclimb.launcher.base import REFUSED, handle_name
from hillclimb.launcher.kubernetes.layout import Layout, cluster_of, layout
from hillclimb.launcher.kubernetes.pods import LEARNER, ROLLOUT, server_pod, stage_pod
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.kubernetes import Kubernetes
from hillclimb.stages.request import Request

Manifest = dict[str, Any]
MANAGED = {"app.kubernetes.io/managed-by": "hillclimb"}
FINGERPRINT = "hillclimb.dev/fingerprint"
STAGE = "hillclimb.dev/stage"
EXPERIMENT = "hillclimb.dev/experiment"
RUN_ID = "hillclimb.dev/run-id"
ORCHESTRATOR = "hillclimb.dev/orchestrator"
OUTPUT = "hillclimb.dev/output"
ATTEMPT = "hillclimb.dev/attempt"
MESSAGES_FROM = "hillclimb.dev/messages-from"
QUEUE = "kueue.x-k8s.io/queue-name"
_ENDLESS = 1_000_000
_DISRUPTED = [{"type": "DisruptionTarget", "status": "True"}]


def stage_manifest(
    request: Request, compute: Compute, attempt: int = 1, messages_from: int = 0
) -> Manifest:
    """The object that makes the stage; the same for the same arguments.

    Args:
        attempt: how often the stage has been launched, this time included.
        messages_from: bytes that earlier attempts left in the message file.
    """
    laid_out, cluster = layout(request, compute), cluster_of(compute)
    marks = labels(request)
    spec = (_job if laid_out.single else _jobset)(request, compute, laid_out)
    spec["ttlSecondsAfterFinished"] = cluster.ttl_seconds
    if cluster.queue:
        marks[QUEUE] = cluster.queue
        spec["suspend"] = True
    return {
        "apiVersion": "batch/v1" if laid_out.single else "jobset.x-k8s.io/v1alpha2",
        "kind": "Job" if laid_out.single else "JobSet",
        "metadata": {
            "name": handle_name(request.name, request.fingerprint),
            "namespace": cluster.namespace,
            "labels": marks,
            "annotations": {
                STAGE: request.name,
                FINGERPRINT: request.fingerprint,
                OUTPUT: request.output,
                ATTEMPT: str(attempt),
                MESSAGES_FROM: str(messages_from),
            },
        },
        "spec": spec,
    }


def labels(request: Request) -> dict[str, str]:
    """What a stage's object and pods are found by."""
    named = {
        STAGE: request.name,
        FINGERPRINT: request.fingerprint[:16],
        EXPERIMENT: request.tracking.get("experiment", ""),
        RUN_ID: request.tracking.get("run_id", ""),
        ORCHESTRATOR: request.tracking.get("orchestrator", ""),
    }
    return MANAGED | {key: label_value(value) for key, value in named.items() if value}


def label_value(text: str) -> str:
    """Text as a label's value: at most 63 letters, digits, `-`, `_` and `.`."""
    return re.sub(r"[^A-Za-z0-9_.-]", ".", text)[:63].strip("-_.")


def _job(request: Request, compute: Compute, laid_out: Layout) -> Manifest:
    """One pod. Failures count; preemptions and lost nodes do not."""
    rules = [_refused(), {"action": "Ignore", "onPodConditions": _DISRUPTED}]
    return {
        "completionMode": "Indexed",
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": cluster_of(compute).max_restarts,
        "podFailurePolicy": {"rules": rules},
        "template": _template(request, compute, laid_out, stage_pod(request, compute, laid_out)),
    }


def _jobset(request: Request, compute: Compute, laid_out: Layout) -> Manifest:
    template = _template(request, compute, laid_out, stage_pod(request, compute, laid_out))
    learner = _replicated(LEARNER, 1, laid_out.nodes, 0, template)
    rules = [_refused(), {"action": "FailJob", "onPodConditions": _DISRUPTED}]
    learner["template"]["spec"]["podFailurePolicy"] = {"rules": rules}
    replicated = [learner]
    if laid_out.servers:
        template = _template(request, compute, laid_out, server_pod(request, compute, laid_out))
        replicated.append(
            _replicated(ROLLOUT, laid_out.servers, laid_out.server_nodes, _ENDLESS, template)
        )
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All", "targetReplicatedJobs": [LEARNER]},
        "failurePolicy": {
            "maxRestarts": cluster_of(compute).max_restarts,
            "restartStrategy": "BlockingRecreate",
            "rules": [
                _rule("refused", "FailJobSet", f"exit code {REFUSED} "),
                _rule("preempted", "RestartJobSetAndIgnoreMaxRestarts", "DisruptionTarget"),
            ],
        },
        "replicatedJobs": replicated,
    }


def _refused() -> Manifest:
    """A stage that refuses its request would do so again."""
    codes = {"containerName": "stage", "operator": "In", "values": [REFUSED]}
    return {"action": "FailJob", "onExitCodes": codes}


def _rule(name: str, action: str, pattern: str) -> Manifest:
    """What follows when the learner's Job was ended by a pod failure policy, with such words."""
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [pattern],
        "targetReplicatedJobs": [LEARNER],
    }


def _replicated(role: str, replicas: int, pods: int, failures: int, template: Any) -> Manifest:
    spec = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": failures,
        "template": template,
    }
    return {"name": role, "replicas": replicas, "template": {"spec": spec}}


def _template(request: Request, compute: Compute, laid_out: Layout, pod: Manifest) -> Manifest:
    """A pod's template; with a topology key the pods of one stage stay in one place."""
    cluster, metadata = cluster_of(compute), {"labels": labels(request)}
    if not cluster.topology_key or laid_out.single:
        return {"metadata": metadata, "spec": pod}
    if cluster.queue:
        asked = {"kueue.x-k8s.io/podset-required-topology": cluster.topology_key}
        return {"metadata": {**metadata, "annotations": asked}, "spec": pod}
    return {"metadata": metadata, "spec": {**pod, "affinity": _together(request, cluster)}}


def _together(request: Request, cluster: Kubernetes) -> Manifest:
    chosen = {"matchLabels": {FINGERPRINT: request.fingerprint[:16]}}
    term = {"labelSelector": chosen, "topologyKey": cluster.topology_key}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
