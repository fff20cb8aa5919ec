"""The kinds of objects that the launcher reads and writes; objects are plain dicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Objects = list[Object]


@dataclass(frozen=True)
class Kind:
    """One kind of object and where it is served."""

    name: str
    version: str
    plural: str


JOB = Kind("Job", "batch/v1", "jobs")
JOBSET = Kind("JobSet", "jobset.x-k8s.io/v1alpha2", "jobsets")
LAUNCHED = (JOB, JOBSET)
POD = Kind("Pod", "v1", "pods")
EVENT = Kind("Event", "v1", "events")
WORKLOADS = (
    Kind("Workload", "kueue.x-k8s.io/v1beta2", "workloads"),
    Kind("Workload", "kueue.x-k8s.io/v1beta1", "workloads"),
)
