"""Runs as the UI makes them: webserver, daemon, run workers, cancel, eviction, from failure."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from dagster_servers import ENDED, TERMINATE, Dagster, serving, until
from slow_climb import HERE, experiment

from hillclimb.dagster_runs import Runs
from hillclimb.launcher import records

STAGE = "agentic_problems"


@pytest.fixture
def dagster(tmp_path: Path) -> Iterator[Dagster]:
    of = experiment()
    of.save(tmp_path)
    Runs(tmp_path).register(of.plan())
    (tmp_path / "hillclimb_slow.py").write_text(
        "from pathlib import Path; import sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        f"import slow_climb; slow_climb.with_slow_problems(Path({str(tmp_path)!r}))\n"
        "from hillclimb.definitions import defs\n"
    )
    location = {"module_name": "hillclimb_slow", "location_name": "hillclimb"}
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text(json.dumps({"load_from": [{"python_module": location}]}))
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PYTHONPATH": str(tmp_path)}
    with serving(tmp_path, workspace, environment) as interface:
        yield interface


def _stage(root: Path) -> int | None:
    found = sorted((root / "runs" / STAGE).glob("*/attempt-*"))
    return records.alive(found[-1]) if found else None


@pytest.mark.slow("Dagster's servers and three run workers")
def test_cancel_ends_the_stage_eviction_leaves_it_and_from_failure_attaches(
    dagster: Dagster, tmp_path: Path
) -> None:
    (tmp_path / "slow").write_text("1200")
    partition = experiment().name
    run = dagster.launch(STAGE, partition)
    until(lambda: _stage(tmp_path))
    dagster.ask(TERMINATE, i=run)
    until(lambda: dagster.status(run) in ENDED)
    assert dagster.status(run) == "CANCELED"
    assert _stage(tmp_path) is None

    evicted = dagster.launch(STAGE, partition)
    stage = until(lambda: _stage(tmp_path))
    time.sleep(1)
    worker = psutil.Process(stage).parent().ppid()
    os.kill(worker, signal.SIGTERM)
    until(lambda: dagster.status(evicted) in ENDED)
    assert dagster.status(evicted) == "FAILURE"
    assert _stage(tmp_path) == stage

    again = dagster.again(evicted)
    until(lambda: dagster.status(again) == "STARTED")
    time.sleep(2)
    assert _stage(tmp_path) == stage
    os.kill(stage, signal.SIGTERM)
    (tmp_path / "slow").write_text("1")
    until(lambda: dagster.status(again) in ENDED)
    assert dagster.status(again) == "SUCCESS"
