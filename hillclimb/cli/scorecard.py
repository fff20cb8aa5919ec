"""`hillclimb scorecard`: held-out scores of every checkpoint."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from hillclimb.artifacts import Artifact, Store
from hillclimb.cli.experiments import Target
from hillclimb.cli.failures import Exit, Failure
from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.recipe.graph import identify, stage_specs

Scores = dict[str, dict[str, dict[str, Any]]]


def show(console: Console, target: Target, as_json: bool) -> None:
    """Print the scorecard, as a table or as JSON."""
    scores: Scores = made(target, "scorecard").json("scorecard.json")
    if as_json:
        print(json.dumps(scores, indent=1, sort_keys=True))
        return
    console.print(table(scores, list(stage_specs(target.recipe, target.seed))))


def made(target: Target, name: str) -> Artifact:
    """The artifact that an experiment has under `name`.

    Raises:
        Failure: if there is no such stage or it is not made.
    """
    specs = stage_specs(target.recipe, target.seed)
    if name not in specs:
        raise Failure(f"there is no asset {name}; there are {', '.join(specs)}", Exit.USAGE)
    artifact = Store(target.root).find(name, identify(specs)[name])
    if artifact is None:
        raise Failure(
            f"{name} of {target.experiment} is not made under {target.root}; "
            "`hillclimb climb` makes it, `hillclimb status` shows how far it is",
            Exit.WRONG,
        )
    return artifact


def table(scores: Scores, order: list[str]) -> Table:
    """Base, specialists, final: pass@1 sampled and greedy for every domain.

    Models come in the graph's order; a specialist's own domain is bold.
    """
    domains = [name for name in SPECIALISTS if any(name in row for row in scores.values())]
    view = Table(box=None, pad_edge=False, header_style="bold", title="held-out pass@1")
    view.add_column("model")
    for domain in domains:
        view.add_column(f"{domain}\nsampled / greedy", justify="right")
    for model in sorted(scores, key=lambda name: order.index(name) if name in order else -1):
        row = scores[model]
        cells = []
        for domain in domains:
            score = row.get(domain)
            text = f"{score['pass_at_1']:.3f} / {score['greedy']:.3f}" if score else "–"
            cells.append(f"[bold]{text}[/]" if model.startswith(f"{domain}/") else text)
        view.add_row(model, *cells)
    counts = sorted({score["n"] for row in scores.values() for score in row.values()})
    view.caption = f"{' or '.join(map(str, counts))} problems a domain, unseen in training"
    return view
