"""Sandboxes in pods: they fail closed, say the fix, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster
from fake_cluster.kinds import Refusal
from fake_cluster.sandboxed import LEAKY, webhook
from k8s_pods import pod_errors, pods
from k8s_schemas import SUPPORTED, schema_errors
from sandbox_cluster import (
    DENY,
    NAMESPACE,
    RUNTIME,
    agent_sandbox,
    policy,
    prepare,
    provider,
    sandboxes,
)
from sandbox_cluster import runtime_class as make_runtime_class

from hillclimb.environments.sandbox import (
    BubblewrapProvider,
    SandboxLimits,
    SandboxUnavailable,
    provider_for,
    warm_pool,
)
from hillclimb.environments.sandbox import pods as pods_module
from hillclimb.environments.sandbox.pod_spec import (
    PodSettings,
    open_door,
    pod_manifest,
    warm_pool_manifests,
)
from hillclimb.environments.sandbox.pods import PodProvider

FULL = 'pods "x" is forbidden: exceeded quota: sandboxes, requested: pods=1, used: pods=256'


STAGE = """
import time
from hillclimb.environments.sandbox import provider_for
from hillclimb.stages.process import raise_on_sigterm
raise_on_sigterm()
sandbox = provider_for().start()
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    with FakeCluster(tmp_path_factory.mktemp("cluster")) as made:
        prepare(made)
        yield made
        made.wait_for(lambda: not made.objects("Pod", namespace=NAMESPACE))


@pytest.fixture
def ready(shared: FakeCluster) -> Iterator[FakeCluster]:
    """A cluster that isolates; no test leaves a sandbox in it."""
    yield shared
    shared.wait_for(lambda: not sandboxes(shared))
    assert not shared.objects("SandboxClaim", namespace=NAMESPACE)


def refused(made: PodProvider, words: str, ask: str = "check") -> None:
    """What is asked raises a sentence with these words in it."""
    with pytest.raises(SandboxUnavailable) as error:
        made.check() if ask == "check" else made.start()
    for word in words.split(" | "):
        assert word in str(error.value), f"{word!r} is not in {error.value}"


def test_the_pod_fits_the_schemas_and_the_restricted_profile() -> None:
    pod = pod_manifest(PodSettings(NAMESPACE, "sandbox:1"), SandboxLimits(), "sandbox-a", {})
    for version in SUPPORTED:
        assert schema_errors([pod], version) == []
    (template,) = pods([pod])
    assert pod_errors(template) == []
    spec = pod["spec"]
    assert (spec["runtimeClassName"], spec["automountServiceAccountToken"]) == (RUNTIME, False)
    assert spec["activeDeadlineSeconds"] == 7200
    assert set(spec["containers"][0]["resources"]["limits"]) == {
        "cpu", "memory", "ephemeral-storage",
    }  # fmt: skip


def test_the_warm_pool_is_the_same_pod_without_an_end() -> None:
    settings = PodSettings(NAMESPACE, "sandbox:1", warm_pool="warm")
    template, pool = warm_pool_manifests(settings, SandboxLimits(), 8)
    asked = pod_manifest(settings, SandboxLimits(), "a", {})["spec"]
    del asked["activeDeadlineSeconds"]
    assert template["spec"]["podTemplate"]["spec"] == asked
    assert template["spec"]["networkPolicyManagement"] == "Unmanaged"
    assert pool["spec"] == {"replicas": 8, "sandboxTemplateRef": {"name": "warm"}}
    assert template["metadata"]["name"] == pool["metadata"]["name"] == "warm"


def test_the_manifests_of_a_warm_pool_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"NAMESPACE": NAMESPACE, "IMAGE": "sandbox:1", "WARM_POOL": "warm"}
    given = {f"HILLCLIMB_SANDBOX_{name}": value for name, value in names.items()}
    assert warm_pool.main(["8"], given) == 0
    printed = json.loads(capsys.readouterr().out)
    settings = PodSettings(NAMESPACE, "sandbox:1", warm_pool="warm")
    assert printed["items"] == warm_pool_manifests(settings, SandboxLimits(), 8)
    del given["HILLCLIMB_SANDBOX_WARM_POOL"]
    assert "WARM_POOL is not set" in str(warm_pool.main(["8"], given))


def test_the_check_passes_where_the_cluster_isolates(ready: FakeCluster) -> None:
    provider(ready).check()


def test_without_a_runtime_class_nothing_starts(ready: FakeCluster) -> None:
    made = provider(ready, runtime_class="absent")
    refused(made, "no RuntimeClass 'absent' | install gVisor | HILLCLIMB_SANDBOX_RUNTIME_CLASS")
    refused(made, 'RuntimeClass "absent" not found', "start")
    assert sandboxes(ready) == []


