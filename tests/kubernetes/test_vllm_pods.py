"""Rollout pods that draw with vLLM: what they are told, and a climb that really draws with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from climb_pods import RECIPE, STEPS, compute, pod_of, pods, request_for, roles
from fake_cluster import FakeCluster
from launcher_support import ROOT, Followed

from hillclimb.artifacts import Artifact
from hillclimb.launcher import State
from hillclimb.launcher.kubernetes import KubernetesLauncher
from hillclimb.launcher.kubernetes.manifests import stage_manifest
from hillclimb.rollout import server, vllm_options, vllm_worker
from hillclimb.rollout.vllm_engine import vllm_python
from hillclimb.stages.tables import read_rows

ENGINE = "HILLCLIMB_ENGINE"


def told(folder: Path, accelerators: int, size: int, **cluster: object) -> tuple[str, list[str]]:
    """The engine that the learner is told of, and the command of its servers."""
    asked = compute(folder, accelerators, size, **cluster)
    made = roles(stage_manifest(request_for(folder, "climb"), asked))
    [learner], [rollout] = (pod_of(made[role])["containers"] for role in ("learner", "rollout"))
    env = {each["name"]: each.get("value") for each in learner["env"]}
    return str(env[ENGINE]), rollout["command"]


@pytest.mark.parametrize(
    ("asked", "gpus_per_node", "engine"),
    [(None, 4, "vllm"), (None, 0, "torch"), ("torch", 4, "torch"), ("vllm", 0, "vllm")],
)
def test_servers_draw_with_vllm_on_gpus_and_with_torch_on_cpus_unless_told(
    tmp_path, asked, gpus_per_node, engine
):
    found, command = told(tmp_path, 4, 2, gpus_per_node=gpus_per_node, rollout_engine=asked)
    module = {"torch": server, "vllm": vllm_worker}[engine]
    assert (found, command[:3]) == (engine, ["python", "-m", module.__name__])


@pytest.mark.parametrize(
    ("accelerators", "size", "gpus_per_node", "options"),
    [
        (2, 1, 0, {}),
        (2, 1, 4, {"gpu_memory_utilization": 0.85}),
        (6, 2, 4, {"gpu_memory_utilization": 0.85, "tensor_parallel_size": 2}),
        (16, 8, 4, {"gpu_memory_utilization": 0.85, "tensor_parallel_size": 4}),
    ],
)
def test_vllm_is_given_the_pods_gpus_and_room_for_the_longest_answer(
    tmp_path, accelerators, size, gpus_per_node, options
):
    asked = {"gpus_per_node": gpus_per_node, "rollout_engine": "vllm"}
    _, command = told(tmp_path, accelerators, size, **asked)
    words = vllm_worker.parser().parse_args(command[3:])
    longest = max(rung["max_tokens"] for rung in RECIPE["lengths"])
    assert json.loads(words.options) == {"max_model_len": longest + 8192, **options}
    assert (words.host, words.port) == ("$(POD_IP)", 29600)


def test_options_of_the_recipes_environment_come_last(monkeypatch):
    monkeypatch.setenv(vllm_options.OPTIONS, '{"dtype": "half", "max_model_len": 64}')
    assert vllm_options.arguments('{"max_model_len": 9, "seed": 0}') == {
        "max_model_len": 64, "seed": 0, "dtype": "half"
    }  # fmt: skip
    for text in ("[1]", "{", "8"):
        monkeypatch.setenv(vllm_options.OPTIONS, text)
        with pytest.raises(ValueError, match="HILLCLIMB_VLLM_OPTIONS is no JSON object"):
            vllm_options.arguments("{}")


@pytest.mark.vllm("the pods' image")
@pytest.mark.slow("starts vLLM twice")
def test_a_climb_draws_with_vllm_and_goes_on_when_its_pod_is_lost(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    """The pod's node is lost in the middle of the climb; the next pod draws the rest."""
    try:
        cluster.install("rollout:1", vllm_python())
    except RuntimeError as missing:
        pytest.skip(str(missing))
    request = request_for(tmp_path, "climb")
    env = {"HILLCLIMB_SANDBOX": "bubblewrap", "PYTHONPATH": str(ROOT)}
    asked = compute(tmp_path, 1, gpus_per_node=0, rollout_engine="vllm", env=env)
    launcher = KubernetesLauncher(asked, cluster.configuration(), beat=0.05)
    climb = Followed(launcher, launcher.submit(request))
    [first] = pods(cluster, request, "rollout")
    climb.until(lambda _: 2 in climb.steps, 240)
    cluster.lose_node(first)
    outcome = climb.until(lambda seen: seen.ended, 240)
    logs = {name: cluster.log(name) for name in cluster.created("Pod") if "rollout" in name}
    assert outcome.state is State.DONE, (outcome, logs)

    assert len(logs) == 2
    for log in logs.values():
        assert "took the weights of version 0" not in log, "it has loaded them itself"
        assert "took the weights of version" in log
        assert "drew" in log
    [learner] = pods(cluster, request, "learner")
    said = cluster.log(learner)
    assert said.count(" is away: ") == said.count(" is back") <= 2, "while it starts, and now"
    assert " is back" in said
    made = Artifact(request.output)
    assert made.manifest.metrics["steps"] == STEPS
    assert made.manifest.metrics["mismatch"] < 1e-4
    assert max(row["version"] for row in read_rows(made, "rollouts/*.parquet")) > 2
