"""Nucleus sampling that says what it kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def nucleus(probs_BV: Tensor, top_p: float | Tensor) -> Tensor:
    """Bool (B, V): the smallest set of likeliest tokens whose mass reaches `top_p`, (B, 1).

    Of equally likely ones the first. Probabilities are sorted without their places, because NumPy
    does that ten times as fast as anything sorts both.
    """
    ascending = torch.from_numpy(np.sort(probs_BV.numpy(), axis=-1))
    ranked_BV = ascending.flip(-1)
    count_B1 = (ranked_BV.cumsum(-1) - ranked_BV < top_p).sum(-1, keepdim=True)
    least_B1 = ranked_BV.gather(1, count_B1 - 1)
    above, level = probs_BV > least_B1, probs_BV == least_B1
    room_B1 = count_B1 - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room_B1))


def _ranked(probs_BV: Tensor, top_p: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, the likeliest first; their tokens; which are in the nucleus; (B, V) each."""
    ranked, order = probs_BV.sort(dim=-1, descending=True, stable=True)
    return ranked, order, ranked.cumsum(-1) - ranked < top_p


def draw(
    logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token a row by inverse CDF, on the host.

    The first token with a greater cumulated probability than what is drawn has one of its own, so
    it is in the nucleus.

    Returns:
        tokens (B,), their log-probabilities (B,) under the renormalised nucleus, the mask (B, V).
    """
    logits_BV = logits_BV / temperature
    kept = nucleus(logits_BV.softmax(-1), top_p)
    logprobs = logits_BV.masked_fill(~kept, -torch.inf).log_softmax(-1)
    cdf_BV = logprobs.double().exp_().cumsum(-1)
    all_B1 = cdf_BV[:, -1:]
    drawn_B1 = all_B1 * torch.rand(all_B1.shape, generator=generator, dtype=torch.float64)
    below_B1 = all_B1.nextafter(torch.zeros_like(all_B1))
    tokens = torch.searchsorted(cdf_BV, drawn_B1.minimum(below_B1), right=True)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0], kept


def draw_at(
    uniforms_B: Tensor, logits_BV: Tensor, temperature: float | Tensor, top_p: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token a row by inverse CDF, the likeliest token first.

    Whatever rounding does, the token is one of the nucleus: a place among the tokens by their rank
    is drawn, and it is at most the last one that is kept.

    Args:
        uniforms_B: numbers from [0, 1), FP64; 0 draws the likeliest token.
        logits_BV: FP32.
        temperature: one for all rows, or (B, 1); so is `top_p`.

    Returns:
        tokens (B,), their log-probabilities (B,) under the renormalised nucleus, the mask (B, V).
    """
    logits_BV = logits_BV / temperature
    ranked, order, inside = _ranked(logits_BV.softmax(-1), top_p)
    count_B1 = inside.sum(-1, keepdim=True).clamp_(min=1)
    inside = torch.arange(inside.shape[1], device=inside.device) < count_B1
    kept = torch.zeros_like(inside).scatter_(1, order, inside)
    cdf = ranked.masked_fill_(~inside, 0.0).cumsum(-1, dtype=torch.float64)
    passed = (cdf <= uniforms_B[:, None] * cdf[:, -1:]).sum(-1, keepdim=True)
    tokens = order.gather(1, passed.minimum(count_B1 - 1))
    logprobs = logits_BV.masked_fill_(~kept, -torch.inf).log_softmax(-1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0], kept


def mask_of(pairs_2M: Tensor, places: int, vocabulary: int) -> Tensor:
    """Bool (places, V), on their device: `Nuclei.pairs` as a mask; all of a place without any."""
    rows_M, ids_M = pairs_2M.long()
    mask = torch.zeros(places, vocabulary, dtype=torch.bool, device=pairs_2M.device)
    mask[rows_M, ids_M] = True
    free = torch.ones(places, 1, dtype=torch.bool, device=pairs_2M.device)
    free[rows_M] = False
    return mask | free
