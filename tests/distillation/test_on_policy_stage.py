"""The consolidation as a process of its own, from what the specialists say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hillclimb.artifacts import Artifact, ArtifactWriter, InputRef, Manifest
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.environments.tasks import families_of, make_problems
from hillclimb.environments.templates import Template
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.recipe.climb import OnPolicyDistillation
from hillclimb.recipe.graph import CODE
from hillclimb.stages.models import load_model, save_model
from hillclimb.stages.problems import SCHEMA
from hillclimb.stages.request import Request
from hillclimb.stages.tables import jsonl, write_table

KINDS = {"stem": {"sum": 1.0}, "agentic": {"replace": 1.0}, "helpfulness": {"repeat": 1.0}}


def commit(out: ArtifactWriter, kind: str) -> InputRef:
    name, fingerprint = out.uri.rsplit("/", 1)[1], "ab" * 32
    empty = {"inputs": {}, "config": {}, "files": [], "metrics": {}, "summary": {}, "run": {}}
    told = {"name": name, "kind": kind, "fingerprint": fingerprint, "code_version": "", "seed": 0}
    out.commit(Manifest.model_validate({**told, **empty}))
    return InputRef(name=name, fingerprint=fingerprint, uri=out.uri)


def model(folder: Path, name: str, template: Template, seed: int) -> InputRef:
    tokenizer = TextTokenizer(train_tokenizer(["what 0123456789 abc"], 300))
    config = MaiConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_experts=4)
    out = ArtifactWriter(f"{folder}/{name}")
    save_model(out, MaiForCausalLM(config).initialise(seed), tokenizer, template)
    return commit(out, "climb")


def problems(folder: Path, specialist: str) -> InputRef:
    out = ArtifactWriter(f"{folder}/{specialist}_problems")
    made = make_problems(families_of(specialist), KINDS[specialist], 4, "train", 0)
    rows = [{**p.row(), "task": json.dumps(p.task)} for p in made]
    write_table(out, "train.parquet", rows, SCHEMA)
    return commit(out, "problems")


@pytest.mark.slow("a stage in a process of its own")
def test_a_consolidation_learns_from_its_teachers_and_not_from_traces(tmp_path: Path) -> None:
    inputs = {"checkpoint": model(tmp_path, "base", "zero", 0)}
    for seed, name in enumerate(KINDS):
        inputs[f"{name}_teacher"] = model(tmp_path, f"{name}_climb", "chat", seed + 1)
        inputs[f"{name}_problems"] = problems(tmp_path, name)
    config = OnPolicyDistillation(
        steps=2, batch_prompts=6, max_tokens=16, micro_batch_tokens=2048, learning_rate=1e-3
    )
    request = Request(
        name="consolidated_model", kind="consolidation", output=f"{tmp_path}/out", seed=0,
        fingerprint="cd" * 32, code_version=code_version(CODE["consolidation"]), inputs=inputs,
        config={"shares": dict.fromkeys(KINDS, 1.0), "on_policy": config.model_dump(mode="json")},
    )  # fmt: skip
    (tmp_path / "request.json").write_text(request.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "hillclimb.stages", "consolidation",
         "--request", str(tmp_path / "request.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    made, start = Artifact(f"{tmp_path}/out"), Artifact(f"{tmp_path}/base")
    assert made.manifest.summary["prompts"] == dict.fromkeys(KINDS, 4)
    rows = [json.loads(line) for line in made.read_text("metrics.jsonl").splitlines()]
    assert jsonl(rows) == made.read_text("metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert made.manifest.metrics["tokens"] == sum(row["learned_tokens"] for row in rows)
    (after, _, template), (before, *_) = load_model(made), load_model(start)
    assert template == "zero"
    assert not torch.equal(after.embed.weight, before.embed.weight)
