"""The Job controller: pods by index, retries, the pod failure policy, suspension, conditions."""

from __future__ import annotations

import copy
import secrets
from datetime import UTC, datetime
from typing import Any

from fake_cluster.kinds import Object
from fake_cluster.store import (
    Store,
    condition,
    delete,
    editing,
    now,
    owners,
    reference,
    set_condition,
)

TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
SOURCE = "job-controller"


def reconcile(store: Store, job: Object, refused: str | None) -> None:
    """Bring one Job a step further; `refused` is why no pod may be made now."""
    pods = store.owned(job, "Pod")
    if "deletionTimestamp" in job["metadata"]:
        for pod in pods:
            _release(store, pod)
        return
    if condition(job, "Complete") or condition(job, "Failed"):
        return
    with editing(store, job) as job:
        status = job.setdefault("status", {})
        for pod in pods:
            if TRACKING in pod["metadata"].get("finalizers", []) and _ended(job, pod):
                _count(store, job, pod)
                _release(store, pod)
        active = [pod for pod in pods if not _ended(job, pod)]
        _limits(job, active)
        if condition(job, "FailureTarget") or condition(job, "SuccessCriteriaMet"):
            _finish(store, job, active)
        elif job["spec"].get("suspend"):
            _suspend(store, job, active)
        else:
            _resume(store, job)
            active += _add_pods(store, job, active, refused)
        going = [pod for pod in pods if "deletionTimestamp" in pod["metadata"] and not _over(pod)]
        status["active"] = len([pod for pod in active if pod not in going])
        status["ready"] = len([pod for pod in active if condition(pod, "Ready")])
        status["terminating"] = len(going)


def release_orphans(store: Store) -> None:
    """Let go of pods whose Job is gone."""
    living = {job["metadata"]["uid"] for job in store.list("Job")}
    for pod in store.list("Pod"):
        if not living.intersection(owners(pod)):
            _release(store, pod)


def _ended(job: Object, pod: Object) -> bool:
    """Whether a replacement may be made: by podReplacementPolicy, earlier than the pod is gone."""
    waits = "Failed" if "podFailurePolicy" in job["spec"] else "TerminatingOrFailed"
    if job["spec"].get("podReplacementPolicy", waits) == "TerminatingOrFailed":
        return _over(pod) or "deletionTimestamp" in pod["metadata"]
    return _over(pod)


