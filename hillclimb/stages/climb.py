"""One climb: a learner, and an engine in its process or another; every rollout is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

from hillclimb.environments.sandbox import provider_for
from hillclimb.environments.sandbox.pod_programs import program_runner
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.rl.alarms import alarms
from hillclimb.rl.climb import Climb
from hillclimb.rl.grading import Graders
from hillclimb.rl.metrics import Kept, Row
from hillclimb.rl.rollouts import Sampler
from hillclimb.rollout.engine import RolloutEngine
from hillclimb.rollout.opening import open_engine
from hillclimb.stages.account import write_goodput
from hillclimb.stages.context import Context, one_rank
from hillclimb.stages.models import load_model, save_model
from hillclimb.stages.problems import read_problems
from hillclimb.stages.tables import jsonl, write_table
from hillclimb.stages.token_tables import TOKENS_PART, write_tokens
from hillclimb.training import runtime
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.learner import Learner
from hillclimb.training.spans import Spans

PART = "rollouts/part-{:05d}.parquet"
ROLLOUTS = pa.schema(
    [(name, pa.int64()) for name in ("update", "version")]
    + [(name, pa.string()) for name in ("specialist", "problem_id", "kind", "question")]
    + [("group", pa.int64()), ("sample", pa.int64())]
    + [("prompt", pa.string()), ("response", pa.string()), ("response_tokens", pa.int64())]
    + [(name, pa.float64()) for name in ("reward", "task", "language", "length")]
    + [("graded", pa.bool_()), ("reason", pa.string()), ("truncated", pa.bool_())]
    + [("status", pa.string()), ("canary", pa.string()), ("judged", pa.bool_())]
    + [("turns", pa.int64()), ("logprob", pa.float64())]
)


def make_climb(context: Context) -> None:
    """Climb until the stop rule speaks."""
    one_rank(context)
    sandboxes = provider_for()
    sandboxes.check()
    runtime.start(context.request.threads)
    model, tokenizer, template = load_model(context.input("checkpoint"))
    config, shares = context.config["climb"], context.config["shares"]
    problems = {
        name: read_problems(context, f"{name}_problems", "train")
        for name in SPECIALISTS
        if shares.get(name)
    }
    learner = Learner(model, config["optimizer"], 2, config["balance_coefficient"])
    with (
        closing(_engine(context, model)) as engine,
        Graders(program_runner(sandboxes), context.request.threads) as graders,
        Checkpointer(context.out, learner, context.reporter.log) as checkpoints,
    ):
        sampler = Sampler(engine, tokenizer, template, sandboxes)
        climb = Climb(config, learner, sampler, graders, problems, shares, context.seed)
        spans = Spans(context.out)
        _restore(context, climb, checkpoints)
        with closing(climb.run()) as updates:
            _run(context, climb, updates, checkpoints, spans)
    with spans.span("finish"):
        save_model(context.out, model, tokenizer, template)
    _finish(context, climb, spans)
    runtime.stop()


def _engine(context: Context, model: MaiForCausalLM) -> RolloutEngine:
    beside = context.config["climb"]["staleness"]["ahead"] > 0
    start, threads = context.input("checkpoint"), context.request.threads
    return open_engine(start, model, beside, threads, context.reporter.log)


def _run(
    context: Context,
    climb: Climb,
    updates: Iterator[tuple[list[Row], list[Kept]]],
    checkpoints: Checkpointer,
    spans: Spans,
) -> None:
    every, saved = context.config["climb"]["checkpoint_every"], len(climb.rows)
    total = climb.curriculum.total_steps
    while climb.stop is None:
        number = climb.update
        with spans.span("step", number):
            rows, kept = next(updates)
        write_table(
            context.out, PART.format(number),
            [_row(k, number, climb) for k in kept], ROLLOUTS,
        )  # fmt: skip
        write_tokens(context.out, number, climb.learned, climb.sampler.tokenizer)
        for row in rows:
            context.reporter.metrics(row, int(row["step"]))
        note = f"pass {rows[-1]['pass_rate']:.2f}" if rows else "nothing to learn"
        context.reporter.progress(len(climb.rows), total, note)
        if len(climb.rows) - saved >= every and climb.stop is None:
            saved = len(climb.rows)
            with spans.span("checkpoint", number):
                state, arrays = climb.state()
                checkpoints.save(climb.update, state, {"buffer.safetensors": save(arrays)})


def _restore(context: Context, climb: Climb, checkpoints: Checkpointer) -> None:
    """Go on from the last checkpoint; rollouts of updates after it are drawn anew."""
    state = checkpoints.load()
    if state is not None:
        climb.restore(state, load(checkpoints.extra("buffer.safetensors")))
        again = len(state["in_flight"])
        told = f"; prompts that were in flight and are drawn again: {again}" if again else ""
        context.reporter.log(f"going on after {len(climb.rows)} gradient steps{told}")
    for part in (PART, TOKENS_PART):
        for name in context.out.list(part.partition("/")[0]):
            if name >= part.format(climb.update):
                context.out.remove(name)


def _finish(context: Context, climb: Climb, spans: Spans) -> None:
    assert climb.stop is not None
    rows, prompts = climb.rows, climb.source.state()
    context.out.write_text("metrics.jsonl", jsonl(rows))
    context.out.write_json("stop.json", asdict(climb.stop))
    first, last = rows[: max(1, len(rows) // 10)], rows[-max(1, len(rows) // 10) :]
    context.commit(
        {
            "steps": len(rows),
            "updates": climb.update,
            "pass_rate_start": _mean(first, "pass_rate"),
            "pass_rate": _mean(last, "pass_rate"),
            "entropy": _mean(last, "entropy"),
            "mismatch": max((row["mismatch"] for row in rows), default=0.0),
            "sampled_tokens": sum(row["sampled_tokens"] for row in rows),
            "learned_tokens": sum(row["learned_tokens"] for row in rows),
            "prompts": sum(prompts["taken"].values()),
            "prompts_let_go": len(prompts["in_flight"]),
            "groups_left": len(climb.buffer.groups),
            "ungraded": _mean(rows, "ungraded"),
            **write_goodput(context, spans, even_steps=False),
        },
        {"stop": asdict(climb.stop), "alarms": alarms(rows, climb.config["stop"], climb.stop)},
    )


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows) if rows else 0.0


def _row(kept: Kept, update: int, climb: Climb) -> dict[str, Any]:
    rollout, parts, problem = kept.rollout, kept.parts, kept.rollout.problem
    assert rollout.ending is not None
    assert rollout.graded is not None
    drawn = np.concatenate(rollout.logprobs)[np.asarray(rollout.drawn, bool)]
    return {
        "update": update,
        "version": rollout.version,
        "specialist": problem.specialist,
        "problem_id": problem.id,
        "kind": problem.kind,
        "question": problem.question,
        "group": kept.group,
        "sample": kept.sample,
        "prompt": climb.sampler.tokenizer.decode(rollout.prompt),
        "response": climb.sampler.tokenizer.decode(rollout.tokens),
        "response_tokens": rollout.drawn_tokens,
        "reward": parts.total if parts else None,
        "task": parts.task if parts else None,
        "language": parts.language if parts else None,
        "length": parts.length if parts else None,
        "graded": parts is not None,
        "reason": rollout.graded.reason,
        "truncated": rollout.truncated,
        "status": kept.status,
        "canary": kept.canary,
        "judged": rollout.judged,
        "turns": rollout.turns,
        "logprob": float(drawn.mean()) if len(drawn) else 0.0,
    }
