"""NLL by position: what a longer context is worth (report App. B)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

SHORTEST = 64


def edges(length: int) -> list[int]:
    """Positions at which a bucket ends, doubling from `SHORTEST` up to `length`."""
    found = [0]
    while (end := SHORTEST << (len(found) - 1)) < length:
        found.append(end)
    return [*found, length]


def position_sums(nll: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Summed NLL, tokens and documents of each bucket, float64 (buckets, 3).

    Only documents that fill more than half of `length` count, so that the same ones stand behind
    early and late positions.

    Args:
        nll: of every token but the first, one array a document.
    """
    bounds = list(pairwise(edges(length)))
    sums = np.zeros((len(bounds), 3))
    for document in nll:
        if len(document) <= length // 2:
            continue
        for row, (start, end) in enumerate(bounds):
            part = document[start:end]
            sums[row] += (part.sum(), len(part), len(part) > 0)
    return sums


def by_position(sums: np.ndarray, length: int) -> list[dict[str, float]]:
    """The buckets that hold tokens: `start`, `end`, `nll` a token, `tokens`, `documents`."""
    return [
        {"start": start, "end": end, "nll": nll / tokens, "tokens": tokens, "documents": documents}
        for (start, end), (nll, tokens, documents) in zip(
            pairwise(edges(length)), sums.tolist(), strict=True
        )
        if tokens
    ]
