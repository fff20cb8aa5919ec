"""`hillclimb status`: every stage, and whether it is made."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from hillclimb.cli import words
from hillclimb.cli.experiments import Target
from hillclimb.cli.states import StageState, stage_states

_STYLE = {
    "made": "green",
    "running": "cyan",
    "partial": "yellow",
    "stale": "magenta",
    "missing": "dim",
}


def show(console: Console, target: Target) -> None:
    """Print one row a stage, and how many there are of each state."""
    states = stage_states(target.root, target.recipe, target.seed)
    console.print(table(states))
    counts = Counter(str(state.state) for state in states)
    said = ", ".join(f"{counts[name]} {name}" for name in _STYLE if counts[name])
    size = words.size(sum(state.bytes for state in states))
    seconds = sum(state.seconds for state in states)
    console.print(f"\n{said}; {size} in {words.duration(seconds / 3600)} under {target.root}")


def table(states: list[StageState]) -> Table:
    """The table of states."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("stage", "state", "size", "time", "goodput", "why"):
        view.add_column(head, justify="left" if head in ("stage", "state", "why") else "right")
    for state in states:
        colour = _STYLE[state.state]
        view.add_row(
            state.name,
            f"[{colour}]{state.state}[/]",
            words.size(state.bytes),
            words.duration(state.seconds / 3600),
            "" if state.goodput is None else f"{state.goodput:.0%}",
            state.why,
        )
    return view
