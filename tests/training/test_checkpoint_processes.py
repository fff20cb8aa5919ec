"""Checkpoints over processes: kill -9 at any moment, other numbers of ranks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpointed import ENVIRONMENT, command, finished, tiny_learner, train

from hillclimb.training import runtime


@pytest.fixture
def group() -> Iterator[None]:
    runtime.start()
    yield
    runtime.stop()


def half_written(out: Path) -> set[Path]:
    folders = (out / "resume").glob("step-*")
    return {folder for folder in folders if not (folder / "whole.json").exists()}


STEPS = "30"
"""So many that the last kill still comes before the end on a fast machine."""


def killed(out: Path, save: int, seconds: float) -> bool:
    """Start, and kill -9 some seconds after the `save`-th save has begun; whether it was killed."""
    process = subprocess.Popen(
        command("train", str(out), STEPS, "2"), env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    before, seen = half_written(out), set()
    while process.poll() is None and len(seen) < save:
        seen |= half_written(out) - before
        time.sleep(0.0005)
    time.sleep(seconds)
    process.kill()
    return process.wait() == -9


@pytest.mark.slow("seven processes that import torch")
def test_killed_at_any_moment_training_ends_with_the_same_bytes(tmp_path):
    whole = finished("train", str(tmp_path / "whole"), STEPS, "2")
    out, rng = tmp_path / "killed", np.random.default_rng(4)
    (out / "resume").mkdir(parents=True)
    for save, seconds in ((1, 0.0), (2, 0.0), (1, rng.uniform(0, 0.2)), (1, rng.uniform(0, 0.2))):
        assert killed(out, save, seconds)
        pointer = out / "resume/latest"
        if seconds == 0.0:
            assert half_written(out)
        if pointer.exists():
            assert out / pointer.read_text() not in half_written(out)
            assert (out / pointer.read_text()).exists()
    assert pointer.exists()
    again = finished("train", str(out), STEPS, "2")
    for key in ("weights", "losses", "steps"):
        assert again[key] == whole[key]
    assert again["hashes"].items() <= whole["hashes"].items()
    assert not [file for folder in half_written(out) for file in folder.iterdir()]


@pytest.mark.slow("a process on two ranks")
def test_any_number_of_ranks_and_any_stage_goes_on_from_any_other(tmp_path, group):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = train(str(tmp_path / "alone"), tiny_learner(), 9)
    train(str(one), tiny_learner(), 6)
    shared = finished("layouts", str(one), str(two), "9", ranks=2)
    two_to_one = train(str(two), tiny_learner(), 9)

    two_ranks = shared["two"]["hashes"]["6"]
    assert shared["one to two"]["hashes"]["6"] == alone["hashes"][6]
    assert shared["two to zero3"]["hashes"]["6"] == two_ranks
    assert two_to_one["hashes"][6] == two_ranks
    assert {shared[k]["steps"] for k in shared if k != "two"} == {9}
    for name, losses in (
        ("one to two", shared["one to two"]["losses"]),
        ("two to zero3", shared["two to zero3"]["losses"]),
        ("two to one", two_to_one["losses"]),
    ):
        errors = [abs(a - b) / b for a, b in zip(losses, alone["losses"], strict=True)]
        assert max(errors) < 1e-5, (name, max(errors))
