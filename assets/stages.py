"""One factory for every asset: find the artifact, or have it made, and say what it is."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from dagster import AutomationCondition as When

from hillclimb.artifacts import Artifact
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.assets import checks, metadata, tracked
from hillclimb.assets.graph import (
    DESCRIPTIONS,
    EXPERIMENTS,
    RECIPE,
    Node,
    code_reference,
    optional,
    recipe_key,
)
from hillclimb.assets.launching import catch_up, run_stage
from hillclimb.experiments import MissingInputs, NotInExperiment, Plan
from hillclimb.recipe.errors import RecipeError
from hillclimb.recipe.graph import CODE
from hillclimb.resources import StageLauncher, Tracking, Workspace


def changed(not_always_there: Sequence[dg.AssetKey]) -> When:  # type: ignore[type-arg]
    """Only when a data version that the asset is made from has changed; never on a mere re-run.

    Args:
        not_always_there: assets that an experiment may do without.
    """
    missing = When.any_deps_match(When.missing())
    if not_always_there:
        missing = missing.ignore(dg.AssetSelection.assets(*not_always_there))
    return (
        When.any_deps_match(When.data_version_changed()).since_last_handled()
        & ~missing
        & ~When.any_deps_in_progress()
        & ~When.in_progress()
        & When.all_deps_blocking_checks_passed()
    )


def build_assets(nodes: dict[str, Node]) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """One partitioned asset per node, and one external asset for what recipes say about it."""
    condition = changed(optional(nodes))
    return [
        *(_asset(node, nodes, condition) for node in nodes.values()),
        *(_recipe(node) for node in nodes.values()),
    ]


def _recipe(node: Node) -> dg.AssetSpec:
    return dg.AssetSpec(
        recipe_key(node.name),
        group_name=RECIPE,
        description=f"What the experiment's recipe says about {node.name}, and its seed.",
        kinds={"yaml"},
        owners=[node.owner],
        partitions_def=EXPERIMENTS,
    )


def _asset(node: Node, nodes: dict[str, Node], condition: Any) -> dg.AssetsDefinition:
    @dg.asset(
        key=node.key,
        deps=[recipe_key(node.name), *(nodes[name].key for name in sorted(node.inputs))],
        partitions_def=EXPERIMENTS,
        group_name=node.group,
        description=DESCRIPTIONS[node.kind],
        kinds=node.technology,
        owners=[node.owner],
        tags={"hillclimb/kind": node.kind},
        metadata={"dagster/code_references": code_reference(node.kind)},
        code_version=code_version(CODE[node.kind]),
        check_specs=[
            dg.AssetCheckSpec(name, asset=node.key, description=text, blocking=checks.blocks(name))
            for name, text in checks.declared(node.kind).items()
        ],
        pool="gpu" if node.gpu else None,
        automation_condition=condition,
    )
    def stage(
        context: dg.AssetExecutionContext,
        workspace: Workspace,
        launcher: StageLauncher,
        tracking: Tracking,
    ) -> Iterator[dg.MaterializeResult[Any]]:
        plan = _plan(context, workspace, node.name)
        artifact = workspace.find(plan, node.name)
        made_before = artifact is not None
        with tracked.run(context, tracking, workspace, plan, node.name, made_before) as run:
            if artifact is None:
                artifact = _make(context, workspace, launcher, plan, node.name, run)
            elif run.went_on:
                _hear(launcher, plan, node.name, run)
            run.made(artifact)
        yield _result(node, artifact, plan, made_before, run)

    return stage


def _plan(context: dg.AssetExecutionContext, workspace: Workspace, name: str) -> Plan:
    try:
        plan = workspace.plan(context.partition_key)
        plan.spec(name)
    except (LookupError, ValueError, RecipeError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return plan


def _make(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    launcher: StageLauncher,
    plan: Plan,
    name: str,
    run: tracked.TrackedRun,
) -> Artifact:
    try:
        request = plan.request(name, workspace.store)
        runs_on = launcher.get(plan.recipe.compute)
    except (MissingInputs, NotInExperiment, RecipeError, RuntimeError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    run_stage(context, runs_on, request, run)
    artifact = workspace.find(plan, name)
    if artifact is None:
        raise dg.Failure(f"{name} ended well, but {request.output} has no manifest")
    return artifact


def _hear(launcher: StageLauncher, plan: Plan, name: str, run: tracked.TrackedRun) -> None:
    """Listen to what a stage told that came to its end while nobody followed it."""
    with contextlib.suppress(RecipeError, RuntimeError):
        handle = launcher.get(plan.recipe.compute).find(name, plan.fingerprints[name])
        if handle is not None:
            catch_up(handle.where, run)


def _result(
    node: Node, artifact: Artifact, plan: Plan, made_before: bool, run: tracked.TrackedRun
) -> dg.MaterializeResult[Any]:
    found = list(checks.examine(artifact))
    shown = metadata.describe(artifact, plan, made_before, run.link)
    if run.attempts:
        shown["attempts"] = dg.MetadataValue.int(run.attempts)
    return dg.MaterializeResult(
        asset_key=node.key,
        data_version=dg.DataVersion(artifact.fingerprint),
        metadata={**shown, "checks passed": all(check.passed for check in found if check.blocking)},
        check_results=[
            dg.AssetCheckResult(
                check_name=check.name,
                passed=check.passed,
                severity=(
                    dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
                ),
                metadata={"seen": check.sentence},
                description=check.sentence,
            )
            for check in found
        ],
    )
