"""Checkpoints in one process: damage, other models, NaN, writers that die, a store that is full."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpointed import one_step, state_hash, tiny_learner, train
from safetensors.numpy import load_file

from hillclimb.artifacts import ArtifactError, ArtifactWriter
from hillclimb.training import runtime, writing
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.learner import Learner
from hillclimb.training.writing import CheckpointError, Writer


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    runtime.start()
    yield
    runtime.stop()


@pytest.fixture
def learner() -> Learner:
    return tiny_learner()


def opened(out: Path, learner: Learner, log: list[str] | None = None) -> Checkpointer:
    return Checkpointer(ArtifactWriter(str(out)), learner, (log if log is not None else []).append)


def pointed_at(out: Path) -> str:
    return (out / "resume/latest").read_text()


def damaged(out: Path, name: str, how: str) -> None:
    """Cut, flip or delete a file of the newest checkpoint."""
    path = out / pointed_at(out) / name
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) * 2 // 3] ^= 1
        path.write_bytes(data)


def frozen(checkpoints: Checkpointer) -> int:
    """Stop the writer in its tracks; its process id."""
    process = checkpoints.writer.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    return process.pid


def test_what_is_loaded_is_what_was_saved(tmp_path, learner):
    with opened(tmp_path, learner) as checkpoints:
        assert checkpoints.load() is None
        one_step(learner, 0)
        checkpoints.save(1, {"rows": [0.1, 2]}, {"buffer": b"\x00\xff"})
        saved = state_hash(learner)
        one_step(learner, 1)
        checkpoints.drain()
    after = state_hash(learner)
    again = tiny_learner()
    with opened(tmp_path, again) as checkpoints:
        assert checkpoints.load() == {"rows": [0.1, 2]}
        assert checkpoints.extra("buffer") == b"\x00\xff"
        assert state_hash(again) == saved
        one_step(again, 1)
    assert state_hash(again) == after
    tensors = load_file(tmp_path / pointed_at(tmp_path) / "rank-0.safetensors")
    masters = [name for name in tensors if name.endswith(":master")]
    whole = sum(tensors[name].size for name in masters)
    assert whole == sum(p.numel() for p in learner.model.parameters())
    assert len(tensors) == 3 * len(masters)


def test_the_newest_and_one_before_it_stay(tmp_path, learner):
    train(str(tmp_path), learner, 12)
    steps = sorted(path.name.split("-")[1] for path in (tmp_path / "resume").glob("step-*"))
    assert steps == ["00000009", "00000012"]
    assert pointed_at(tmp_path).startswith("resume/step-00000012-")


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("rank-0.safetensors", "flip", "is not what was written: sha256"),
        ("rank-0.safetensors", "cut", r"has \d+ bytes, \d+ were written"),
        ("rank-0.safetensors", "gone", "is missing"),
        ("state.json", "flip", "is not what was written"),
        ("whole.json", "flip", "is not what was written"),
        ("whole.json", "cut", "is not what was written"),
        ("whole.json", "gone", "is missing"),
        ("ballast", "flip", "is not what was written"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path, learner, name, how, said
):
    undisturbed = train(str(tmp_path), learner, 9, ballast=100)
    damaged(tmp_path, name, how)
    again, log = tiny_learner(), []
    with opened(tmp_path, again, log) as checkpoints:
        state = checkpoints.load()
    assert state is not None
    assert len(state["losses"]) == 6
    assert state_hash(again) == undisturbed["hashes"][6]
    assert len(log) == 1
    assert name in log[0]
    assert re.search(said, log[0])
    assert len(list((tmp_path / "resume").glob("step-*"))) == 1
    assert train(str(tmp_path), tiny_learner(), 9)["losses"] == undisturbed["losses"]


def test_when_every_checkpoint_is_damaged_nothing_is_guessed(tmp_path, learner):
    train(str(tmp_path), learner, 6)
    for path in (tmp_path / "resume").glob("step-*/rank-0.safetensors"):
        path.write_bytes(b"")
    log: list[str] = []
    with (
        opened(tmp_path, tiny_learner(), log) as checkpoints,
        pytest.raises(ArtifactError, match=r"every checkpoint under .* is damaged"),
    ):
        checkpoints.load()
    assert len(log) == 2
    assert len(list((tmp_path / "resume").glob("step-*"))) == 2


def test_what_an_attempt_left_half_written_is_removed(tmp_path, learner):
    train(str(tmp_path), learner, 6)
    half = tmp_path / "resume/step-00000009-0badbeef"
    half.mkdir()
    (half / "rank-0.safetensors.partial").write_bytes(b"half")
    with opened(tmp_path, tiny_learner()) as checkpoints:
        state = checkpoints.load()
    assert state is not None
    assert len(state["losses"]) == 6
    assert not half.exists()


def test_another_model_is_refused_by_name(tmp_path, learner):
    train(str(tmp_path), learner, 3)
    for other, sentence in (
        (tiny_learner(vocabulary=64), "a vocabulary of 48 tokens, the model now has 64"),
        (tiny_learner(hidden=40), r"of shape \[.*32.*\], the model now has \[.*40.*\]: go on with"),
    ):
        with opened(tmp_path, other) as checkpoints, pytest.raises(ValueError, match=sentence):
            checkpoints.load()
    with opened(tmp_path, tiny_learner()) as checkpoints:
        assert checkpoints.load() is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_is_not_written(tmp_path, learner, value):
    train(str(tmp_path), learner, 3)
    before = pointed_at(tmp_path)
    with opened(tmp_path, learner) as checkpoints:
        fragment = learner.fragments()[-1]
        fragment.tensors["exp_avg"][1] = value
        with pytest.raises(FloatingPointError, match=f"exp_avg of {fragment.name}.*{before}"):
            checkpoints.save(4, {})
    with opened(tmp_path, tiny_learner()) as checkpoints:
        assert checkpoints.load() is not None
    assert pointed_at(tmp_path) == before


def test_a_save_waits_for_the_one_before_it_and_never_mixes_them(tmp_path, learner):
    tmp_path, seen = tmp_path / "out", tmp_path / "seen"
    with opened(tmp_path, learner) as checkpoints:
        one_step(learner, 0)
        checkpoints.save(1, {})
        checkpoints.drain()
        pid = frozen(checkpoints)
        one_step(learner, 1)
        checkpoints.save(2, {})
        second = state_hash(learner)
        one_step(learner, 2)
        assert pointed_at(tmp_path).startswith("resume/step-00000001-")
        threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
        cost = checkpoints.save(3, {})
        assert cost.waited > 0
        assert pointed_at(tmp_path).startswith("resume/step-00000002-")
        frozen(checkpoints)
        shutil.copytree(tmp_path, seen)
        os.kill(pid, signal.SIGCONT)
    restored = tiny_learner()
    with opened(seen, restored) as checkpoints:
        checkpoints.load()
    assert state_hash(restored) == second


def test_a_writer_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path, learner):
    log: list[str] = []
    with opened(tmp_path, learner, log) as checkpoints:
        one_step(learner, 0)
        checkpoints.save(1, {})
        checkpoints.drain()
        os.kill(frozen(checkpoints), signal.SIGKILL)
        time.sleep(0.1)
        one_step(learner, 1)
        checkpoints.save(2, {})
        checkpoints.drain()
        pid = frozen(checkpoints)
        one_step(learner, 2)
        checkpoints.save(3, {})
        third = state_hash(learner)
        os.kill(pid, signal.SIGKILL)
        one_step(learner, 3)
    assert [line.split("ended with -9 ")[1].split(":")[0] for line in log] == [
        "between checkpoints",
        f"while it wrote {pointed_at(tmp_path)}",
    ]
    again = tiny_learner()
    with opened(tmp_path, again) as checkpoints:
        checkpoints.load()
    assert again.steps == 3
    assert state_hash(again) == third


def test_writers_that_never_live_are_an_error(tmp_path, learner, monkeypatch):
    monkeypatch.setattr(writing.sys, "executable", "/bin/false")
    with opened(tmp_path, learner) as checkpoints:
        checkpoints.save(1, {})
        with pytest.raises(CheckpointError, match="the writer of rank 0 was killed 2 times"):
            checkpoints.drain()


def test_a_full_store_is_an_error_of_the_next_save_and_harms_nothing(tmp_path, learner):
    with opened(tmp_path, learner) as checkpoints:
        one_step(learner, 0)
        checkpoints.save(1, {})
        checkpoints.drain()
        first, whole = pointed_at(tmp_path), state_hash(learner)
        process = checkpoints.writer.process
        assert process is not None
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
        one_step(learner, 1)
        checkpoints.save(2, {})
        before = state_hash(learner)
        with pytest.raises(CheckpointError, match=r"step-00000002-.* File too large.*: make room"):
            checkpoints.save(3, {})
        assert state_hash(learner) == before
    assert pointed_at(tmp_path) == first
    again = tiny_learner()
    with opened(tmp_path, again) as checkpoints:
        checkpoints.load()
    assert state_hash(again) == whole


def test_an_error_in_training_leaves_the_checkpoint_under_way(tmp_path, learner):
    one_step(learner, 0)
    checkpoints = opened(tmp_path, learner)
    checkpoints.save(1, {})
    checkpoints.__exit__(KeyError, KeyError(), None)
    assert json.loads((tmp_path / pointed_at(tmp_path) / "state.json").read_text())["steps"] == 1


def test_a_checkpoint_counts_when_every_rank_is_on_disk(tmp_path):
    files = [os.memfd_create("files") for _ in range(2)]
    log: list[str] = []
    writers = []
    for rank, file in enumerate(files):
        os.pwrite(file, f"[]rank {rank}".encode(), 0)
        writers.append(Writer(str(tmp_path), rank, (file, file), log.append))
    order = {
        "folder": "resume/step-00000001-0", "world": 2, "fragments": (0, 2),
    }  # fmt: skip
    writers[0].send({**order, "files": [("rank-0", 0, 2, 6)]})
    while not (tmp_path / "resume/step-00000001-0/rank-0.json").exists():
        time.sleep(0.01)
    next_one = tmp_path / "resume/step-00000002-0"
    next_one.mkdir()
    assert not (tmp_path / "resume/latest").exists()
    writers[1].send({**order, "files": [("rank-1", 0, 2, 6)]})
    process = writers[1].process
    assert process is not None
    process.kill()
    for writer in reversed(writers):
        writer.wait()
        writer.close(None)
    whole = json.loads((tmp_path / pointed_at(tmp_path) / "whole.json").read_text())
    assert whole["content"]["files"].keys() == {"rank-0", "rank-1"}
    assert (tmp_path / pointed_at(tmp_path) / "rank-1").read_text() == "rank 1"
    assert next_one.exists(), "another rank may be ahead"
    assert len(log) == 1
