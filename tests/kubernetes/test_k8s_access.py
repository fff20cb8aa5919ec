"""Each service account may do what its program asks of the API, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.launcher.base import LaunchRunContext, ResumeRunContext
from k8s_access import Grant, Recorder, granted, recording
from k8s_dagster import a_run, in_a_pod, instance_ref, run_launcher
from k8s_documents import K8S, Object, kubectl, render
from k8s_pods import pod_errors, pods
from k8s_references import of_kind, reference_errors
from k8s_schemas import SUPPORTED, schema_errors
from kubernetes import client

from hillclimb.environments.sandbox import pod_api
from hillclimb.launcher.kubernetes.api import Api
from hillclimb.launcher.kubernetes.kinds import JOB, JOBSET
from hillclimb.launcher.kubernetes.orphans import Launches

pytestmark = pytest.mark.skipif(kubectl() is None, reason="kubectl renders; it is not installed")
ABOUT: Object = {
    "apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": "x", "namespace": "hillclimb", "uid": "u", "labels": {}},
    "spec": {"containers": [{"name": "dagster", "image": "control"}]},
    "status": {
        "phase": "Running",
        "containerStatuses": [{
            "name": "dagster", "ready": True, "restartCount": 0, "image": "control", "imageID": "",
            "state": {"running": {"startedAt": "2026-11-25T00:00:00Z"}},
        }],
    },
}  # fmt: skip
STATUS: Object = {"startTime": "2026-11-25T00:00:00Z", "active": 1}


@pytest.fixture(scope="module")
def overlay() -> list[Object]:
    return render(K8S / "overlays" / "gpu")


@pytest.fixture
def cluster() -> Iterator[Recorder]:
    """Has one pod, and a Job under every name."""

    def answer(method: str, path: str) -> Object | str | None:
        kind = path.rpartition("/")[2]
        if kind == "log":
            return "the end"
        if method == "GET" and kind in ("pods", "jobs", "jobsets", "events", "workloads"):
            return {"items": [ABOUT] if kind == "pods" else [_job()] if kind == "jobs" else []}
        if kind in ("networkpolicies", "pods", "sandboxclaims"):
            return {"items": []}
        if method == "GET" and "/pods/" in path:
            return ABOUT
        return None if path.endswith("exec") else _job()

    with recording(answer) as recorder:
        yield recorder


def _job() -> Object:
    meta = {**ABOUT["metadata"], "creationTimestamp": "2026-11-25T00:00:00Z"}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "status": STATUS}


@pytest.fixture
def launcher(
    overlay: list[Object], cluster: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The K8sRunLauncher that the rendered dagster.yaml configures."""
    in_a_pod(tmp_path / "account", monkeypatch)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield run_launcher(instance_ref(overlay, tmp_path / "home"), instance, cluster.url)


def allowed(objects: list[Object], account: str) -> set[Grant]:
    found = granted(objects, account)
    assert found, f"{account} may do nothing"
    return found


def test_the_daemon_starts_run_workers_and_looks_after_them(
    overlay: list[Object], cluster: Recorder, launcher: Any
) -> None:
    run = a_run(launcher._instance, "here/control:1")
    launcher.launch_run(LaunchRunContext(run, None))
    launcher.resume_run(ResumeRunContext(run, None, 1))
    launcher.check_run_worker_health(run)
    launcher.get_run_worker_debug_info(run)
    launcher._api_client.get_job_debug_info("x", "hillclimb")  # where a run has no pods
    launcher.terminate(run.run_id)
    assert allowed(overlay, "dagster-daemon") == cluster.needed
    assert [job["metadata"]["name"] for job in cluster.bodies] == [
        f"dagster-run-{run.run_id}", f"dagster-run-{run.run_id}-1"
    ]  # fmt: skip


def test_the_webserver_may_only_end_runs(
    overlay: list[Object], cluster: Recorder, launcher: Any
) -> None:
    launcher.terminate(a_run(launcher._instance, "here/control:1").run_id)
    assert allowed(overlay, "dagster-webserver") == cluster.needed


def test_a_run_worker_starts_watches_and_ends_stages(
    overlay: list[Object], cluster: Recorder
) -> None:
    api = Api("hillclimb", lambda: client.Configuration(host=cluster.url))
    made = {"metadata": {"name": "x"}}
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: [api.get(kind, "x") for kind in (JOB, JOBSET)],
        "apply": lambda: [api.apply(kind, made) for kind in (JOB, JOBSET)],
        "delete": lambda: [api.delete(kind, "x", "u") for kind in (JOB, JOBSET)],
        "list": lambda: api.list(JOB, "a=b"),
        "pods": lambda: api.pods("a=b"),
        "events": lambda: api.events(ABOUT),
        "log": lambda: api.log(ABOUT, 1),
        "workload": lambda: api.workload(ABOUT),
    }
    assert calls.keys() == _methods(Api)
    for call in calls.values():
        call()
    assert allowed(overlay, "hillclimb-run") == cluster.needed
    laptop = allowed(render(K8S / "overlays" / "laptop"), "hillclimb-run")
    assert cluster.needed - laptop == {("kueue.x-k8s.io", "workloads", "list")}


