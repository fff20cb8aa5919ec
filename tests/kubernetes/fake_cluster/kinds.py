"""The kinds that the server knows, and what it refuses in their manifests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Object = dict[str, Any]
QUEUE = "kueue.x-k8s.io/queue-name"
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST_1035 = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound",
    405: "MethodNotAllowed", 409: "Conflict", 410: "Expired", 415: "UnsupportedMediaType",
    422: "Invalid", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable",
}  # fmt: skip


class Refusal(Exception):
    """A request that the server answers with a status of 400 or above."""

    def __init__(self, status: int, message: str, reason: str = "", **details: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason or _REASONS[status]
        self._details = details

    def body(self) -> Object:
        """The `Status` object of the answer."""
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": str(self), "reason": self.reason, "code": self.status,
            "details": self._details,
        }  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One kind of object and where it is served."""

    name: str
    api_version: str
    plural: str

    @cached_property
    def path(self) -> re.Pattern[str]:
        """The paths at which the kind is served: namespace, name, subresource."""
        group, _, version = self.api_version.rpartition("/")
        served = "v1beta[12]" if "kueue" in group else version
        root = f"/apis/{group}/{served}" if group else f"/api/{served}"
        object_ = rf"(?:/namespaces/([^/]+))?/{self.plural}(?:/([^/]+))?"
        return re.compile(rf"{root}{object_}(?:/(log|exec))?")

    def called(self, name: str) -> str:
        """An object of this kind as the server's messages call it."""
        group = self.api_version.rpartition("/")[0]
        return f'{self.plural}{"." if group else ""}{group} "{name}"'


_TABLE = """
Pod v1 pods
Service v1 services
Event v1 events
ConfigMap v1 configmaps
Secret v1 secrets
Job batch/v1 jobs
NetworkPolicy networking.k8s.io/v1 networkpolicies
JobSet jobset.x-k8s.io/v1alpha2 jobsets
Workload kueue.x-k8s.io/v1beta1 workloads
LocalQueue kueue.x-k8s.io/v1beta1 localqueues
RuntimeClass node.k8s.io/v1 runtimeclasses
SandboxClaim extensions.agents.x-k8s.io/v1beta1 sandboxclaims
"""
KINDS = {row.split()[0]: Kind(*row.split()) for row in _TABLE.strip().splitlines()}


def admit(kind: Kind, made: Object) -> None:
    """Fill in what the server fills in, or refuse.

    Raises:
        Refusal: 422 with the path of the field.
    """
    name, meta, spec = made["metadata"]["name"], made["metadata"], made.get("spec", {})
    _check(kind, name, "metadata.name", name, _NAME)
    _labels(kind, name, meta, "metadata")
    if kind.name == "Job":
        spec.setdefault("parallelism", 1)
        spec.setdefault("completions", spec["parallelism"])
        _job(kind, name, spec, name, "spec")
    if kind.name == "JobSet":
        for place, part in enumerate(spec.get("replicatedJobs", [])):
            _replicated(kind, name, part, f"spec.replicatedJobs[{place}]")
    if kind.name in ("Job", "JobSet"):
        spec["suspend"] = bool(spec.get("suspend")) or QUEUE in meta.get("labels", {})
    if kind.name == "Pod":
        _pod(kind, name, spec, "spec")


def keep_immutable(kind: Kind, old: Object, new: Object) -> None:
    """Refuse changes of what may not change.

    Raises:
        Refusal: 422 with the path of the field.
    """
    fixed = {
        "Job": ("template", "completions", "completionMode", "podFailurePolicy", "backoffLimit"),
        "JobSet": ("replicatedJobs", "network", "failurePolicy", "successPolicy"),
        "Pod": ("containers", "restartPolicy", "volumes"),
    }
    for field in fixed.get(kind.name, ()):
        if old.get("spec", {}).get(field) != new.get("spec", {}).get(field):
            where = f"spec.{field}: Invalid value: field is immutable"
            raise Refusal(422, f"{kind.called(new['metadata']['name'])} is invalid: {where}")


def _replicated(kind: Kind, name: str, part: Object, where: str) -> None:
    job, made = part["template"]["spec"], f"{name}-{part['name']}-{part.get('replicas', 1) - 1}"
    job.setdefault("completionMode", "Indexed")
    job.setdefault("parallelism", 1)
    job.setdefault("completions", job["parallelism"])
    job["template"]["spec"].setdefault("restartPolicy", "OnFailure")
    _check(kind, name, f"{where}.name", f"{made}-{job['completions'] - 1}-abcde", _HOST_1035)
    _labels(kind, name, part["template"].get("metadata", {}), f"{where}.template.metadata")
    _job(kind, name, job, made, f"{where}.template.spec")


def _job(kind: Kind, name: str, job: Object, made: str, where: str) -> None:
    pod, field = job["template"]["spec"], f"{where}.template.spec.restartPolicy"
    allowed = ("Never",) if "podFailurePolicy" in job else ("Never", "OnFailure")
    if pod.get("restartPolicy") not in allowed:
        text = f"{field}: Unsupported value: {pod.get('restartPolicy')!r}: supported: {allowed}"
        raise Refusal(422, f"{kind.called(name)} is invalid: {text}")
    if job.get("completionMode") == "Indexed":
        _check(kind, name, "metadata.name", f"{made}-{job['completions'] - 1}", _HOST)
    _labels(kind, name, job["template"].get("metadata", {}), f"{where}.template.metadata")
    _pod(kind, name, pod, f"{where}.template.spec")


def _pod(kind: Kind, name: str, spec: Object, where: str) -> None:
    mounted = [m["name"] for c in spec.get("containers", []) for m in c.get("volumeMounts", [])]
    missing = set(mounted) - {volume["name"] for volume in spec.get("volumes", [])}
    if not spec.get("containers") or missing:
        text = f"{where}.containers: Required value, and volumes for {sorted(missing)}"
        raise Refusal(422, f"{kind.called(name)} is invalid: {text}")


def _labels(kind: Kind, name: str, meta: Object, where: str) -> None:
    for key, value in meta.get("labels", {}).items():
        _check(kind, name, f"{where}.labels", key.rpartition("/")[2], _LABEL)
        if value != "":
            _check(kind, name, f"{where}.labels[{key}]", value, _LABEL)


def _check(kind: Kind, name: str, where: str, value: str, form: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not form.fullmatch(value):
        text = f"{where}: Invalid value: {value!r}: must match {form.pattern}"
        raise Refusal(422, f"{kind.called(name)} is invalid: {text}")
