"""What a stage on a cluster waits for, in one plain sentence with the fix.

Pure functions of what the API tells: the object, its pods, events and Kueue's workload.
"""

from __future__ import annotations

from dataclasses import dataclass

from hillclimb.launcher.kubernetes.kinds import Object

PLACE = "compute.kubernetes"
OWN = ("stage", "server")
_IMAGE = (
    "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName",
    "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed",
)  # fmt: skip
_HOPELESS_IMAGE = ("ErrImageNeverPull", "InvalidImageName")
_NO_FIT = (
    ("Insufficient nvidia.com/gpu", "wait until GPUs are free, or ask for fewer ranks a node"),
    ("Insufficient", "wait until there is room, or lower {p}.cpu and {p}.memory"),
    ("node affinity/selector", "correct {p}.node_selector, or label nodes with it"),
    ("taint", "add the taint to {p}.tolerations"),
    ("persistentvolumeclaim", "create the claim, or correct {p}.volumes"),
)
_NO_QUEUE = ("doesn't exist", "is inactive")
_CREATION = ("FailedCreate", "JobCreationFailed")


@dataclass(frozen=True)
class Waiting:
    """What a stage waits for. What is `stuck` does not go by itself, `hopeless` not at all."""

    sentence: str
    stuck: bool = False
    hopeless: bool = False


def waiting(
    made: Object, pods: list[Object], events: list[Object], workload: Object | None
) -> Waiting | None:
    """What keeps the stage from running; None where its pods run.

    Args:
        made: the Job or JobSet.
        pods: its pods; the servers beside a climb count too.
        events: of a pod that waits, else of the object.
        workload: Kueue's, where the object is queued.
    """
    if made.get("spec", {}).get("suspend"):
        return _suspended(made, workload)
    for pod in pods:
        if found := _unreachable(pod):
            return found
    pending = [pod for pod in pods if _phase(pod) == "Pending"]
    for look in (_image, _configuration, _unschedulable):
        for pod in pending:
            if found := look(pod):
                return found
    if pending and (found := _mount(events)):
        return found
    if not pods:
        return _not_created(events)
    if pending:
        return Waiting("its pods are starting")
    if any(_phase(pod) == "Running" for pod in pods):
        return next(filter(None, map(_crashing, pods)), None)
    return Waiting("its pods have ended, new ones start after a pause")


def _suspended(made: Object, workload: Object | None) -> Waiting:
    queue = made["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    if not queue:
        return Waiting("somebody suspended it: set its spec.suspend to false")
    if workload is None:
        return Waiting(
            f"Kueue has not looked at it: check that Kueue runs and manages such objects in the "
            f"namespace, and that the queue {queue} exists"
        )
    why = _not_reserved(workload)
    quoted = f" ({why})" if why else ""
    if workload.get("spec", {}).get("active") is False:
        return Waiting(
            f"Kueue has deactivated its Workload {workload['metadata']['name']}{quoted}: set that "
            "one's spec.active to true, or cancel"
        )
    if any(words in why for words in _NO_QUEUE):
        return Waiting(
            f"its queue does not let anything in ({why}): create or start it, or correct "
            f"{PLACE}.queue"
        )
    return Waiting(
        f"it waits for quota in the queue {queue}{quoted}: it starts by itself when quota is free, "
        "sooner with a larger ClusterQueue"
    )


def _not_reserved(workload: Object) -> str:
    """Why Kueue has reserved no quota, in its words."""
    found = workload.get("status", {}).get("conditions") or []
    conditions = {c["type"]: c for c in found}
    reserved = conditions.get("QuotaReserved", {"status": "True"})
    return "" if reserved["status"] == "True" else str(reserved.get("message", ""))


def _unreachable(pod: Object) -> Waiting | None:
    """A pod that was taken away with its node stays until somebody says that the node is gone."""
    if _phase(pod) != "Running" or "deletionTimestamp" not in pod["metadata"]:
        return None
    for found in pod["status"].get("conditions") or []:
        taken = found["type"] == "DisruptionTarget" and found["status"] == "True"
        if taken and found.get("reason") == "DeletionByTaintManager":
            node = pod["spec"].get("nodeName")
            return Waiting(
                f"the node {node} does not answer: it goes on when that is back; where it is not "
                "to come back, delete the Node, or taint it node.kubernetes.io/out-of-service"
            )
    return None


def _image(pod: Object) -> Waiting | None:
    for status in containers(pod):
        state = status["state"].get("waiting", {})
        if state.get("reason") in _IMAGE:
            said = f" ({state['message']})" if state.get("message") else ""
            return Waiting(
                f"the image {status['image']} cannot be pulled{said}: push it, correct the image "
                f"in {PLACE}, or let nodes log in to its registry",
                stuck=True,
                hopeless=state["reason"] in _HOPELESS_IMAGE,
            )
    return None


def _configuration(pod: Object) -> Waiting | None:
    for status in containers(pod):
        state = status["state"].get("waiting", {})
        if state.get("reason") in ("CreateContainerConfigError", "CreateContainerError"):
            return Waiting(
                f"its container cannot be made ({state.get('message', 'no reason given')}): create "
                f"what is missing, or correct {PLACE}.secrets and {PLACE}.env",
                stuck=True,
            )
    return None


def _crashing(pod: Object) -> Waiting | None:
    """A server that ends soon after each start; ranks are not started again in their pod."""
    for status in containers(pod):
        if status["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff":
            last = status.get("lastState", {}).get("terminated") or {}
            how = f"{last.get('reason', 'Error')}, exit code {last.get('exitCode')}"
            name = pod["metadata"]["name"]
            return Waiting(f"the pod {name} ends each time it starts ({how}): see its log")
    return None


def _unschedulable(pod: Object) -> Waiting | None:
    for found in pod["status"].get("conditions") or []:
        if found["type"] == "PodScheduled" and found.get("reason") == "Unschedulable":
            said = found.get("message", "")
            fixes = [fix for words, fix in _NO_FIT if words in said]
            fix = (fixes or ["wait, or make room"])[0].format(p=PLACE)
            return Waiting(f"no node fits ({said.rstrip('.')}): {fix}")
    return None


def _mount(events: list[Object]) -> Waiting | None:
    for event in reversed(events):
        if event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            said = event.get("message", "no reason given")
            return Waiting(f"a volume cannot be mounted ({said}): correct {PLACE}.volumes")
    return None


def _not_created(events: list[Object]) -> Waiting:
    told = [e.get("message", "no reason given") for e in events if e.get("reason") in _CREATION]
    if not told:
        return Waiting("its pods are being created")
    said = told[-1]
    if "exceeded quota" in said:
        return Waiting(
            f"the namespace's ResourceQuota is used up ({said}): it starts by itself when "
            "others end, sooner with a larger ResourceQuota"
        )
    if "serviceaccount" in said.lower():
        fix = f"apply k8s/base, or correct {PLACE}.service_account"
    elif "PodSecurity" in said:
        fix = f"use claims instead of host_path in {PLACE}.volumes, or relax the namespace"
    else:
        fix = f"correct {PLACE}"
    return Waiting(f"its pods are refused ({said}): {fix}", stuck=True)


def containers(pod: Object) -> list[Object]:
    """The statuses of a pod's containers that say where they are; those that a cluster puts beside
    the launcher's own are left out."""
    found = [s for s in pod.get("status", {}).get("containerStatuses") or [] if s.get("state")]
    return [status for status in found if status.get("name") in OWN] or found


def _phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", ""))
