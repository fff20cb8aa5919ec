"""The Dagster instance that the manifests configure, and runs for its K8sRunLauncher."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_k8s.client import DagsterKubernetesClient
from k8s_documents import Object
from k8s_references import of_kind
from kubernetes import client
from kubernetes.config import incluster_config


def instance_ref(objects: Sequence[Object], folder: Path) -> InstanceRef:
    """The rendered dagster.yaml as Dagster reads it; it raises for what it does not know."""
    files = of_kind(objects, "ConfigMap")["dagster-instance"]["data"]
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    return InstanceRef.from_dir(str(folder))


def in_a_pod(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process look like one of a pod with a service account token."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text("of-the-pod")
    (folder / "ca.crt").write_text("of-the-cluster")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(folder / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(client.Configuration, "_default", None)


def run_launcher(ref: InstanceRef, instance: dg.DagsterInstance, url: str) -> Any:
    """The configured K8sRunLauncher, its requests going to `url`."""
    launcher: Any = ref.run_launcher
    launcher.register_instance(instance)
    reached = client.ApiClient(client.Configuration(host=url))
    launcher._api_client = DagsterKubernetesClient.production_client(
        batch_api_override=client.BatchV1Api(reached), core_api_override=client.CoreV1Api(reached)
    )
    return launcher


def a_run(
    instance: dg.DagsterInstance, image: str, tags: dict[str, str] | None = None
) -> dg.DagsterRun:
    """A run of the graph, as the code location of that image describes it."""
    pointer = ModuleCodePointer("hillclimb.definitions", "defs")
    repository = RepositoryPythonOrigin(sys.executable, pointer, image, ["dagster"])

    @dg.op
    def nothing() -> None:
        """Is never run."""

    @dg.job
    def everything() -> None:
        nothing()

    return instance.create_run_for_job(
        everything, job_code_origin=JobPythonOrigin("everything", repository), tags=tags
    )
