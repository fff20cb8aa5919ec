"""Runs as the UI makes them: webserver, daemon, run workers, cancel, eviction, from failure."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from slow_climb import HERE, experiment

from hillclimb.dagster_runs import Runs, home
from hillclimb.launcher import records

STAGE = "agentic_problems"
ENDED = ("CANCELED", "FAILURE", "SUCCESS")
LAUNCH = """mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
AGAIN = """mutation($p: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $p) {
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = "mutation($i: String!) { terminateRun(runId: $i) { __typename } }"
STATUS = "query($i: ID!) { runOrError(runId: $i) { ... on Run { status } } }"


class Dagster:
    """The webserver's GraphQL interface."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def launch(self, stage: str, partition: str) -> str:
        selector = {
            "repositoryLocationName": "hillclimb",
            "repositoryName": "__repository__",
            "pipelineName": "everything",
            "assetSelection": [{"path": stage.split("/")}],
        }
        tags = [{"key": "dagster/partition", "value": partition}]
        params = {
            "selector": selector,
            "mode": "default",
            "runConfigData": {},
            "executionMetadata": {"tags": tags},
        }
        return str(self.ask(LAUNCH, p=params)["launchPipelineExecution"]["run"]["runId"])

    def again(self, run: str) -> str:
        params = {"parentRunId": run, "strategy": "FROM_FAILURE"}
        return str(self.ask(AGAIN, p=params)["launchRunReexecution"]["run"]["runId"])

    def status(self, run: str) -> str:
        return str(self.ask(STATUS, i=run)["runOrError"]["status"])


def until(probe: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home(tmp_path)),
        "HILLCLIMB_ROOT": str(tmp_path),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "PYTHONPATH": str(tmp_path),
    }
    programs = Path(sys.executable).parent
    commands = (
        [programs / "dagster-webserver", "-h", "127.0.0.1", "-p", str(port), "-w", workspace],
        [programs / "dagster-daemon", "run", "-w", workspace],
    )
    with (tmp_path / "servers.log").open("wb") as log:
        servers = [
            subprocess.Popen(c, env=environment, stdout=log, stderr=log, start_new_session=True)
            for c in commands
        ]
    interface = Dagster(port)
    try:
        until(lambda: _answers(interface))
        yield interface
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGINT)
        for server in servers:
            server.wait(30)


def _answers(interface: Dagster) -> bool:
    try:
        return bool(interface.ask("{ version }"))
    except OSError:
        return False


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
