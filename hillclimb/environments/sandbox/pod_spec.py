"""The pod of a sandbox: what is asked for, and whether what was admitted is still that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hillclimb.environments.sandbox import pod_guard
from hillclimb.environments.sandbox.base import MIB, SandboxLimits, SandboxUnavailable
from hillclimb.environments.sandbox.shell import NOBODY

Object = dict[str, Any]
CONTAINER = "sandbox"
MANAGED = {"app.kubernetes.io/managed-by": "hillclimb", "app.kubernetes.io/component": "sandbox"}
OWNER = "hillclimb.dev/owner"
CLAIMS = "extensions.agents.x-k8s.io/v1beta1"
COMMAND = [
    *("python3", "-I", "-S", "-B", "-c"),
    Path(pod_guard.__file__).read_text(encoding="utf-8"),
]
_SPARE = 128 * MIB  # for the guard, and for what the runtime counts to the pod


@dataclass(frozen=True, slots=True)
class PodSettings:
    """Where sandbox pods run; times in seconds.

    `namespace` holds sandboxes and nothing else. `image` has `sh` and `python3` (3.10 or newer) on
    its PATH. `warm_pool` names a SandboxWarmPool of agent-sandbox in the namespace; empty: a new
    pod each. `lifetime_s` bounds a sandbox whose owner was killed, `start_timeout_s` the wait for
    quota, a node and an image, `patience_s` the time for which the API may be away.
    """

    namespace: str
    image: str
    runtime_class: str = "gvisor"
    warm_pool: str = ""
    lifetime_s: int = 7200
    start_timeout_s: float = 300.0
    patience_s: float = 60.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> PodSettings:
        """From HILLCLIMB_SANDBOX_{NAMESPACE,IMAGE,RUNTIME_CLASS,WARM_POOL}.

        Raises:
            SandboxUnavailable: if the namespace or the image is not set.
        """
        given = {
            name: environ.get(f"HILLCLIMB_SANDBOX_{name.upper()}", "")
            for name in ("namespace", "image", "runtime_class", "warm_pool")
        }
        for name in ("namespace", "image"):
            if not given[name]:
                raise SandboxUnavailable(
                    f"HILLCLIMB_SANDBOX_{name.upper()} is not set: sandboxes in pods need it"
                )
        settings = cls(given["namespace"], given["image"], warm_pool=given["warm_pool"])
        named = given["runtime_class"]
        return replace(settings, runtime_class=named) if named else settings


def pod_manifest(
    settings: PodSettings, limits: SandboxLimits, name: str, labels: Mapping[str, str]
) -> Object:
    """One sandbox, which the kubelet ends after its lifetime."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": dict(labels)},
        "spec": {**pod_spec(settings, limits), "activeDeadlineSeconds": settings.lifetime_s},
    }


def pod_spec(settings: PodSettings, limits: SandboxLimits) -> Object:
    """The hardened pod. It may wait in a warm pool for as long as it takes."""
    memory = limits.memory + 2 * limits.work + _SPARE
    return {
        "runtimeClassName": settings.runtime_class,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostname": "sandbox",
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.image,
                "imagePullPolicy": "IfNotPresent",
                "command": COMMAND,
                "workingDir": "/work",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "resources": {
                    "requests": {"cpu": "100m", "memory": str(_SPARE)},
                    "limits": {
                        "cpu": "1",
                        "memory": str(memory),
                        "ephemeral-storage": str(limits.work),
                    },
                },
                "volumeMounts": [
                    {"name": "work", "mountPath": "/work"},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "none", "mountPath": "/dev/shm", "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": str(size)}}
            for name, size in (("work", limits.work), ("tmp", limits.work), ("none", MIB))
        ],
    }


def claim_manifest(
    settings: PodSettings, name: str, labels: Mapping[str, str], shutdown: str
) -> Object:
    """The claim of one sandbox of the warm pool, which agent-sandbox ends at `shutdown` (RFC 3339).

    It asks for no labels of the pod: agent-sandbox allows those of `sandbox.users.io` only.
    """
    return {
        "apiVersion": CLAIMS,
        "kind": "SandboxClaim",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": dict(labels)},
        "spec": {
            "warmPoolRef": {"name": settings.warm_pool},
            "lifecycle": {"shutdownTime": shutdown, "shutdownPolicy": "Delete"},
        },
    }


def warm_pool_manifests(
    settings: PodSettings, limits: SandboxLimits, replicas: int
) -> list[Object]:
    """The SandboxTemplate and the SandboxWarmPool from which claims take waiting sandboxes."""
    meta = {"name": settings.warm_pool, "namespace": settings.namespace, "labels": MANAGED}
    template = {"metadata": {"labels": MANAGED}, "spec": pod_spec(settings, limits)}
    return [
        {
            "apiVersion": CLAIMS,
            "kind": "SandboxTemplate",
            "metadata": meta,
            "spec": {"podTemplate": template, "networkPolicyManagement": "Unmanaged"},
        },
        {
            "apiVersion": CLAIMS,
            "kind": "SandboxWarmPool",
            "metadata": meta,
            "spec": {"replicas": replicas, "sandboxTemplateRef": {"name": settings.warm_pool}},
        },
    ]


