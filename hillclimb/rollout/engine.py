"""What a rollout engine is: four methods, and everything that the sampler decided comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens; `greedy` ignores temperature and nucleus."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 0.97
    greedy: bool = False
    stop: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One answer, token by token.

    Attributes:
        tokens: what was drawn, the stop token included.
        logprobs: log-probability of each token under the distribution it was drawn from
            (after temperature and nucleus), float32 (T,).
        nucleus: which tokens could be drawn at each position, packed bits, uint8 (T, ceil(V/8));
            empty for greedy answers.
        finish: `stop` at a stop token, `length` at the limit.
        version: version of the weights.
    """

    tokens: list[int]
    logprobs: np.ndarray
    nucleus: np.ndarray
    finish: Literal["stop", "length"]
    version: int


class RolloutEngine(Protocol):
    """Draws completions with the weights it was given last."""

    @property
    def version(self) -> int:
        """Version of the weights in use."""

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Take new weights; answers drawn from here on carry `version`."""

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        """One completion for every prompt; equal prompts next to each other share their prefix."""

    def close(self) -> None:
        """Release what the engine holds."""
