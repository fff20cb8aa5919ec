"""What engines of any kind are held against: the model's own forward pass in FP32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hillclimb.rollout.engine import Completion
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.sampling import mask_of, nucleus
from hillclimb.rollout.vllm_engine import vllm_python

PROMPTS = [[1, 2, 3], [1, 2, 3], [9, 8, 7, 6, 5] * 9, [4]]


def require_vllm() -> None:
    """Skip where there is no vLLM; `make test` makes an environment that has it."""
    try:
        vllm_python()
    except RuntimeError as error:
        pytest.skip(str(error))


@torch.no_grad()
def logits_of(model: Any, prompt: list[int], completion: Completion) -> torch.Tensor:
    """Logits (T, V) that the model gives where each token was drawn."""
    ids = torch.tensor([prompt + completion.tokens])
    return model(ids).logits[0, len(prompt) - 1 : -1].float()


def as_mask(nuclei: Nuclei, vocabulary: int) -> torch.Tensor:
    """What could be drawn, bool (T, V)."""
    return mask_of(torch.from_numpy(nuclei.pairs()), len(nuclei), vocabulary)


def gap(
    model: Any, prompts: Sequence[list[int]], done: Sequence[Completion], temperature: float = 1.0
) -> float:
    """The greatest gap in nats between an engine's log-probabilities and the model's replay."""
    worst = 0.0
    for prompt, completion in zip(prompts, done, strict=True):
        if not completion.tokens:
            continue
        logits = logits_of(model, prompt, completion) / temperature
        logits = logits.masked_fill(~as_mask(completion.nucleus, logits.shape[1]), -torch.inf)
        drawn = torch.tensor(completion.tokens)[:, None]
        expected = logits.log_softmax(-1).gather(1, drawn)[:, 0]
        worst = max(worst, float((expected - torch.from_numpy(completion.logprobs)).abs().max()))
    return worst


def wrong_masks(
    model: Any, prompts: Sequence[list[int]], done: Sequence[Completion], temperature: float,
    top_p: float,
) -> int:  # fmt: skip
    """How many tokens an engine kept or left out otherwise than the model's own nucleus.

    Tokens at the edge, where rounding decides, do not count.
    """
    wrong = 0
    for prompt, completion in zip(prompts, done, strict=True):
        probs = (logits_of(model, prompt, completion) / temperature).softmax(-1)
        kept = as_mask(completion.nucleus, probs.shape[1])
        surely, maybe = nucleus(probs, top_p - 1e-4), nucleus(probs, top_p + 1e-4)
        wrong += int((surely & ~kept).sum()) + int((kept & ~maybe).sum())
    return wrong


def same_draws(left: Sequence[Completion], right: Sequence[Completion]) -> bool:
    """The same tokens and masks; log-probabilities up to rounding."""
    return all(
        a.tokens == b.tokens
        and a.finish == b.finish
        and a.nucleus == b.nucleus
        and np.allclose(a.logprobs, b.logprobs, atol=1e-5)
        for a, b in zip(left, right, strict=True)
    )
