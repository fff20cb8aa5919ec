"""What every stage cost: seconds, tokens, hours of processors or accelerators, goodput."""

from __future__ import annotations

from dataclasses import dataclass

from hillclimb.artifacts import Artifact
from hillclimb.report import goodput
from hillclimb.report.experiment import Experiment
from hillclimb.report.markup import (
    MISSING,
    Markup,
    decimal,
    duration,
    join,
    note,
    pending,
    percent,
    si,
    stage_link,
    table,
)


@dataclass(frozen=True)
class Cost:
    """One made stage's bill. `hours` are of CPU cores, or of accelerators where `accelerated`."""

    name: str
    seconds: float
    tokens: float
    hours: float
    accelerated: bool


def read_costs(experiment: Experiment) -> list[Cost]:
    """The bill of every stage that is made, in the graph's order."""
    compute, out = experiment.recipe.compute, []
    on_cpu = compute.accelerator.name == "cpu-core"
    for name, artifact in experiment.made.items():
        run, spec = artifact.manifest.run, experiment.specs[name]
        seconds = float(run.get("seconds") or 0.0)
        ranks = int(run.get("ranks") or 1)
        accelerated = spec.gpu and not on_cpu
        workers = ranks if accelerated else ranks * compute.threads
        if accelerated and spec.kind == "climb":
            workers += compute.climb_rollout_accelerators
        out.append(Cost(name, seconds, _tokens(artifact), seconds * workers / 3600, accelerated))
    return out


def _tokens(artifact: Artifact) -> float:
    metrics = artifact.manifest.metrics
    if artifact.manifest.kind == "climb":
        return metrics["sampled_tokens"] + metrics["learned_tokens"]
    trained = artifact.manifest.kind in ("base_phase", "student", "consolidation")
    return metrics["tokens"] if trained else 0.0


def section(experiment: Experiment) -> Markup:
    """The table, longest bars, the sums, and how well training used its time."""
    costs = read_costs(experiment)
    if not costs:
        return pending(experiment.specs)
    total = sum(cost.seconds for cost in costs) or 1.0
    longest = max(cost.seconds for cost in costs) or 1.0
    rows = [
        [
            stage_link(cost.name),
            _bar(cost.seconds / longest),
            duration(cost.seconds),
            percent(cost.seconds / total),
            si(cost.tokens) if cost.tokens else MISSING,
            decimal(cost.hours, 3),
        ]
        for cost in costs
    ]
    heads = ["stage", "", "time", "share", "tokens", "hours"]
    return Markup("{}{}{}").format(
        _sums(experiment, costs), table(heads, rows, "Cost by stage"), goodput.section(experiment)
    )


def _bar(share: float) -> Markup:
    return Markup('<span class="meter long" aria-hidden="true"><i style="width:{}%"></i></span>'
                  ).format(round(share * 100, 1))  # fmt: skip


def _sums(experiment: Experiment, costs: list[Cost]) -> Markup:
    cpu = sum(cost.hours for cost in costs if not cost.accelerated)
    accelerated = sum(cost.hours for cost in costs if cost.accelerated)
    compute = experiment.recipe.compute
    facts = [
        ("stages, one after another", duration(sum(cost.seconds for cost in costs))),
        ("CPU-core hours", decimal(cpu, 2)),
    ]
    if accelerated:
        facts.append((f"{compute.accelerator.name} hours", decimal(accelerated, 1)))
        if compute.usd_per_hour:
            facts.append(("price", f"${accelerated * compute.usd_per_hour:,.0f}"))
    facts.append(("tokens trained, sampled and learned", si(sum(cost.tokens for cost in costs))))
    body = join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*fact) for fact in facts)
    return Markup('<dl class="facts">{}</dl>{}').format(
        body,
        note(
            "Time is the wall clock of the process that made the artifact; hours multiply it by "
            "its ranks and threads. Tokens of a climb are those sampled and those learned."
        ),
    )
