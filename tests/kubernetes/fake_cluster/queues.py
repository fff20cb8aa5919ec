"""Kueue as far as a submitter sees it: a Workload per queued object, admission, preemption."""

from __future__ import annotations

from fake_cluster.kinds import QUEUE, Object
from fake_cluster.store import Store, condition, editing, reference, set_condition

NO_QUOTA = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu "
    "in flavor default-flavor, 8 more needed"
)
PREEMPTED = "Preempted to accommodate a workload (UID: 0) due to prioritization in the ClusterQueue"


def reconcile(store: Store, made: Object, held: str | None) -> None:
    """Admit one queued Job or JobSet, or keep it suspended while `held` says why."""
    if QUEUE not in made["metadata"].get("labels", {}) or "deletionTimestamp" in made["metadata"]:
        return
    found = workload(store, made) or store.create(_workload(made))
    ended = [condition(made, how) for how in ("Complete", "Completed", "Failed")]
    with editing(store, found) as found:
        if any(ended):
            why = next(how for how in ended if how)
            set_condition(found, "Finished", True, "JobFinished", why["message"])
            return
        if not condition(found, "Admitted"):
            if held is not None:
                _wait(store, found, held)
            elif not _has_pods(store, made):
                _admit(store, found)
        _suspend(store, made, not condition(found, "Admitted"))


def preempt(store: Store, made: Object) -> None:
    """Take the quota of an admitted object back."""
    found = workload(store, made)
    if found is None:
        raise LookupError(f"{made['metadata']['name']} is in no queue")
    with editing(store, found) as found:
        set_condition(found, "Evicted", True, "Preempted", PREEMPTED)
        set_condition(found, "Preempted", True, "InClusterQueue", PREEMPTED)
        set_condition(found, "QuotaReserved", False, "Pending", PREEMPTED)
        set_condition(found, "Admitted", False, "NoReservation", "The workload has no reservation")
        store.event(
            found, "Normal", "EvictedDueToPreempted", PREEMPTED, "kueue-workload-controller"
        )
        store.event(made, "Normal", "Stopped", PREEMPTED, _controller(made))
        _suspend(store, made, True)


def workload(store: Store, made: Object) -> Object | None:
    """The Workload of a queued object, or None."""
    return next(iter(store.owned(made, "Workload")), None)


def _wait(store: Store, found: Object, why: str) -> None:
    old = next((c for c in found.get("status", {}).get("conditions", []) if c["message"] == why), 0)
    if not old:
        set_condition(found, "QuotaReserved", False, "Pending", why)
        store.event(found, "Warning", "Pending", why, "kueue-admission")


def _admit(store: Store, found: Object) -> None:
    text = "Quota reserved in ClusterQueue default"
    set_condition(found, "QuotaReserved", True, "QuotaReserved", text)
    set_condition(found, "Admitted", True, "Admitted", "The workload is admitted")
    if condition(found, "Evicted"):
        set_condition(found, "Evicted", False, "QuotaReserved", text)
        set_condition(found, "Preempted", False, "QuotaReserved", text)
    store.event(found, "Normal", "Admitted", "Admitted by ClusterQueue default", "kueue-admission")


def _suspend(store: Store, made: Object, suspended: bool) -> None:
    with editing(store, made) as made:
        if made["spec"]["suspend"] and not suspended:
            text = "Admitted by clusterQueue default"
            store.event(made, "Normal", "Started", text, _controller(made))
        made["spec"]["suspend"] = suspended


def _has_pods(store: Store, made: Object) -> bool:
    jobs = [made] if made["kind"] == "Job" else store.owned(made, "Job")
    return any(
        pod["status"]["phase"] in ("Pending", "Running")
        for job in jobs
        for pod in store.owned(job, "Pod")
    )


def _workload(made: Object) -> Object:
    meta = made["metadata"]
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload",
        "metadata": {
            "name": f"{made['kind'].lower()}-{meta['name'][:50]}-{meta['uid'][:5]}",
            "namespace": meta["namespace"], "ownerReferences": [reference(made)],
            "labels": {"kueue.x-k8s.io/job-uid": meta["uid"]},
        },
        "spec": {"active": True, "queueName": meta["labels"][QUEUE]},
    }  # fmt: skip


def _controller(made: Object) -> str:
    return f"{made['apiVersion'].rpartition('/')[0]}/{made['kind'].lower()}-kueue-controller"
