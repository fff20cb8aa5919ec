"""Numbers as people read them."""

from __future__ import annotations

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def size(value: float) -> str:
    """`1536` as `1.5 KiB`; zero as a dash."""
    if not value:
        return "–"
    for unit in _BYTES:
        if value < 1024 or unit == _BYTES[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"


def count(value: float) -> str:
    """`962148861440` as `962B`; zero as a dash."""
    if not value:
        return "–"
    for scale, unit in _COUNTS:
        if value >= scale * 0.9995:
            return f"{_three_digits(value / scale)}{unit}"
    return f"{value:,.0f}"


def _three_digits(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(hours: float) -> str:
    """`0.01` hours as `36 s`; zero as a dash."""
    seconds = hours * 3600
    if not seconds:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def hours(value: float) -> str:
    """Accelerator-hours; zero as a dash."""
    if not value:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def flops(value: float) -> str:
    """`6.75e+24` as `6.8e24`; zero as a dash."""
    return f"{value:.1e}".replace("e+", "e") if value else "–"


def dollars(value: float) -> str:
    """A price; zero as a dash."""
    if not value:
        return "–"
    return f"${value:,.0f}" if value >= 10 else f"${value:,.2f}"
