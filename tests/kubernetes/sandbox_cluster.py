"""A fake cluster in which sandbox pods may run, and what the tests set in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fake_cluster import FakeCluster
from kubernetes import client

from hillclimb.environments.sandbox import SandboxLimits
from hillclimb.environments.sandbox.pod_spec import CLAIMS, PodSettings, pod_manifest
from hillclimb.environments.sandbox.pods import PodProvider

NAMESPACE = "hillclimb-sandboxes"
RUNTIME = "gvisor"
DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
CLAIM_FIELDS = {"warmPoolRef", "lifecycle", "additionalPodMetadata", "env", "volumeClaimTemplates"}


def prepare(cluster: FakeCluster, handler: str = "runsc") -> None:
    """Create the RuntimeClass and the NetworkPolicy that `k8s/` brings."""
    runtime_class(cluster, RUNTIME, handler)
    policy(cluster, "default-deny", DENY)


def runtime_class(cluster: FakeCluster, name: str, handler: str) -> None:
    """Create a RuntimeClass."""
    api = client.NodeV1Api(client.ApiClient(cluster.configuration()))
    api.create_runtime_class({"metadata": {"name": name}, "handler": handler})


def policy(cluster: FakeCluster, name: str, spec: dict[str, Any]) -> None:
    """Create a NetworkPolicy."""
    api = client.NetworkingV1Api(client.ApiClient(cluster.configuration()))
    api.create_namespaced_network_policy(NAMESPACE, {"metadata": {"name": name}, "spec": spec})


def provider(
    cluster: FakeCluster, limits: SandboxLimits | None = None, **changes: Any
) -> PodProvider:
    """Sandboxes of the cluster; `changes` are fields of `PodSettings`."""
    given = {"namespace": NAMESPACE, "image": "sandbox:1", "patience_s": 10.0, **changes}
    return PodProvider(PodSettings(**given), limits, cluster.configuration())


def sandboxes(cluster: FakeCluster) -> list[str]:
    """The names of the sandbox pods that nobody has ended."""
    found = cluster.objects("Pod", namespace=NAMESPACE)
    return [p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"]]


@contextmanager
def agent_sandbox(
    cluster: FakeCluster, pool: str, change: Callable[[dict[str, Any]], None] = lambda pod: None
) -> Iterator[None]:
    """The controller of agent-sandbox with one warm pool, as far as claims see it.

    It gives each claim a pod, says its name in the claim's status and ends it with the claim. Pods
    are made from the pool's template, with `change` applied.
    """
    settings, done = PodSettings(NAMESPACE, "sandbox:1"), threading.Event()
    core = client.CoreV1Api(client.ApiClient(cluster.configuration()))

    def reconcile(claim: dict[str, Any]) -> None:
        meta, spec = claim["metadata"], claim["spec"]
        fault = _claim_fault(spec, pool)
        if fault is None:
            pod = pod_manifest(settings, SandboxLimits(), f"{pool}-{meta['uid'][:8]}", {})
            owner = {"apiVersion": CLAIMS, "kind": "SandboxClaim", "controller": True}
            owners = [{**owner, "name": meta["name"], "uid": meta["uid"]}]
            pod["metadata"]["ownerReferences"] = owners
            change(pod)
            core.create_namespaced_pod(NAMESPACE, pod)
            claim["status"] = {"sandbox": {"name": pod["metadata"]["name"]}}
        else:
            ready = {"type": "Ready", "status": "False"}
            claim["status"] = {"conditions": [{**ready, "reason": fault[0], "message": fault[1]}]}
        with cluster.store.lock:
            cluster.store.save(claim)

    def run() -> None:
        while not done.is_set():
            for claim in cluster.objects("SandboxClaim", namespace=NAMESPACE):
                if not claim.get("status"):
                    reconcile(claim)
            time.sleep(0.02)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _claim_fault(spec: dict[str, Any], pool: str) -> tuple[str, str] | None:
    wanted = spec["warmPoolRef"]["name"]
    if wanted != pool:
        return "WarmPoolNotFound", f'SandboxWarmPool "{wanted}" not found'
    for key in (spec.get("additionalPodMetadata") or {}).get("labels", {}):
        if not key.startswith("sandbox.users.io/"):
            domain = key.partition("/")[0]
            return "InvalidMetadata", f'label domain "{domain}" is not in the allowlist'
    if unknown := spec.keys() - CLAIM_FIELDS:
        return "InvalidMetadata", f"unknown fields {unknown}"
    return None
