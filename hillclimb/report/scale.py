"""Numbers for charts: ticks, thinning, smoothing, and how a value reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from hillclimb.report.markup import percent, si

Unit = Literal["number", "share", "count", "seconds"]
MAX_POINTS = 320


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers inside [low, high], steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    power = math.floor(math.log10(span / most))
    leads = [(lead, exponent) for exponent in (power, power + 1) for lead in (1, 2, 5)]
    for lead, exponent in leads:
        step = lead * 10.0**exponent
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
    return [low, high]


def thin(
    xs: Sequence[float], ys: Sequence[float | None], most: int = MAX_POINTS
) -> tuple[list[float], list[float | None]]:
    """At most `most` points: means of equal runs, None where a run holds no number."""
    size = -(-len(xs) // most)
    if size <= 1:
        return list(xs), list(ys)
    out_x: list[float] = []
    out_y: list[float | None] = []
    for start in range(0, len(xs), size):
        run = [y for y in ys[start : start + size] if y is not None]
        block = xs[start : start + size]
        out_x.append(sum(block) / len(block))
        out_y.append(sum(run) / len(run) if run else None)
    return out_x, out_y


def smooth(ys: Sequence[float | None], window: int) -> list[float | None]:
    """A trailing mean over `window` points; gaps do not count."""
    out: list[float | None] = []
    for end in range(1, len(ys) + 1):
        run = [y for y in ys[max(0, end - window) : end] if y is not None]
        out.append(sum(run) / len(run) if run else None)
    return out


def value_text(value: float, unit: Unit) -> str:
    """A value as the reader's cursor shows it."""
    if unit == "share":
        return percent(value, 1 if abs(value) >= 0.01 or value == 0 else 3)
    if unit == "count":
        return si(value) if abs(value) >= 100 or value == round(value) else f"{value:.1f}"
    if unit == "seconds":
        return f"{value:.3g} s"
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) < 1e4 else si(value)


def tick_text(value: float, unit: Unit) -> str:
    """A tick's label: as short as the value allows."""
    if unit == "share":
        return f"{100 * value:.6g} %"
    if abs(value) >= 1e6:
        return si(value)
    if abs(value) >= 1e3:
        return f"{value / 1e3:,.6g}k"
    if value and abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.6g}"
