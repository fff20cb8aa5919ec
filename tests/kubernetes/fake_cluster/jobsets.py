"""The JobSet controller: child Jobs, the headless Service, all-or-nothing restarts, success."""

from __future__ import annotations

import copy
import hashlib
import re
from typing import Any

from fake_cluster.kinds import KINDS, Object, Refusal, admit
from fake_cluster.store import Store, condition, delete, editing, reference, set_condition

LABEL = "jobset.sigs.k8s.io/"
ATTEMPT = f"{LABEL}restart-attempt"
ROLE = f"{LABEL}replicatedjob-name"
SOURCE = "jobset-controller"


def reconcile(store: Store, made: Object) -> None:
    """Bring one JobSet a step further."""
    if "deletionTimestamp" in made["metadata"]:
        return
    with editing(store, made) as made:
        status = made.setdefault("status", {})
        status.setdefault("restarts", 0)
        status.setdefault("restartsCountTowardsMax", 0)
        jobs = store.owned(made, "Job")
        current = [j for j in jobs if j["metadata"]["labels"][ATTEMPT] == str(status["restarts"])]
        if condition(made, "Completed") or condition(made, "Failed"):
            _delete(store, [job for job in jobs if not _over(job)])
            return
        _delete(store, [job for job in jobs if job not in current])
        status["replicatedJobsStatus"] = [_counts(p, current) for p in _parts(made)]
        if failed := [job for job in current if condition(job, "Failed")]:
            _apply_failure_policy(store, made, failed)
        elif _succeeded(made, current):
            _end(store, made, "Completed", "AllJobsCompleted", "jobset completed successfully")
        else:
            _suspend_or_resume(store, made, current)
            _create(store, made, jobs)


def _parts(made: Object) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = made["spec"]["replicatedJobs"]
    return parts


def _over(job: Object) -> bool:
    return bool(condition(job, "Complete") or condition(job, "Failed"))


def _delete(store: Store, jobs: list[Object]) -> None:
    for job in jobs:
        if "deletionTimestamp" not in job["metadata"]:
            delete(store, job, "Foreground")


def _counts(part: Object, jobs: list[Object]) -> Object:
    mine = [job for job in jobs if job["metadata"]["labels"][ROLE] == part["name"]]
    pods = part["template"]["spec"]["parallelism"]
    states = [job.get("status", {}) for job in mine]
    return {
        "name": part["name"],
        "ready": sum(s.get("ready", 0) + s.get("succeeded", 0) >= pods for s in states),
        "succeeded": sum(condition(job, "Complete") is not None for job in mine),
        "failed": sum(condition(job, "Failed") is not None for job in mine),
        "active": sum(s.get("active", 0) > 0 for s in states),
        "suspended": sum(job["spec"].get("suspend", False) for job in mine),
    }


def _succeeded(made: Object, jobs: list[Object]) -> bool:
    policy = made["spec"].get("successPolicy", {"operator": "All"})
    roles = policy.get("targetReplicatedJobs") or [part["name"] for part in _parts(made)]
    wanted = sum(part.get("replicas", 1) for part in _parts(made) if part["name"] in roles)
    complete = [job for job in jobs if condition(job, "Complete")]
    done = sum(job["metadata"]["labels"][ROLE] in roles for job in complete)
    return bool(done >= (wanted if policy["operator"] == "All" else 1))


def _apply_failure_policy(store: Store, made: Object, failed: list[Object]) -> None:
    status, policy = made["status"], made["spec"].get("failurePolicy")
    job = failed[0]
    first = f" (first failed job: {job['metadata']['name']})"
    if policy is None:
        text = "jobset failed due to one or more job failures"
        _end(store, made, "Failed", "FailedJobs", text + first)
        return
    rule, job = _rule(policy.get("rules", []), failed)
    action = rule.get("action", "RestartJobSet")
    first = f" (first failed job: {job['metadata']['name']})"
    if action == "FailJobSet":
        text = "applying FailJobSet failure policy action"
        _end(store, made, "Failed", "FailJobSetFailurePolicyAction", text + first)
        return
    counts = action == "RestartJobSet"
    if counts and status["restartsCountTowardsMax"] >= policy.get("maxRestarts", 0):
        text = "jobset failed due to reaching max number of restarts"
        _end(store, made, "Failed", "ReachedMaxRestarts", text + first)
        return
    status["restarts"] += 1
    status["restartsCountTowardsMax"] += counts
    text = f"applying {action} failure policy action{first}"
    store.event(made, "Warning", f"{action}FailurePolicyAction", text, SOURCE)


