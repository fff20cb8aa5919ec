"""Packing all at once, from a table in memory: what the feed has to give, row for row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hillclimb.training.packing import Packed, draw


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


def sample_documents(
    table: TokenTable, budget: dict[str, int], seed: int, room: dict[str, int] | None = None
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
