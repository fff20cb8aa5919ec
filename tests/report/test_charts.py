"""Charts: ticks, thinning, smoothing, scales, and what a drawing says."""

from __future__ import annotations

import json
import re
from html import unescape
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.report.charts import describe, draw
from hillclimb.report.figure import Chart, Mark, Panel, Scale, Series
from hillclimb.report.markup import Markup, duration, si, table
from hillclimb.report.scale import nice_ticks, smooth, thin, tick_text
from hillclimb.report.timeline import Round, Timeline

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 1, 5, [0, 0.5, 1]),
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 120, 6, [0, 50, 100]),
        (0.9, 5.8, 5, [1, 2, 3, 4, 5]),
        (-1, 1, 3, [-1, 0, 1]),
        (3, 3, 5, [3]),
    ],
)
def test_ticks_by_hand(low: float, high: float, most: int, expected: list[float]) -> None:
    assert nice_ticks(low, high, most) == expected


@given(NUMBERS, st.floats(1e-6, 1e9), st.integers(2, 9))
def test_ticks_are_few_inside_and_even(low: float, span: float, most: int) -> None:
    high = low + span
    if not low < high or span < abs(low) * 1e-6:
        return
    ticks = nice_ticks(low, high, most)
    assert 1 <= len(ticks) <= most
    assert all(low - span * 1e-6 <= tick <= high + span * 1e-6 for tick in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)


@given(st.lists(st.one_of(st.none(), NUMBERS), max_size=400), st.integers(1, 50))
def test_thinning_keeps_the_mean_and_the_bound(ys: list[float | None], most: int) -> None:
    xs, out = thin(range(len(ys)), ys, most)
    assert len(xs) == len(out) <= most
    known = [y for y in ys if y is not None]
    kept = [y for y in out if y is not None]
    assert bool(known) == bool(kept)
    if known:
        assert min(known) - 1e-3 <= min(kept)
        assert max(kept) <= max(known) + 1e-3


def test_thinning_by_hand() -> None:
    assert thin([0, 1, 2, 3, 4], [1, 3, None, None, 8], 3) == ([0.5, 2.5, 4], [2, None, 8])


def test_smoothing_by_hand() -> None:
    assert smooth([1, 3, None, 5], 2) == [1, 2, 3, 5]
    assert smooth([None, None], 2) == [None, None]


def test_scale_points_down_and_clamps() -> None:
    scale = Scale(0, 10, 0, 2)
    assert [scale.x(5), scale.y(0), scale.y(0.5), scale.y(2), scale.y(9)] == [500, 1000, 750, 0, 0]


def test_drawing_places_points_and_breaks_at_gaps() -> None:
    series = Series("a<b", [0, 1, 2, 3, 4], [0.0, 1.0, None, 0.5, 0.25])
    panel = Panel("share", [series], "share", 0, 1)
    page = str(draw(Chart("T & U", [panel], "step", [Mark(2, "here")])))
    line = re.search(r'class="line line[^"]*" d="(M0[^"]+)"', page)
    assert line
    assert line[1] == "M0 1000h0L250 0M750 500h0L1000 750"
    assert "M500.0 0V1000" in page
    assert "T &amp; U" in page
    assert "a<b" not in page
    data = json.loads(unescape(re.search(r'data-chart="([^"]+)"', page)[1]))  # type: ignore[index]
    assert data["series"] == [["a<b", 0, "share", 1, [0, 1, None, 0.5, 0.25]]]


def test_stacked_areas_add_up() -> None:
    parts = [Series("a", [0, 1], [1, 1], 1), Series("b", [0, 1], [3, 1], 2)]
    page = str(draw(Chart("T", [Panel("n", parts, high=4, stacked=True)], "step")))
    areas = re.findall(r'class="area [^"]*" d="(M[^"]+Z)"', page)
    assert areas[-2:] == [
        "M0 750L1000 750L1000 1000L0 1000Z",
        "M0 0L1000 500L1000 750L0 750Z",
    ]


def test_a_chart_says_itself_in_words() -> None:
    chart = Chart(
        "Pass rate", [Panel("share", [Series("STEM", [0, 1], [0.25, 0.5])], "share")], "step"
    )
    assert describe(chart) == (
        "Pass rate, over step. STEM: from 25.0 % to 50.0 %, between 25.0 % and 50.0 %"
    )


def test_nothing_to_draw_is_said() -> None:
    assert "Nothing was recorded" in draw(Chart("T", [Panel("n", [Series("a", [], [])])], "step"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9_999, "9,999"), (653_000, "653k"), (5_430_000, "5.43M"), (962.1e9, "962B"),
     (999_999, "1M"), (30e12, "30T")],
)  # fmt: skip
def test_counts_read_well(value: float, text: str) -> None:
    assert si(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (42.4, "42 s"), (59.7, "1 min 0 s"), (843, "14 min 3 s"),
     (19_200, "5 h 20 min"), (273_600, "3 d 4 h")],
)  # fmt: skip
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0005, "0.0005"), (8e-6, "8e-6"), (5000, "5k"), (1.2e6, "1.2M")]
)
def test_ticks_read_well(value: float, text: str) -> None:
    assert tick_text(value, "number") == text


def test_tables_escape_what_they_show() -> None:
    page = table(["a"], [["<b>"], [Markup("<i>x</i>")]], "C")
    assert "&lt;b&gt;" in page
    assert "<i>x</i>" in page


def test_an_updates_counts_are_those_of_its_last_row_and_its_seconds_those_of_all() -> None:
    told = [(1, 0, 16, 2.0), (2, 0, 32, 1.0), (3, 1, 8, 0.5)]
    keys = ("step", "update", "groups_kept", "seconds_learning")
    rows = [dict(zip(keys, values, strict=True)) for values in told]
    line = Timeline("stem", [Round("stem/round_0/climb", 0, rows, 0.0)])
    (kept,) = line.stack((("groups_kept", "kept", 1),), total=False)
    (seconds,) = line.stack((("seconds_learning", "learning", 1),), total=True)
    assert (kept.xs, kept.ys) == ([0.0, 2.0], [32, 8])
    assert seconds.ys == [3.0, 0.5]