def test_without_a_policy_that_denies_everything_nothing_starts(tmp_path: Path) -> None:
    with FakeCluster(tmp_path) as cluster:
        make_runtime_class(cluster, RUNTIME, "runsc")
        refused(provider(cluster), f"{NAMESPACE} | no NetworkPolicy denies all | podSelector {{}}")
        policy(cluster, "deny", DENY)
        policy(cluster, "dns", {**DENY, "egress": [{"ports": [{"port": 53}]}]})
        refused(provider(cluster), "NetworkPolicy 'dns' allows traffic: delete it")
        assert cluster.created("Pod") == []


@pytest.mark.parametrize(
    "spec",
    [
        {"podSelector": {}, "policyTypes": ["Ingress"]},
        {"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Ingress", "Egress"]},
        {"podSelector": {}, "policyTypes": ["Egress", "Ingress"], "egress": [{}]},
    ],
)
def test_a_door_that_is_not_shut_is_seen(spec: dict[str, Any]) -> None:
    assert open_door([{"metadata": {"name": "a"}, "spec": spec}]) is not None
    assert open_door([{"metadata": {"name": "a"}, "spec": DENY}]) is None


def test_a_pod_that_reaches_the_api_is_refused(ready: FakeCluster) -> None:
    port = ready.configuration().host.rpartition(":")[2]
    make_runtime_class(ready, "leaky", f"{LEAKY}{port}")
    made = provider(ready, runtime_class="leaky")
    refused(made, f"reaches 127.0.0.1 port {port} | plugin that enforces NetworkPolicy")


