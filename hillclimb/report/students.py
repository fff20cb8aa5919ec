"""Between the climbs: the traces that were picked, and the students that learned from them."""

from __future__ import annotations

from typing import Any

from hillclimb.report.experiment import Experiment, column
from hillclimb.report.figure import Chart, Panel, Series
from hillclimb.report.markup import Markup, count, decimal, si, stage_link, table


def names(experiment: Experiment, group: str) -> list[str]:
    """The made students of a specialist; of `final`, the consolidated model."""
    kinds = ("student", "consolidation")
    return [
        name
        for name in experiment.made
        if experiment.specs[name].group == group and experiment.specs[name].kind in kinds
    ]


def chart(experiment: Experiment, group: str, tone: int) -> list[Chart]:
    """Fine-tuning loss of every student; none where there is no student."""
    series = []
    for index, name in enumerate(names(experiment, group)):
        rows = experiment.rows(name)
        label = name.removeprefix(f"{group}/").replace("_", " ")
        xs = [float(row["step"]) for row in rows]
        series.append(Series(label, xs, column(rows, "loss"), tone if not index else 4 + index % 5))
    if not series:
        return []
    return [Chart("Fine-tuning on traces", [Panel("nats a token", series)], "SFT steps")]


def tables(experiment: Experiment, group: str) -> Markup:
    """Which traces were picked, and what the students made of them."""
    return _traces(experiment, group) + _students(experiment, group)


def _traces(experiment: Experiment, group: str) -> Markup:
    rows = []
    for name in experiment.of_kind("traces"):
        if experiment.specs[name].group == group and name in experiment.made:
            found: dict[str, Any] = experiment.json(name, "selection.json") or {}
            keys = ("rollouts", "kept", "prompts", "checkpoints")
            refused = found.get("refused", {})
            rows.append(
                [
                    stage_link(name),
                    *(count(found.get(key)) for key in keys),
                    ", ".join(f"{why} {n:,}" for why, n in sorted(refused.items())) or "none",
                ]
            )
    if not rows:
        return Markup("")
    heads = ["traces", "of rollouts", "kept", "prompts", "checkpoints", "refused"]
    return table(heads, rows, "Traces picked for self-distillation")


def _students(experiment: Experiment, group: str) -> Markup:
    rows = []
    for name in names(experiment, group):
        losses = [loss for loss in column(experiment.rows(name), "loss") if loss is not None]
        metrics = experiment.made[name].manifest.metrics
        ends = (losses[0], losses[-1]) if losses else (None, None)
        tokens = si(metrics.get("tokens"))
        rows.append([stage_link(name), count(metrics.get("traces")), tokens, *map(decimal, ends)])
    heads = ["student", "traces", "tokens", "first loss", "last loss"]
    return table(heads, rows, "Students") if rows else Markup("")
