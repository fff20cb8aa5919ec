"""`hillclimb plan`: what will be made, from what, and what it takes."""

from __future__ import annotations

from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from hillclimb.cli import words
from hillclimb.recipe.graph import stage_specs
from hillclimb.recipe.load import dump_recipe
from hillclimb.recipe.schema import Recipe
from hillclimb.scaling.ladder import ladder
from hillclimb.scaling.plan import ASSUMPTIONS, Plan, StagePlan

_COLUMNS = (
    "stage", "tokens", "FLOPs", "memory", "time × accel.", "parameters (active)",
    "weights (state)", "accel.-hours", "cost",
)  # fmt: skip
_WIDE = 150
_NARROW = (0, 1, 2, 3, 4)


def show(console: Console, plan: Plan, seed: int) -> None:
    """Print the resolved recipe, the graph and the estimates."""
    console.rule(f"recipe {plan.recipe.name}, seed {seed}")
    console.print(Syntax(dump_recipe(plan.recipe), "yaml", background_color="default"))
    console.rule("graph")
    console.print(graph(plan.recipe, seed))
    console.rule("plan")
    console.print(Group(_head(plan), estimates(plan, console.width), _foot(plan)))


def graph(recipe: Recipe, seed: int) -> Tree:
    """Every stage under its group, with what it is made from."""
    tree = Tree("every stage [dim]← what it is made from[/]")
    groups: dict[str, Tree] = {}
    for spec in stage_specs(recipe, seed).values():
        if spec.group not in groups:
            groups[spec.group] = tree.add(f"[bold]{spec.group}[/]")
        inputs = ", ".join(dict.fromkeys(spec.inputs.values()))
        groups[spec.group].add(f"{spec.name} [dim]← {inputs}[/]" if inputs else spec.name)
    return tree


def estimates(plan: Plan, width: int = 160) -> Table:
    """One row a stage, and the totals; narrow terminals do without the last columns' detail."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    totals = (
        "all stages", words.count(plan.tokens), words.flops(plan.flops), "", "", "",
        words.size(plan.storage), words.hours(plan.accelerator_hours), words.dollars(plan.usd),
    )  # fmt: skip
    shown = range(len(_COLUMNS)) if width >= _WIDE else _NARROW
    for index in shown:
        justify: Literal["left", "right"] = "right" if index else "left"
        table.add_column(
            _COLUMNS[index], totals[index], justify=justify, no_wrap=True, footer_style="bold"
        )
    misfits = {misfit.stage for misfit in plan.misfits}
    for stage in plan.stages:
        cells = _cells(stage)
        style = "red" if stage.name in misfits else None
        table.add_row(*(cells[index] for index in shown), style=style)
    return table


def ladder_table() -> Table:
    """The scaling ladder as the planner counts it (report §2.2 Table 1)."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="scaling ladder")
    heads = ("size", "active", "total", "layers", "width", "dense", "latent", "expert", "heads")
    for head in heads:
        table.add_column(head, justify="left" if head == "size" else "right")
    for rung in ladder():
        model, parameters = rung.model, rung.parameters
        sizes = (
            model.layers, model.hidden, model.dense_ffn, model.latent, model.expert_ffn,
            model.query_heads,
        )  # fmt: skip
        active, total = (f"{n / 1e9:,.2f}B" for n in (parameters.active, parameters.total))
        table.add_row(rung.name, active, total, *map(str, sizes))
    return table


def _cells(stage: StagePlan) -> tuple[str, ...]:
    parameters = ""
    if stage.parameters:
        total, active = stage.parameters.total, stage.parameters.active
        parameters = f"{words.count(total)} ({words.count(active)})"
    weights = ""
    if stage.checkpoint:
        weights = f"{words.size(stage.checkpoint)} ({words.size(stage.training_state)})"
    time = words.duration(stage.hours)
    return (
        stage.name,
        words.count(stage.tokens),
        words.flops(stage.flops),
        words.size(stage.memory.total),
        f"{time} × {stage.accelerators:,}" if stage.accelerators else time,
        parameters,
        weights,
        words.hours(stage.accelerator_hours),
        words.dollars(stage.usd),
    )


def _head(plan: Plan) -> RenderableType:
    total, active = plan.parameters.total, plan.parameters.active
    accelerator = plan.recipe.compute.accelerator
    return Text(
        f"{words.count(total)} parameters in all, {words.count(active)} active per token "
        f"({total:,} and {active:,}); on {accelerator.name}: {words.flops(accelerator.flops)} "
        f"FLOP/s at {accelerator.utilisation:.0%}, {accelerator.memory_gib:g} GiB\n"
    )


def _foot(plan: Plan) -> RenderableType:
    fullest = max(plan.stages, key=lambda stage: stage.memory.total)
    parts = {k: v for k, v in fullest.memory.parts().items() if v}
    detail = ", ".join(f"{name} {words.size(value)}" for name, value in parts.items())
    lines = [
        f"longest chain of stages: {words.duration(plan.chain_hours)}",
        f"fullest accelerator: {fullest.name}, {words.size(fullest.memory.total)} ({detail})",
        "estimates assume: " + "; ".join(ASSUMPTIONS),
    ]
    return Padding(Text("\n".join(lines), style="dim"), (1, 0, 0, 0))
