"""How far a stage on a cluster is, and why it has failed, in one plain sentence with the fix.

Pure functions of what the API tells: the object, its pods and events.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from hillclimb.launcher.base import REFUSED
from hillclimb.launcher.kubernetes.kinds import Object
from hillclimb.launcher.kubernetes.waiting import PLACE, containers

_LIMITS = ("BackoffLimitExceeded", "ReachedMaxRestarts")
_REFUSALS = ("PodFailurePolicy", "FailJobSetFailurePolicyAction")
_BLAMED = 3
_DISRUPTIONS = {
    "PreemptionByScheduler": "was preempted by a pod of higher priority: raise {p}.priority_class",
    "EvictionByEvictionAPI": "was evicted when its node was drained: ask again",
    "DeletionByTaintManager": "lost its node, which became unreachable: ask again",
    "DeletionByPodGC": "lost its node, which is gone: ask again",
    "TerminationByKubelet": "was ended by its node, which ran short or shut down: ask again",
}


@dataclass(frozen=True)
class Failure:
    """How a stage failed; `code` is that of the pod that failed first, where there is one."""

    code: int | None
    sentence: str


def condition(made: Object, *types: str) -> Object | None:
    """The object's condition of one of these types while its status is true."""
    found = made.get("status", {}).get("conditions") or []
    return next((c for c in found if c["type"] in types and c["status"] == "True"), None)


def ready(made: Object) -> tuple[bool, bool]:
    """Whether the pods of the ranks are ready, and whether those of all servers are."""
    status = made.get("status") or {}
    if made["kind"] == "Job":
        return int(status.get("ready") or 0) > 0, True
    wanted = {part["name"]: part.get("replicas", 1) for part in made["spec"]["replicatedJobs"]}
    found = {part["name"]: part["ready"] for part in status.get("replicatedJobsStatus") or []}
    up = {name: found.get(name, 0) >= count for name, count in wanted.items()}
    return up.pop("learner"), all(up.values())


def failure(made: Object, pods: list[Object], told: str = "") -> Failure:
    """How the stage failed.

    Args:
        made: the Job or JobSet, with a condition `Failed`.
        pods: those of the last attempt, as far as they are left.
        told: the sentence that the stage itself gave, if it did.
    """
    ended = condition(made, "Failed") or {}
    reason = ended.get("reason", "")
    if blamed := culprits(made, pods):
        code, sentence = _of_pod(blamed[0], told)
    else:
        code, sentence = REFUSED if reason in _REFUSALS else None, told
    if reason == "DeadlineExceeded":
        sentence = "it ran longer than its activeDeadlineSeconds: raise that, or remove it"
    if not sentence:
        sentence = f"{ended.get('message') or 'it failed'}: ask again"
    if reason in _LIMITS and code != REFUSED:
        sentence += f" (it was restarted as often as {PLACE}.max_restarts allows)"
    return Failure(code, sentence)


def culprits(made: Object, pods: list[Object]) -> list[Object]:
    """The pods to blame, at most three: of many those that failed first, since one that fails
    takes the others along; of one pod's attempts the last."""
    failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    ranks = [pod for pod in failed if _role(pod) in ("learner", None)]
    own = [pod for pod in ranks if not condition(pod, "DisruptionTarget")] or ranks or failed
    many = made["kind"] == "JobSet"
    return sorted(own, key=_finished, reverse=not many)[: _BLAMED if many else 1]


def quoted(pod: Object, log: str, events: list[Object]) -> list[str]:
    """The end of a pod's log and the warnings about it, a line each."""
    name = pod["metadata"]["name"]
    warnings = [event for event in events if event.get("type") == "Warning"]
    return [
        *(f"log of {name}: {line}" for line in log.strip().splitlines()),
        *(f"event {event.get('reason')}: {event.get('message')}" for event in warnings),
    ]


def _role(pod: Object) -> str | None:
    found = pod["metadata"].get("labels", {}).get("jobset.sigs.k8s.io/replicatedjob-name")
    return str(found) if found else None


def _finished(pod: Object) -> tuple[str, str]:
    ends = [_ended(status).get("finishedAt") or "" for status in containers(pod)]
    return max(ends, default=""), str(pod["metadata"].get("creationTimestamp"))


def _of_pod(pod: Object, told: str) -> tuple[int | None, str]:
    states = [state for status in containers(pod) if (state := _ended(status))]
    state = states[0] if states else {}
    code = state.get("exitCode")
    if state.get("reason") == "OOMKilled":
        limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {})
        return code, (
            f"it was killed for its memory (limit {limit.get('memory', 'none')}): raise "
            f"{PLACE}.memory, or lower the recipe's micro_batch_tokens"
        )
    if pod["status"].get("reason") == "Evicted":
        return code, _evicted(pod["status"].get("message", "").rstrip("."))
    if taken := condition(pod, "DisruptionTarget"):
        known = _DISRUPTIONS.get(taken.get("reason", ""), "was taken away: ask again")
        return code, f"it {known.format(p=PLACE)}"
    if state.get("reason") in ("StartError", "ContainerCannotRun"):
        image = pod["spec"]["containers"][0].get("image")
        return code, f"its command cannot run in {image} ({state.get('message', '')}): mend it"
    if told:
        return code, told
    if code is None and (reason := pod["status"].get("reason")):
        said = pod["status"].get("message", "").rstrip(".")
        return code, f"its node did not run it ({reason}: {said}): ask again"
    if code is not None and code > 128:
        return code, f"it was killed by {_signal(code - 128)}: see its log, and ask again"
    return code, f"it ended with exit code {code}: see its log" if code is not None else ""


def _evicted(said: str) -> str:
    """The kubelet ends a pod whose volume outgrows its limit, or when the node runs short."""
    if 'EmptyDir volume "shm"' in said:
        return f"it was evicted ({said}): raise {PLACE}.shm, and {PLACE}.memory with it"
    if "memory" in said:
        return f"it was evicted ({said}): raise {PLACE}.memory"
    return f"it was evicted ({said}): free the node's disk, or choose a node with more"


def _ended(status: Object) -> Object:
    return dict(status["state"].get("terminated") or {})


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