def test_the_code_location_may_only_list_and_remove_orphans(
    overlay: list[Object], cluster: Recorder
) -> None:
    launches = Launches("hillclimb", "me")
    launches._api = Api("hillclimb", lambda: client.Configuration(host=cluster.url))
    (launched,) = launches.at_work()
    for kind in (JOB, JOBSET):
        object.__setattr__(launched, "kind", kind)
        launches.remove(launched)
    assert allowed(overlay, "dagster-code") == cluster.needed


def test_a_stage_may_only_run_sandboxes(overlay: list[Object], cluster: Recorder) -> None:
    api = pod_api.Api("hillclimb-sandboxes", 0.1, client.Configuration(host=cluster.url))
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    calls: dict[str, Callable[[], object]] = {
        "create_pod": lambda: api.create_pod(made),
        "pod": lambda: api.pod("x"),
        "pods": lambda: api.pods("a=b"),
        "delete_pod": lambda: api.delete_pod("x"),
        "warning": lambda: api.warning("x"),
        "runtime_class": lambda: api.runtime_class("gvisor"),
        "network_policies": api.network_policies,
        "create_claim": lambda: api.create_claim(made),
        "claim": lambda: api.claim("x"),
        "claims": lambda: api.claims("a=b"),
        "delete_claim": lambda: api.delete_claim("x"),
    }
    assert calls.keys() == _methods(pod_api.Api)
    for call in calls.values():
        call()
    with pytest.raises(pod_api.ExecLost):
        pod_api.Exec(api, "x", ["true"])
    assert allowed(overlay, "hillclimb-stage") == cluster.needed


def _methods(of: type) -> set[str]:
    return {name for name, member in inspect.getmembers(of, inspect.isfunction) if name[0] != "_"}


def test_the_job_of_a_run_worker_is_admitted_and_finds_what_it_names(
    overlay: list[Object], cluster: Recorder, launcher: Any
) -> None:
    launcher.launch_run(LaunchRunContext(a_run(launcher._instance, "here/control:1"), None))
    (job,) = cluster.bodies
    job["metadata"]["namespace"] = "hillclimb"
    assert [error for version in SUPPORTED for error in schema_errors([job], version)] == []
    assert [error for pod in pods([job]) for error in pod_errors(pod)] == []
    assert reference_errors([*overlay, job]) == []
    (pod,) = pods([job])
    code = of_kind(overlay, "Deployment")["dagster-code"]["spec"]["template"]["spec"]
    ours, theirs = pod.containers[0], code["containers"][0]
    assert ours["image"] == "here/control:1"
    assert ours["args"][:3] == ["dagster", "api", "execute_run"]
    assert pod.spec["securityContext"] == code["securityContext"]
    assert [v["configMapRef"]["name"] for v in ours["envFrom"] if "configMapRef" in v] == [
        v["configMapRef"]["name"] for v in theirs["envFrom"] if "configMapRef" in v
    ]
    assert job["spec"]["backoffLimit"] == 0, "run monitoring resumes; the Job must not"


def test_nobody_gives_a_run_another_account_or_secret_through_its_tags(
    cluster: Recorder, launcher: Any
) -> None:
    for field, value in {
        "pod_spec_config": '{"service_account_name": "dagster-daemon"}',
        "container_config": '{"image": "theirs"}',
        "job_spec_config": '{"backoff_limit": 5}',
    }.items():
        tags = {"dagster-k8s/config": f'{{"{field}": {value}}}'}
        run = a_run(launcher._instance, "here/control:1", tags)
        with pytest.raises(Exception, match="violated the allowed list"):
            launcher.launch_run(LaunchRunContext(run, None))
    assert not cluster.bodies
    more = '{"container_config": {"resources": {"limits": {"memory": "3Gi", "cpu": "1"}}}}'
    run = a_run(launcher._instance, "here/control:1", {"dagster-k8s/config": more})
    launcher.launch_run(LaunchRunContext(run, None))
    (pod,) = pods(cluster.bodies)
    assert pod.containers[0]["resources"]["limits"]["memory"] == "3Gi"
