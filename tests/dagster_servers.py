"""Dagster's webserver and daemon over a root, and what a test asks of their GraphQL interface."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hillclimb.dagster_runs import home

ENDED = ("CANCELED", "FAILURE", "SUCCESS")
LAUNCH = """mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
AGAIN = """mutation($p: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $p) {
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = "mutation($i: String!) { terminateRun(runId: $i) { __typename } }"
BACKFILL = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
  ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
BACKFILL_STATUS = """query($i: String!) { partitionBackfillOrError(backfillId: $i) {
  ... on PartitionBackfill { status } ... on PythonError { message } } }"""
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

    def backfill(self, stages: Sequence[str], partitions: Sequence[str]) -> str:
        params = {
            "assetSelection": [{"path": stage.split("/")} for stage in stages],
            "partitionNames": list(partitions),
        }
        answer = self.ask(BACKFILL, p=params)["launchPartitionBackfill"]
        return str(answer["backfillId"])

    def backfill_status(self, backfill: str) -> str:
        answer = self.ask(BACKFILL_STATUS, i=backfill)["partitionBackfillOrError"]
        return str(answer["status"])


def until(probe: Callable[[], Any], seconds: float = 120) -> Any:
    """What `probe` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def serving(root: Path, workspace: Path, extra: dict[str, str]) -> Iterator[Dagster]:
    """Webserver and daemon on loopback, ended at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "DAGSTER_HOME": str(home(root)), "HILLCLIMB_ROOT": str(root), **extra
    }  # fmt: skip
    programs = Path(sys.executable).parent
    commands = (
        [programs / "dagster-webserver", "-h", "127.0.0.1", "-p", str(port), "-w", workspace],
        [programs / "dagster-daemon", "run", "-w", workspace],
    )
    with (root / "servers.log").open("wb") as log:
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
