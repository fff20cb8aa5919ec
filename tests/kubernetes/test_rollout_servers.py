"""Climbs with rollout servers: what their pods are told, and a climb whose pods die."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster
from launcher_support import Followed, name_of

from hillclimb.artifacts import ArtifactWriter, InputRef, Manifest
from hillclimb.artifacts.fingerprint import code_version, fingerprint
from hillclimb.environments.tasks import families_of, make_problems
from hillclimb.launcher import State
from hillclimb.launcher.kubernetes import KubernetesLauncher
from hillclimb.launcher.kubernetes.manifests import stage_manifest
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.recipe.climb import ClimbRecipe
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.graph import CODE
from hillclimb.rollout import server
from hillclimb.stages.climb import make_climb
from hillclimb.stages.context import Context
from hillclimb.stages.models import save_model
from hillclimb.stages.problems import SCHEMA
from hillclimb.stages.reporting import SilentReporter
from hillclimb.stages.request import Request
from hillclimb.stages.tables import write_table

STEPS = 8
RECIPE = {
    "learning_rate": 1e-3,
    "groups": {"early": 2, "full": 4, "early_window": [0, 1], "full_window": [0, 1]},
    "staleness": {"steps_per_update": 1, "max_updates": 2},
    "lengths": [{"max_tokens": 16, "steps": STEPS}],
    "batch_groups": 2,
    "prompts_per_update": 3,
    "checkpoint_every": 3,
    "micro_batch_tokens": 2048,
}


def compute(root: Path, accelerators: int, server: int = 1, **cluster: Any) -> Compute:
    section = {
        "image": "train:1", "control_image": "control:1", "rollout_image": "rollout:1",
        "runs": f"{root}/runs",
        "volumes": [{"name": "root", "mount": str(root), "host_path": str(root)}],
        "env": {"HILLCLIMB_SANDBOX": "bubblewrap"}, **cluster,
    }  # fmt: skip
    return Compute.model_validate(
        {
            "climb_rollout_accelerators": accelerators,
            "rollout_server": server,
            "kubernetes": section,
        }
    )


def commit(out: ArtifactWriter, name: str) -> InputRef:
    print_ = fingerprint({"test": name})
    out.commit(
        Manifest(
            name=name, kind=name, fingerprint=print_, code_version="1", seed=0, inputs={},
            config={}, files=[], metrics={}, summary={}, run={},
        )
    )  # fmt: skip
    return InputRef(name=name, fingerprint=print_, uri=out.uri)


def request_for(root: Path, output: str) -> Request:
    """A climb of a tiny network on a handful of problems."""
    checkpoint = ArtifactWriter(f"{root}/start")
    tokenizer = TextTokenizer(train_tokenizer(["say what 0123456789 times"], 300))
    config = MaiConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, dense_ffn_size=64, latent_size=16,
        expert_ffn_size=32, num_experts=4, head_dim=8, embedding_range=0.5,
    )  # fmt: skip
    save_model(checkpoint, MaiForCausalLM(config).initialise(0), tokenizer, "zero")
    problems = ArtifactWriter(f"{root}/problems")
    made = make_problems(families_of("helpfulness"), {"repeat": 1.0}, 12, "train", 0)
    rows = [{**p.row(), "task": json.dumps(p.task)} for p in made]
    write_table(problems, "train.parquet", rows, SCHEMA)
    return Request(
        name="helpfulness/round_0/climb",
        kind="climb",
        output=f"{root}/{output}",
        fingerprint=fingerprint({"climb": output}),
        code_version=code_version(CODE["climb"]),
        seed=3,
        inputs={
            "checkpoint": commit(checkpoint, "mai_base_256k"),
            "helpfulness_problems": commit(problems, "problems"),
        },
        config={
            "climb": ClimbRecipe.model_validate(RECIPE).model_dump(mode="json"),
            "shares": {"helpfulness": 1.0},
            "round": 0,
        },
    )


def roles(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in manifest["spec"]["replicatedJobs"]}


def pod_of(part: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = part["template"]["spec"]["template"]["spec"]
    return found


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


def pods(cluster: FakeCluster, request: Request, role: str) -> list[str]:
    """The newest pods of a role, once they are there."""
    marks = "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/replicatedjob-name"
    labels = ",".join(f"{k}={v}" for k, v in zip(marks, (name_of(request), role), strict=True))
    found = cluster.wait_for(lambda: cluster.objects("Pod", labels))
    return sorted(pod["metadata"]["name"] for pod in found)


def outcome(request: Request) -> dict[str, bytes | list[dict[str, float]]]:
    """What a climb leaves behind, without how long it took."""
    root = Path(request.output)
    files = [*root.glob("rollouts/*"), root / "model/model.safetensors", root / "stop.json"]
    assert len(files) == STEPS + 2
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "waited")
    timeless = [{k: v for k, v in r.items() if not any(word in k for word in timed)} for r in rows]
    return {"rows": timeless, **{str(p.relative_to(root)): p.read_bytes() for p in files}}
