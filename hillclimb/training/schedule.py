"""Learning-rate schedules over tokens or steps."""

from __future__ import annotations

import math


def cosine(position: float, total: float, peak: float, floor: float, warmup: float = 0.0) -> float:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `floor` at `total`."""
    if warmup > 0 and position < warmup:
        return peak * position / warmup
    span = max(total - warmup, 1e-9)
    share = min(max((position - warmup) / span, 0.0), 1.0)
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * share))


def learning_rate(schedule: dict, position: float, total: float) -> float:
    """The rate of a recipe's schedule section (as a dict) at `position` of `total` tokens."""
    warmup = schedule["warmup_tokens"]
    if schedule["type"] == "constant":
        return float(schedule["peak"] * min(1.0, position / warmup if warmup else 1.0))
    return cosine(position, total, schedule["peak"], schedule["floor"], warmup)
