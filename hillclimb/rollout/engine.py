"""What a rollout engine is: four methods, and everything that the sampler decided comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from hillclimb.rollout.nuclei import Nuclei

BATCH_ROWS = 512
Finish = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens; `greedy` ignores temperature and nucleus.

    With `routes`, engines that can tell which experts each token went through do so.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 0.97
    greedy: bool = False
    stop: tuple[int, ...] = ()
    routes: bool = False


@dataclass(frozen=True)
class Completion:
    """One answer, token by token.

    Attributes:
        tokens: what was drawn, the stop token included.
        logprobs: log-probability of each token under the distribution it was drawn from
            (after temperature and nucleus), float32 (T,).
        nucleus: which tokens could be drawn at each position; any, for greedy answers.
        finish: `stop` at a stop token, `length` at the limit, `interrupted` where the engine was
            told to stop before either; `tokens` may then be empty.
        version: version of the weights.
        routes: the experts that every token went through, of P prompt tokens and the first T - 1
            drawn ones (the last is never fed), uint16 (P + T - 1, MoE layers, top_k), layers in
            the order of `model.moe_layers()`; None where they were not asked for or not told.
    """

    tokens: list[int]
    logprobs: np.ndarray
    nucleus: Nuclei
    finish: Finish
    version: int
    routes: np.ndarray | None = None


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

    def interrupt(self) -> None:
        """Have calls under way in other threads return soon, their answers as far as they are.

        Calls that start later are not concerned.
        """

    def close(self) -> None:
        """Release what the engine holds."""


@dataclass(frozen=True)
class Batch:
    """Prompts that are drawn together, and the seed of their draws."""

    prompts: Sequence[list[int]]
    seed: int


def batches(prompts: Sequence[list[int]], seed: int, rows: int = BATCH_ROWS) -> list[Batch]:
    """A call in batches of at most `rows` prompts, each with a seed of its own.

    A batch alone decides its draws. So a call gives the same completions wherever its batches are
    drawn, in whichever order, and however often one is begun anew.

    Raises:
        ValueError: for an empty prompt, naming its position.
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: a completion needs at least one token")
    return [
        Batch(prompts[start : start + rows], _seed(seed, start // rows))
        for start in range(0, len(prompts), rows)
    ]


def _seed(seed: int, batch: int) -> int:
    """The first batch has the call's seed, each other one a seed of 56 bits of its own."""
    if not batch:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {batch}".encode()).digest()[:7])


def cut(done: Completion, room: int) -> Completion:
    """At most `room` tokens of a completion; it ends at the limit where it reaches it."""
    if len(done.tokens) < room or (len(done.tokens) == room and done.finish != "interrupted"):
        return done
    routes, more = done.routes, len(done.tokens) - room
    if routes is not None and more:
        routes = routes[:-more]
    return replace(
        done, tokens=done.tokens[:room], logprobs=done.logprobs[:room],
        nucleus=done.nucleus[:room], finish="length", routes=routes,
    )  # fmt: skip


def undrawn(version: int) -> Completion:
    """What an interrupt leaves of a completion that was not begun."""
    return Completion([], np.zeros(0, np.float32), Nuclei.free(0), "interrupted", version)
