"""The whole machine on the smallest recipe, as a user runs it, and once with every stage killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster_servers import serving, until
from machines import hillclimb, identity_bearing, require_same_bytes

from hillclimb.artifacts import Store
from hillclimb.artifacts.store import MANIFEST
from hillclimb.experiments import Experiment, Plan
from hillclimb.launcher import Handle, LocalLauncher, State, records
from hillclimb.recipe.graph import checkpoints, identify, stage_specs
from hillclimb.recipe.load import load_recipe
from hillclimb.stages.request import Request

pytestmark = [pytest.mark.e2e("makes whole machines"), pytest.mark.timeout(1500)]
WORKSPACE = Path(__file__).parents[2] / "workspace.yaml"


@pytest.fixture(scope="module")
def root(local_machine: Path) -> Path:
    """The machine that `hillclimb climb` made."""
    return local_machine


def test_every_stage_is_made_and_a_second_call_makes_none(root: Path) -> None:
    specs = stage_specs(load_recipe("smoke"))
    store = Store(str(root))
    assert all(store.find(name, print_) for name, print_ in identify(specs).items())
    started = time.monotonic()
    again = hillclimb(root, "climb")
    assert again.returncode == 0
    assert f"0 made, {len(specs)} made before" in again.stdout
    assert time.monotonic() - started < 60


def test_the_scorecard_names_every_checkpoint_and_domain(root: Path) -> None:
    scores = json.loads(hillclimb(root, "scorecard", "--json").stdout)
    assert set(scores) == set(checkpoints(stage_specs(load_recipe("smoke"))))
    for domains in scores.values():
        assert set(domains) == {"stem", "agentic", "helpfulness"}
        for score in domains.values():
            assert set(score) == {"pass_at_1", "greedy", "n"}
            assert 0 <= score["pass_at_1"] <= 1
            assert score["n"] >= 14


def test_lineage_reaches_the_documents(root: Path) -> None:
    done = hillclimb(root, "lineage", "mai_thinking", "--json")
    assert done.returncode == 0, done.stderr
    for name in ("stem/round_1/climb", "mai_base_16k", "filtered_corpus", "raw_documents"):
        assert name in done.stdout


def test_the_report_holds_the_rollouts(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = hillclimb(root, "report", "--output", str(page))
    assert done.returncode == 0, done.stderr
    assert "stem/round_0/climb" in page.read_text()


def test_nothing_is_damaged_and_a_flipped_byte_is_named(root: Path) -> None:
    assert hillclimb(root, "verify").returncode == 0
    path = next((root / "artifacts" / "tokenizer").rglob("tokenizer.json"))
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    try:
        found = hillclimb(root, "verify")
        assert found.returncode == 1
        assert "tokenizer.json" in found.stdout + found.stderr
        reader = hillclimb(root, "climb", "--seed", "9", "--select", "mai_base_16k")
        assert reader.returncode == 1
        assert "tokenizer.json" in reader.stdout + reader.stderr
    finally:
        path.write_bytes(whole)


def test_a_backfill_of_two_seeds_makes_what_the_second_lacks(root: Path) -> None:
    made = hillclimb(root, "climb", "--seed", "1", "--select", "stem_problems")
    assert made.returncode == 0, made.stderr
    plans = [Experiment.make("smoke", seed).plan() for seed in (0, 1)]
    partitions = [plan.experiment.name for plan in plans]
    before = {name: attempts(root, plans[0], name) for name in plans[0].specs}
    with serving(root, WORKSPACE, {}) as dagster:
        backfill = dagster.backfill(list(plans[0].specs), partitions)
        until(lambda: dagster.backfill_status(backfill).startswith("COMPLETED"), 900)
        assert dagster.backfill_status(backfill) == "COMPLETED_SUCCESS"
    assert plans[1].made(Store(str(root))) == set(plans[1].specs)
    assert {name: attempts(root, plans[0], name) for name in plans[0].specs} == before
    ends = [Store(str(root)).find("mai_thinking", p.fingerprints["mai_thinking"]) for p in plans]
    weights = [identity_bearing(end)["model/model.safetensors"] for end in ends]
    assert weights[0] != weights[1]


def attempts(root: Path, plan: Plan, name: str) -> int:
    """How often a stage was started."""
    return len(records.attempts(root / "runs" / name / plan.fingerprints[name][:16]))


def test_an_ablation_makes_what_follows_from_its_change_and_shares_the_rest(root: Path) -> None:
    change = "specialists.stem.climbs.1.rewards.length=0.1"
    done = hillclimb(root, "climb", "--experiment", "longer", "--set", change)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    plans = [
        Experiment.make("smoke", 0).plan(),
        Experiment.make("smoke", 0, "longer", (change,)).plan(),
    ]
    new = {n for n, p in plans[1].fingerprints.items() if p != plans[0].fingerprints[n]}
    assert new == {
        "stem/round_1/climb", "stem/round_1/traces", "consolidated_model", "mai_thinking",
        "scorecard", "model_card",
    }  # fmt: skip
    assert f"{len(new)} made, {len(plans[0].specs) - len(new)} made before" in done.stdout


def test_stages_killed_at_random_end_with_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """Every stage is killed once, somewhere before its commit, and asked for again."""
    plan = Experiment.make("smoke", 0).plan()
    first, other, rng = Store(str(root)), Store(str(tmp_path / "other")), random.Random(20261123)
    launcher = LocalLauncher(tmp_path / "runs")
    try:
        for name in plan.specs:
            request = plan.request(name, other)
            made = first.find(name, plan.fingerprints[name])
            assert made is not None
            kill_once(launcher, request, float(made.manifest.run["seconds"]), rng)
            assert ended(launcher, launcher.submit(request)) is State.DONE, name
    finally:
        launcher.close()
    require_same_bytes(plan, first, other)


def kill_once(
    launcher: LocalLauncher, request: Request, seconds: float, rng: random.Random
) -> None:
    """SIGKILL after a random part of the seconds that the stage took, of ever fewer where it was
    too quick: then what it made is removed."""
    for _ in range(20):
        handle = launcher.submit(request)
        run = Path(handle.where)
        wait_for((run / "messages.jsonl").exists)
        time.sleep(rng.uniform(0.0, 0.8) * seconds)
        if pid := records.alive(run):
            os.kill(pid, signal.SIGKILL)
        ended(launcher, handle)
        if not (Path(request.output) / MANIFEST).exists():
            assert records.read_json(run / "exit.json") == {"code": -signal.SIGKILL}
            return
        shutil.rmtree(request.output)
        seconds /= 2
    raise AssertionError(f"{request.name} always ended before it could be killed")


def ended(launcher: LocalLauncher, handle: Handle) -> State:
    """How the attempt ended."""
    wait_for(lambda: launcher.poll(handle).ended)
    return launcher.poll(handle).state


def wait_for(probe: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not probe():
        assert time.monotonic() < until, "the stage does not begin or end"
        time.sleep(0.005)
