"""The text around a chart's lines: ticks, levels, marks, zones, legend."""

from __future__ import annotations

from collections.abc import Sequence

from hillclimb.report.figure import Chart, Panel, Scale, dashes, y_ticks
from hillclimb.report.markup import Markup, join
from hillclimb.report.scale import nice_ticks, tick_text


def labels(panel: Panel, chart: Chart, scale: Scale, first: bool) -> list[Markup]:
    out = [
        Markup('<span class="yt" style="top:{}%">{}</span>').format(
            round(scale.y(tick) / 10, 1), tick_text(tick, panel.unit)
        )
        for tick in y_ticks(panel, scale)
    ]
    out += [
        Markup('<span class="lt" style="top:{}%">{}</span>').format(round(scale.y(y) / 10, 1), text)
        for y, text in panel.levels
    ]
    if not first:
        return out
    for index, mark in enumerate(sorted(chart.marks, key=lambda mark: mark.x)):
        side = " back" if scale.x(mark.x) > 500 else ""
        edge = "bottom" if _room_below(panel, scale, mark.x) else "top"
        out.append(
            Markup('<span class="mt t{}{}" style="left:{}%;{}:{:g}em">{}</span>').format(
                mark.tone, side, round(scale.x(mark.x) / 10, 1), edge, 0.2 + 1.2 * (index % 3),
                mark.label,
            )
        )  # fmt: skip
    for start, end, text in chart.zones:
        left, width = scale.x(start) / 10, (scale.x(end) - scale.x(start)) / 10
        out.append(
            Markup('<span class="zt" style="left:{}%;width:{}%">{}</span>').format(
                round(left, 1), round(width, 1), text
            )
        )
    return out


def _room_below(panel: Panel, scale: Scale, x: float) -> bool:
    """Whether the lines leave more room under than over them near `x`."""
    near = [
        scale.y(y)
        for series in panel.series
        for at, y in zip(series.xs, series.ys, strict=True)
        if y is not None and abs(scale.x(at) - scale.x(x)) < 120
    ]
    return bool(near) and not panel.stacked and 1000 - max(near) > min(near)


def x_ticks(x0: float, x1: float) -> Markup:
    span = x1 - x0
    return join(
        Markup('<span style="left:{}%">{}</span>').format(
            round((tick - x0) / span * 100, 1), tick_text(tick, "number")
        )
        for tick in nice_ticks(x0, x1, 6)
    )


def legend(panels: Sequence[Panel]) -> Markup:
    seen: dict[str, Markup] = {}
    for panel in panels:
        for series, dash in zip(panel.series, dashes(panel), strict=True):
            if series.style == "faint":
                continue
            kind = "area" if panel.stacked else series.style
            shape = "M2 2H22V10H2Z" if panel.stacked else "M1 6H23"
            shape = "M12 6h0" if series.style == "dots" else shape
            seen.setdefault(
                series.name,
                Markup(
                    '<span><svg viewBox="0 0 24 12" aria-hidden="true">'
                    '<path class="{} t{} d{}" d="{}"/></svg>{}</span>'
                ).format(
                    "area" if kind == "area" else f"line {kind}",
                    series.tone,
                    dash,
                    shape,
                    series.name,
                ),
            )
    return Markup('<span class="legend">{}</span>').format(join(seen.values()))
