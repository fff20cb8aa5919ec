"""A climb through the command line: real stages, real Dagster, real MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import SMALL

from hillclimb.environments.sandbox import SandboxUnavailable, check_sandbox


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        check_sandbox()
    except SandboxUnavailable as error:
        if os.geteuid():
            pytest.skip(str(error))
    return tmp_path_factory.mktemp("climb") / "root"


def hillclimb(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hillclimb.cli.main", *args, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


@pytest.mark.slow(reason="starts Dagster and a stage four times")
def test_climb_skip_experiment_lineage_and_failure(root: Path) -> None:
    recipe = ("--recipe", str(SMALL))
    first = hillclimb(root, "climb", *recipe, "--select", "stem_problems")
    assert first.returncode == 0, first.stderr
    assert "made stem_problems in" in first.stdout
    assert "small-seed0: 1 made, 0 made before" in first.stdout
    assert "hillclimb status --root" in first.stdout
    assert first.stderr == ""

    changed = ("--experiment", "fewer", "--set", "specialists.stem.problems.train=100")
    other = hillclimb(
        root, "climb", *recipe, *changed, "--select", "stem_problems",
        "--select", "helpfulness_problems",
    )  # fmt: skip
    assert "small-fewer-seed0: 2 made, 0 made before" in other.stdout, other.stderr

    again = hillclimb(
        root, "climb", "--recipe", "small-seed0", "--select", "stem_problems",
        "--select", "raw_documents",
    )  # fmt: skip
    assert "made before stem_problems" in again.stdout
    assert again.returncode == 1
    assert "raw_documents failed: " in again.stderr
    assert "data/papers.jsonl.gz" in again.stderr
    assert "Traceback" not in again.stderr

    states = hillclimb(root, "status", "--recipe", "small-fewer-seed0").stdout
    assert "3 made" not in states
    assert "2 made" in states

    walked = hillclimb(root, "lineage", "stem_problems", "--json", "--recipe", "small-fewer-seed0")
    node = json.loads(walked.stdout)
    assert node["asset"] == "stem_problems"
    assert Path(node["uri"]).is_dir()
    assert hillclimb(root, "verify").returncode == 0
