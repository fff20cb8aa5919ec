"""The scorecard: every checkpoint on every domain's held-out problems."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch

from hillclimb.environments.sandbox import SandboxProvider, provider_for
from hillclimb.environments.sandbox.pod_programs import program_runner
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
_PAUSE = 0.5


def make_scorecard(context: Context) -> None:
    """Score model by model, each rank its share; a restart goes on with what is missing."""
    sandboxes = provider_for()
    sandboxes.check()
    torch.set_num_threads(context.request.threads)
    problems = {n: read_problems(context, f"{n}_problems", "held_out") for n in SPECIALISTS}
    aside = {"tokenizer", *(f"{name}_problems" for name in SPECIALISTS)}
    models = [role for role in context.request.inputs if role not in aside]
    with Graders(program_runner(sandboxes), context.request.threads) as graders:
        for model in models[context.rank :: context.request.ranks]:
            _say_done(context, models, model)
            if not context.out.exists(_scored(model)):
                score = _score(context, graders, model, problems, sandboxes)
                context.out.write_json(_scored(model), score)
    if context.rank == 0:
        _commit(context, models)


def _scored(model: str) -> str:
    """Where a model's scores are until all are there."""
    return f"resume/{model}.json"


def _say_done(context: Context, models: list[str], note: str) -> int:
    done = sum(context.out.exists(_scored(model)) for model in models)
    context.reporter.progress(done, len(models), note)
    return done


def _commit(context: Context, models: list[str]) -> None:
    """Wait for the other ranks' models; when one of them fails, all ranks are ended."""
    while _say_done(context, models, "the other ranks' models") < len(models):
        time.sleep(_PAUSE)
    scores: dict[str, Any] = {}
    for model in models:
        scores[model] = json.loads(context.out.read_text(_scored(model)))
        for name, score in scores[model].items():
            if ungraded := score.pop("ungraded"):
                context.reporter.log(f"{model}: {ungraded} answers on {name} were not graded")
    context.out.write_json("scorecard.json", scores)
    final = scores["mai_thinking"]
    context.commit(
        {f"{name}_{key}": final[name][key] for name in SPECIALISTS
         for key in ("pass_at_1", "greedy")},
        {"scorecard": scores},
    )  # fmt: skip


def _score(
    context: Context,
    graders: Graders,
    model: str,
    problems: dict[str, list[Problem]],
    sandboxes: SandboxProvider,
) -> dict[str, Any]:
    config = context.config
    weights, tokenizer, template = load_model(context.input(model))
    sampler = Sampler(TorchEngine(weights), tokenizer, template, sandboxes)
    params = SamplingParams(
        config["max_tokens"], config["sampling"]["temperature"], config["sampling"]["top_p"]
    )
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, mine in problems.items():
        score, answers = score_model(
            sampler, graders, mine, params, config["samples"], context.seed
        )
        found[name] = asdict(score)
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
