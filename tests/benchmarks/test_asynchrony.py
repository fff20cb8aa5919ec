"""`benchmarks/asynchrony.py` climbs, in turns and ahead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "asynchrony.py"


def test_it_compares_a_short_climb_in_both_modes() -> None:
    words = [sys.executable, str(BENCHMARK), "--steps", "4", "--sigmas", "0"]
    told = subprocess.run(
        [*words, "--step-seconds", "0.01"], capture_output=True, text=True, check=True
    ).stdout
    rows = [
        line.split() for line in told.splitlines() if line.strip().endswith(tuple("0123456789"))
    ]
    assert [row[:2] for row in rows] == [["0.0", "0"], ["0.0", "1"]]
    assert all(float(row[2].rstrip("s")) > 0 for row in rows)