def _over(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def _release(store: Store, pod: Object) -> None:
    if TRACKING in pod["metadata"].get("finalizers", []):
        with editing(store, pod) as pod:
            pod["metadata"]["finalizers"].remove(TRACKING)


def _discard(store: Store, pod: Object) -> None:
    """Delete a pod of which nobody will count how it ended."""
    _release(store, pod)
    meta = pod["metadata"]
    if found := store.get("Pod", meta["namespace"], meta["name"]):
        delete(store, found, "Background")


def _count(store: Store, job: Object, pod: Object) -> None:
    status = job["status"]
    if pod["status"]["phase"] == "Succeeded":
        status["succeeded"] = status.get("succeeded", 0) + 1
        if (index := pod["metadata"].get("annotations", {}).get(INDEX)) is not None:
            done = {*_done(job), int(index)}
            status["completedIndexes"] = ",".join(map(str, sorted(done)))
        return
    rule, why = _matching(job, pod)
    if rule == "Ignore":
        return
    status["failed"] = status.get("failed", 0) + 1
    if rule == "FailJob":
        _fail(job, "PodFailurePolicy", why)


def _matching(job: Object, pod: Object) -> tuple[str, str]:
    """The action of the first rule that the pod meets, and what the controller says of it."""
    meta, what = pod["metadata"], pod["spec"]["containers"][0]["name"]
    who = f"pod {meta['namespace']}/{meta['name']}"
    states = [status["state"] for status in pod["status"].get("containerStatuses", [])]
    code = states[0].get("terminated", {}).get("exitCode") if states else None
    for place, rule in enumerate(job["spec"].get("podFailurePolicy", {}).get("rules", [])):
        if "onExitCodes" in rule and code is not None:
            wanted = rule["onExitCodes"]
            if (code in wanted["values"]) == (wanted["operator"] == "In") and code != 0:
                said = f"Container {what} for {who} failed with exit code {code}"
                return rule["action"], f"{said} matching {rule['action']} rule at index {place}"
        for pattern in rule.get("onPodConditions", []):
            if condition(pod, pattern["type"]):
                said = f"P{who[1:]} has condition {pattern['type']}"
                return rule["action"], f"{said} matching {rule['action']} rule at index {place}"
    return "Count", ""


def _done(job: Object) -> set[int]:
    return {int(index) for index in job["status"].get("completedIndexes", "").split(",") if index}


def _fail(job: Object, reason: str, message: str) -> None:
    if not condition(job, "FailureTarget"):
        set_condition(job, "FailureTarget", True, reason, message)


def _limits(job: Object, active: list[Object]) -> None:
    spec, status = job["spec"], job["status"]
    limit = spec.get("backoffLimit", 6)
    containers = [s for pod in active for s in pod["status"].get("containerStatuses", [])]
    again = sum(container["restartCount"] for container in containers)
    if condition(job, "FailureTarget"):
        return
    if status.get("failed", 0) > limit or again > limit:
        _fail(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    elif "startTime" in status and _age(status["startTime"]) > spec.get(
        "activeDeadlineSeconds", float("inf")
    ):
        _fail(job, "DeadlineExceeded", "Job was active longer than specified deadline")
    elif status.get("succeeded", 0) >= spec["completions"]:
        text = "Reached expected number of succeeded pods"
        set_condition(job, "SuccessCriteriaMet", True, "CompletionsReached", text)


def _finish(store: Store, job: Object, active: list[Object]) -> None:
    for pod in active:
        _discard(store, pod)
    if any(not _over(pod) for pod in store.owned(job, "Pod")):
        return
    if why := condition(job, "FailureTarget"):
        set_condition(job, "Failed", True, why["reason"], why["message"])
        store.event(job, "Warning", why["reason"], why["message"], SOURCE)
        return
    why = condition(job, "SuccessCriteriaMet") or {}
    set_condition(job, "Complete", True, why["reason"], why["message"])
    job["status"]["completionTime"] = now()
    store.event(job, "Normal", "Completed", "Job completed", SOURCE)


def _suspend(store: Store, job: Object, active: list[Object]) -> None:
    for pod in active:
        _discard(store, pod)
    if not condition(job, "Suspended"):
        set_condition(job, "Suspended", True, "JobSuspended", "Job suspended")
        job["status"].pop("startTime", None)
        store.event(job, "Normal", "Suspended", "Job suspended", SOURCE)


def _resume(store: Store, job: Object) -> None:
    if condition(job, "Suspended"):
        set_condition(job, "Suspended", False, "JobResumed", "Job resumed")
        store.event(job, "Normal", "Resumed", "Job resumed", SOURCE)
    job["status"].setdefault("startTime", now())


def _add_pods(store: Store, job: Object, active: list[Object], refused: str | None) -> list[Object]:
    spec, done = job["spec"], job["status"].get("succeeded", 0)
    room = min(spec["parallelism"], spec["completions"] - done) - len(active)
    indexes: list[int | None] = [None] * spec["completions"]
    if spec.get("completionMode") == "Indexed":
        taken = {int(pod["metadata"]["annotations"][INDEX]) for pod in active} | _done(job)
        indexes = [index for index in range(spec["completions"]) if index not in taken]
    if refused is not None and room > 0:
        text = f'Error creating: pods "{job["metadata"]["name"]}-" is forbidden: {refused}'
        store.event(job, "Warning", "FailedCreate", text, SOURCE)
        return []
    made = [store.create(_pod(job, index)) for index in indexes[: max(room, 0)]]
    for pod in made:
        text = f"Created pod: {pod['metadata']['name']}"
        store.event(job, "Normal", "SuccessfulCreate", text, SOURCE)
    return made


def _pod(job: Object, index: int | None) -> Object:
    name, meta = job["metadata"]["name"], job["metadata"]
    template: dict[str, Any] = copy.deepcopy(job["spec"]["template"])
    labels = {
        "job-name": name, "batch.kubernetes.io/job-name": name, "controller-uid": meta["uid"],
        "batch.kubernetes.io/controller-uid": meta["uid"],
    }  # fmt: skip
    given = template.setdefault("metadata", {})
    marks, spec = dict(given.get("annotations", {})), template["spec"]
    if index is not None:
        labels[INDEX] = marks[INDEX] = str(index)
        name = f"{name}-{index}"
        spec.setdefault("hostname", name)
        variable = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
        for container in spec["containers"]:
            container.setdefault("env", []).append(variable)
    return {
        "apiVersion": "v1", "kind": "Pod", "spec": spec, "status": {"phase": "Pending"},
        "metadata": {
            "name": f"{name}-{secrets.token_hex(3)[:5]}", "namespace": meta["namespace"],
            "labels": {**given.get("labels", {}), **labels}, "annotations": marks,
            "ownerReferences": [reference(job)], "finalizers": [TRACKING],
        },
    }  # fmt: skip


def _age(stamp: str) -> float:
    started = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (datetime.now(UTC) - started).total_seconds()
