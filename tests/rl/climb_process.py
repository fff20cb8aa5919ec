"""Climbs in processes of their own, to be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from climb_support import make_tokenizer

from hillclimb.artifacts import ArtifactWriter, InputRef, Manifest
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.environments.tasks import Problem
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.recipe.climb import ClimbRecipe
from hillclimb.recipe.graph import CODE
from hillclimb.stages.models import save_model
from hillclimb.stages.problems import SCHEMA
from hillclimb.stages.request import Request
from hillclimb.stages.tables import write_table

RECIPE: dict[str, Any] = {
    "groups": {"early": 2, "full": 4, "early_window": [0, 1], "full_window": [0, 1]},
    "lengths": [{"max_tokens": 24, "steps": 16}],
    "batch_groups": 2,
    "prompts_per_update": 4,
    "staleness": {"steps_per_update": 2, "ahead": 1},
    "checkpoint_every": 2,
    "micro_batch_tokens": 2048,
    "learning_rate": 1e-3,
}
PROBLEMS = 10


def write_request(folder: Path) -> Path:
    """A request for a climb of an untrained model, and the artifacts that it reads."""
    tokenizer = make_tokenizer()
    config = MaiConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, dense_ffn_size=64, latent_size=16,
        expert_ffn_size=32, num_experts=4, head_dim=8,
    )  # fmt: skip
    start = ArtifactWriter(str(folder / "start"))
    save_model(start, MaiForCausalLM(config).initialise(0), tokenizer, "zero")
    problems = ArtifactWriter(str(folder / "problems"))
    made = [
        Problem(f"p{q}", "stem", "sum", f"p{q}", f"what {q}", {"grader": "math", "answer": "5/7"})
        for q in range(PROBLEMS)
    ]
    rows = [{**p.row(), "task": json.dumps(p.task)} for p in made]
    write_table(problems, "train.parquet", rows, SCHEMA)
    inputs = {"checkpoint": commit(start, "ab" * 32), "stem_problems": commit(problems, "cd" * 32)}
    request = Request(
        name="stem/round_0/climb", kind="climb", output=str(folder / "out"), fingerprint="ef" * 32,
        code_version=code_version(CODE["climb"]), seed=3, inputs=inputs,
        config={"climb": ClimbRecipe.model_validate(RECIPE).model_dump(mode="json"),
                "shares": {"stem": 1.0}, "round": 0},
    )  # fmt: skip
    path = folder / "request.json"
    path.write_text(request.model_dump_json())
    return path


def commit(out: ArtifactWriter, fingerprint: str) -> InputRef:
    """Finish an artifact."""
    out.commit(
        Manifest(
            name="made", kind="base_phase", fingerprint=fingerprint, code_version="", seed=0,
            inputs={}, config={}, files=[], metrics={}, summary={}, run={},
        )
    )  # fmt: skip
    return InputRef(name="made", fingerprint=fingerprint, uri=out.uri)


class ClimbProcess:
    """One attempt at a request; it does not outlive its block."""

    def __init__(self, request: Path) -> None:
        self.folder = request.parent
        self.before = len(self.steps())
        with open(self.folder / "log.txt", "a") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "hillclimb.stages", "climb", "--request", str(request)],
                stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.running.kill()
        self.running.wait()

    def steps(self) -> list[int]:
        """The steps that were reported, by all attempts."""
        path = self.folder / "messages.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        told = [json.loads(line)["params"] for line in lines if '"metrics", "at"' in line]
        return [message["payload"]["step"] for message in told]

    def wait(self, until: Callable[[], bool]) -> None:
        """Until something holds, while the process lives."""
        while not until():
            assert self.running.poll() is None, (self.folder / "log.txt").read_text()[-3000:]
            time.sleep(0.01)

    def wait_for_steps(self, count: int) -> None:
        """Until this attempt has reported so many, and there is a checkpoint to go on from."""
        latest = self.folder / "out" / "resume" / "latest"
        self.wait(lambda: len(self.steps()) >= self.before + count and latest.exists())

    def engine(self) -> int | None:
        """The process id of its own rollout server."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--owner" in words and str(self.running.pid).encode() in words:
                return int(path.parent.name)
        return None
