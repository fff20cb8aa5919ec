"""Traces from a climb, and fine-tuning on traces."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from hillclimb.distillation.sft import FineTuner, Trace, tokenise_trace
from hillclimb.distillation.traces import TraceFilter, select_traces
from hillclimb.stages.account import write_goodput
from hillclimb.stages.context import Context, one_rank
from hillclimb.stages.models import load_model, save_model
from hillclimb.stages.tables import jsonl, read_rows, write_table
from hillclimb.training import runtime
from hillclimb.training.learner import Learner

COLUMNS = [
    "update", "problem_id", "specialist", "kind", "question", "response", "task", "graded",
    "truncated", "canary", "version",
]  # fmt: skip
TRACES = pa.schema(
    [(name, pa.string()) for name in ("problem_id", "specialist", "kind", "question", "response")]
    + [("version", pa.int64())]
)


def make_traces(context: Context) -> None:
    """Pick traces from the climb's own rollouts."""
    config = context.config
    rows = read_rows(context.input("climb"), "rollouts/part-*.parquet", COLUMNS)
    keep = TraceFilter(config["max_language_switches"], config["max_repeat"])
    traces, refused = select_traces(
        rows,
        keep,
        config["traces"],
        config["per_prompt"],
        config["late_share"],
        context.seed,
        config["accept"],
    )
    if not traces:
        raise ValueError(
            f"{context.request.inputs['climb'].name} left no rollout to learn from: {refused}. "
            "Let it climb longer or widen traces.late_share"
        )
    write_table(context.out, "traces.parquet", traces, TRACES)
    selection: dict[str, Any] = {
        "rollouts": len(rows),
        "kept": len(traces),
        "prompts": len({row["problem_id"] for row in traces}),
        "checkpoints": len({row["version"] for row in traces}),
        "refused": refused,
    }
    context.out.write_json("selection.json", selection)
    numbers = {k: float(v) for k, v in selection.items() if isinstance(v, int)}
    context.commit(numbers, selection)


def make_student(context: Context) -> None:
    """Fine-tune the fresh mid-trained checkpoint on one specialist's traces."""
    traces = read_rows(context.input("traces"), "traces.parquet")
    fine_tune(context, traces, context.config, {"traces": len(traces)})


def fine_tune(
    context: Context, rows: list[dict[str, Any]], config: dict[str, Any], counts: dict[str, int]
) -> None:
    """Fine-tune the checkpoint on rows of traces, and commit it; `counts` go to the summary."""
    one_rank(context)
    runtime.start(context.request.threads)
    model, tokenizer, _ = load_model(context.input("checkpoint"), config["dropout"])
    traces = [tokenise_trace(row["question"], row["response"], "chat", tokenizer) for row in rows]
    short = [trace for trace in traces if len(trace.tokens) <= config["sequence_length"]]
    learner = Learner(model, config["optimizer"], 2, config["balance_coefficient"])
    tuner = FineTuner(learner, short, config, context.seed)
    for row in tuner.run(context.out):
        context.reporter.progress(row["step"], tuner.steps, f"loss {row['loss']:.3f}")
        context.reporter.metrics(row, int(row["step"]))
    with tuner.spans.span("finish"):
        save_model(context.out, model, tokenizer, "chat")
    context.out.write_text("metrics.jsonl", jsonl(tuner.rows))
    context.commit(
        {
            "loss": tuner.rows[-1]["loss"],
            "steps": len(tuner.rows),
            "traces": len(short),
            "tokens": _tokens(short) * config["epochs"],
            **write_goodput(context, tuner.spans, even_steps=False),
        },
        {"traces": counts, "too_long": len(traces) - len(short)},
    )
    runtime.stop()


def _tokens(traces: list[Trace]) -> int:
    return sum(len(trace.tokens) for trace in traces)
