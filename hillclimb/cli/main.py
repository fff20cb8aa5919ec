"""The command line: `hillclimb COMMAND`. Everything heavy is imported when it is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from hillclimb.cli.failures import EXIT_CODES, explain
from hillclimb.cli.options import RECIPE, ROOT, SEED, AsJson, RecipeName, Root, Seed, Sets

out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False)


class _Guarded(TyperGroup):
    """Turns every error into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; `--debug` lets errors through as they are."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Exception) as error:
            if type(error).__module__.startswith(("typer", "click")) or ctx.params.get("debug"):
                raise
            message, code = explain(error)
            err.print(message, style="red", markup=False, soft_wrap=True)
            raise typer.Exit(code) from None


app = typer.Typer(
    cls=_Guarded,
    name="hillclimb",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
)


@app.callback()
def hillclimb(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """From raw documents to a reasoning model: every stage is an artifact that can be looked at,
    made again and traced to the bytes that it came from.

    [bold]hillclimb plan[/]       what the toy recipe will make and what it takes
    [bold]hillclimb climb[/]      make it; a second call skips what is made
    [bold]hillclimb scorecard[/]  held-out scores, from the base to the final model
    """


@app.command()
def plan(
    root: Root = ROOT,
    recipe: RecipeName = RECIPE,
    seed: Seed = SEED,
    sets: Sets = None,
    ladder: Annotated[bool, typer.Option("--ladder", help="Print the scaling ladder.")] = False,
    kubernetes: Annotated[
        bool,
        typer.Option(
            "--kubernetes",
            help="Print the manifest of every stage as YAML; what they ask for goes to stderr.",
        ),
    ] = False,
) -> None:
    """Show the resolved recipe, the graph, and what every stage takes.

    Nothing is made. A recipe whose stages do not fit the memory of its accelerators is refused,
    with the field to change. With --kubernetes, so is one whose stages the recipe's cluster could
    never run.

    [dim]$[/] hillclimb plan --recipe mai-thinking-1
    [dim]$[/] hillclimb plan --set model.layers=12 --set base.phase_16k.tokens=20e6
    [dim]$[/] hillclimb plan --ladder
    [dim]$[/] hillclimb plan --recipe mai-thinking-1 --kubernetes > manifests.yaml
    """
    from hillclimb.cli import plan as view
    from hillclimb.cli.experiments import resolve
    from hillclimb.scaling.plan import plan_recipe

    if ladder:
        out.print(view.ladder_table())
        return
    target = resolve(root, recipe, seed, sets or ())
    planned = plan_recipe(target.recipe, target.seed)
    if kubernetes:
        from hillclimb.cli import plan_kubernetes

        plan_kubernetes.show(err, planned, target)
        return
    view.show(out, planned, target.seed)
    planned.require_fit()


@app.command()
def climb(
    root: Root = ROOT,
    recipe: RecipeName = RECIPE,
    seed: Seed = SEED,
    select: Annotated[
        list[str] | None,
        typer.Option(
            "--select",
            metavar="STAGE",
            help="Make this stage and what it is made from, nothing else; repeatable.",
        ),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", metavar="NAME", help="Name a changed recipe."),
    ] = None,
    sets: Sets = None,
) -> None:
    """Make the whole machine: every stage that is missing, in order, with progress bars.

    What is made is skipped, also what another experiment made with the same settings. Ctrl-C
    stops; the same command goes on from the last checkpoints. The sandbox, the disk and the
    recipe are checked before anything starts.

    [dim]$[/] hillclimb climb
    [dim]$[/] hillclimb climb --recipe smoke --seed 1
    [dim]$[/] hillclimb climb --select mai_base_256k
    [dim]$[/] hillclimb climb --experiment more-tokens --set base.phase_16k.tokens=6000000
    """
    from hillclimb.cli import climb as view

    view.make(out, root, recipe, seed, select, experiment, sets or ())


@app.command()
def register(
    root: Root = ROOT,
    recipe: RecipeName = RECIPE,
    seed: Seed = SEED,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", metavar="NAME", help="Name a changed recipe."),
    ] = None,
    sets: Sets = None,
) -> None:
    """Write an experiment down, for Dagster to show and launch as a partition; nothing is made.

    Prints its name. A recipe file must stay where it is, and be there for Dagster too.

    [dim]$[/] hillclimb register --recipe toy --seed 1
    [dim]$[/] hillclimb register --experiment cluster --set "compute.kubernetes=$(cat cluster.yaml)"
    """
    from hillclimb.cli import climb as view

    view.register(out, root, recipe, seed, experiment, sets or ())


@app.command()
def status(root: Root = ROOT, recipe: RecipeName = RECIPE, seed: Seed = SEED) -> None:
    """Show which stages are made, running, begun, out of date (and why) or missing.

    [dim]$[/] hillclimb status
    [dim]$[/] hillclimb status --recipe my-recipe.yaml --seed 1
    """
    from hillclimb.cli import status as view
    from hillclimb.cli.experiments import resolve

    view.show(out, resolve(root, recipe, seed))


