"""The whole machine on the smallest recipe, as a user runs it, and once with every stage killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dagster_servers import serving, until

from hillclimb.artifacts import Store
from hillclimb.experiments import Experiment, Plan
from hillclimb.launcher import LocalLauncher, State, records
from hillclimb.recipe.graph import checkpoints, identify, stage_specs
from hillclimb.recipe.load import load_recipe

pytestmark = [pytest.mark.e2e("makes whole machines"), pytest.mark.timeout(1500)]
WORKSPACE = Path(__file__).parents[2] / "workspace.yaml"
COMMAND = Path(sys.executable).parent / "hillclimb"


def hillclimb(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *words, "--root", str(root), "--recipe", "smoke"],
        capture_output=True, text=True, check=False, timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which `hillclimb climb` made the smoke recipe."""
    folder = tmp_path_factory.mktemp("machine") / "root"
    done = hillclimb(folder, "climb")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


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
    """Every stage is killed once, somewhere in its time, and asked for again, in another root."""
    plan = Experiment.make("smoke", 0).plan()
    first, other, rng = Store(str(root)), Store(str(tmp_path / "other")), random.Random(20261123)
    launcher = LocalLauncher(tmp_path / "runs")
    killed = 0
    try:
        for name in plan.specs:
            request = plan.request(name, other)
            handle = launcher.submit(request)
            time.sleep(rng.uniform(0.05, 0.8) * seconds_of(first, name, plan.fingerprints[name]))
            pid = records.alive(Path(handle.where))
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            ended(launcher, handle)
            handle = launcher.submit(request)
            assert ended(launcher, handle) in (State.DONE,), name
    finally:
        launcher.close()
    assert killed >= len(plan.specs) // 2
    for name, fingerprint in plan.fingerprints.items():
        one, two = first.find(name, fingerprint), other.find(name, fingerprint)
        assert one is not None
        assert two is not None
        for path, digest in identity_bearing(one).items():
            assert identity_bearing(two)[path] == digest, f"{name}/{path}"


def seconds_of(store: Store, name: str, fingerprint: str) -> float:
    """How long a stage took in its own process."""
    artifact = store.find(name, fingerprint)
    assert artifact is not None
    return float(artifact.manifest.run["seconds"])


def ended(launcher: LocalLauncher, handle) -> State:  # type: ignore[no-untyped-def]
    until = time.monotonic() + 300
    while not (outcome := launcher.poll(handle)).ended:
        assert time.monotonic() < until, "the stage does not end"
        time.sleep(0.02)
    return outcome.state


def identity_bearing(artifact) -> dict[str, str]:  # type: ignore[no-untyped-def]
    """Digests of files that hold no timings."""
    timed = ("metrics.jsonl", "MODEL_CARD.md", "card.json")
    return {f.path: f.sha256 for f in artifact.manifest.files if f.path not in timed}
