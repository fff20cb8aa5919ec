"""The scorecard: every checkpoint on every domain's held-out problems."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import torch

from hillclimb.environments.sandbox import BubblewrapProvider, check_sandbox
from hillclimb.environments.tasks import Problem
from hillclimb.evaluation.passrate import score_model
from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.rl.grading import Graders
from hillclimb.rl.rollouts import Rollout, Sampler
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.stages.context import Context
from hillclimb.stages.models import load_model
from hillclimb.stages.problems import read_problems
from hillclimb.stages.tables import write_table

ANSWERS = pa.schema(
    [
        (name, pa.string())
        for name in ("model", "specialist", "problem_id", "kind", "prompt", "response", "mode")
    ]
    + [("task", pa.float64()), ("reason", pa.string())]
)


def make_scorecard(context: Context) -> None:
    """Score model by model; finished ones are kept, so a restart goes on with the next."""
    check_sandbox()
    torch.set_num_threads(context.request.threads)
    problems = {n: read_problems(context, f"{n}_problems", "held_out") for n in SPECIALISTS}
    aside = {"tokenizer", *(f"{name}_problems" for name in SPECIALISTS)}
    models = [role for role in context.request.inputs if role not in aside]
    scores: dict[str, Any] = {}
    with Graders() as graders:
        for index, model in enumerate(models):
            context.reporter.progress(index, len(models), model)
            path = f"resume/{model}.json"
            if not context.out.exists(path):
                context.out.write_json(path, _score(context, graders, model, problems))
            scores[model] = json.loads(context.out.read_text(path))
    context.out.write_json("scorecard.json", scores)
    final = scores["mai_thinking"]
    context.commit(
        {f"{name}_{key}": final[name][key] for name in SPECIALISTS
         for key in ("pass_at_1", "greedy")},
        {"scorecard": scores},
    )  # fmt: skip


def _score(
    context: Context, graders: Graders, model: str, problems: dict[str, list[Problem]]
) -> dict[str, Any]:
    config = context.config
    weights, tokenizer, template = load_model(context.input(model))
    sampler = Sampler(TorchEngine(weights), tokenizer, template, BubblewrapProvider())
    params = SamplingParams(
        config["max_tokens"], config["sampling"]["temperature"], config["sampling"]["top_p"]
    )
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, mine in problems.items():
        score, answers = score_model(
            sampler, graders, mine, params, config["samples"], context.seed
        )
        found[name] = {"pass_at_1": score.pass_at_1, "greedy": score.greedy, "n": score.n}
        if score.ungraded:
            context.reporter.log(f"{model}: {score.ungraded} answers on {name} were not graded")
        rows += [_answer(model, mode, rollout, sampler) for mode, rollout in answers]
    write_table(context.out, f"answers/{model.replace('/', '.')}.parquet", rows, ANSWERS)
    return found


def _answer(model: str, mode: str, rollout: Rollout, sampler: Sampler) -> dict[str, Any]:
    assert rollout.graded is not None
    return {
        "model": model,
        "specialist": rollout.problem.specialist,
        "problem_id": rollout.problem.id,
        "kind": rollout.problem.kind,
        "prompt": sampler.tokenizer.decode(rollout.prompt),
        "response": sampler.tokenizer.decode(rollout.tokens),
        "mode": mode,
        "task": rollout.graded.score,
        "reason": rollout.graded.reason,
    }
