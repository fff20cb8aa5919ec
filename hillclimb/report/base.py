"""Base training: three chained phases, held-out loss by category, router balance."""

from __future__ import annotations

from typing import Any

from hillclimb.recipe.graph import PHASES
from hillclimb.report.charts import draw
from hillclimb.report.experiment import Experiment, Row, column, number
from hillclimb.report.figure import Chart, Mark, Panel, Series
from hillclimb.report.markup import (
    MISSING,
    Markup,
    count,
    decimal,
    duration,
    fold,
    join,
    note,
    pending,
    percent,
    si,
    stage_link,
    table,
)

NAMES = tuple(f"mai_base_{phase}" for phase in PHASES)


def row_tokens(rows: list[Row]) -> list[float]:
    """Tokens of the phase up to and including each row."""
    return [float(row["tokens"]) for row in rows]


def trained_tokens(experiment: Experiment, name: str) -> float:
    """Tokens that a phase trained on."""
    return (row_tokens(experiment.rows(name)) or [0.0])[-1]


def section(experiment: Experiment) -> Markup:
    """Losses and what stands beside them."""
    missing = [name for name in NAMES if name not in experiment.made]
    waiting = pending(missing) if missing else Markup("")
    if len(missing) == len(NAMES):
        return waiting
    phases = [(name, experiment.rows(name)) for name in NAMES if name in experiment.made]
    spikes = {name: experiment.json(name, "spikes.json") or [] for name, _ in phases}
    charts = join(draw(chart) for chart in _charts(phases, spikes))
    return Markup('{}{}<div class="grid2">{}</div>{}{}{}{}').format(
        waiting,
        _phases(experiment, phases),
        charts,
        _held_out(experiment),
        _positions(experiment),
        _spikes(spikes),
        _memorised(experiment),
    )


def _phases(experiment: Experiment, phases: list[tuple[str, list[Row]]]) -> Markup:
    rows = []
    for name, steps in phases:
        config = experiment.specs[name].config
        losses = [loss for loss in column(steps, "loss") if loss is not None]
        run = experiment.made[name].manifest.run
        rows.append(
            [
                stage_link(name),
                count(config["phase"]["sequence_length"]),
                count(len(steps)),
                si(trained_tokens(experiment, name)),
                decimal(losses[0] if losses else None),
                decimal(losses[-1] if losses else None),
                f"{config['phase']['schedule']['peak']:g}",
                duration(run.get("seconds")),
            ]
        )
    heads = ["phase", "sequence", "steps", "tokens", "first loss", "last loss", "peak rate",
             "time"]  # fmt: skip
    return table(heads, rows, "The three phases")


def _charts(phases: list[tuple[str, list[Row]]], spikes: dict[str, Any]) -> list[Chart]:
    axes, start, marks = [], 0.0, []
    for name, rows in phases:
        axes.append([start + tokens for tokens in row_tokens(rows)])
        if start:
            marks.append(Mark(start, name.removeprefix("mai_base_").upper()))
        start = axes[-1][-1] if axes[-1] else start

    def line(key: str, name: str, tone: int) -> Series:
        xs = [x for axis in axes for x in axis]
        return Series(name, xs, [y for _, rows in phases for y in column(rows, key)], tone)

    def chart(title: str, panels: list[Panel], caption: str = "", wide: bool = False) -> Chart:
        return Chart(title, panels, "tokens", marks, caption=caption, wide=wide, x_name="tokens")

    loss = [line("loss", "training loss", 1), _spike_dots(phases, axes, spikes)]
    return [
        chart("Training loss", [Panel("nats a token", loss)],
              "Dots are spikes: a loss over the recipe's multiple of its running mean. "
              "No batch is skipped.", wide=True),
        chart("Router balance",
              [Panel("largest expert's share", [line("router_max_share", "largest share", 1)],
                     "share", low=0),
               Panel("nats", [line("router_entropy", "router entropy", 5)], short=True)]),
        chart("Balance loss and gradient norm",
              [Panel("loss", [line("balance_loss", "balance loss", 1)]),
               Panel("norm", [line("grad_norm", "gradient norm", 5)], low=0, short=True)]),
        chart("Learning rate", [Panel("rate", [line("learning_rate", "learning rate", 1)], low=0)]),
        chart("Speed", [Panel("tokens a second", [line("tokens_per_second", "tokens/s", 1)],
                              "count", low=0)]),
    ]  # fmt: skip