def _rule(rules: list[Object], failed: list[Object]) -> tuple[Object, Object]:
    for rule in rules:
        for job in failed:
            if _applies(rule, job):
                return rule, job
    return {}, failed[0]


def _applies(rule: Object, job: Object) -> bool:
    why = condition(job, "Failed") or {}
    reasons, roles = rule.get("onJobFailureReasons"), rule.get("targetReplicatedJobs")
    patterns = rule.get("onJobFailureMessagePatterns")
    return (
        (not reasons or why["reason"] in reasons)
        and (not patterns or any(re.search(pattern, why["message"]) for pattern in patterns))
        and (not roles or job["metadata"]["labels"][ROLE] in roles)
    )


def _end(store: Store, made: Object, how: str, reason: str, message: str) -> None:
    set_condition(made, how, True, reason, message)
    made["status"]["terminalState"] = how
    store.event(made, "Normal" if how == "Completed" else "Warning", reason, message, SOURCE)


def _suspend_or_resume(store: Store, made: Object, jobs: list[Object]) -> None:
    suspended = made["spec"]["suspend"]
    for job in jobs:
        if job["spec"]["suspend"] != suspended and not _over(job):
            with editing(store, job) as job:
                job["spec"]["suspend"] = suspended
    if suspended:
        set_condition(made, "Suspended", True, "SuspendedJobs", "jobset is suspended")
    elif condition(made, "Suspended"):
        set_condition(made, "Suspended", False, "ResumeJobs", "jobset is resumed")


def _create(store: Store, made: Object, jobs: list[Object]) -> None:
    names = {job["metadata"]["name"] for job in jobs}
    blocking = made["spec"].get("failurePolicy", {}).get("restartStrategy") == "BlockingRecreate"
    stale = [j for j in jobs if j["metadata"]["labels"][ATTEMPT] != str(made["status"]["restarts"])]
    if blocking and stale:
        return
    _service(store, made)
    for part in _parts(made):
        for index in range(part.get("replicas", 1)):
            if f"{made['metadata']['name']}-{part['name']}-{index}" not in names:
                job = _job(made, part, index)
                try:
                    admit(KINDS["Job"], job)
                    store.create(job)
                except Refusal as refused:
                    store.event(made, "Warning", "JobCreationFailed", str(refused), SOURCE)


def _job(made: Object, part: Object, index: int) -> Object:
    meta, template = made["metadata"], copy.deepcopy(part["template"])
    name = f"{meta['name']}-{part['name']}-{index}"
    before = [p.get("replicas", 1) for p in _parts(made)[: _parts(made).index(part)]]
    marks = {
        "jobset-name": meta["name"], "jobset-uid": meta["uid"], "replicatedjob-name": part["name"],
        "restart-attempt": str(made["status"]["restarts"]), "job-index": str(index),
        "replicatedjob-replicas": str(part.get("replicas", 1)),
        "job-global-index": str(sum(before) + index),
        "job-key": hashlib.sha1(f"{meta['namespace']}/{name}".encode()).hexdigest(),
    }  # fmt: skip
    marks = {f"{LABEL}{key}": value for key, value in marks.items()}
    spec = template["spec"]
    for holder in (template, spec["template"]):
        given = holder.setdefault("metadata", {})
        for field in ("labels", "annotations"):
            given[field] = {**given.get(field, {}), **marks}
    if (subdomain := _subdomain(made)) is not None:
        spec["template"]["spec"]["subdomain"] = subdomain
    return {
        "apiVersion": "batch/v1", "kind": "Job",
        "spec": {**spec, "suspend": made["spec"]["suspend"]},
        "metadata": {
            **template["metadata"], "name": name, "namespace": meta["namespace"],
            "ownerReferences": [reference(made)],
        },
    }  # fmt: skip


def _subdomain(made: Object) -> str | None:
    network = made["spec"].get("network", {})
    if not network.get("enableDNSHostnames", True):
        return None
    return str(network.get("subdomain") or made["metadata"]["name"])


def _service(store: Store, made: Object) -> None:
    meta, subdomain = made["metadata"], _subdomain(made)
    if subdomain is not None and store.get("Service", meta["namespace"], subdomain) is None:
        store.create({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": subdomain, "namespace": meta["namespace"],
                "ownerReferences": [reference(made)],
            },
            "spec": {
                "clusterIP": "None", "selector": {f"{LABEL}jobset-name": meta["name"]},
                "publishNotReadyAddresses": True,
            },
        })  # fmt: skip
