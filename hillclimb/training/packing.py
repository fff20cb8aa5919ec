"""Documents into packed sequences of one length, in an order that a seed decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Documents(Protocol):
    """What is known of tokenised documents without their tokens.

    Attributes:
        sources: number of each document's source, (D,).
        names: the sources' names.
    """

    @property
    def sources(self) -> np.ndarray: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def lengths(self) -> np.ndarray:
        """Tokens of every document."""


@dataclass(frozen=True)
class TokenTable:
    """Tokenised documents.

    Attributes:
        tokens: all documents one after another, int32 (N,).
        offsets: document i is tokens[offsets[i]:offsets[i + 1]], int64 (D + 1,).
        sources: number of each document's source, int32 (D,).
        names: the sources' names.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray
    names: tuple[str, ...]

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> np.ndarray:
        """Tokens of every document."""
        return np.diff(self.offsets)


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


def sample_documents(
    table: Documents, budget: dict[str, int], seed: int, room: dict[str, int] | None = None
) -> np.ndarray:
    """Document numbers in training order: every source repeats until its budget is met.

    Each pass over a source is shuffled anew; the whole is shuffled at the end.

    Args:
        budget: tokens wanted of each source; the document that meets it is whole.
        room: tokens that a source may give at most, if it has a cap.
    """
    rng = np.random.default_rng(seed)
    lengths, chosen = table.lengths(), [np.empty(0, np.int64)]
    for number, name in enumerate(table.names):
        mine = np.flatnonzero(table.sources == number)
        most = (room or {}).get(name)
        chosen.append(draw(rng, mine, lengths, budget.get(name, 0), most))
    return rng.permutation(np.concatenate(chosen))


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


def pack(table: TokenTable, order: np.ndarray, length: int, separator: int) -> Packed:
    """Concatenate documents, each followed by `separator`, and cut at `length` + 1.

    What does not fill a last sequence is left out.
    """
    lengths = table.lengths()[order] + 1
    total = int(lengths.sum())
    tokens = np.full(total, separator, np.int32)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])) if len(order) else np.empty(0, int)
    for start, document in zip(starts, order, strict=True):
        body = table.document(int(document))
        tokens[start : start + len(body)] = body
    documents = np.repeat(order.astype(np.int32), lengths)
    running = np.repeat(np.arange(len(order), dtype=np.int64), lengths)
    width = length + 1
    rows = total // width
    segments = running[: rows * width].reshape(rows, width)
    sources = table.sources.astype(np.int16)[documents]
    return Packed(
        tokens[: rows * width].reshape(rows, width),
        (segments - segments[:, :1]).astype(np.int32),
        sources[: rows * width].reshape(rows, width),
        documents[: rows * width].reshape(rows, width),
    )