def weakness(pod: Object, settings: PodSettings) -> str | None:
    """What an admitted pod lacks of the isolation asked for, or None.

    Admission webhooks may change a pod, and a warm pool's template is somebody else's.
    """
    spec = pod["spec"]
    found = spec.get("runtimeClassName")
    if found != settings.runtime_class:
        return f"its runtimeClassName is {found!r}, not {settings.runtime_class!r}"
    if spec.get("automountServiceAccountToken") is not False:
        return "automountServiceAccountToken is not false"
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(field):
            return f"{field} is set"
    if spec.get("initContainers") or len(spec["containers"]) != 1:
        return "it has containers that were not asked for"
    for volume in spec.get("volumes") or []:
        if "emptyDir" not in volume:
            return f"volume {volume['name']!r} is not an emptyDir"
    return _weak_container(spec["containers"][0], spec.get("securityContext") or {})


def _weak_container(container: Object, pod_context: Object) -> str | None:
    own = container.get("securityContext") or {}
    context, capabilities = {**pod_context, **own}, own.get("capabilities") or {}
    limits = (container.get("resources") or {}).get("limits") or {}
    seccomp = (context.get("seccompProfile") or {}).get("type")
    held = {
        "it runs another program than this version's": container.get("command") == COMMAND
        and not container.get("args"),
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is False,
        "its root file system can be written": own.get("readOnlyRootFilesystem") is True,
        "it keeps capabilities": "ALL" in (capabilities.get("drop") or [])
        and not capabilities.get("add"),
        "it is privileged": not own.get("privileged"),
        "it may run as root": context.get("runAsNonRoot") is True
        and context.get("runAsUser") == NOBODY,
        "it has no seccomp profile": seccomp in ("RuntimeDefault", "Localhost"),
        "its procMount is not the default": own.get("procMount") in (None, "Default"),
        "it has variables that were not asked for": not (
            container.get("env") or container.get("envFrom")
        ),
        "it has no limit on memory and CPU": {"memory", "cpu"} <= limits.keys(),
    }
    return next((fault for fault, holds in held.items() if not holds), None)


def open_door(policies: list[Object]) -> str | None:
    """Why the NetworkPolicies of a namespace do not deny everything, or None where they do."""
    closed = False
    for policy in policies:
        spec, name = policy["spec"], policy["metadata"]["name"]
        if spec.get("ingress") or spec.get("egress"):
            return (
                f"NetworkPolicy {name!r} allows traffic: delete it (a SandboxTemplate's own comes "
                "back unless its networkPolicyManagement is Unmanaged)"
            )
        types = set(spec.get("policyTypes") or [])
        everything = not any((spec.get("podSelector") or {}).values())
        closed |= everything and types >= {"Ingress", "Egress"}
    if closed:
        return None
    return (
        "no NetworkPolicy denies all traffic: apply one with podSelector {} and policyTypes "
        "Ingress and Egress, without rules"
    )


def runs(pod: Object) -> bool:
    """Whether its container runs, and nobody has asked for its end."""
    status = pod.get("status") or {}
    states = [container.get("state") or {} for container in status.get("containerStatuses") or []]
    going = pod["metadata"].get("deletionTimestamp") is None
    return going and status.get("phase") == "Running" and all("running" in s for s in states)


def obstacle(pod: Object) -> str | None:
    """Why a pod will not start without help, or None where it may yet."""
    status = pod.get("status") or {}
    if status.get("phase") in ("Failed", "Succeeded"):
        return how_it_ended(pod)
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message") or "no reason given"
        if reason in ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
            return (
                f"image {container['image']!r} cannot be pulled ({said}): correct "
                "HILLCLIMB_SANDBOX_IMAGE, or give the namespace's default service account a pull "
                "secret"
            )
        if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
            return f"{reason}: {said}"
    return None


def how_it_ended(pod: Object) -> str:
    """Why a pod is over, or what phase it is in."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            return "its pod was killed for its memory"
        if ended.get("reason") in ("StartError", "ContainerCannotRun"):  # what a runtime says
            return f"its container cannot start: {ended.get('message') or 'no reason given'}"
    if pod["metadata"].get("deletionTimestamp"):
        return "its pod was deleted"
    said = status.get("message") or status.get("reason") or ""
    return f"its pod is {status.get('phase', 'unknown')}" + (f": {said}" if said else "")


def not_started(pod: Object) -> str:
    """What a pod still waits for."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"no node takes it ({condition.get('message', '')})"
    return f"it is {status.get('phase', 'unknown')}"
