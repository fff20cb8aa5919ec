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


def by_position(nll: Sequence[np.ndarray], length: int) -> list[dict[str, float]]:
    """Buckets of positions: `start`, `end`, `nll` a token, `tokens`, `documents`.

    Only documents that fill more than half of the context count, so that the same ones stand
    behind early and late positions. Where none goes so far, the context ends at the first edge
    that the longest document does not cross.

    Args:
        nll: of every token but the first, one array a document.
        length: the context, in tokens.
    """
    longest = max(map(len, nll), default=0)
    reach = next((edge for edge in edges(length) if edge >= longest), length)
    bounds = list(pairwise(edges(reach))) if longest else []
    sums = np.zeros((len(bounds), 3))
    for document in nll:
        if len(document) <= reach // 2:
            continue
        for row, (start, end) in enumerate(bounds):
            part = document[start:end]
            sums[row] += (part.sum(), len(part), len(part) > 0)
    return [
        {"start": start, "end": end, "nll": nll / tokens, "tokens": tokens, "documents": documents}
        for (start, end), (nll, tokens, documents) in zip(bounds, sums.tolist(), strict=True)
        if tokens
    ]
