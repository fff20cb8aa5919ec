"""Who is killed × when: nothing is lost, nothing happens twice.

The orchestrator is a process that submits a stage and follows it; the stage is a pod of the fake
cluster. Whatever goes away comes back. In every case the artifact has the bytes of an undisturbed
stage, one object was made, and the orchestrator that lives to the end has heard every message once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster
from launcher_support import (
    GATE,
    LAST_GATE,
    compute_for,
    gated,
    name_of,
    open_gate,
    pod_of,
    request_for,
    steps_of,
)
from toy_stages import toy

from hillclimb.artifacts import Artifact

HERE = Path(__file__).parent


class Orchestrators:
    """One orchestrator after the other, each with what it was told."""

    def __init__(self, cluster: FakeCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.request = request_for(folder, **gated(folder, last_gate=f"{folder}/{LAST_GATE}"))
        self._files = [str(folder / name) for name in ("compute.json", "request.json")]
        Path(self._files[0]).write_text(compute_for(folder).model_dump_json())
        Path(self._files[1]).write_text(self.request.model_dump_json())
        self._started: list[subprocess.Popen[bytes]] = []
        self._kubeconfig = str(cluster.kubeconfig())

    def start(self) -> None:
        """Another orchestrator for the same stage."""
        told = str(self.folder / f"told-{len(self._started)}.jsonl")
        Path(told).touch()
        environment = {**os.environ, "KUBECONFIG": self._kubeconfig, "OMP_NUM_THREADS": "1"}
        environment.pop("KUBERNETES_SERVICE_HOST", None)
        command = [sys.executable, str(HERE / "orchestrator.py"), *self._files, told]
        self._started.append(subprocess.Popen(command, env=environment))

    def kill(self) -> None:
        """SIGKILL to the present one."""
        self._started[-1].send_signal(signal.SIGKILL)
        self._started[-1].wait()

    def stop(self) -> None:
        """End all."""
        for process in self._started:
            process.kill()
            process.wait()

    @property
    def told(self) -> list[Any]:
        """What the present one has written so far."""
        lines = (self.folder / f"told-{len(self._started) - 1}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages among it."""
        return [line for line in self.told if isinstance(line, dict) and "method" in line]

    @property
    def outcomes(self) -> list[dict[str, str]]:
        """The outcomes among it."""
        return [line for line in self.told if isinstance(line, dict) and "state" in line]

    def until(self, holds: Callable[[], object]) -> None:
        """Wait; the present orchestrator must not die meanwhile."""
        self.cluster.wait_for(lambda: holds() or self._started[-1].poll(), 60)
        assert self._started[-1].poll() in (None, 0)

    def until_pod(self, phase: str) -> str:
        """Wait for the stage's only pod of a phase."""
        self.until(lambda: [p for p in self.cluster.objects("Pod") if _phase(p) == phase])
        return pod_of(self.cluster, phase)

    def until_step(self, step: int) -> None:
        """Wait until the present orchestrator has heard of a step."""
        self.until(lambda: step in steps_of(self.messages))

    def until_blind(self) -> None:
        """Wait until the present orchestrator says that it cannot look."""
        self.until(lambda: any("nobody can look" in seen["reason"] for seen in self.outcomes))

    def until_made(self) -> None:
        """Wait until the artifact is committed; nobody may have noticed."""
        self.until(Path(self.request.output, "manifest.json").exists)


def _phase(pod: dict[str, Any]) -> str:
    return str(pod["status"]["phase"])


@pytest.fixture
def stage(cluster: FakeCluster, tmp_path: Path) -> Iterator[Orchestrators]:
    made = Orchestrators(cluster, tmp_path)
    yield made
    made.stop()


def kill_orchestrator_before_start(stage: Orchestrators) -> None:
    stage.cluster.unschedulable()
    stage.start()
    stage.until_pod("Pending")
    stage.kill()
    stage.start()
    stage.until(lambda: any("no node fits" in seen["reason"] for seen in stage.outcomes))
    stage.cluster.schedulable()


def kill_orchestrator_mid_run(stage: Orchestrators) -> None:
    stage.start()
    stage.until_step(3)
    stage.kill()
    stage.start()
    stage.until_step(3)


