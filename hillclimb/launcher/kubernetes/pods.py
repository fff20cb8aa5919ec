"""The pods of a stage: its ranks, and the rollout servers beside a climb."""

from __future__ import annotations

import json
from typing import Any

from hillclimb.launcher.base import handle_name
from hillclimb.launcher.kubernetes.layout import GPU_KINDS, Layout, cluster_of, folder
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.kubernetes import Kubernetes, Toleration, Volume
from hillclimb.stages.request import Request

Spec = dict[str, Any]
LEARNER, ROLLOUT = "learner", "rollout"
MASTER_PORT, SERVER_PORT = 29500, 29600
USER = 1000
CONTROL_KINDS = ("problems", "raw_documents", "ai_text_detector", "filtered_corpus")
SANDBOXED_KINDS = ("problems", "climb", "scorecard")
_SERVERS = {"torch": "hillclimb.rollout.server", "vllm": "hillclimb.rollout.vllm_worker"}
_PROMPT_TOKENS = 8192
_GPU_SHARE = 0.85
_GRACE = 60
_TOKEN = "automountServiceAccountToken"
_SCRATCH = "scratch"
_SHM = "shm"


def stage_pod(request: Request, compute: Compute, laid_out: Layout) -> Spec:
    """The pod that runs the stage, or its share of the ranks.

    It holds a token of the API only where model-written code runs in sandbox pods that it makes.
    """
    cluster = cluster_of(compute)
    control = request.kind in CONTROL_KINDS
    place = f"{folder(request.name, request.fingerprint, cluster)}/request.json"
    container = {
        "name": "stage",
        "image": cluster.control_image if control else cluster.image,
        "command": ["python", "-m", "hillclimb.stages", request.kind, "--request", place],
        "env": _env(
            {**_rendezvous(request, laid_out, cluster.draws_with), **_threads(request)}, cluster
        ),
    }
    plays = request.kind in SANDBOXED_KINDS or "on_policy" in request.config
    asks = plays and cluster.sandboxes is not None
    if request.kind not in GPU_KINDS:
        cluster = _light(cluster)
    return {**_pod(container, cluster, laid_out.gpus, laid_out), _TOKEN: asks}


def _light(cluster: Kubernetes) -> Kubernetes:
    """The sizes of pods of stages that neither train nor sample."""
    cpu, memory = cluster.light_cpu or cluster.cpu, cluster.light_memory or cluster.memory
    return cluster.model_copy(update={"cpu": cpu, "memory": memory})


def server_pod(request: Request, compute: Compute, laid_out: Layout) -> Spec:
    """One pod of the rollout servers, ready once it has loaded the climb's start.

    It runs vLLM on the pod's GPUs, which share one copy of the weights, or the in-process engine
    (`hillclimb.rollout.server`) on its CPUs. Neither reaches beyond its pod: of a server that has
    several the first is asked, and the others have nothing to do. A process that dies is started
    again in its place; so is one that is not up after half an hour (vLLM takes minutes to load and
    to compile), or that has not answered for five minutes.
    """
    cluster, start = cluster_of(compute), request.inputs["checkpoint"]
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    engine = cluster.draws_with
    alive = {"httpGet": {"path": "/health", "port": SERVER_PORT}}
    container = {
        "name": "server",
        "image": cluster.rollout_image,
        "command": [
            *("python", "-m", _SERVERS[engine]),
            *("--checkpoint", start.uri, "--fingerprint", start.fingerprint),
            *("--host", "$(POD_IP)", "--port", str(SERVER_PORT)),
            *(_vllm_options(request, laid_out.server_gpus) if engine == "vllm" else ()),
        ],
        "env": [address, *_env(_threads(request), cluster)],
        "startupProbe": {**alive, "periodSeconds": 10, "failureThreshold": 180},
        "readinessProbe": {**alive, "periodSeconds": 10},
        "livenessProbe": {
            **alive, "periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 10,
        },
    }  # fmt: skip
    pod = _pod(container, cluster, laid_out.server_gpus, laid_out)
    return {**pod, "restartPolicy": "OnFailure"}


def _vllm_options(request: Request, gpus: int) -> tuple[str, str]:
    """Arguments of `vllm.LLM`: room for the climb's longest answer, and the pod's GPUs whole."""
    longest = max(rung["max_tokens"] for rung in request.config["climb"]["lengths"])
    options: dict[str, Any] = {"max_model_len": longest + _PROMPT_TOKENS}
    if gpus:
        options["gpu_memory_utilization"] = _GPU_SHARE
    if gpus > 1:
        options["tensor_parallel_size"] = gpus
    return "--options", json.dumps(options)


