"""The figures of `benchmarks/against_trl.py`, from courses that are known."""

from __future__ import annotations

import sys
from math import inf
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from against_trl import seconds_to, table
from climb_course import Course, Point


def _course(side: str, seed: int, seconds: float, rates: list[float]) -> Course:
    points = [Point(i, i * seconds, 2 * i * seconds, rate, rate) for i, rate in enumerate(rates)]
    return Course(side, seed, {}, points, 10.0, 4.0, 5.0, 1.0, sampled=400, learned=500)


def test_a_rate_is_reached_on_a_line_between_two_scores() -> None:
    course = _course("TRL", 0, 10.0, [0.4, 0.6, 0.5, 0.9])
    assert seconds_to(course, 0.55, lambda p: p.seconds) == pytest.approx(7.5)
    assert seconds_to(course, 0.7, lambda p: p.cpu) == pytest.approx(50.0)
    assert seconds_to(course, 0.4, lambda p: p.seconds) == 0.0
    assert seconds_to(course, 0.95, lambda p: p.seconds) == inf


def test_ratios_say_how_much_faster_than_trl() -> None:
    trl = [_course("TRL", seed, 10.0, [0.4, 0.8, 0.96]) for seed in (0, 1)]
    ours = [_course("hillclimb", seed, 4.0, [0.4, 0.8, 0.96]) for seed in (0, 1)]
    rows = {
        row.split(" | ")[0]: row
        for row in table({"TRL": trl, "hillclimb": ours}, [0.8, 0.9]).split("\n")
    }
    assert rows["| s to 0.8"] == "| s to 0.8 | 10.0 ± 0.0 | 4.0 ± 0.0 (2.50×) |"
    assert rows["| tokens/s sampled"].endswith("| 100 ± 0 (1.00×) |")


def test_a_rate_that_one_seed_never_reached_has_no_ratio() -> None:
    trl = [_course("TRL", 0, 1.0, [0.4, 0.7]), _course("TRL", 1, 1.0, [0.4, 0.99])]
    ours = [_course("hillclimb", 0, 1.0, [0.4, 0.99])]
    row = next(
        r
        for r in table({"TRL": trl, "hillclimb": ours}, [0.8, 0.9]).split("\n")
        if "s to 0.9 " in r
    )
    assert "never in 1 of 2" in row
    assert "×" not in row
