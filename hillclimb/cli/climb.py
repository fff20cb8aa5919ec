"""`hillclimb climb`: check the machine, make what is missing, show how it goes and how it went."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hillclimb.artifacts import Store
from hillclimb.cli import scorecard, words
from hillclimb.cli.board import Board
from hillclimb.cli.experiments import local_root, require_local
from hillclimb.cli.failures import Exit, Failure
from hillclimb.cli.options import ROOT
from hillclimb.cli.preflight import preflight
from hillclimb.experiments import Experiment, names
from hillclimb.recipe.graph import upstream
from hillclimb.resources.launching import on_cluster
from hillclimb.runner import Summary, climb
from hillclimb.scaling.plan import plan_recipe


def make(
    console: Console,
    root: str,
    recipe: str,
    seed: int,
    select: Sequence[str] | None,
    label: str | None,
    overrides: Sequence[str],
) -> None:
    """Climb.

    Raises:
        RecipeError, PlanError: before anything starts.
        Failure: if the machine lacks something, a stage failed or the climb was stopped.
    """
    experiment = choose(root, recipe, seed, label, overrides)
    folder = require_local(root, "climb")
    plan = experiment.plan()
    wanted = upstream(plan.specs, _selected(select, list(plan.specs)))
    preflight(root, plan_recipe(plan.recipe, experiment.seed), console.print)
    summary = _run(console, folder, experiment, select, len(wanted))
    made, skipped = len(summary.made), len(summary.skipped)
    took = words.duration(summary.seconds / 3600)
    console.print(f"\n{experiment.name}: {made} made, {skipped} made before, in {took}")
    if summary.tracking is not None:
        console.print(f"[dim]{summary.tracking.sentence}[/]", soft_wrap=True)
    if summary.cancelled:
        raise KeyboardInterrupt
    if not summary.complete:
        raise Failure(_unfinished(summary.failed, summary.blocked, folder), Exit.WRONG)
    _show_result(console, root, experiment)


def register(
    console: Console,
    root: str,
    recipe: str,
    seed: int,
    label: str | None,
    overrides: Sequence[str],
) -> None:
    """Write the experiment down and print its name.

    Raises:
        RecipeError: if the recipe or an override is wrong.
        Failure: for a remote root, or overrides without a name.
    """
    folder = require_local(root, "register")
    experiment = choose(root, recipe, seed, label, overrides)
    experiment.save(folder)
    console.print(experiment.name, markup=False)


def choose(
    root: str, recipe: str, seed: int, label: str | None, overrides: Sequence[str]
) -> Experiment:
    """The experiment that the options mean.

    Raises:
        Failure: for overrides without a name, or on top of an experiment that has a name.
    """
    local = local_root(root)
    if local and recipe in names(local):
        if label or overrides:
            raise Failure(
                f"{recipe} is an experiment, its overrides are settled; start a new one from "
                "its recipe with --experiment NAME --set …",
                Exit.USAGE,
            )
        return Experiment.load(local, recipe)
    if overrides and label is None:
        raise Failure(
            "--set makes another experiment: name it with --experiment, such as "
            "--experiment no-length-penalty",
            Exit.USAGE,
        )
    try:
        return Experiment.make(recipe, seed, label, tuple(overrides))
    except ValueError as error:
        raise Failure(str(error), Exit.USAGE) from error


def _selected(select: Sequence[str] | None, known: list[str]) -> list[str]:
    unknown = [name for name in select or () if name not in known]
    if unknown:
        raise Failure(
            f"there is no stage {', '.join(unknown)}; there are {', '.join(known)}", Exit.USAGE
        )
    return list(select or known)


def _run(
    console: Console,
    root: Path,
    experiment: Experiment,
    select: Sequence[str] | None,
    total: int,
) -> Summary:
    """Climb; what Dagster logs goes to `climb.log` under the root."""
    root.mkdir(parents=True, exist_ok=True)
    with (
        (root / "climb.log").open("a") as log,
        contextlib.redirect_stderr(log),
        Board(console, total) as board,
    ):
        return climb(root, experiment, select=select, on_event=board.show)


def _unfinished(failed: dict[str, str], blocked: dict[str, str], root: Path) -> str:
    lines = [f"{name} failed: {reason}" for name, reason in failed.items()]
    lines += [f"{name} was not made: {reason}" for name, reason in blocked.items()]
    if not on_cluster():
        lines.append(f"logs are under {root}/runs/STAGE/*/attempt-*/log.txt")
    return "\n".join([*lines, "`hillclimb climb` goes on from here"])


def _show_result(console: Console, root: str, experiment: Experiment) -> None:
    """The scorecard, if it is made, and where to look next."""
    plan = experiment.plan()
    found = Store(root).find("scorecard", plan.fingerprints["scorecard"])
    where = "" if root == ROOT else f" --root {root}"
    which = f" --recipe {experiment.name}"
    if found is None:
        console.print(f"what is left: hillclimb status{where}{which}", soft_wrap=True)
        return
    console.print()
    console.print(scorecard.table(found.json("scorecard.json"), list(plan.specs)))
    console.print(
        f"\nlook at it:  hillclimb ui{where}\n"
        f"             hillclimb report{where}{which}\n"
        f"             hillclimb chat mai_thinking{where}{which}\n"
        f"             hillclimb lineage mai_thinking{where}{which}",
        soft_wrap=True,
    )
