"""HTML from values: everything that is not `Markup` is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

MISSING = "–"


def join(parts: Iterable[Markup | str], separator: str = "") -> Markup:
    """Concatenate, escaping plain strings."""
    return Markup(separator).join(parts)


def si(value: float | None) -> str:
    """A count in three digits: 653k, 5.43M, 962B; below ten thousand it is exact."""
    if value is None:
        return MISSING
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 1e4 and abs(value) >= 0.9995 * limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:,.0f}"


def count(value: float | None) -> str:
    """An exact count with separators."""
    return MISSING if value is None else f"{value:,.0f}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with fixed decimals; very small ones in scientific notation."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 0.8 s, 42 s, 14 min 3 s, 5 h 20 min, 3 d 4 h."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(bytes_: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if bytes_ < 1024:
            return f"{bytes_:.0f} {unit}" if unit == "B" else f"{bytes_:.1f} {unit}"
        bytes_ /= 1024
    return f"{bytes_:.1f} TiB"


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Markup | str]],
    caption: str,
    left: int = 1,
) -> Markup:
    """A table that scrolls inside its own box; columns after the first `left` are numbers."""
    marks = ["" if i < left else "num" for i in range(len(heads))]
    head = join(
        Markup('<th scope="col" class="{}">{}</th>').format(mark, name)
        for mark, name in zip(marks, heads, strict=True)
    )
    body = join(_table_row(marks, row) for row in rows)
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{0}"><table>'
        "<caption>{0}</caption><thead><tr>{1}</tr></thead><tbody>{2}</tbody></table></div>"
    ).format(caption, head, body)


def _table_row(marks: list[str], row: Sequence[Markup | str]) -> Markup:
    first = Markup('<th scope="row">{}</th>').format(row[0])
    rest = join(
        Markup('<td class="{}">{}</td>').format(mark, cell)
        for mark, cell in zip(marks[1:], row[1:], strict=True)
    )
    return Markup("<tr>{}{}</tr>").format(first, rest)


def fold(summary: Markup | str, body: Markup | str, id_: str = "") -> Markup:
    """A part that opens when it is asked for."""
    name = Markup(' id="{}"').format(id_) if id_ else ""
    return Markup("<details{}><summary>{}</summary><div>{}</div></details>").format(
        name, summary, body
    )


def note(text: str | Markup) -> Markup:
    """A sentence beside the figures."""
    return Markup('<p class="note">{}</p>').format(text)


def pending(names: Iterable[str]) -> Markup:
    """What a section would show once these stages are made."""
    listed = join((Markup("<code>{}</code>").format(name) for name in names), ", ")
    return Markup('<p class="pending">Not made yet: {}.</p>').format(listed)


def anchor(name: str) -> str:
    """An HTML id for a stage's name."""
    return "stage-" + name.replace("/", "-")


def stage_link(name: str) -> Markup:
    """A link to the stage's row in the lineage."""
    return Markup('<a href="#{}"><code>{}</code></a>').format(anchor(name), name)


__all__ = [
    "MISSING",
    "Markup",
    "anchor",
    "count",
    "decimal",
    "duration",
    "escape",
    "fold",
    "join",
    "note",
    "pending",
    "percent",
    "si",
    "size",
    "stage_link",
    "table",
]
