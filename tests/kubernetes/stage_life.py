"""An experiment whose stages are pods of a fake cluster, and what a test asks about them."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pytest
from fake_cluster import FakeCluster

sys.path.append(str(Path(__file__).parents[1] / "orchestration"))

import slow_climb

from hillclimb.dagster_runs import RunResult, Runs
from hillclimb.experiments import Experiment
from hillclimb.launcher.base import handle_name
from hillclimb.launcher.kubernetes import KubernetesLauncher
from hillclimb.recipe.compute import Compute
from hillclimb.resources import launching
from hillclimb.tracking import Outbox

T = TypeVar("T")
STAGE = "stem_problems"
UNREACHABLE = "http://127.0.0.1:9"
_NUMBERS = count(12)
SLOW = str(Path(__file__).parent / "slow_stages")


def section(root: Path, **fields: Any) -> dict[str, Any]:
    """`compute.kubernetes` for pods that see `root` and take their time over problems."""
    given = {
        "image": "stage:1",
        "control_image": "stage:1",
        "runs": f"{root}/messages",
        "volumes": [{"name": "root", "mount": str(root), "host_path": str(root)}],
        "gpus_per_node": 0,
        "cpu": "1",
        "memory": "1Gi",
        "shm": "64Mi",
        "env": {"HILLCLIMB_SANDBOX": "bubblewrap", "PYTHONPATH": SLOW},
    }
    return {**given, **fields}


@dataclass
class Life:
    """One stage of one experiment on a cluster."""

    cluster: FakeCluster
    runs: Runs
    root: Path
    problems: int = 12
    results: list[RunResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.instance = self.runs.instance
        self.change()

    def change(self, **fields: Any) -> None:
        """Give the recipe's section of the cluster other values."""
        self.experiment = on_cluster(self.root, self.problems, **fields)
        self.experiment.save(self.root)
        self.instance.add_dynamic_partitions("experiment", [self.experiment.name])
        self.fingerprint = self.experiment.plan().fingerprints[STAGE]
        self.job = handle_name(STAGE, self.fingerprint)
        self.messages = self.root / "messages" / STAGE / self.fingerprint[:16] / "messages.jsonl"

    def hold(self) -> None:
        """Let the stage count, before it does its work, until it is told to go on."""
        self._count_to(10**6)

    def go_on(self) -> None:
        """Let the stage do its work."""
        self._count_to(0)

    def _count_to(self, beats: int) -> None:
        partial = self.root / "slow.partial"
        partial.write_text(str(beats))
        partial.replace(self.root / "slow")

    def make(self) -> RunResult:
        """Materialise the stage in this thread."""
        self.results.append(self.runs.make(self.experiment.name, [STAGE]))
        return self.results[-1]

    @contextmanager
    def making(self) -> Iterator[None]:
        """Materialise the stage in another thread, and wait for its end."""
        thread = threading.Thread(target=self.make)
        thread.start()
        yield
        thread.join(120)
        assert not thread.is_alive(), "the run does not end"

    @contextmanager
    def meanwhile(self, when: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
        """Do something in another thread, as soon as something is so."""
        thread = threading.Thread(target=lambda: self.wait_for(when) and act())
        thread.start()
        yield
        thread.join(60)

    def beats(self) -> list[int]:
        """The counts of all attempts, as the stage told them."""
        lines = self.messages.read_text().splitlines() if self.messages.exists() else []
        told = [(json.loads(line).get("params") or {}).get("payload") or {} for line in lines]
        return [int(payload["step"]) for payload in told if payload.get("type") == "metrics"]

    def reached(self, beat: int) -> Callable[[], bool]:
        """Whether the stage has come so far."""
        return lambda: max(self.beats(), default=-1) >= beat

    def await_beats(self, more: int = 5) -> None:
        """Wait until the stage has counted on a bit."""
        self.wait_for(self.reached(max(self.beats(), default=-1) + more))

    def wait_for(self, probe: Callable[[], T]) -> T:
        """What `probe` gives as soon as it is true."""
        return self.cluster.wait_for(probe, 60)

    def pod(self) -> str:
        """The pod that runs."""
        return str(self.wait_for(self.running)[0])

    def running(self) -> list[str]:
        """The pods that run."""
        pods = self.cluster.objects("Pod")
        return [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]

    def tracked(self, kind: str) -> list[dict[str, Any]]:
        """The records that wait for MLflow."""
        found = [record for _, _, record in Outbox(self.root).undelivered(UNREACHABLE)]
        mine = [r for r in found if r["run"]["experiment"] == self.experiment.name]
        return [record for record in mine if record["type"] == kind]

    def ends(self) -> list[str]:
        """How MLflow is told that the stage's run ended."""
        return [record["status"] for record in self.tracked("end")]

    def all_runs(self) -> Sequence[dg.DagsterRun]:
        """The experiment's runs, the latest first."""
        wanted = dg.RunsFilter(tags={"dagster/partition": self.experiment.name})
        return self.instance.get_runs(wanted)

    def run(self) -> dg.DagsterRun:
        """The latest run."""
        return self.all_runs()[0]

    def said(self) -> list[str]:
        """The log of the latest run, as far as there is one."""
        runs = self.all_runs()[:1]
        return [e.user_message for run in runs for e in self.instance.all_logs(run.run_id)]

    def launcher(self) -> KubernetesLauncher:
        """The launcher that this process's runs share."""
        made = launching.cluster_launcher(self.experiment.plan().recipe.compute)
        assert made is not None
        return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The Dagster of one root."""
    root = tmp_path_factory.mktemp("life") / "root"
    root.mkdir()
    return Runs(root)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A cluster that this process launches stages on. Records for MLflow stay in the outbox."""
    with FakeCluster(tmp_path / "cluster") as made:
        live_on(made, monkeypatch)
        yield made


@pytest.fixture
def life(runs: Runs, cluster: FakeCluster) -> Life:
    """A stage that no other test has made."""
    root = Path(runs.instance.root_directory).parent
    return Life(cluster, runs, root, next(_NUMBERS))


def live_on(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process launch stages on the cluster, and look at them often."""
    monkeypatch.setenv(launching.CHOICE, "kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    monkeypatch.setattr("hillclimb.tracking.Sender.wake", lambda self: None)
    monkeypatch.setattr("hillclimb.runner._TRACKING_PATIENCE", 0.0)
    monkeypatch.setattr("hillclimb.runner._SETTLED", 0.3)
    monkeypatch.setattr("hillclimb.assets.launching.PAUSE", 0)
    where = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(where, str(cluster.kubeconfig()))  # read when the module is imported
    monkeypatch.setattr(launching, "_cluster_launcher", cache(_impatient))


def _impatient(compute: str) -> KubernetesLauncher:
    read = Compute.model_validate_json(compute)
    return KubernetesLauncher(read, beat=0.1, stuck_patience=0.3)


def on_cluster(root: Path, problems: int, **fields: Any) -> Experiment:
    """The small recipe with so many problems, and a cluster."""
    more = (
        f"specialists.stem.problems.train={problems}",
        f"compute.kubernetes={json.dumps(section(root, **fields))}",
    )
    return slow_climb.experiment(0, f"problems-{problems}", more)


def environment(cluster: FakeCluster) -> dict[str, str]:
    """What another orchestrator needs."""
    return {
        **os.environ,
        launching.CHOICE: "kubernetes",
        "KUBECONFIG": str(cluster.kubeconfig()),
        "MLFLOW_TRACKING_URI": UNREACHABLE,
    }
