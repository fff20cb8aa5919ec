"""An asynchronous climb whose processes are killed: real ones, with SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from climb_process import PROBLEMS, RECIPE, ClimbProcess, write_request

from hillclimb.artifacts import Artifact
from hillclimb.rl.curriculum import PromptQueue
from hillclimb.stages.tables import read_rows

pytestmark = pytest.mark.slow("starts a climb and its engine several times")


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_nothing_is_lost_or_counted_twice_whoever_is_killed(tmp_path: Path) -> None:
    """The climb is killed in the middle, then its engine under the next attempt."""
    request = write_request(tmp_path)
    with ClimbProcess(request) as first:
        first.wait_for_steps(5)
        engine = first.engine()
    assert engine is not None
    until = time.monotonic() + 20
    while not is_gone(engine):
        assert time.monotonic() < until, "the engine outlives its climb"
        time.sleep(0.01)

    with ClimbProcess(request) as second:
        second.wait_for_steps(1)
        engine = second.engine()
        assert engine is not None
        os.kill(engine, signal.SIGKILL)
        code = second.running.wait()
    said = (tmp_path / "log.txt").read_text()
    assert code == 0, said[-3000:]
    assert "going on after" in said
    assert "the rollout server ended with -9: it is started anew" in said
    require_accounts(Artifact(str(tmp_path / "out")))


def require_accounts(climb: Artifact) -> None:
    """Every prompt that was taken is told of once, every group that was kept was learnt once."""
    rows = [json.loads(line) for line in climb.read_text("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 17))
    rollouts = read_rows(climb, "rollouts/*.parquet")
    groups = {(row["update"], row["group"]): row for row in rollouts}
    assert sorted({update for update, _ in groups}) == list(range(int(rows[-1]["update"]) + 1))
    metrics = climb.manifest.metrics
    assert len(groups) + metrics["prompts_let_go"] == metrics["prompts"]
    queue = PromptQueue({"stem": PROBLEMS}, {"stem": 1.0}, 3)
    taken = Counter(f"p{index}" for _, index in queue.take(int(metrics["prompts"])))
    ended = Counter(row["problem_id"] for row in groups.values())
    assert not ended - taken
    assert (taken - ended).total() == metrics["prompts_let_go"]
    stale = sum({row["update"]: row["groups_stale"] for row in rows}.values())
    trained = sum(row["status"] == "trained" for row in groups.values())
    learned = sum(row["groups_learned"] for row in rows)
    assert trained == learned + stale + metrics["groups_left"]
    assert len(rollouts) == sum(
        RECIPE["groups"]["full" if row["status"] != "early_exit" else "early"]
        for row in groups.values()
    )
