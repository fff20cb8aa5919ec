"""Climbs with rollout servers: what their pods are told, and a climb whose pods die."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from climb_pods import STEPS, compute, pod_of, pods, request_for, roles
from fake_cluster import FakeCluster
from launcher_support import Followed

from hillclimb.launcher import State
from hillclimb.launcher.kubernetes import KubernetesLauncher
from hillclimb.launcher.kubernetes.manifests import stage_manifest
from hillclimb.rollout import server
from hillclimb.stages.climb import make_climb
from hillclimb.stages.context import Context
from hillclimb.stages.reporting import SilentReporter
from hillclimb.stages.request import Request


@pytest.mark.parametrize(
    ("accelerators", "size", "gpus_per_node", "replicas", "pods", "gpus"),
    [(2, 1, 0, 2, 1, None), (4, 2, 0, 2, 1, None), (6, 2, 4, 3, 1, "2"), (16, 8, 4, 2, 2, "4")],
)
def test_replicas_are_as_many_as_the_recipe_says_and_the_learner_knows_each_by_name(
    tmp_path, accelerators, size, gpus_per_node, replicas, pods, gpus
):
    request = request_for(tmp_path, "climb")
    asked = compute(tmp_path, accelerators, size, gpus_per_node=gpus_per_node)
    made = stage_manifest(request, asked)
    learner, rollout = roles(made)["learner"], roles(made)["rollout"]
    assert (rollout["replicas"], rollout["template"]["spec"]["completions"]) == (replicas, pods)
    limits = pod_of(rollout)["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == gpus
    name = made["metadata"]["name"]
    env = {e["name"]: e.get("value") for e in pod_of(learner)["containers"][0]["env"]}
    assert env["HILLCLIMB_ROLLOUT_SERVERS"].split(",") == [
        f"http://{name}-rollout-{job}-0.{name}:29600" for job in range(replicas)
    ]
    assert made["spec"]["network"]["publishNotReadyAddresses"]


def test_a_server_is_told_what_it_needs_and_no_more(tmp_path):
    request = request_for(tmp_path, "climb")
    made = stage_manifest(request, compute(tmp_path, 2, gpus_per_node=0))
    pod = pod_of(roles(made)["rollout"])
    (container,) = pod["containers"]
    start = request.inputs["checkpoint"]
    assert container["command"][:3] == ["python", "-m", server.__name__]
    told = server.parser().parse_args(container["command"][3:])
    assert (told.checkpoint, told.fingerprint) == (start.uri, start.fingerprint)
    assert (told.host, told.port) == ("$(POD_IP)", 29600)
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": told.port}
    assert pod["restartPolicy"] == "OnFailure"
    assert pod["automountServiceAccountToken"] is False
    assert "HILLCLIMB_ROLLOUT_SERVERS" not in {e["name"] for e in container["env"]}


def test_without_servers_a_climb_is_one_job(tmp_path):
    made = stage_manifest(request_for(tmp_path, "climb"), compute(tmp_path, 0, gpus_per_node=0))
    assert made["kind"] == "Job"


@pytest.mark.slow("starts two learners and five servers")
def test_a_climb_goes_on_when_a_server_dies_and_when_its_learner_dies(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    """Its artifact is that of a climb in one process, byte for byte."""
    request = request_for(tmp_path, "climb")
    asked = compute(tmp_path, 2, gpus_per_node=0)
    launcher = KubernetesLauncher(asked, cluster.configuration(), beat=0.05)
    climb = Followed(launcher, launcher.submit(request))
    first, learner = pods(cluster, request, "rollout")[0], pods(cluster, request, "learner")[0]
    climb.until(lambda _: 2 in climb.steps, 240)
    cluster.oom_kill(first)
    climb.until(lambda _: (Path(request.output) / "resume" / "latest").exists(), 240)
    (status,) = (cluster.get("Pod", first) or {})["status"]["containerStatuses"]
    assert status["restartCount"] == 1
    cluster.oom_kill(learner)
    assert climb.until(lambda seen: seen.ended, 240).state is State.DONE, climb.outcome

    anew = pods(cluster, request, "learner")
    assert learner not in anew
    assert "going on after" in cluster.log(anew[0])
    alone = request.model_copy(update={"output": f"{tmp_path}/alone"})
    make_climb(Context(alone, SilentReporter()))
    assert outcome(request) == outcome(alone)


def outcome(request: Request) -> dict[str, bytes | list[dict[str, float]]]:
    """What a climb leaves behind, without how long it took."""
    root = Path(request.output)
    files = [*root.glob("rollouts/*"), root / "model/model.safetensors", root / "stop.json"]
    assert len(files) == STEPS + 2
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "waited")
    timeless = [{k: v for k, v in r.items() if not any(word in k for word in timed)} for r in rows]
    return {"rows": timeless, **{str(p.relative_to(root)): p.read_bytes() for p in files}}
