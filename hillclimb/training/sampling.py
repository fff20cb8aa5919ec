"""Which documents come when: whole blocks of shards, shuffled, under each source's cap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hillclimb.training.mixture import Budget
from hillclimb.training.packing import draw
from hillclimb.training.shards import Shards

BLOCK_SHARDS = 4
"""Shards whose documents are shuffled among one another, and are in memory together."""


@dataclass(frozen=True)
class Visit:
    """One block's documents, once.

    Attributes:
        start: tokens of the stream before it, separators counted.
        first: documents of the stream before it.
        order: document numbers, (n,).
        starts: where each begins in the visit, and where the last ends, (n + 1,).
    """

    start: int
    first: int
    order: np.ndarray
    starts: np.ndarray


class Plan:
    """The stream of documents that a seed decides, known without reading a token.

    Shards are grouped at random into blocks. A block is visited as often as the most repeated
    source has epochs, blocks in a new order each round; a visit gives its share of what every
    source gives from that block, so that the mixture is the same all the way. Up to
    `BLOCK_SHARDS` shards are one block and one visit: one shuffle over everything.
    Memory: the index, and a few numbers for each visit and source.
    """

    def __init__(self, shards: Shards, budgets: Mapping[str, Budget], seed: int) -> None:
        self.shards, self.seed = shards, seed
        self.budgets = [budgets.get(name, Budget(0, 0, 0)) for name in shards.names]
        self.lengths = shards.lengths()
        count = len(shards.uris)
        alone = count <= BLOCK_SHARDS
        order = np.arange(count) if alone else np.random.default_rng([seed, 0]).permutation(count)
        self.blocks = [
            np.sort(order[i : i + BLOCK_SHARDS]) for i in range(0, max(count, 1), BLOCK_SHARDS)
        ]
        self.available = np.bincount(
            shards.sources, weights=self.lengths, minlength=len(shards.names)
        ).astype(np.int64)
        epochs = [
            min(b.drawn, b.cap) / n
            for b, n in zip(self.budgets, self.available.tolist(), strict=True)
            if n
        ]
        self.rounds = 1 if alone else max(1, math.ceil(max(epochs, default=1.0)))
        self.turns = [
            (int(block), turn)
            for turn in range(self.rounds)
            for block in (
                [0] if alone
                else np.random.default_rng([seed, 1, turn]).permutation(len(self.blocks))
            )
        ]  # fmt: skip
        self._count()

    def _count(self) -> None:
        """Size every visit, block after block: what one gives too much the next gives less."""
        sources = len(self.budgets)
        self._before = np.zeros((len(self.blocks) + 1, 2, sources), np.int64)
        tokens = np.zeros((len(self.blocks), self.rounds, sources), np.int64)
        documents = np.zeros_like(tokens)
        for block in range(len(self.blocks)):
            mine = self._documents(block)
            self._before[block + 1, 0] = self._before[block, 0] + np.bincount(
                self.shards.sources[mine], weights=self.lengths[mine], minlength=sources
            ).astype(np.int64)
            for turn, order in enumerate(self._draw(block)):
                of = self.shards.sources[order]
                tokens[block, turn] = np.bincount(
                    of, weights=self.lengths[order], minlength=sources
                )
                documents[block, turn] = np.bincount(of, minlength=sources)
            self._before[block + 1, 1] = self._before[block, 1] + tokens[block].sum(0)
        places = tuple(np.array(self.turns).T)
        self._tokens, self._counts = tokens[places], documents[places]
        sizes = self._tokens.sum(1) + self._counts.sum(1)
        self.starts = np.concatenate(([0], np.cumsum(sizes)))
        self._firsts = np.concatenate(([0], np.cumsum(self._counts.sum(1))))

    def __len__(self) -> int:
        """Tokens of the stream, separators counted."""
        return int(self.starts[-1])

    def visit(self, number: int) -> Visit:
        """The documents of one visit in their order."""
        block, turn = self.turns[number]
        order = self._draw(block)[turn]
        starts = np.concatenate(([0], np.cumsum(self.lengths[order] + 1)))
        return Visit(int(self.starts[number]), int(self._firsts[number]), order, starts)

    def at(self, token: int) -> int:
        """The visit that a token of the stream belongs to."""
        return int(np.searchsorted(self.starts, token, side="right")) - 1

    def given(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and documents begun of every source in the first `tokens` of the stream."""
        number = self.at(tokens)
        found, begun = self._tokens[:number].sum(0), self._counts[:number].sum(0)
        if number < len(self.turns) and tokens > self.starts[number]:
            visit = self.visit(number)
            used = np.clip(tokens - visit.start - visit.starts[:-1], 0, self.lengths[visit.order])
            of, size = self.shards.sources[visit.order], len(self.budgets)
            found = found + np.bincount(of, weights=used, minlength=size).astype(np.int64)
            begun = begun + np.bincount(
                of[visit.starts[:-1] < tokens - visit.start], minlength=size
            )
        return found, begun

    def _documents(self, block: int) -> np.ndarray:
        """Numbers of all documents of a block, ascending."""
        firsts = self.shards.firsts
        spans = [np.arange(firsts[shard], firsts[shard + 1]) for shard in self.blocks[block]]
        return np.concatenate([np.empty(0, np.int64), *spans])

    def _draw(self, block: int) -> list[np.ndarray]:
        """What each visit of a block gives, in order."""
        alone = len(self.blocks) == 1
        rng = np.random.default_rng(self.seed if alone else [self.seed, 2, block])
        mine = self._documents(block)
        by_source = np.argsort(self.shards.sources[mine], kind="stable")
        ends = np.cumsum(np.bincount(self.shards.sources[mine], minlength=len(self.budgets)))
        parts, turns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        given, after = self._before[block, 1], self._before[block + 1, 0]
        for source, budget in enumerate(self.budgets):
            group = mine[by_source[ends[source - 1] if source else 0 : ends[source]]]
            due = budget.drawn * int(after[source]) // max(int(self.available[source]), 1)
            done = int(given[source])
            parts.append(draw(rng, group, self.lengths, due - done, budget.cap - done))
            turns.append(_spread(self.lengths[parts[-1]], self.rounds, rng))
        picked, turn = np.concatenate(parts), np.concatenate(turns)
        return [rng.permutation(picked[turn == number]) for number in range(self.rounds)]


def _spread(lengths: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Cut documents into `rounds` runs of like size, beginning with any of them."""
    if rounds == 1:
        return np.zeros(len(lengths), np.int64)
    ends = np.cumsum(lengths)
    share = (ends - lengths) / max(int(ends[-1]) if len(ends) else 0, 1)
    return (share * rounds + rng.random() * rounds).astype(np.int64) % rounds
