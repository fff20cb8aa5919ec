"""One model from three specialists: their traces, or their opinion of its own rollouts."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from hillclimb.distillation.on_policy import OnPolicyDistiller, Teacher
from hillclimb.environments.sandbox import provider_for
from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.rl.rollouts import Sampler
from hillclimb.rollout.opening import open_engine
from hillclimb.stages.account import write_goodput
from hillclimb.stages.context import Context, one_rank
from hillclimb.stages.distil import fine_tune
from hillclimb.stages.models import load_model, save_model
from hillclimb.stages.problems import read_problems
from hillclimb.stages.tables import jsonl, read_rows
from hillclimb.training import runtime
from hillclimb.training.learner import Learner


def make_consolidation(context: Context) -> None:
    """From the fresh mid-trained checkpoint, as the recipe says."""
    if "on_policy" in context.config:
        _on_policy(context)
    else:
        _on_traces(context)


def _on_traces(context: Context) -> None:
    """Fine-tune on all traces, by share of samples."""
    total, shares = context.config["traces"], context.config["shares"]
    weight = sum(shares[name] for name in SPECIALISTS)
    picked: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for name in SPECIALISTS:
        traces = read_rows(context.input(name), "traces.parquet")
        wanted = round(total * shares[name] / weight)
        counts[name] = min(wanted, len(traces))
        if len(traces) < wanted:
            context.reporter.log(f"{name} has {len(traces)} traces, {wanted} were asked for")
        picked += traces[:wanted]
    fine_tune(context, picked, context.config["sft"], counts)


def _on_policy(context: Context) -> None:
    """Distil the specialists' last climbs into it; it keeps its own template."""
    one_rank(context)
    sandboxes = provider_for()
    sandboxes.check()
    runtime.start(context.request.threads)
    config, shares = context.config["on_policy"], context.config["shares"]
    model, tokenizer, template = load_model(context.input("checkpoint"))
    teachers, problems = {}, {}
    for name in (name for name in SPECIALISTS if shares[name]):
        teacher, _, prompted = load_model(context.input(f"{name}_teacher"))
        teachers[name] = Teacher(teacher.to(runtime.device()), prompted)  # type: ignore[arg-type]
        problems[name] = read_problems(context, f"{name}_problems", "train")
    learner = Learner(model, config["optimizer"], 2, config["balance_coefficient"])
    start, threads = context.input("checkpoint"), context.request.threads
    with closing(open_engine(start, model, False, threads, context.reporter.log)) as engine:
        sampler = Sampler(engine, tokenizer, template, sandboxes)
        distiller = OnPolicyDistiller(
            learner, sampler, teachers, problems, shares, config, context.seed
        )
        for row in distiller.run(context.out):
            context.reporter.progress(row["step"], config["steps"], f"KL {row['loss']:.3f}")
            context.reporter.metrics(row, int(row["step"]))
    with distiller.spans.span("finish"):
        save_model(context.out, model, tokenizer, template)
    context.out.write_text("metrics.jsonl", jsonl(distiller.rows))
    context.commit(
        {
            "loss": distiller.rows[-1]["loss"],
            "steps": len(distiller.rows),
            "tokens": sum(row["learned_tokens"] for row in distiller.rows),
            "mismatch": max(row["mismatch"] for row in distiller.rows),
            **write_goodput(context, distiller.spans, even_steps=False),
        },
        {"prompts": distiller.queue.taken},
    )
    runtime.stop()
