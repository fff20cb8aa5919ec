"""Base training in real processes: resume to the same bytes, layouts that agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "pretrain_once.py"


def train(out: Path, ranks: int = 1, die: int = 0, zero: int = 2, micro: int = 128, dropout=0.0):
    command = [str(SCRIPT), str(out), str(die), str(zero), str(micro), str(dropout)]
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), *command],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[0].removeprefix("RESULT ")) if lines else done


@pytest.mark.slow("starts six training processes")
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    whole = train(tmp_path / "whole", dropout=0.15)
    assert len(whole["losses"]) == 18
    for step in (2, 5, 17):
        out = tmp_path / f"killed-{step}"
        assert train(out, die=step, dropout=0.15).returncode != 0
        assert train(out, dropout=0.15) == whole


@pytest.mark.slow("starts training on two ranks")
def test_layouts_agree_with_one_rank(tmp_path):
    alone = train(tmp_path / "a")["losses"]
    for name, layout, apart in (
        ("micro", {"micro": 32}, 2e-3),  # its balance loss sees the counts so far only
        ("zero1", {"zero": 1}, 1e-6),
        ("two", {"ranks": 2}, 1e-5),
    ):
        losses = train(tmp_path / name, **layout)["losses"]
        assert max(abs(a - b) for a, b in zip(alone, losses, strict=True)) < apart, name
