"""Nucleus sampling that says what it kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def nucleus(probs_BV: Tensor, top_p: float | Tensor) -> Tensor:
    """Bool (B, V): the smallest set of likeliest tokens whose mass reaches `top_p`, (B, 1)."""
    ranked, order = probs_BV.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    return torch.zeros_like(probs_BV, dtype=torch.bool).scatter_(1, order, before < top_p)


def draw(
    logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token a row.

    Returns:
        tokens (B,), their log-probabilities (B,) under the renormalised nucleus, the mask (B, V).
    """
    logits_BV = logits_BV / temperature
    kept = nucleus(logits_BV.softmax(-1), top_p)
    logprobs = logits_BV.masked_fill(~kept, -torch.inf).log_softmax(-1)
    noise = torch.empty_like(logprobs).exponential_(generator=generator)
    tokens = (logprobs - noise.log()).argmax(-1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0], kept


def pack_mask(mask: Tensor) -> np.ndarray:
    """Bool (…, V) to packed bits (…, ceil(V/8))."""
    return np.packbits(mask.numpy(), axis=-1)


def unpack_mask(packed: np.ndarray, vocab: int) -> Tensor:
    """Packed bits (…, ceil(V/8)) to bool (…, V)."""
    return torch.from_numpy(np.unpackbits(packed, axis=-1, count=vocab).astype(bool))
