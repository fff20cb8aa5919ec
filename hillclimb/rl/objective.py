"""The token-level objective with its two clips, and the advantage (report §3.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards_G: Tensor, std_eps: float = 1e-6) -> Tensor:
    """(R_i - mean) / (std + eps) over one group; zero where all rewards are equal."""
    centred = rewards_G - rewards_G.mean()
    return centred / (rewards_G.std(unbiased=False) + std_eps)


def policy_objective(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantage: Tensor,
    epsilon: float,
    k: float,
    outer: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token objective min(r_out A, r_trust A), to be maximised.

    r_trust = clip(r, 1 - epsilon, 1/(1 - epsilon) + k), r_out = clip(r, 0, outer); the gradient is
    zero where the chosen branch is clipped.

    Args:
        logprobs: of the policy, old_logprobs: of the sampler, advantage: all (N,).

    Returns:
        objective (N,), and sums over tokens: `trust_clipped`, `outer_clipped`, `entropy`
        (of -log pi * r), `mismatch` (of |log r|).
    """
    ratio = (logprobs - old_logprobs).exp()
    low, high = 1.0 - epsilon, 1.0 / (1.0 - epsilon) + k
    free = ratio.clamp(0.0, outer)
    trusted = ratio.clamp(low, high)
    objective = torch.minimum(free * advantage, trusted * advantage)
    with torch.no_grad():
        bound = trusted * advantage < free * advantage
        sums = {
            "trust_clipped": bound.sum(),
            "outer_clipped": ((ratio > outer) & (advantage < 0)).sum(),
            "entropy": (-logprobs * ratio).sum(),
            "mismatch": (logprobs - old_logprobs).abs().sum(),
        }
    return objective, sums


class EntropyControl:
    """k <- clip(k + delta * sign(target - entropy), 0, k_max), once a step."""

    def __init__(self, target: float, delta: float, k_max: float, k: float = 0.0) -> None:
        self.target, self.delta, self.k_max, self.k = target, delta, k_max, k

    def update(self, entropy: float) -> float:
        """Take a step's entropy; returns the k of the next step."""
        sign = (self.target > entropy) - (self.target < entropy)
        self.k = min(max(self.k + self.delta * sign, 0.0), self.k_max)
        return self.k
