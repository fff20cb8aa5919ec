"""Whole calls: what is made, skipped, shared, refused, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from slow_climb import HERE, OVERRIDES, experiment, with_slow_problems

from hillclimb import runner
from hillclimb.dagster_runs import PROCESS_TAG, Runs, home
from hillclimb.definitions import build
from hillclimb.experiments import Experiment, NotInExperiment
from hillclimb.launcher import records
from hillclimb.launcher.records import started
from hillclimb.resources import launching
from hillclimb.runner import Event, Summary, climb
from hillclimb.tracking import Outbox

PROBLEMS = ["stem_problems", "helpfulness_problems"]
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records stay in the outbox: other tests are about delivery."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    monkeypatch.setattr("hillclimb.tracking.Sender.wake", lambda self: None)
    monkeypatch.setattr("hillclimb.runner._TRACKING_PATIENCE", 0.0)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    originals = (launching.local_launcher, runner.local_launcher)
    launcher = with_slow_problems(tmp_path)
    yield tmp_path
    launcher.close()
    launching.local_launcher, runner.local_launcher = originals


def made(root: Path, of: Experiment, names: list[str] = PROBLEMS) -> tuple[Summary, list[Event]]:
    events: list[Event] = []
    return climb(root, of, names, on_event=events.append), events


def records_of(root: Path, type_: str) -> list[dict[str, Any]]:
    return [r for _, _, r in Outbox(root).undelivered(UNREACHABLE) if r["type"] == type_]


def test_a_call_makes_what_is_missing_and_the_next_one_nothing(root: Path) -> None:
    summary, events = made(root, experiment())
    assert summary.complete
    assert sorted(summary.made) == sorted(PROBLEMS)
    told = [e.type for e in events if e.stage == "stem_problems"]
    assert (told[0], told[-1]) == ("started", "made")
    assert any(e.type == "progress" and e.total for e in events)
    began = time.monotonic()
    again, _ = made(root, experiment())
    assert time.monotonic() - began < 10
    assert (sorted(again.skipped), again.made) == (sorted(PROBLEMS), {})
    ends = records_of(root, "end")
    assert [r["status"] for r in ends] == ["FINISHED"] * 2


def test_dagster_knows_what_was_made(root: Path) -> None:
    made(root, experiment(), ["stem_problems"])
    instance = dg.DagsterInstance.from_config(str(home(root)))
    name, plan = experiment().name, experiment().plan()
    event = instance.get_latest_materialization_event(dg.AssetKey("stem_problems"))
    assert event is not None
    materialization = event.asset_materialization
    assert materialization is not None
    assert materialization.partition == name
    tags = materialization.tags or {}
    assert tags["dagster/data_version"] == plan.fingerprints["stem_problems"]
    assert materialization.metadata["train"].value == 12
    assert "hillclimb.run" in str(materialization.metadata["MLflow"].value)
    (run,) = instance.get_runs()
    assert run.job_name == "everything"
    assert run.remote_job_origin is not None
    assert run.remote_job_origin.location_name == "hillclimb"


def test_seeds_are_partitions_that_share_what_has_no_seed(root: Path) -> None:
    for seed in (0, 1):
        summary, _ = made(root, experiment(seed), ["stem_problems"])
        assert summary.complete
    instance = dg.DagsterInstance.from_config(str(home(root)))
    key = dg.AssetKey("stem_problems")
    names = {experiment(seed).name for seed in (0, 1)}
    assert set(instance.get_materialized_partitions(key)) == names
    assert len(records.attempts(_attempts(root, "stem_problems"))) == 1
    already = [r["tags"]["hillclimb.already_made"] for r in records_of(root, "start")]
    assert sorted(already) == ["false", "true"]


def _attempts(root: Path, name: str) -> Path:
    (folder,) = (root / "runs" / name).iterdir()
    return folder


def test_an_ablation_makes_only_what_it_changes(root: Path) -> None:
    made(root, experiment())
    other = experiment(0, "more-stem", ("specialists.stem.problems.held_out=7",))
    summary, _ = made(root, other)
    assert list(summary.made) == ["stem_problems"]
    assert summary.skipped == ["helpfulness_problems"]


def test_one_changed_reward_weight_makes_exactly_its_climb_and_what_follows_stale() -> None:
    before = experiment().plan()
    changed = ("specialists.stem.climbs.1.rewards.length=0.1",)
    after = experiment(0, "ablated", changed).plan()
    stale = {n for n, f in after.fingerprints.items() if before.fingerprints[n] != f}
    following = {"stem/round_1/climb"}
    for name, spec in after.specs.items():
        if following & set(spec.inputs.values()):
            following.add(name)
    assert stale == following
    assert "stem/round_0/climb" not in stale
    assert {"consolidated_model", "mai_thinking", "scorecard", "model_card"} < stale


def test_dagster_shows_what_a_changed_recipe_makes_stale(root: Path) -> None:
    recipe = root / "small.yaml"
    recipe.write_text((HERE.parent / "recipe" / "small.yaml").read_text())
    of = Experiment.make(str(recipe), label="edited", overrides=OVERRIDES)
    made(root, of)
    text = recipe.read_text()
    assert "{sum: 0.7, mixed: 0.3}" in text
    recipe.write_text(text.replace("{sum: 0.7, mixed: 0.3}", "{sum: 0.5, mixed: 0.5}"))
    runs = Runs(root)
    runs.register(of.plan())
    stale = CachingStaleStatusResolver(
        runs.instance,
        build(str(root)).resolve_asset_graph(),
        LoadingContextForTest(runs.instance),
    )
    statuses = {name: stale.get_status(dg.AssetKey(name), of.name).value for name in PROBLEMS}
    assert statuses == {"stem_problems": "STALE", "helpfulness_problems": "FRESH"}


def test_forced_stages_are_made_again(root: Path) -> None:
    made(root, experiment(), ["stem_problems"])
    summary = climb(root, experiment(), ["stem_problems"], force=["stem_problems"])
    assert list(summary.made) == ["stem_problems"]
    with pytest.raises(NotInExperiment, match="no stage stem/round_7/climb"):
        climb(root, experiment(), force=["stem/round_7/climb"])


def test_a_failure_is_told_and_blocks_only_what_needs_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hillclimb.assets.launching.RETRIES", 0)
    (root / "broken").touch()
    summary, events = made(root, experiment(), ["ai_text_detector", "filtered_corpus"])
    assert not summary.complete
    assert summary.failed["stem_problems"] == "RuntimeError: the disk is on fire"
    assert "ai_text_detector" in summary.made
    assert "stem_problems" in summary.blocked["filtered_corpus"]
    assert sum(e.type == "failed" and e.stage == "stem_problems" for e in events) == 1
    failed = [r for r in records_of(root, "end") if r["run"]["asset"] == "stem_problems"]
    assert failed[0]["status"] == "FAILED"
    assert "disk is on fire" in failed[0]["reason"]


def test_a_crash_is_retried_and_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hillclimb.assets.launching.PAUSE", 0)
    (root / "slow").write_text("10")

    def kill_once(event: Event) -> None:
        if event.type == "metrics" and event.step == 3:
            run = records.attempts(_attempts(root, "stem_problems"))
            if len(run) == 1:
                os.kill(records.alive(run[0]) or 0, signal.SIGKILL)

    summary = climb(root, experiment(), ["stem_problems"], on_event=kill_once)
    assert summary.complete
    assert len(records.attempts(_attempts(root, "stem_problems"))) == 2
    beats = [r["step"] for r in records_of(root, "metrics")]
    assert beats == list(range(10))


def test_damage_is_found_before_anything_is_made_from_it(root: Path) -> None:
    made(root, experiment(), ["stem_problems"])
    artifact = Path(experiment().plan().request("stem_problems", _store(root)).output)
    data = bytearray((artifact / "train.parquet").read_bytes())
    data[40] ^= 1
    (artifact / "train.parquet").write_bytes(bytes(data))
    summary, _ = made(root, experiment(1), ["stem_problems"])
    assert "train.parquet is not what was written" in summary.failed["stem_problems"]


def _store(root: Path) -> Any:
    from hillclimb.artifacts import Store

    return Store(str(root))


def test_a_stage_that_the_recipe_lacks_is_named(root: Path) -> None:
    experiment().save(root)
    runs = Runs(root)
    runs.register(experiment().plan())
    result = runs.make(experiment().name, ["stem/round_5/climb"])
    assert "has no stage stem/round_5/climb" in result.reason
    result = runs.make(experiment().name, ["tokenizer"])
    assert "tokenizer is made from filtered_corpus" in result.reason


def _start(root: Path, *names: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "slow_climb.py"), str(root), *names]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": UNREACHABLE}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _running(root: Path, name: str) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for folder in (root / "runs" / name).glob("*"):
            for attempt in records.attempts(folder):
                if (attempt / "messages.jsonl").exists() and (pid := records.alive(attempt)):
                    return pid
        time.sleep(0.02)
    raise AssertionError(f"{name} was never started")


def test_a_killed_orchestrator_is_followed_by_one_that_attaches(tmp_path: Path) -> None:
    (tmp_path / "slow").write_text("120")
    first = _start(tmp_path, "stem_problems")
    stage = _running(tmp_path, "stem_problems")
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = _start(tmp_path, "stem_problems")
    output, _ = second.communicate(timeout=120)
    assert json.loads(output)["complete"]
    (attempt,) = records.attempts(_attempts(tmp_path, "stem_problems"))
    assert (records.read_json(attempt / "process.json") or {})["pid"] == stage
    instance = dg.DagsterInstance.from_config(str(home(tmp_path)))
    statuses = sorted(run.status.value for run in instance.get_runs())
    assert statuses == ["FAILURE", "SUCCESS"]


def test_ctrl_c_ends_the_stages_and_the_next_call_goes_on(tmp_path: Path) -> None:
    (tmp_path / "slow").write_text("200")
    first = _start(tmp_path, "stem_problems")
    stage = _running(tmp_path, "stem_problems")
    time.sleep(0.5)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    summary = json.loads(output)
    assert summary["cancelled"]
    assert not summary["complete"]
    assert records.started(stage) is None
    instance = dg.DagsterInstance.from_config(str(home(tmp_path)))
    assert [run.status.value for run in instance.get_runs()] == ["CANCELED"]
    assert [r["status"] for r in records_of(tmp_path, "end")] == ["KILLED"]
    (tmp_path / "slow").write_text("20")
    output, _ = _start(tmp_path, "stem_problems").communicate(timeout=120)
    assert json.loads(output)["complete"]
    beats = [r["step"] for r in records_of(tmp_path, "metrics")]
    assert beats == sorted(set(beats))


def test_what_a_dead_process_held_is_given_back(tmp_path: Path) -> None:
    """Its run is failed and its place in the pool is free; a living one keeps both."""
    runs = Runs(tmp_path)
    slots = runs.instance.event_log_storage
    slots.initialize_concurrency_limit_to_default("gpu")
    dead = subprocess.Popen(["true"])
    dead.wait()
    held = {}
    for pid, began in ((dead.pid, "0"), (os.getpid(), started(os.getpid()))):
        tags = {PROCESS_TAG: f"{pid}@{gethostname()}@{began}"}
        held[pid] = runs.instance.create_run_for_job(runs._job, tags=tags).run_id
        slots.claim_concurrency_slot("gpu", held[pid], "stage")
    runs.bury_the_dead()
    assert slots.get_concurrency_info("gpu").active_run_ids == {held[os.getpid()]}
    ended = runs.instance.get_run_by_id(held[dead.pid])
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.FAILURE
