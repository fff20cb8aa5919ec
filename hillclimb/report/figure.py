"""What a chart is made of: series, panels, marks, and the scale that places them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hillclimb.report.markup import Markup
from hillclimb.report.scale import Unit, nice_ticks

SMALLEST = {"share": 0.01, "number": 1.0, "count": 1.0, "seconds": 1.0}


@dataclass(frozen=True)
class Series:
    """One line. `tone` is the colour (1 to 8); the dash follows
    from its place in the panel; None in `ys` is a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    tone: int = 1
    style: Literal["line", "faint", "step", "dots"] = "line"


@dataclass(frozen=True)
class Panel:
    """Lines on one vertical axis; `stacked` ones are filled and add up.

    `levels` are horizontal lines with a label, such as a target.
    """

    label: str
    series: Sequence[Series]
    unit: Unit = "number"
    low: float | None = None
    high: float | None = None
    stacked: bool = False
    levels: Sequence[tuple[float, str]] = ()
    short: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` with a short label."""

    x: float
    label: str
    tone: int = 0


@dataclass(frozen=True)
class Chart:
    """A figure: title, panels over one axis, marks, shaded zones, and a sentence below.

    `x_name` is the axis in one word, for the reader's cursor.
    """

    title: str
    panels: Sequence[Panel]
    x_label: str
    marks: Sequence[Mark] = ()
    zones: Sequence[tuple[float, float, str]] = field(default=())
    caption: str | Markup = ""
    wide: bool = False
    x_name: str = "step"


@dataclass(frozen=True)
class Scale:
    """From values to the drawing's thousandths, y pointing down."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return round((value - self.x0) / (self.x1 - self.x0) * 1000, 1)

    def y(self, value: float) -> float:
        inside = min(max(value, self.y0), self.y1)
        return round(1000 - (inside - self.y0) / (self.y1 - self.y0) * 1000, 1)

    @classmethod
    def of(cls, panel: Panel, x0: float, x1: float) -> Scale:
        """The scale that holds everything a panel draws."""
        return cls(x0, x1, *_limits(panel))


def _limits(panel: Panel) -> tuple[float, float]:
    ys = [y for series in panel.series for y in series.ys if y is not None]
    if panel.stacked:
        ys = [0.0, *(sum(y or 0 for y in row) for row in columns(panel))]
    ys += [y for y, _ in panel.levels]
    low = min(ys, default=0.0) if panel.low is None else panel.low
    high = max(ys, default=1.0) if panel.high is None else panel.high
    high = high if high > low else low + (abs(low) or SMALLEST[panel.unit])
    pad = (high - low) * 0.06
    low_fixed = panel.low is not None or panel.stacked
    return low if low_fixed else low - pad, high if panel.high is not None else high + pad


def columns(panel: Panel) -> list[tuple[float | None, ...]]:
    return list(zip(*(series.ys for series in panel.series), strict=True))


def y_ticks(panel: Panel, scale: Scale) -> list[float]:
    return nice_ticks(scale.y0, scale.y1, 3 if panel.short else 5)


def dashes(panel: Panel) -> list[int]:
    """Each series' dash by its place among the panel's full lines."""
    out, place = [], 0
    for series in panel.series:
        out.append(place)
        place = (place + (series.style not in ("faint", "dots"))) % 5
    return out
