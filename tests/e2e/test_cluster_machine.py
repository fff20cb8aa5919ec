"""The whole machine on the smallest recipe, every stage a pod of a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_cluster import FakeCluster
from machines import hillclimb, require_same_bytes

from hillclimb.artifacts import Store
from hillclimb.experiments import Experiment
from hillclimb.launcher.base import handle_name

pytestmark = [pytest.mark.e2e("makes a whole machine in pods"), pytest.mark.timeout(1500)]


def test_a_machine_made_in_pods_has_the_bytes_of_a_local_one(
    local_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_cluster.cluster._TICK", 0.1)
    root = tmp_path / "root"
    root.mkdir()
    section = {
        "image": "training:1", "control_image": "control:1", "runs": f"{root}/messages",
        "volumes": [{"name": "root", "mount": str(root), "host_path": str(root)}],
        "gpus_per_node": 0, "cpu": "1", "memory": "3Gi", "shm": "64Mi",
        "env": {"HILLCLIMB_SANDBOX": "bubblewrap"},
    }  # fmt: skip
    cluster_section = f"compute.kubernetes={json.dumps(section)}"
    with FakeCluster(tmp_path / "cluster") as cluster:
        done = hillclimb(
            root, "climb", "--experiment", "pods", "--set", cluster_section,
            HILLCLIMB_LAUNCHER="kubernetes", KUBECONFIG=str(cluster.kubeconfig()),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    plan = Experiment.make("smoke", 0).plan()
    assert f"{len(plan.specs)} made, 0 made before" in done.stdout
    jobs = sorted(handle_name(name, print_) for name, print_ in plan.fingerprints.items())
    assert sorted(cluster.created("Job")) == jobs
    assert len(cluster.created("Pod")) == len(jobs)
    assert not list(root.glob("runs/*"))
    require_same_bytes(plan, Store(str(local_machine)), Store(str(root)))
