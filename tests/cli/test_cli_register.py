"""`hillclimb register`: an experiment for Dagster, without making anything."""

from __future__ import annotations

from pathlib import Path

from cli_support import Cli

from hillclimb.experiments import Experiment, names

CLUSTER = """image: training:1
control_image: control:1
runs: /shared/runs
volumes:
  - {name: root, mount: /shared, claim: root}
gpus_per_node: 0
cpu: 2
memory: 4Gi
shm: 1Gi
"""


def test_an_experiment_on_a_cluster_is_written_down_and_nothing_is_made(
    cli: Cli, tmp_path: Path
) -> None:
    wanted = ("register", "--root", str(tmp_path), "--recipe", "smoke", "--seed", "1")
    done = cli(*wanted, "--experiment", "there", "--set", f"compute.kubernetes={CLUSTER}")
    assert (done.exit_code, done.stdout.strip()) == (0, "smoke-there-seed1")
    assert names(tmp_path) == ["smoke-there-seed1"]
    cluster = Experiment.load(tmp_path, "smoke-there-seed1").plan().recipe.compute.kubernetes
    assert cluster is not None
    assert cluster.runs == "/shared/runs"
    assert [path.name for path in tmp_path.iterdir()] == ["experiments"]


def test_what_cannot_be_registered_is_refused(cli: Cli, tmp_path: Path) -> None:
    root = ("--root", str(tmp_path))
    nameless = cli("register", *root, "--set", "compute.threads=2")
    assert nameless.exit_code == 2
    assert "name it with --experiment" in nameless.output
    remote = cli("register", "--root", "memory://there")
    assert remote.exit_code == 2
    assert "needs a local --root" in remote.output
    assert not list(tmp_path.iterdir())
