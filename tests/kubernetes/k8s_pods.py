"""Rules for pods that no schema knows: security, limits, probes, volumes, images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from k8s_documents import Object, name_of

SERVERS = ("Deployment", "StatefulSet", "DaemonSet")
_UNITS = {
    "": 1, "m": Decimal("0.001"), "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4,
    "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4,
}  # fmt: skip


@dataclass(frozen=True)
class PodTemplate:
    """The pod that an object makes: whose it is, its labels and its spec."""

    owner: Object
    labels: dict[str, str]
    spec: Object

    @property
    def namespace(self) -> str:
        """Where the pod lives."""
        return str(self.owner["metadata"].get("namespace", ""))

    @property
    def containers(self) -> list[Object]:
        """All containers, those that start first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def pods(objects: Iterable[Object]) -> Iterator[PodTemplate]:
    """The pod templates of workloads, Jobs, JobSets and bare pods."""
    for item in objects:
        if item["kind"] == "Pod":
            yield PodTemplate(item, item["metadata"].get("labels", {}), item["spec"])
        elif item["kind"] in (*SERVERS, "Job"):
            yield _pod(item, item["spec"]["template"])
        elif item["kind"] == "JobSet":
            for job in item["spec"]["replicatedJobs"]:
                yield _pod(item, job["template"]["spec"]["template"])


def _pod(owner: Object, template: Object) -> PodTemplate:
    return PodTemplate(owner, template.get("metadata", {}).get("labels", {}), template["spec"])


def pod_errors(pod: PodTemplate) -> list[str]:
    """Every rule that the pod breaks, one sentence each."""
    who = name_of(pod.owner)
    found = [*_restarts(pod), *_isolation(pod), *_volumes(pod)]
    for container in pod.containers:
        name = container["name"]
        rules = [*_image(container), *_limits(container), *_confinement(container)]
        if pod.owner["kind"] in SERVERS and container in pod.spec["containers"]:
            rules += _probes(container)
        found += [f"container {name}: {rule}" for rule in rules]
    return [f"{who}: {error}" for error in found]


def _restarts(pod: PodTemplate) -> Iterator[str]:
    policy, kind = pod.spec.get("restartPolicy", "Always"), pod.owner["kind"]
    if kind in ("Job", "JobSet") and policy == "Always":
        yield "a Job's pod needs restartPolicy Never or OnFailure"
    if kind in SERVERS and policy != "Always":
        yield f"a {kind} restarts its pods always, not {policy}"


def _isolation(pod: PodTemplate) -> Iterator[str]:
    """The profile `restricted`, and no token that is not asked for."""
    context = pod.spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True:
        yield "set securityContext.runAsNonRoot"
    if context.get("runAsUser", 1) == 0:
        yield "it runs as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "set securityContext.seccompProfile.type to RuntimeDefault"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield f"{field} is not allowed under pod security restricted"
    for volume in pod.spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"volume {volume['name']}: hostPath is not allowed under pod security restricted"
    if "automountServiceAccountToken" not in pod.spec:
        yield "say with automountServiceAccountToken whether it needs a token"


def _volumes(pod: PodTemplate) -> Iterator[str]:
    offered = {volume["name"] for volume in pod.spec.get("volumes", ())}
    for claim in pod.owner["spec"].get("volumeClaimTemplates", ()):
        offered.add(claim["metadata"]["name"])
    mounts = [mount for c in pod.containers for mount in c.get("volumeMounts", ())]
    for mount in mounts:
        if mount["name"] not in offered:
            yield f"there is no volume {mount['name']} to mount at {mount['mountPath']}"
    for name in sorted(offered - {mount["name"] for mount in mounts}):
        yield f"nothing mounts the volume {name}"
    for container in pod.containers:
        places = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
        for place in sorted({p for p in places if places.count(p) > 1}):
            yield f"container {container['name']}: two volumes are mounted at {place}"


def _image(container: Object) -> Iterator[str]:
    image = container["image"]
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and tag in ("", "latest"):
        yield f"pin the image {image}"


def _limits(container: Object) -> Iterator[str]:
    resources = container.get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for resource in ("cpu", "memory"):
        if resource not in limits or resource not in requests:
            yield f"give it a request and a limit of {resource}"
        elif quantity(requests[resource]) > quantity(limits[resource]):
            yield f"its request of {resource} is above its limit"
    for resource, value in limits.items():
        if "." in resource and requests.get(resource, value) != value:
            yield f"request and limit of {resource} must be equal"


def _confinement(container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "set allowPrivilegeEscalation to false"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "set readOnlyRootFilesystem"
    if context.get("privileged"):
        yield "it is privileged"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "drop ALL capabilities and add none"


def _probes(container: Object) -> Iterator[str]:
    named = {port.get("name"): port["containerPort"] for port in container.get("ports", ())}
    wanted = ["livenessProbe", "startupProbe", *(["readinessProbe"] if named else [])]
    for probe in wanted:
        if probe not in container:
            yield f"give it a {probe}"
            continue
        for kind in ("httpGet", "tcpSocket", "grpc"):
            port = container[probe].get(kind, {}).get("port")
            if port is not None and port not in named and port not in named.values():
                yield f"its {probe} asks port {port}, which it does not have"


def quantity(value: str | int) -> Decimal:
    """A Kubernetes quantity as a number.

    Raises:
        ValueError: if it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(value))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is no quantity; write for example 500m, 2 or 16Gi")
    return Decimal(match[1]) * _UNITS[match[2]]
