"""A climb's signals become checks: those that warn let everything follow, doubted grades do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from slow_climb import experiment

from hillclimb.artifacts import ArtifactWriter, Manifest
from hillclimb.assets import checks
from hillclimb.dagster_runs import Runs
from hillclimb.experiments import Plan
from hillclimb.resources import Workspace

CLIMB = "stem/round_0/climb"
ROW = {
    "step": 1, "pass_rate": 0.5, "grad_norm": 1.0, "balance_loss": 1.0, "ungraded": 0.0,
}  # fmt: skip
ALARM = {
    "signal": "gradient", "halts": False, "steps": 2, "first": 7,
    "sentence": "the gradient's norm is 31 times its running median, over 20",
}  # fmt: skip
QUIET = {
    "signal": "entropy", "halts": True, "steps": 0, "first": None,
    "sentence": "the entropy is 0.1 to 0.2 nats a token",
}  # fmt: skip


def commit(root: Path, plan: Plan, stop: dict[str, Any]) -> None:
    """A climb that ended like this."""
    store, print_ = Workspace(root=str(root)).store, plan.fingerprints[CLIMB]
    out = ArtifactWriter(store.uri(CLIMB, print_))
    out.write_json("stop.json", stop)
    out.write_text("metrics.jsonl", json.dumps(ROW) + "\n")
    out.commit(
        Manifest(
            name=CLIMB, kind="climb", fingerprint=print_, code_version="1", seed=0, inputs={},
            config={}, files=[], metrics={}, run={},
            summary={"stop": stop, "alarms": [ALARM, QUIET]},
        )
    )  # fmt: skip


@pytest.mark.slow("a Dagster instance of its own")
@pytest.mark.parametrize("reason", ["plateau", "reward_hack"])
def test_an_alarm_warns_and_doubted_grades_block(tmp_path: Path, reason: str) -> None:
    plan = experiment().plan()
    plan.experiment.save(tmp_path)
    commit(tmp_path, plan, {"reason": reason, "sentence": "it went so", "step": 1})
    artifact = Workspace(root=str(tmp_path)).find(plan, CLIMB)
    assert artifact is not None
    seen = {check.name: check for check in checks.examine(artifact)}
    assert not seen["gradients_steady"].passed
    assert "over 20; at 2 steps, first at 7" in seen["gradients_steady"].sentence
    assert seen["entropy_in_band"].passed
    assert seen["judge_agrees"].sentence == "the climb recorded no such signal"
    runs = Runs(tmp_path)
    runs.register(plan)
    result = runs.make(plan.experiment.name, [CLIMB])
    known = runs.materialised(plan.experiment.name, CLIMB)
    if reason == "plateau":
        assert result.success, result.reason
        assert known == plan.fingerprints[CLIMB]
    else:
        assert result.reason == "the check grades_trusted failed: reward_hack: it went so"
        assert known is None
