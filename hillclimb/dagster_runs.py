"""Dagster without a daemon: the instance under a root, and runs made in this process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

import dagster as dg
import yaml
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from hillclimb.assets import EXPERIMENTS, recipe_events
from hillclimb.assets.graph import recipe_key
from hillclimb.definitions import build
from hillclimb.experiments import Plan
from hillclimb.launcher.records import started

LOCATION = "hillclimb"
_VERSION = "dagster/data_version"
PROCESS_TAG = "hillclimb/process"
_UNFINISHED = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)

CONFIG = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    "concurrency": {
        "pools": {"granularity": "op", "default_limit": 2},
        "runs": {"max_concurrent_runs": 4},
    },
    "run_monitoring": {"enabled": True, "free_slots_after_run_end_seconds": 30},
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    },
}
"""SQLite storage, nothing sent anywhere. Stages keep their logs beside their messages."""


def home(root: Path) -> Path:
    """The folder of the Dagster instance, its configuration written where there is none."""
    folder = root.resolve() / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "dagster.yaml"
    if not config.exists():
        partial = config.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
        partial.replace(config)
    return folder


@dataclass(frozen=True)
class RunResult:
    """How a run ended; `reason` is the failed stage's sentence."""

    run_id: str
    success: bool
    cancelled: bool
    reason: str = ""


class Runs:
    """Makes assets of one root, each call one Dagster run that the UI shows."""

    def __init__(self, root: Path) -> None:
        for category in (dg.BetaWarning, dg.PreviewWarning):
            warnings.filterwarnings("ignore", category=category)
        self.instance = dg.DagsterInstance.from_config(str(home(root)))
        _make_thread_safe(self.instance)
        self._job = build(str(root.resolve())).resolve_job_def("everything")
        self.bury_the_dead()

    def register(self, plan: Plan) -> None:
        """Make the experiment a partition, and tell what its recipe says now."""
        name = plan.experiment.name
        self.instance.add_dynamic_partitions(EXPERIMENTS.name or "", [name])
        known = {stage: self._recipe_version(name, stage) for stage in plan.specs}
        for event in recipe_events(plan, {s: v for s, v in known.items() if v}):
            self.instance.report_runless_asset_event(event)

    def _recipe_version(self, experiment: str, stage: str) -> str | None:
        event = self._latest(recipe_key(stage), experiment)
        return (event.tags or {}).get(_VERSION) if event else None

    def _latest(self, key: dg.AssetKey, experiment: str) -> dg.AssetMaterialization | None:
        wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[experiment])
        found = self.instance.fetch_materializations(wanted, limit=1).records
        return found[0].asset_materialization if found else None

    def make(self, experiment: str, names: Sequence[str]) -> RunResult:
        """Materialise stages in one run, in this thread."""
        keys = frozenset(dg.AssetKey(name.split("/")) for name in names)
        subset = self._job.get_subset(asset_selection=keys)
        run = self.instance.create_run_for_job(
            job_def=subset,
            asset_selection=keys,
            run_config=_QUIET,
            tags={PARTITION_NAME_TAG: experiment, PROCESS_TAG: _process(os.getpid())},
            remote_job_origin=origin(self._job.name),
        )
        result = execute_run(InMemoryJob(subset), run, self.instance)
        ended = self.instance.get_run_by_id(run.run_id)
        cancelled = ended is not None and ended.status is dg.DagsterRunStatus.CANCELED
        return RunResult(run.run_id, result.success, cancelled, _reason(result.all_events))

    def cancel(self) -> list[str]:
        """Note that this process's runs are to end; the stages of those not noted before.

        A run that has not begun yet is noted by a later call.
        """
        mine = {PROCESS_TAG: _process(os.getpid())}
        begun = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags=mine)
        found = self.instance.get_runs(begun)
        for run in found:
            self.instance.report_run_canceling(run)
        return sorted("/".join(key.path) for run in found for key in run.asset_selection or ())

    def materialised(self, experiment: str, name: str) -> str | None:
        """The data version that a partition has, if its checks passed; None for nothing."""
        event = self._latest(dg.AssetKey(name.split("/")), experiment)
        if event is None or not event.metadata.get("checks passed", _NO).value:
            return None
        return (event.tags or {}).get(_VERSION)

    def bury_the_dead(self) -> None:
        """End the runs of this machine's processes that are gone, and give back what they held."""
        alive = dg.RunsFilter(statuses=list(_UNFINISHED))
        for run in self.instance.get_runs(alive):
            process = run.tags.get(PROCESS_TAG)
            pid, _, host = (process or "").partition("@")
            if host.startswith(f"{gethostname()}@") and _process(int(pid)) != process:
                self.instance.report_run_failed(run, "the process that ran it is gone")
                self.instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _make_thread_safe(instance: dg.DagsterInstance) -> None:
    """Leave out the logging handlers of dagster.yaml.

    Dagster looks them up with `logging.config.dictConfig` at every step, which takes the locks of
    all handlers and so waits for ever for a run of another thread that is logging.
    """
    instance.get_yaml_python_handlers = lambda: []  # type: ignore[method-assign]


_NO = dg.MetadataValue.bool(False)
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def _process(pid: int) -> str:
    """A process as no other one is called, on any machine that shares the database."""
    return f"{pid}@{gethostname()}@{started(pid)}"


def origin(job: str) -> RemoteJobOrigin:
    """Where the UI finds the job again, so that it can run it once more."""
    target = LoadableTargetOrigin(module_name="hillclimb.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION)
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job)


def _reason(events: Sequence[dg.DagsterEvent]) -> str:
    """The sentence of the first failed step, or of the checks that it did not pass."""
    failed = [event.asset_check_evaluation_data for event in events if _is_failed_check(event)]
    if failed:
        return "; ".join(f"the check {c.check_name} failed: {c.description}" for c in failed)
    for event in events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return str(data.user_failure_data.description)
            error = data.error
            while error is not None and error.cause is not None:
                error = error.cause
            return str(error.message).strip() if error else "failed"
    return ""


def _is_failed_check(event: dg.DagsterEvent) -> bool:
    """A check that did not pass, other than one that only warns."""
    if event.event_type is not dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        return False
    check = event.asset_check_evaluation_data
    return not check.passed and check.severity is dg.AssetCheckSeverity.ERROR
