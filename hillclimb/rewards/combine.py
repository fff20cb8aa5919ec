"""From parts to one reward (report §3.1, §3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RewardParts:
    """R = task + w_language * language - w_length * length, with every part kept.

    `task`, `language` and `length` are unweighted; `total` is what the advantage is made from.
    """

    task: float
    language: float
    length: float
    w_language: float
    w_length: float

    @property
    def total(self) -> float:
        return self.task + self.w_language * self.language - self.w_length * self.length


def lexicographic(levels: Sequence[Sequence[float]]) -> list[float]:
    """One reward per response of a group, from the first level that tells them apart.

    `levels` has one row per reward, the most important first, each with one score per response. A
    lower reward is active only where the whole group ties on all higher ones (report §3.4).
    """
    if len({len(level) for level in levels}) != 1:
        raise ValueError("every level needs one score per response of the group")
    deciding = next((level for level in levels if len(set(level)) > 1), levels[-1])
    return list(deciding)


def gated(reward: float, passed: bool, minimum: float = 0.0) -> float:
    """The reward behind a gate: the minimum where the gate fails (report §3.4)."""
    return reward if passed else minimum
