"""`hillclimb plan --kubernetes`: every manifest that a recipe creates, and what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import typer
from rich.console import Console
from rich.table import Table

from hillclimb.artifacts import Store
from hillclimb.cli import words
from hillclimb.cli.experiments import Target, local_root
from hillclimb.cli.options import ROOT
from hillclimb.experiments import Experiment
from hillclimb.experiments import Plan as Graph
from hillclimb.launcher.kubernetes.layout import cluster_of, layout
from hillclimb.launcher.kubernetes.manifests import Manifest, stage_manifest
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.documents import write_document
from hillclimb.recipe.errors import Problem, RecipeError
from hillclimb.recipe.kubernetes import Kubernetes
from hillclimb.scaling.cluster import Asked, ClusterPlan, ClusterStage, misfits, plan_cluster
from hillclimb.scaling.plan import Plan

_PLACE = "compute.kubernetes"


def show(console: Console, plan: Plan, target: Target) -> None:
    """Write the manifests to stdout as YAML, and the table of what they ask for to `console`.

    Raises:
        RecipeError: listing everything that the cluster cannot give, before anything is written.
    """
    if plan.recipe.compute.kubernetes is None:
        fix = "add it with image, control_image and runs: docs/recipes.md has one to copy"
        raise RecipeError(plan.recipe.name, [Problem(_PLACE, "is missing", fix)])
    cluster, compute = cluster_of(plan.recipe.compute), plan.recipe.compute
    root = _root(target, cluster)
    recipe = plan.recipe.name
    graph = Graph(Experiment(name=target.experiment, recipe=recipe, seed=target.seed), plan.recipe)
    requests = [graph.draft(name, Store(root)) for name in graph.specs]
    asked = {request.name: layout(request, compute) for request in requests}
    on_cluster = plan_cluster(
        plan, graph.specs, {name: Asked(a.pods, a.all_gpus) for name, a in asked.items()}
    )
    problems = [*misfits(plan, graph.specs, on_cluster), *_unmet(root, cluster)]
    if problems:
        raise RecipeError(f"{recipe} on its cluster", problems)
    manifests = [stage_manifest(request, compute) for request in requests]
    typer.echo(_head(target, root, cluster, len(manifests)), nl=False)
    for stage, manifest in zip(on_cluster.stages, manifests, strict=True):
        typer.echo(f"---\n# {_comment(stage)}\n{write_document(manifest)}", nl=False)
    console.print(_table(on_cluster, manifests))
    for line in _summary(plan, cluster, on_cluster):
        console.print(line, markup=False, soft_wrap=True)


def _root(target: Target, cluster: Kubernetes) -> str:
    """Where artifacts are: the root that was given, or the folder above that of the runs."""
    return target.root if target.root != ROOT else str(PurePosixPath(cluster.runs).parent)


def _unmet(root: str, cluster: Kubernetes) -> Iterator[Problem]:
    """What stages would refuse in their pods."""
    if local_root(root) is not None and not cluster.shares(root):
        what = f"is {root}, a folder that pods do not see"
        fix = f"give a store's URI, or a folder below a mount of {_PLACE}.volumes with a claim"
        yield Problem("--root", what, fix)
    if cluster.sandboxes is None and "HILLCLIMB_SANDBOX" not in cluster.env:
        what = "is missing: no stage runs model-written code in its own pod"
        fix = "add it with an image that has sh and python3"
        yield Problem(f"{_PLACE}.sandboxes", what, fix)


def _head(target: Target, root: str, cluster: Kubernetes, count: int) -> str:
    """What the stream holds, and what it is not."""
    return (
        f"# {target.experiment}: {count} objects in namespace {cluster.namespace}, artifacts in "
        f"{root}.\n"
        "# The launcher makes each when its inputs are made, and writes the stage's request into "
        f"{cluster.runs} first.\n"
    )


def _comment(stage: ClusterStage) -> str:
    parts = [f"{stage.name}: {stage.pods:,} pod{'s' if stage.pods > 1 else ''}"]
    if stage.gpus:
        parts.append(f"{stage.gpus:,} GPU{'s' if stage.gpus > 1 else ''}")
    if stage.hours:
        parts.append(words.duration(stage.hours))
    if stage.gpu_hours:
        parts.append(f"{words.hours(stage.gpu_hours)} GPU-hours")
    return ", ".join(parts)


def _table(on_cluster: ClusterPlan, manifests: list[Manifest]) -> Table:
    """One row a stage, and the totals."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    columns = ("stage", "object", "pods", "GPUs", "time", "GPU-hours")
    totals = (
        "all stages", "", "", "", words.duration(on_cluster.hours),
        words.hours(on_cluster.gpu_hours),
    )  # fmt: skip
    for index, (head, total) in enumerate(zip(columns, totals, strict=True)):
        table.add_column(
            head, total, justify="right" if index > 1 else "left", no_wrap=True, footer_style="bold"
        )
    for stage, manifest in zip(on_cluster.stages, manifests, strict=True):
        table.add_row(
            stage.name,
            str(manifest["kind"]),
            f"{stage.pods:,}",
            f"{stage.gpus:,}" if stage.gpus else "–",
            words.duration(stage.hours),
            words.hours(stage.gpu_hours),
        )
    return table


def _summary(plan: Plan, cluster: Kubernetes, on_cluster: ClusterPlan) -> Iterator[str]:
    compute, peak = plan.recipe.compute, on_cluster.peak_gpus
    beside = ", ".join(stage.name for stage in on_cluster.peak)
    yield f"longest chain of stages: {words.duration(on_cluster.chain_hours)}"
    if peak:
        at_a_time = f"with compute.parallel_stages = {compute.parallel_stages}"
        yield f"most GPUs at a time, {at_a_time}: {peak:,} ({beside})"
    yield from _servers(compute, cluster)
    limits = [("nodes have", (cluster.nodes or 0) * cluster.gpus_per_node)]
    limits.append(("queue grants", cluster.quota or 0))
    for who, limit in limits:
        if 0 < limit < peak:
            yield f"the {who} {limit:,}: some of these stages wait for others"
    accelerator = compute.accelerator
    yield (
        f"times are estimates for {accelerator.name} at {accelerator.utilisation:.0%} of its peak; "
        "work outside of accelerators is not counted"
    )


def _servers(compute: Compute, cluster: Kubernetes) -> Iterator[str]:
    """What rollout servers draw with, and what of their GPUs they leave idle."""
    if not compute.climb_rollout_accelerators:
        return
    size, pods = compute.rollout_server, cluster.pods(compute.rollout_server)
    engine, place = cluster.draws_with, f"{_PLACE}.rollout_engine"
    yield f"rollout servers draw with {engine}"
    if engine == "torch" and cluster.gpus_per_node:
        yield f"torch computes on CPUs: the servers' GPUs stand idle; set {place} to vllm, or none"
    elif pods > 1:
        yield (
            f"vLLM draws within one pod: of the {pods} pods of a server it uses the first, with "
            f"{size // pods} GPUs, for the whole model; lower compute.rollout_server to that"
        )
