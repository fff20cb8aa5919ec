"""What the comparisons of climbs share: a root's artifacts, its problems, scores held out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hillclimb.artifacts import Artifact
from hillclimb.environments.sandbox import provider_for
from hillclimb.environments.tasks import Problem
from hillclimb.environments.templates import Template
from hillclimb.evaluation.passrate import score_model
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.rl.grading import Graders
from hillclimb.rl.rollouts import Rollout, Sampler
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.stages.models import load_model
from hillclimb.stages.tables import read_rows

SCORING_SEED = 7_777


@dataclass(frozen=True)
class HeldOut:
    """What a model does on held-out problems.

    Attributes:
        pass_at_1: of sampled answers; greedy: of greedy ones.
        entropy: mean of -log p over the sampled tokens, in nats, p as they were drawn.
        response_tokens: mean length of the sampled answers.
    """

    pass_at_1: float
    greedy: float
    entropy: float
    response_tokens: float
    answers: int

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def artifact(root: Path, name: str, seed: int = 0) -> Artifact:
    """The one finished artifact of that name, and of that seed where it has any.

    Raises:
        LookupError: if there is none, or more than one.
    """
    folders = sorted(path.parent for path in (root / "artifacts" / name).glob("*/manifest.json"))
    found = [a for a in map(Artifact, map(str, folders)) if a.manifest.seed in (seed, None)]
    if len(found) != 1:
        raise LookupError(
            f"{root} has {len(found)} artifacts {name} of seed {seed}, not one: name a root in "
            "which `hillclimb climb --recipe toy` has made one base"
        )
    return found[0]


def problems(root: Path, specialist: str, side: str) -> list[Problem]:
    """The problems of one side, `train` or `held_out`."""
    rows = read_rows(artifact(root, f"{specialist}_problems"), f"{side}.parquet")
    return [Problem(**{**row, "task": json.loads(row["task"])}) for row in rows]


def kept_scores(
    model: Artifact, root: Path, out: Path, max_tokens: int, samples: int
) -> dict[str, Any]:
    """What `score` says of a checkpoint on the root's STEM problems, kept under `out`."""
    path = scores_path(model, out)
    if not path.exists():
        network, tokenizer, template = load_model(model)
        network.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        asked = problems(root, "stem", "held_out")
        with Graders() as graders:
            found = score(network, tokenizer, template, graders, asked, max_tokens, samples)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found.json()))
    return dict(json.loads(path.read_text()))


def scores_path(model: Artifact, out: Path) -> Path:
    """Where `kept_scores` keeps them."""
    return out / "scores" / f"{model.fingerprint[:16]}.json"


def score(
    model: MaiForCausalLM,
    tokenizer: TextTokenizer,
    template: Template,
    graders: Graders,
    asked: list[Problem],
    max_tokens: int,
    samples: int,
) -> HeldOut:
    """Answer every problem `samples` times, and once greedily; always with the same seed."""
    sampler = Sampler(TorchEngine(model), tokenizer, template, provider_for())
    params = SamplingParams(max_tokens, 1.0, 0.97)
    found, answers = score_model(sampler, graders, asked, params, samples, SCORING_SEED)
    sampled = [rollout for mode, rollout in answers if mode == "sampled"]
    return HeldOut(
        found.pass_at_1,
        found.greedy,
        float(-np.concatenate([_logprobs(rollout) for rollout in sampled]).mean()),
        float(np.mean([rollout.drawn_tokens for rollout in sampled])),
        len(sampled),
    )


def _logprobs(rollout: Rollout) -> np.ndarray:
    return np.concatenate(rollout.logprobs)[np.asarray(rollout.drawn, bool)]