def _spike_dots(
    phases: list[tuple[str, list[Row]]], axes: list[list[float]], spikes: dict[str, Any]
) -> Series:
    xs: list[float] = []
    ys: list[float | None] = []
    for (name, rows), axis in zip(phases, axes, strict=True):
        at = {row["step"]: x for row, x in zip(rows, axis, strict=True)}
        for spike in spikes[name]:
            if spike["step"] in at:
                xs.append(at[spike["step"]])
                ys.append(number(spike, "loss"))
    return Series("spikes", xs, ys, 2, "dots")


def _held_out(experiment: Experiment) -> Markup:
    found = {
        name: experiment.json(name, "held_out.json") or {}
        for name in NAMES
        if name in experiment.made
    }
    categories = sorted({category for held in found.values() for category in held})
    if not categories:
        return Markup("")
    heads = ["category", "tokens"]
    for name in found:
        phase = name.removeprefix("mai_base_").upper()
        heads += [f"NLL {phase}", f"BPB {phase}"]
    rows = []
    for category in categories:
        sizes = [held[category].get("tokens") for held in found.values() if category in held]
        row: list[Markup | str] = [category, count(sizes[-1] if sizes else None)]
        for held in found.values():
            entry = held.get(category, {})
            row += [decimal(entry.get("nll")), decimal(entry.get("bpb"))]
        rows.append(row)
    return Markup("<h3>Held-out text</h3>{}{}").format(
        table(heads, rows, "Held-out NLL (nats a token) and bits per byte after each phase"),
        note("Bits per byte compare across tokenizers; NLL does not."),
    )


def _positions(experiment: Experiment) -> Markup:
    """What a longer context is worth: NLL of late positions against that of early ones."""
    found = {
        name: {row["end"]: row for row in experiment.json(name, "positions.json") or []}
        for name in NAMES
        if name in experiment.made
    }
    starts = {row["end"]: row["start"] for rows in found.values() for row in rows.values()}
    if not starts:
        return Markup("")
    rows = [
        [f"{count(starts[end])} to {count(end)}",
         *(decimal(rows.get(end, {}).get("nll")) for rows in found.values())]
        for end in sorted(starts)
    ]  # fmt: skip
    heads = ["position", *(name.removeprefix("mai_base_").upper() for name in found)]
    return Markup("<h3>NLL by position</h3>{}{}").format(
        table(heads, rows, "Held-out NLL (nats a token) by position in the document"),
        note("Of documents that fill more than half of the longest position shown."),
    )


def _spikes(spikes: dict[str, Any]) -> Markup:
    rows = [
        [
            stage_link(name),
            count(spike.get("step")),
            decimal(spike.get("loss")),
            decimal(spike.get("mean")),
            _sources(spike["sources"]),
        ]
        for name, found in spikes.items()
        for spike in found[:200]
    ]
    if not rows:
        return note("No loss spikes.")
    heads = ["phase", "step", "loss", "running mean", "sources, by rise in loss"]
    total = sum(len(found) for found in spikes.values())
    return fold(f"Loss spikes and their data: {total}", table(heads, rows, "Loss spikes"))


def _sources(sources: dict[str, float]) -> str:
    ranked = sorted(sources.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {rise:+.2f}" for name, rise in ranked) or MISSING


def _memorised(experiment: Experiment) -> Markup:
    found = {
        name: experiment.json(name, "memorisation.json") or {}
        for name in NAMES
        if name in experiment.made
    }
    names = sorted({source for shares in found.values() for source in shares})
    if not names:
        return Markup("")
    rows = [[source, *(percent(shares.get(source)) for shares in found.values())]
            for source in names]  # fmt: skip
    heads = ["source", *(name.removeprefix("mai_base_").upper() for name in found)]
    return fold("Memorised tokens by source", table(heads, rows, "Share of memorised tokens"))