@app.command()
def scorecard(
    root: Root = ROOT, recipe: RecipeName = RECIPE, seed: Seed = SEED, json: AsJson = False
) -> None:
    """Show held-out scores of every checkpoint, sampled and greedy.

    [dim]$[/] hillclimb scorecard
    [dim]$[/] hillclimb scorecard --json | jq '.mai_thinking.stem.pass_at_1'
    """
    from hillclimb.cli import scorecard as view
    from hillclimb.cli.experiments import resolve

    view.show(out, resolve(root, recipe, seed), json)


@app.command()
def lineage(
    asset: Annotated[str, typer.Argument(metavar="ASSET", help="Such as mai_thinking.")],
    root: Root = ROOT,
    recipe: RecipeName = RECIPE,
    seed: Seed = SEED,
    json: AsJson = False,
) -> None:
    """Walk from an asset back to the documents, through MLflow alone.

    [dim]$[/] hillclimb lineage mai_thinking
    [dim]$[/] hillclimb lineage stem/round_1/climb --json
    """
    from hillclimb.cli import lineage as view
    from hillclimb.cli.experiments import resolve

    view.show(out, resolve(root, recipe, seed), asset, json)


@app.command()
def report(
    root: Root = ROOT,
    recipe: RecipeName = RECIPE,
    seed: Seed = SEED,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Default: report-EXPERIMENT.html."),
    ] = None,
) -> None:
    """Write one HTML file with curves, scores, the corpus, costs and every kept rollout.

    It opens without a network, and shows what is made so far while a climb is going on.

    [dim]$[/] hillclimb report
    [dim]$[/] hillclimb report --seed 1 --output seed1.html
    """
    from hillclimb.cli.experiments import resolve
    from hillclimb.report import build_report

    target = resolve(root, recipe, seed)
    output = output or Path(f"report-{target.experiment}.html")
    written = build_report(root, target.recipe, target.seed, output)
    out.print(str(written.resolve()), markup=False, soft_wrap=True)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An asset, or a folder.")],
    root: Root = ROOT,
    recipe: RecipeName = RECIPE,
    seed: Seed = SEED,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Ask once and leave.")
    ] = None,
) -> None:
    """Talk to a checkpoint. It answers in the format it was trained on; an empty line leaves.

    MODEL is an asset of the recipe, such as mai_thinking or stem/round_0/climb, or a folder with
    a model in Hugging Face form.

    [dim]$[/] hillclimb chat mai_thinking
    [dim]$[/] hillclimb chat stem/round_1/climb --prompt "17 + 25 = ?"
    """
    from hillclimb.cli import chat as view
    from hillclimb.cli.experiments import resolve

    view.talk(out, resolve(root, recipe, seed), model, prompt)


@app.command()
def verify(root: Root = ROOT, recipe: RecipeName = RECIPE, seed: Seed = SEED) -> None:
    """Hash every artifact under the root again and name the files that are not what was written.

    All experiments are checked, whatever the recipe and the seed. Exit code 1 if one is damaged.

    [dim]$[/] hillclimb verify --root .hillclimb
    """
    from hillclimb.cli import verify as view

    view.show(out, root)


@app.command()
def live(
    root: Root = ROOT,
    recipe: RecipeName = RECIPE,
    seed: Seed = SEED,
    port: Annotated[int, typer.Option("--port", help="Of the page; 0 for any.")] = 3100,
) -> None:
    """Serve a page on loopback that shows a climb while it runs, until Ctrl-C.

    Throughput, waiting, ages, curves, alarms and the latest rollouts with what learner and engine
    say of each token. It reads files alone and changes nothing, so it can be started, closed and
    started again at any time, also for stages that run on Kubernetes.

    [dim]$[/] hillclimb live
    [dim]$[/] hillclimb live --recipe my-recipe.yaml --seed 1 --port 3101
    """
    from hillclimb.cli import live as view
    from hillclimb.cli.experiments import resolve

    view.serve(out, resolve(root, recipe, seed), port)


@app.command()
def ui(
    root: Root = ROOT,
    recipe: RecipeName = RECIPE,
    seed: Seed = SEED,
    port: Annotated[int, typer.Option("--port", help="Dagster's port.")] = 3000,
    mlflow_port: Annotated[int, typer.Option("--mlflow-port", help="MLflow's port.")] = 5000,
) -> None:
    """Serve Dagster and MLflow on loopback until Ctrl-C, with every run made under the root.

    [dim]$[/] hillclimb ui
    [dim]$[/] hillclimb ui --root /data/climbs --port 3001 --mlflow-port 5001
    """
    from hillclimb.cli import ui as view
    from hillclimb.cli.experiments import require_local

    view.serve(out, require_local(root, "ui"), port, mlflow_port)


if __name__ == "__main__":
    sys.exit(app())
