"""A tiny climb on the fake cluster, with rollout servers beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_cluster import FakeCluster
from launcher_support import name_of

from hillclimb.artifacts import ArtifactWriter, InputRef, Manifest
from hillclimb.artifacts.fingerprint import code_version, fingerprint
from hillclimb.environments.tasks import families_of, make_problems
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.recipe.climb import ClimbRecipe
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.graph import CODE
from hillclimb.stages.models import save_model
from hillclimb.stages.problems import SCHEMA
from hillclimb.stages.request import Request
from hillclimb.stages.tables import write_table

STEPS = 40  # seconds of work: what a test kills dies long before the end
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


def pods(cluster: FakeCluster, request: Request, role: str) -> list[str]:
    """The newest pods of a role, once they are there."""
    marks = "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/replicatedjob-name"
    labels = ",".join(f"{k}={v}" for k, v in zip(marks, (name_of(request), role), strict=True))
    found = cluster.wait_for(lambda: cluster.objects("Pod", labels))
    return sorted(pod["metadata"]["name"] for pod in found)