def host(request: Request, role: str, job: int, pod: int) -> str:
    """The DNS name of one pod of a stage's JobSet."""
    name = handle_name(request.name, request.fingerprint)
    return f"{name}-{role}-{job}-{pod}.{name}"


def _rendezvous(request: Request, laid_out: Layout, engine: str) -> dict[str, str]:
    """How the stage's process finds the others."""
    if laid_out.single:
        return {}
    servers = [host(request, ROLLOUT, index, 0) for index in range(laid_out.servers)]
    urls = ",".join(f"http://{name}:{SERVER_PORT}" for name in servers)
    return {
        "HILLCLIMB_NODES": str(laid_out.nodes),
        "MASTER_ADDR": host(request, LEARNER, 0, 0),
        "MASTER_PORT": str(MASTER_PORT),
        **({"HILLCLIMB_ROLLOUT_SERVERS": urls, "HILLCLIMB_ENGINE": engine} if urls else {}),
    }


def _threads(request: Request) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(request.threads), "TOKENIZERS_PARALLELISM": "false"}


def _env(own: dict[str, str], cluster: Kubernetes) -> list[Spec]:
    """Variables in one order. The home is a folder that can be written; the recipe's come last."""
    values = {
        "HOME": "/tmp",
        "USER": "hillclimb",
        "PYTHONUNBUFFERED": "1",
        **own,
        **_sandboxes(cluster),
        **cluster.env,
    }
    return [{"name": key, "value": value} for key, value in values.items()]


def _sandboxes(cluster: Kubernetes) -> dict[str, str]:
    """How the stage's process is told where to make its sandboxes (`provider_for`)."""
    if cluster.sandboxes is None:
        return {}
    given = cluster.sandboxes.model_dump().items()
    told = {f"HILLCLIMB_SANDBOX_{name.upper()}": value for name, value in given if value}
    return {"HILLCLIMB_SANDBOX": "pods", **told}


def _pod(container: Spec, cluster: Kubernetes, gpus: int, laid_out: Layout) -> Spec:
    """What is the same for every role. It passes the pod security standard `restricted`."""
    return {
        "restartPolicy": "Never",
        "serviceAccountName": cluster.service_account,
        _TOKEN: False,
        "terminationGracePeriodSeconds": _GRACE,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                **container,
                "imagePullPolicy": cluster.image_pull_policy,
                "resources": _resources(cluster, gpus, laid_out),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    *({"name": v.name, "mountPath": v.mount} for v in cluster.volumes),
                    {"name": _SCRATCH, "mountPath": "/tmp"},
                    {"name": _SHM, "mountPath": "/dev/shm"},
                ],
                **_from_secrets(cluster),
            }
        ],
        "volumes": [
            *(_volume(volume) for volume in cluster.volumes),
            {"name": _SCRATCH, "emptyDir": {}},
            {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm}},
        ],
        **_where(cluster),
    }


def _resources(cluster: Kubernetes, gpus: int, laid_out: Layout) -> Spec:
    """Requests equal limits: the pod is the last to be evicted. Quantities are text."""
    amounts = {"cpu": cluster.cpu, "memory": cluster.memory}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    if gpus and not laid_out.single:
        amounts |= {name: str(count) for name, count in cluster.rdma.items()}
    return {"requests": amounts, "limits": dict(amounts)}


def _from_secrets(cluster: Kubernetes) -> Spec:
    found = [{"secretRef": {"name": name}} for name in cluster.secrets]
    return {"envFrom": found} if found else {}


def _volume(volume: Volume) -> Spec:
    if volume.claim:
        return {"name": volume.name, "persistentVolumeClaim": {"claimName": volume.claim}}
    if volume.host_path:
        return {"name": volume.name, "hostPath": {"path": volume.host_path}}
    return {"name": volume.name, "emptyDir": {}}


def _where(cluster: Kubernetes) -> Spec:
    """Which nodes the pod may be on; fields that say nothing are left out."""
    said: Spec = {
        "nodeSelector": dict(cluster.node_selector),
        "tolerations": [_toleration(toleration) for toleration in cluster.tolerations],
        "priorityClassName": cluster.priority_class,
    }
    return {key: value for key, value in said.items() if value}


def _toleration(toleration: Toleration) -> Spec:
    return {key: value for key, value in toleration.model_dump().items() if value}
