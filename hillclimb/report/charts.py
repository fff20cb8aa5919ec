"""Line charts as SVG with HTML labels: the lines stretch with the page, the text does not.

A chart is one or more panels over one horizontal axis. Series differ by colour and by dash, so
that they can be told apart in grey. The numbers behind the lines travel in `data-chart` for the
reader's cursor; without scripts the drawing is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hillclimb.report.figure import Chart, Panel, Scale, Series, dashes, y_ticks
from hillclimb.report.labels import labels, legend, x_ticks
from hillclimb.report.markup import Markup, join, note
from hillclimb.report.scale import thin, value_text


def draw(chart: Chart) -> Markup:
    """The figure, or a line that says that nothing was recorded."""
    panels = [_drawable(panel) for panel in chart.panels]
    xs = [x for panel in panels for series in panel.series for x in series.xs]
    if not xs:
        return Markup(
            '<figure class="chart"><figcaption><b>{}</b></figcaption>'
            '<p class="pending">Nothing was recorded.</p></figure>'
        ).format(chart.title)
    x0, x1 = min(xs), max(xs)
    x0 = 0.0 if 0 < x0 < 0.05 * x1 else x0
    x1 = x1 if x1 > x0 else x0 + 1
    drawn = join(_panel(panel, chart, x0, x1, not index) for index, panel in enumerate(panels))
    return Markup(
        '<figure class="chart{}" data-chart="{}"><figcaption><b>{}</b>{}</figcaption>'
        '<div class="panels" tabindex="0" role="img" aria-label="{}">{}'
        '<div class="xticks">{}</div></div><div class="xlabel">{}</div>{}</figure>'
    ).format(
        " wide" if chart.wide else "",
        json.dumps(_data(panels, chart, x0, x1), separators=(",", ":")),
        chart.title,
        legend(panels),
        describe(chart),
        drawn,
        x_ticks(x0, x1),
        chart.x_label,
        note(chart.caption) if chart.caption else "",
    )


def describe(chart: Chart) -> str:
    """The chart in words: where each line starts, ends, and its range."""
    said = []
    for panel in chart.panels:
        for series in panel.series:
            ys = [y for y in series.ys if y is not None]
            if ys and series.style != "faint":
                numbers = (ys[0], ys[-1], min(ys), max(ys))
                first, last, low, high = (value_text(y, panel.unit) for y in numbers)
                said.append(f"{series.name}: from {first} to {last}, between {low} and {high}")
    return f"{chart.title}, over {chart.x_label}. " + ". ".join(said)


def _drawable(panel: Panel) -> Panel:
    lines = []
    for series in panel.series:
        if all(y is None for y in series.ys):
            continue
        xs, ys = thin(series.xs, series.ys)
        dots = series.style == "dots"
        lines.append(series if dots else replace(series, xs=xs, ys=ys))
    return replace(panel, series=lines)


def _panel(panel: Panel, chart: Chart, x0: float, x1: float, first: bool) -> Markup:
    scale = Scale.of(panel, x0, x1)
    lines = _stack(panel, scale) if panel.stacked else _lines(panel, scale)
    return Markup(
        '<div class="ylabel">{}</div><div class="plot{}"><svg viewBox="0 0 1000 1000" '
        'preserveAspectRatio="none" aria-hidden="true">{}{}</svg>{}<i class="cursor"></i></div>'
    ).format(
        panel.label,
        " short" if panel.short else "",
        join(_ground(panel, chart, scale)),
        join(lines),
        join(labels(panel, chart, scale, first)),
    )


def _ground(panel: Panel, chart: Chart, scale: Scale) -> list[Markup]:
    rules = "".join(f"M0 {scale.y(tick)}H1000" for tick in y_ticks(panel, scale))
    zones = [
        Markup('<rect class="zone" x="{}" y="0" width="{}" height="1000"/>').format(
            scale.x(start), round(scale.x(end) - scale.x(start), 1)
        )
        for start, end, _ in chart.zones
    ]
    marks = [
        Markup('<path class="mark t{}" d="M{} 0V1000"/>').format(mark.tone, scale.x(mark.x))
        for mark in chart.marks
    ]
    levels = [
        Markup('<path class="level" d="M0 {}H1000"/>').format(scale.y(y)) for y, _ in panel.levels
    ]
    return [*zones, Markup('<path class="grid" d="{}"/>').format(rules), *marks, *levels]


def _lines(panel: Panel, scale: Scale) -> list[Markup]:
    pairs = zip(panel.series, dashes(panel), strict=True)
    return [_line(series, scale, dash) for series, dash in pairs]


def _line(series: Series, scale: Scale, dash: int) -> Markup:
    points = [
        None if y is None else (scale.x(x), scale.y(y))
        for x, y in zip(series.xs, series.ys, strict=True)
    ]
    if series.style == "dots":
        path = "".join(f"M{p[0]:g} {p[1]:g}h0" for p in points if p)
    else:
        path = _path(points, series.style == "step")
    return Markup('<path class="line {} t{} d{}" d="{}"/>').format(
        series.style, series.tone, dash, path
    )


def _path(points: Sequence[tuple[float, float] | None], step: bool) -> str:
    out, last = [], None
    for point in points:
        if point is None:
            last = None
            continue
        if last is None:
            out.append(f"M{point[0]:g} {point[1]:g}h0")
        elif step:
            out.append(f"H{point[0]:g}V{point[1]:g}")
        else:
            out.append(f"L{point[0]:g} {point[1]:g}")
        last = point
    return "".join(out)


def _stack(panel: Panel, scale: Scale) -> list[Markup]:
    if not panel.series:
        return []
    floor = [0.0] * len(panel.series[0].xs)
    shapes: list[Markup] = []
    for series in panel.series:
        top = [base + (y or 0.0) for base, y in zip(floor, series.ys, strict=True)]
        edge = [f"{scale.x(x):g} {scale.y(y):g}" for x, y in zip(series.xs, top, strict=True)]
        back = [f"{scale.x(x):g} {scale.y(y):g}" for x, y in zip(series.xs, floor, strict=True)]
        outline = "M" + "L".join([*edge, *reversed(back)]) + "Z"
        shapes.append(
            Markup('<path class="area t{} d{}" d="{}"/>').format(series.tone, len(shapes), outline)
        )
        floor = top
    return shapes


def _data(panels: Sequence[Panel], chart: Chart, x0: float, x1: float) -> dict[str, Any]:
    shared: list[list[float]] = []
    series_out = []
    for panel in panels:
        for series in panel.series:
            xs = [float(f"{x:.6g}") for x in series.xs]
            if xs not in shared:
                shared.append(xs)
            ys = [None if y is None else float(f"{y:.4g}") for y in series.ys]
            if series.style != "faint":
                series_out.append([series.name, shared.index(xs), panel.unit, series.tone, ys])
    return {"at": [x0, x1], "xs": shared, "series": series_out, "x": chart.x_name}
