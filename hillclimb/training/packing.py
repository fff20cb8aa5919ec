"""Rows of packed documents, and the draw of documents from a source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packed:
    """Sequences of `length` + 1 tokens: inputs are [:-1], labels [1:].

    Attributes:
        tokens: int32 (S, length + 1).
        segments: number of the document within its sequence, int32 (S, length + 1).
        sources: source of each token, int16 (S, length + 1).
        documents: document of each token, int32 (S, length + 1).
    """

    tokens: np.ndarray
    segments: np.ndarray
    sources: np.ndarray
    documents: np.ndarray

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def __getitem__(self, rows: slice) -> Packed:
        return Packed(
            self.tokens[rows], self.segments[rows], self.sources[rows], self.documents[rows]
        )


def draw(
    rng: np.random.Generator, mine: np.ndarray, lengths: np.ndarray, wanted: int, room: int | None
) -> np.ndarray:
    """Documents of one source, pass after pass in new orders, until `wanted` tokens are met.

    Nothing is drawn that would bring the tokens above `room`.
    """
    drawn, given = [np.empty(0, np.int64)], 0
    while given < wanted and lengths[mine].sum() > 0:
        order = rng.permutation(mine)
        sums = given + np.cumsum(lengths[order])
        cut = min(int(np.searchsorted(sums, wanted)) + 1, len(order))
        fit = cut if room is None else min(cut, int(np.searchsorted(sums, room, side="right")))
        drawn.append(order[:fit])
        given += int(lengths[order[:fit]].sum())
        if fit < cut:
            break
    return np.concatenate(drawn)
