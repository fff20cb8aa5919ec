"""Which prompts and which lengths: filters, early exit, length curriculum (report §3.1.5)."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any


def in_window(passes: list[bool], window: tuple[float, float]) -> bool:
    """Whether the share of passes lies in the closed window."""
    rate = sum(passes) / len(passes)
    return window[0] <= rate <= window[1]


class LengthCurriculum:
    """The longest response allowed; moves one rung on at its criterion.

    A rung ends after its number of gradient steps, or as soon as the share of truncated rollouts
    of an update exceeds its limit.
    """

    def __init__(self, rungs: list[dict[str, Any]], rung: int = 0, steps: int = 0) -> None:
        self.rungs, self.rung, self.steps = rungs, rung, steps

    @property
    def max_tokens(self) -> int:
        """Longest response of the current rung, in tokens."""
        return int(self.rungs[self.rung]["max_tokens"])

    @property
    def length_penalty(self) -> bool:
        """Whether the length reward counts on this rung."""
        return bool(self.rungs[self.rung]["length_penalty"])

    @property
    def total_steps(self) -> int:
        """Gradient steps of all rungs together."""
        return sum(int(rung["steps"]) for rung in self.rungs)

    def step(self) -> None:
        """Count one gradient step."""
        self.steps += 1
        if self.steps >= int(self.rungs[self.rung]["steps"]):
            self._next()

    def observe(self, truncated_share: float) -> None:
        """Take an update's share of truncated rollouts."""
        if truncated_share > float(self.rungs[self.rung]["truncated_share"]):
            self._next()

    def _next(self) -> None:
        if self.rung + 1 < len(self.rungs):
            self.rung, self.steps = self.rung + 1, 0


class PromptQueue:
    """Problem indices in shuffled passes; specialists take turns by share."""

    def __init__(
        self,
        sizes: dict[str, int],
        shares: dict[str, float],
        seed: int,
        taken: dict[str, int] | None = None,
    ) -> None:
        self.names = [name for name in sorted(sizes) if shares.get(name, 0.0) > 0]
        self.sizes, self.shares, self.seed = sizes, shares, seed
        self.taken = dict(taken) if taken else dict.fromkeys(self.names, 0)

    def take(self, count: int) -> list[tuple[str, int]]:
        """The next `count` (specialist, problem index) pairs; decided by seed and `taken` alone."""
        return [self._next() for _ in range(count)]

    def gone_through(self, tried: Collection[tuple[str, int]], prompts: int) -> bool:
        """Whether every problem was tried, in so many prompts.

        Shares may keep the rest of a large specialist waiting: two passes' worth is enough.
        """
        problems = sum(self.sizes[name] for name in self.names)
        return len(tried) >= problems or prompts >= 2 * problems

    def _next(self) -> tuple[str, int]:
        turn, total = sum(self.taken.values()) + 1, sum(self.shares[n] for n in self.names)
        name = max(self.names, key=lambda n: turn * self.shares[n] / total - self.taken[n])
        index, size = self.taken[name], self.sizes[name]
        self.taken[name] += 1
        order = list(range(size))
        random.Random(f"{self.seed}:{name}:{index // size}").shuffle(order)
        return name, order[index % size]
