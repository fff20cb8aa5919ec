"""Whether an engine computes what the network computes: a few fixed tokens after each load.

Engines pack and shard weights in forms of their own. One whose update went wrong answers as
fluently as before, with other log-probabilities, and a climb would learn from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PROMPT_TOKENS = 48
LIMITS = {"float32": 1e-3}
LOOSE = 0.25


def fixed_prompt(vocabulary: int, length: int = PROMPT_TOKENS) -> list[int]:
    """Tokens from all over a vocabulary, always the same."""
    return [(7919 * i + 13) % vocabulary for i in range(length)]


@torch.no_grad()
def require_sound(
    model: Any, prompt: Sequence[int], engine: Sequence[float], dtype: str, version: int
) -> float:
    """The mean gap between the model's log-probabilities of a prompt and the engine's, in nats.

    Args:
        model: gives logits (1, T, V) for tokens (1, T).
        engine: log-probabilities of the tokens after the first.
        dtype: of the engine.

    Raises:
        RuntimeError: if the gap is more than rounding explains.
    """
    ids = torch.tensor([list(prompt)])
    logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    expected = logprobs.gather(1, ids[0, 1:, None])[:, 0]
    gap = float((expected - torch.tensor(list(engine))).abs().mean())
    limit = LIMITS.get(dtype, LOOSE)
    if not gap <= limit:
        raise RuntimeError(
            f"the rollout engine is wrong after loading the weights of version {version}: its "
            f"log-probabilities of {len(engine)} fixed tokens are {gap:.3g} nats from the "
            f"learner's on average, more than {limit} in {dtype}; restart the engine, and "
            "if that does not help, its form of this model is broken"
        )
    return gap


def unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without those that are another one by a second name, such as a tied head."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in weights.items():
        key = tensor.data_ptr(), tuple(tensor.shape)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        found[name] = tensor
    return found
