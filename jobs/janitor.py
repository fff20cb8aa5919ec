"""What is left on the cluster when nobody waits for it any more: listed, and removed in time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG

from hillclimb.experiments import names
from hillclimb.jobs.automation import BROKEN
from hillclimb.resources import Workspace
from hillclimb.resources.launching import orchestrator

if TYPE_CHECKING:
    from hillclimb.launcher.kubernetes.orphans import Launched

GRACE = "HILLCLIMB_ORPHAN_GRACE"
"""Seconds that a stage may be without a follower; an hour where it is not set."""

_GRACE, _GRACE_CANCELLED = 3600.0, 120.0
_OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@dg.sensor(
    minimum_interval_seconds=60,
    description="Lists the stages on the cluster that this Dagster has launched and removes those "
    f"that no run waits for: after two minutes where the run was cancelled, else after {GRACE} "
    "seconds (an hour). Their checkpoints stay.",
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def janitor(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SkipReason:
    """Look at every namespace that an experiment's recipe names; the skip reason tells all."""
    from hillclimb.launcher.kubernetes.api import ApiAway, ApiRefused

    said = []
    for namespace, folders in sorted(_clusters(workspace).items()):
        try:
            for sentence in _tend(context.instance, workspace, namespace, folders):
                context.log.info(sentence)
                said.append(sentence)
        except (ApiAway, ApiRefused) as error:
            said.append(f"{namespace}: {error}")
    return dg.SkipReason("; ".join(said) or "no experiment's recipe names a cluster")


def _clusters(workspace: Workspace) -> dict[str, set[str]]:
    """The namespaces of the experiments' recipes, each with its folders of messages."""
    found: dict[str, set[str]] = {}
    for name in names(workspace.path):
        try:
            cluster = workspace.plan(name).recipe.compute.kubernetes
        except BROKEN:
            continue
        if cluster is not None:
            found.setdefault(cluster.namespace, set()).add(cluster.runs)
    return found


def _tend(
    instance: dg.DagsterInstance, workspace: Workspace, namespace: str, folders: set[str]
) -> Iterator[str]:
    """Remove the orphans of one namespace; yields what there was to see.

    The objects are listed before the runs: a run that comes later finds its stage gone and has it
    go on from its checkpoint.
    """
    from hillclimb.launcher.kubernetes.orphans import Launches

    launches = Launches(namespace, orchestrator(instance))
    at_work = launches.at_work()
    wanted = _wanted(instance, workspace)
    alone = [one for one in at_work if not _waited_for(instance, one, wanted)]
    yield f"{namespace}: runs wait for {len(at_work) - len(alone)} of {len(at_work)} stages"
    for launched in alone:
        run = instance.get_run_by_id(launched.run_id)
        what = f"{launched.kind.name} {launched.name}, whose run {launched.run_id} is {_end(run)}"
        try:
            left = _grace(run) - (time.time() - max(map(launched.followed, sorted(folders))))
        except OSError as error:
            yield f"{what}, stays while its folder cannot be read ({error})"
            continue
        if left > 0:
            yield f"{what}, is removed in {left:.0f} s unless a run attaches to it"
            continue
        launches.remove(launched)
        yield f"{what}, was removed: nobody waited for it"


def _wanted(instance: dg.DagsterInstance, workspace: Workspace) -> set[str]:
    """The fingerprints of everything that runs which are not over are to make."""
    going = [status for status in dg.DagsterRunStatus if status not in _OVER]
    wanted: set[str] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=going)):
        try:
            plan = workspace.plan(run.tags.get(PARTITION_NAME_TAG, ""))
        except BROKEN:
            continue
        selected = {"/".join(key.path) for key in run.asset_selection or ()} or set(plan.specs)
        wanted |= {plan.fingerprints[name] for name in selected & set(plan.specs)}
    return wanted


def _waited_for(instance: dg.DagsterInstance, launched: Launched, wanted: set[str]) -> bool:
    """Whether a run that is not over launched the stage, or is to make the same artifact."""
    run = instance.get_run_by_id(launched.run_id)
    return (run is not None and not run.is_finished) or launched.fingerprint in wanted


def _end(run: dg.DagsterRun | None) -> str:
    return "not known (any more)" if run is None else f"over ({run.status.value.lower()})"


def _grace(run: dg.DagsterRun | None) -> float:
    seconds = float(os.environ.get(GRACE, _GRACE))
    was_cancelled = run is not None and run.status is dg.DagsterRunStatus.CANCELED
    return min(seconds, _GRACE_CANCELLED) if was_cancelled else seconds