def kill_orchestrator_at_the_end(stage: Orchestrators) -> None:
    stage.start()
    stage.until_step(3)
    stage.kill()
    open_gate(stage.folder)
    open_gate(stage.folder, LAST_GATE)
    name = name_of(stage.request)
    stage.cluster.wait_for(lambda: stage.cluster.condition("Job", name, "Complete"))
    stage.start()


def lose_pod_before_start(stage: Orchestrators) -> None:
    stage.cluster.slow_start(60)
    stage.start()
    pod = stage.until_pod("Pending")
    stage.cluster.slow_start(0)
    stage.cluster.lose_node(pod)


def lose_pod_mid_run(stage: Orchestrators) -> None:
    stage.start()
    stage.until_step(3)
    stage.cluster.lose_node(pod_of(stage.cluster))


def lose_pod_at_the_end(stage: Orchestrators) -> None:
    stage.start()
    stage.until_step(3)
    open_gate(stage.folder)
    stage.until_made()
    stage.cluster.lose_node(pod_of(stage.cluster))


def lose_store_before_start(stage: Orchestrators) -> None:
    (stage.folder / "runs").touch()
    stage.start()
    stage.until(lambda: "begin" in stage.told)
    time.sleep(0.3)
    assert not stage.cluster.created("Job")
    (stage.folder / "runs").unlink()


def lose_store_mid_run(stage: Orchestrators) -> None:
    stage.start()
    stage.until_step(3)
    away = (stage.folder / "runs").rename(stage.folder / "away")
    open_gate(stage.folder)
    stage.until_made()
    away.rename(stage.folder / "runs")


def lose_store_at_the_end(stage: Orchestrators) -> None:
    stage.start()
    stage.until_step(3)
    open_gate(stage.folder)
    stage.until_step(5)
    away = (stage.folder / "runs").rename(stage.folder / "away")
    open_gate(stage.folder, LAST_GATE)
    time.sleep(0.5)
    away.rename(stage.folder / "runs")


def lose_api_before_start(stage: Orchestrators) -> None:
    stage.cluster.down()
    stage.start()
    stage.until(lambda: "begin" in stage.told)
    time.sleep(0.3)
    stage.cluster.up()


def lose_api_mid_run(stage: Orchestrators) -> None:
    stage.start()
    stage.until_step(3)
    stage.cluster.down()
    stage.until_blind()
    stage.cluster.up()


def lose_api_at_the_end(stage: Orchestrators) -> None:
    stage.start()
    stage.until_step(3)
    stage.cluster.down()
    open_gate(stage.folder)
    open_gate(stage.folder, LAST_GATE)
    stage.until_made()
    stage.until(lambda: any(message["method"] == "closed" for message in stage.messages))
    stage.cluster.up()


@pytest.mark.parametrize(
    ("disturb", "pods"),
    [
        (kill_orchestrator_before_start, 1),
        (kill_orchestrator_mid_run, 1),
        (kill_orchestrator_at_the_end, 1),
        (lose_pod_before_start, 2),
        (lose_pod_mid_run, 2),
        (lose_pod_at_the_end, 2),
        (lose_store_before_start, 1),
        (lose_store_mid_run, 1),
        (lose_store_at_the_end, 1),
        (lose_api_before_start, 1),
        (lose_api_mid_run, 1),
        (lose_api_at_the_end, 1),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_nothing_is_lost_and_nothing_happens_twice(
    stage: Orchestrators, disturb: Callable[[Orchestrators], None], pods: int
) -> None:
    disturb(stage)
    for gate in (GATE, LAST_GATE):
        open_gate(stage.folder, gate)
    stage.until(lambda: "end" in stage.told)
    assert stage.outcomes[-1] == {"state": "done", "reason": ""}
    artifact = Artifact(stage.request.output)
    assert artifact.read_text("out.txt") == toy.expected(stage.request.config)
    assert artifact.verify().problems == []
    assert steps_of(stage.messages) == list(range(6))
    ends = [m for m in stage.messages if m["method"] == "report_asset_materialization"]
    assert [end["params"]["data_version"] for end in ends] == [stage.request.fingerprint]
    assert stage.cluster.created("Job") == [name_of(stage.request)]
    assert len(stage.cluster.created("Pod")) == pods
    assert sum(seen.verb == "delete" for seen in stage.cluster.requests) == 0
