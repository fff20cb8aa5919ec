"""Mixtures: how many tokens each source gives, under caps on repetition (report §2.5, App. B)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SLACK = 1.02
"""What is drawn beyond a phase's tokens, because the last documents are cut off."""


@dataclass(frozen=True)
class SourceShare:
    """What one source gives to a phase.

    Attributes:
        available: tokens in the source.
        used: tokens taken from it, repeats counted.
        epochs: passes over it.
        cap: most passes allowed.
        memorised: share of its tokens with an NLL below the threshold, if it was measured.
    """

    source: str
    category: str
    available: int
    used: int
    epochs: float
    cap: float
    memorised: float | None


@dataclass(frozen=True)
class Budget:
    """What one source may give to one phase, in tokens.

    Attributes:
        planned: its part of the phase.
        drawn: what is drawn of it, with some slack.
        cap: the most that its epoch cap allows.
    """

    planned: int
    drawn: int
    cap: int


def phase_budgets(sources: dict[str, dict[str, Any]], tokens: int) -> dict[str, Budget]:
    """A mixture's sources (`mixture.json`) scaled to the `tokens` of one phase.

    Where several phases share a mixture, each gets its part of the caps too, so that together
    they keep them.
    """
    share = min(1.0, tokens / max(1, sum(source["tokens_used"] for source in sources.values())))
    return {
        name: Budget(
            round(s["tokens_used"] * share),
            math.ceil(s["tokens_used"] * (share * SLACK)),
            math.floor(s["epoch_cap"] * s["tokens_available"] * share),
        )
        for name, s in sources.items()
    }


def plan_mixture(
    available: dict[str, tuple[str, int]],
    weights: dict[str, float],
    tokens: int,
    epoch_cap: float,
    strict_epoch_cap: float,
    memorised_share: float,
    memorised: dict[str, float] | None = None,
) -> list[SourceShare]:
    """Fill `tokens` by category weights; inside a category, sources in proportion to their size.

    A source gives at most its cap times its tokens; what a capped source cannot give goes to the
    others by their weights. When every source is at its cap, the mixture stays short.

    Args:
        available: (category, tokens) of every source.
        memorised: share of memorised tokens of every source, from a checkpoint.
    """
    memorised = memorised or {}
    caps = {
        source: strict_epoch_cap if memorised.get(source, 0.0) > memorised_share else epoch_cap
        for source in available
    }
    sizes: dict[str, int] = {}
    for category, size in available.values():
        sizes[category] = sizes.get(category, 0) + size
    share = {
        source: weights.get(category, 0.0) * size / max(sizes[category], 1)
        for source, (category, size) in available.items()
    }
    used = _water_fill(share, {s: caps[s] * available[s][1] for s in available}, tokens)
    return [
        SourceShare(
            source,
            category,
            size,
            int(used[source]),
            used[source] / size if size else 0.0,
            caps[source],
            memorised.get(source),
        )
        for source, (category, size) in sorted(available.items())
    ]


def _water_fill(share: dict[str, float], limit: dict[str, float], total: float) -> dict[str, float]:
    used = dict.fromkeys(share, 0.0)
    open_, left = {s for s in share if share[s] > 0}, float(total)
    while open_ and left > 0.5:
        weight = sum(share[s] for s in sorted(open_))
        full = [s for s in sorted(open_) if left * share[s] / weight >= limit[s] - used[s]]
        if not full:
            for source in sorted(open_):
                used[source] += left * share[source] / weight
            break
        for source in full:
            left -= limit[source] - used[source]
            used[source] = limit[source]
        open_ -= set(full)
    return used