def _container(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda pod: pod["spec"]["containers"][0].update(fields)


def _context(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda pod: pod["spec"]["containers"][0]["securityContext"].update(fields)


def _spec(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda pod: pod["spec"].update(fields)


def _token(pod: dict[str, Any]) -> None:
    pod["spec"]["volumes"].append({"name": "token", "projected": {"sources": []}})


def _sidecar(pod: dict[str, Any]) -> None:
    pod["spec"]["containers"].append({"name": "proxy", "image": "proxy:1"})


WEAKENED: dict[str, Callable[[dict[str, Any]], None]] = {
    "runtimeClassName is None": _spec(runtimeClassName=None),
    "automountServiceAccountToken is not false": _spec(automountServiceAccountToken=True),
    "hostNetwork is set": _spec(hostNetwork=True),
    "shareProcessNamespace is set": _spec(shareProcessNamespace=True),
    "volume 'token' is not an emptyDir": _token,
    "containers that were not asked for": _sidecar,
    "runs another program": _container(command=["sh", "-c", "sleep 1000"]),
    "allowPrivilegeEscalation is not false": _context(allowPrivilegeEscalation=True),
    "root file system can be written": _context(readOnlyRootFilesystem=False),
    "keeps capabilities": _context(capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}),
    "it is privileged": _context(privileged=True),
    "may run as root": _context(runAsUser=0),
    "no seccomp profile": _context(seccompProfile={"type": "Unconfined"}),
    "variables that were not asked for": _container(env=[{"name": "TOKEN", "value": "x"}]),
    "no limit on memory": _container(resources={}),
}


@pytest.mark.parametrize("fault", WEAKENED)
def test_a_pod_that_a_webhook_weakens_is_refused_before_it_runs(
    ready: FakeCluster, fault: str
) -> None:
    with webhook(WEAKENED[fault]):
        refused(provider(ready), f"{fault} | exempt namespace '{NAMESPACE}'", "start")
    assert sandboxes(ready) == []


def test_an_image_that_cannot_be_pulled_is_named(ready: FakeCluster) -> None:
    ready.break_image("sandbox:broken")
    made = provider(ready, image="sandbox:broken")
    refused(made, "sandbox:broken | cannot be pulled | HILLCLIMB_SANDBOX_IMAGE", "start")


def test_what_a_pod_waits_for_is_said(ready: FakeCluster) -> None:
    ready.unschedulable("0/3 nodes are available: 3 Insufficient memory.")
    try:
        made = provider(ready, start_timeout_s=0.4)
        refused(made, "within 0.4 s | no node takes it | 3 Insufficient memory", "start")
    finally:
        ready.schedulable()
    ready.slow_start(60)
    try:
        with webhook(lambda pod: _warn(ready, pod)):
            refused(provider(ready, start_timeout_s=0.4), 'no runtime for "runsc"', "start")
    finally:
        ready.slow_start(0)


def _warn(cluster: FakeCluster, pod: dict[str, Any]) -> None:
    known = {**pod, "metadata": {**pod["metadata"], "uid": "", "namespace": NAMESPACE}}
    text = 'failed to get sandbox runtime: no runtime for "runsc" is configured'
    cluster.store.event(known, "Warning", "FailedCreatePodSandBox", text, "kubelet")


def test_a_namespace_without_room_is_waited_for(ready: FakeCluster) -> None:
    refusals = [Refusal(403, FULL, "Forbidden")] * 2

    def admission(pod: dict[str, Any]) -> None:
        if refusals:
            raise refusals.pop()

    with webhook(admission):
        with provider(ready).start() as sandbox:
            assert sandbox.run("echo in").stdout == "in\n"
        refusals += [Refusal(403, FULL, "Forbidden")] * 100
        made = provider(ready, start_timeout_s=0.3)
        refused(made, "exceeded quota | raise the ResourceQuota", "start")


def test_an_api_that_is_away_is_waited_for_and_then_named(ready: FakeCluster) -> None:
    ready.answer(503, times=2, verb="create", kind="Pod")
    ready.lose_answers(1, verb="create", kind="Pod")
    with provider(ready).start() as sandbox:
        assert sandbox.run("echo in").stdout == "in\n"
    made = provider(ready, patience_s=0.3)
    ready.answer(500, times=4, kind="RuntimeClass")
    refused(made, "the Kubernetes API is away | try again")


def test_what_the_api_forbids_is_said(ready: FakeCluster) -> None:
    text = 'pods is forbidden: User "stage" cannot create resource "pods"'

    def forbid(pod: dict[str, Any]) -> None:
        raise Refusal(403, text, "Forbidden")

    with webhook(forbid):
        refused(provider(ready), f"{text} | grant | docs/security.md", "start")
    ready.answer(403, times=1, verb="exec")
    refused(provider(ready), f"refuses exec in pods of '{NAMESPACE}' | grant", "start")


def test_sandboxes_end_with_their_stage(ready: FakeCluster) -> None:
    environment = {
        **os.environ,
        "KUBECONFIG": str(ready.kubeconfig()),
        "HILLCLIMB_SANDBOX": "pods",
        "HILLCLIMB_SANDBOX_NAMESPACE": NAMESPACE,
        "HILLCLIMB_SANDBOX_IMAGE": "sandbox:1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", STAGE], env=environment, stdout=subprocess.PIPE
    ) as stage:
        assert stage.stdout is not None
        assert stage.stdout.readline() == b"started\n"
        assert len(sandboxes(ready)) == 1
        stage.terminate()
    assert stage.returncode == 143
    assert sandboxes(ready) == []


def test_what_a_killed_attempt_left_ends_when_the_next_one_begins(
    ready: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "namespace"
    place.write_text("hillclimb")
    with provider(ready).start() as other:
        monkeypatch.setattr(pods_module, "_IN_CLUSTER", place)
        with provider(ready).start() as left:
            left._stopped = True  # type: ignore[attr-defined]
        assert len(sandboxes(ready)) == 2
        provider(ready).check()
        assert sandboxes(ready) == [other.pod]  # type: ignore[attr-defined]


def test_a_warm_pool_gives_its_pods(ready: FakeCluster) -> None:
    made = provider(ready, warm_pool="warm")
    with agent_sandbox(ready, "warm"):
        made.check()
        with made.start() as sandbox:
            assert sandbox.pod.startswith("warm-")  # type: ignore[attr-defined]
            assert sandbox.run("echo warm").stdout == "warm\n"
            (claim,) = ready.objects("SandboxClaim", namespace=NAMESPACE)
        assert claim["spec"]["lifecycle"]["shutdownPolicy"] == "Delete"


def test_without_a_warm_pool_claims_are_refused(ready: FakeCluster) -> None:
    made = provider(ready, warm_pool="warm")
    with agent_sandbox(ready, "another"):
        refused(made, 'SandboxWarmPool "warm" not found | apply its manifests', "start")
    ready.answer(404, times=1, verb="create", kind="SandboxClaim")
    refused(made, "no SandboxClaim | install agent-sandbox | HILLCLIMB_SANDBOX_WARM_POOL", "start")


def test_a_weak_or_old_template_is_refused(ready: FakeCluster) -> None:
    made = provider(ready, warm_pool="warm")
    with agent_sandbox(ready, "warm", _container(command=["python3", "-c", "old"])):
        refused(made, "another program than this version's | manifests of warm pool", "start")


def test_settings_come_from_the_environment() -> None:
    assert isinstance(provider_for({}), BubblewrapProvider)
    with pytest.raises(SandboxUnavailable, match="HILLCLIMB_SANDBOX is not set: set it to pods"):
        provider_for({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    with pytest.raises(SandboxUnavailable, match="HILLCLIMB_SANDBOX is 'docker'"):
        provider_for({"HILLCLIMB_SANDBOX": "docker"})
    given = {"HILLCLIMB_SANDBOX": "pods", "HILLCLIMB_SANDBOX_NAMESPACE": "a"}
    with pytest.raises(SandboxUnavailable, match="HILLCLIMB_SANDBOX_IMAGE is not set"):
        provider_for(given)


def test_without_a_cluster_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(SandboxUnavailable, match="service account token, or set KUBECONFIG"):
        PodProvider(PodSettings(NAMESPACE, "sandbox:1"))
