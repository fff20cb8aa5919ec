"""The tracking side of a materialisation: records into the outbox, from start to end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

import hillclimb
from hillclimb.artifacts import Artifact
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.experiments import Plan
from hillclimb.recipe.graph import CODE
from hillclimb.resources import Tracking, Workspace
from hillclimb.tracking import RunKey, RunLog

MODELS = ("base_phase", "climb", "student", "consolidation")


class TrackedRun:
    """What is said about one materialisation.

    `went_on` says whether a run before this one began it, and did not see its end.
    """

    def __init__(self, log: RunLog, link: str, inputs: list[dict[str, Any]]) -> None:
        self._log, self.link, self._inputs = log, link, inputs
        self.went_on = log.unfinished
        self.attempts = 0

    def attempted(self, count: int) -> None:
        """How often the stage has begun so far; from the second time on a tag of the run."""
        if count > self.attempts:
            self.attempts = count
            if count > 1:
                self._log.start({"hillclimb.attempts": str(count)}, {})

    def metrics(self, payload: dict[str, Any]) -> None:
        """A stage's numbers at a step."""
        self._log.metrics(payload["values"], payload["step"], payload["at"])

    def made(self, artifact: Artifact) -> None:
        """The artifact is there."""
        self._log.end(
            "FINISHED",
            metrics=artifact.manifest.metrics,
            uri=artifact.uri,
            is_model=artifact.manifest.kind in MODELS,
            inputs=self._inputs,
        )

    def failed(self, status: str, reason: str) -> None:
        """There is no artifact."""
        self._log.end(status, reason=reason, inputs=self._inputs)


@contextmanager
def run(
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    workspace: Workspace,
    plan: Plan,
    name: str,
    made_before: bool,
) -> Iterator[TrackedRun]:
    """Record the start, and the end when it is not a good one.

    An orchestrator that goes while its stage goes on, and a stage that is tried again, leave the
    record open: whoever comes next writes on in it.
    """
    key = RunKey(plan.experiment.name, name, plan.fingerprints[name])
    log = tracking.open(key)
    elsewhere = made_before and not log.unfinished
    log.start(_tags(context, plan, name, elsewhere), _flat(plan.specs[name].config))
    tracking.wake()
    tracked = TrackedRun(log, tracking.link(key), _inputs(plan, workspace, name))
    try:
        yield tracked
    except DagsterExecutionInterruptedError:
        if cancelled(context):
            tracked.failed("KILLED", "stopped before its end")
        raise
    except dg.RetryRequested:
        raise
    except Exception as error:
        told = error.description if isinstance(error, dg.Failure) else str(error)
        tracked.failed("FAILED", told or type(error).__name__)
        raise


def cancelled(context: dg.AssetExecutionContext) -> bool:
    """Whether a person asked for the end, rather than the machine being taken away."""
    run = context.instance.get_run_by_id(context.run_id)
    asked = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    return run is not None and run.status in asked


def _inputs(plan: Plan, workspace: Workspace, name: str) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "name": source,
            "fingerprint": plan.fingerprints[source],
            "uri": workspace.store.uri(source, plan.fingerprints[source]),
            "is_model": plan.specs[source].kind in MODELS,
        }
        for role, source in plan.specs[name].inputs.items()
    ]


def _tags(
    context: dg.AssetExecutionContext, plan: Plan, name: str, made_before: bool
) -> dict[str, str]:
    spec = plan.specs[name]
    tags = {
        "hillclimb.recipe": plan.recipe.name,
        "hillclimb.seed": str(plan.experiment.seed),
        "hillclimb.kind": spec.kind,
        "hillclimb.group": spec.group,
        "hillclimb.code_version": code_version(CODE[spec.kind]),
        "hillclimb.already_made": str(made_before).lower(),
        "dagster/run_id": context.run_id,
        "dagster/asset_key": context.asset_key.to_user_string(),
        "dagster/partition": context.partition_key,
        "dagster/data_version": plan.fingerprints[name],
    }
    return tags | ({"mlflow.source.git.commit": commit} if (commit := git_commit()) else {})


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config as `a.b.c`; lists stay one value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def git_commit() -> str:
    """The commit of the checkout that the package runs from, or nothing."""
    where = Path(hillclimb.__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(where), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
