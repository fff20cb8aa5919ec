"""The objective of a step, the advantage and the entropy controller (report §3.1.1).

The report's objective is token-level with two clips; beside it stand the choices of its peers:
fixed bounds, no outer clip, sequence-level ratios, truncated importance sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor


def advantages(rewards_G: Tensor, std_eps: float = 1e-6) -> Tensor:
    """(R_i - mean) / (std + eps) over one group; zero where all rewards are equal."""
    centred = rewards_G - rewards_G.mean()
    return centred / (rewards_G.std(unbiased=False) + std_eps)


@dataclass(frozen=True)
class Objective:
    """What one gradient step maximises.

    Attributes:
        low, high: the trust clip of the ratio.
        outer: the outer clip [0, outer]; infinite for none.
        ratio: of each token, or of each sequence: the geometric mean of its tokens' ratios.
        cap: the most that a token is weighted by to correct the engine's log-probabilities;
            None where the engine's are the old policy's.
    """

    low: float
    high: float
    outer: float = inf
    ratio: Literal["token", "sequence"] = "token"
    cap: float | None = None

    @classmethod
    def of(cls, climb: dict[str, Any], k: float) -> Objective:
        """The objective that a climb's config asks for; `k` is the entropy controller's."""
        clips, cap = climb["clips"], climb["correction"].get("cap")
        if clips["type"] == "fixed":
            low, high = 1.0 - clips["low"], 1.0 + clips["high"]
        else:
            epsilon = clips["epsilon"]
            low, high = 1.0 - epsilon, 1.0 / (1.0 - epsilon) + k
        outer = inf if clips["outer"] is None else clips["outer"]
        return cls(low, high, outer, climb["ratio"], cap)


@dataclass(frozen=True)
class DrawnTokens:
    """The N tokens that a policy drew, as they were when it drew them.

    Attributes:
        engine: log-probabilities under the distribution that the sampler drew from, (N,).
        old: under the policy that the ratio is taken against, (N,): the engine's, or the
            learner's own before the first step of the update.
        advantages: (N,).
        rows: which of the micro-batch's `sequences` each belongs to, (N,).
    """

    engine: Tensor
    old: Tensor
    advantages: Tensor
    rows: Tensor
    sequences: int

    def to(self, device: torch.device) -> DrawnTokens:
        """On another device."""
        return DrawnTokens(
            self.engine.to(device), self.old.to(device), self.advantages.to(device),
            self.rows.to(device), self.sequences,
        )  # fmt: skip


def policy_objective(
    logprobs: Tensor, drawn: DrawnTokens, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token objective w min(r_out A, r_trust A), to be maximised.

    r_trust = clip(r, low, high), r_out = clip(r, 0, outer); the gradient is zero where the chosen
    branch is clipped. r = pi / pi_old of the token; or of the sequence, exp(mean log r) over its
    drawn tokens, so that at r = 1 the gradient is that of token-level ratios. w is 1, or with a
    cap min(pi_old / pi_engine, cap), a number without a gradient.

    Args:
        logprobs: of the policy, (N,).

    Returns:
        objective (N,), and sums over tokens: `trust_clipped`, `outer_clipped`, `weight_capped`,
        `entropy` (of -log pi * pi / pi_engine), `mismatch` (of |log pi - log pi_engine|).
    """
    ratio = (logprobs - drawn.old).exp()
    level = ratio if objective.ratio == "token" else _of_sequences(logprobs, drawn)
    free = level.clamp(0.0, objective.outer)
    trusted = level.clamp(objective.low, objective.high)
    value = torch.minimum(free * drawn.advantages, trusted * drawn.advantages)
    with torch.no_grad():
        bound = trusted * drawn.advantages < free * drawn.advantages
        weight = (drawn.old - drawn.engine).exp()
        sums = {
            "trust_clipped": bound.sum(),
            "outer_clipped": ((level > objective.outer) & (drawn.advantages < 0)).sum(),
            "weight_capped": (weight > (inf if objective.cap is None else objective.cap)).sum(),
            "entropy": (-logprobs * (logprobs - drawn.engine).exp()).sum(),
            "mismatch": (logprobs - drawn.engine).abs().sum(),
        }
    if objective.cap is not None:
        value = value * weight.clamp(max=objective.cap)
    return value, sums


def _of_sequences(logprobs: Tensor, drawn: DrawnTokens) -> Tensor:
    """Every token with its sequence's ratio, exp(mean over the sequence of log pi / pi_old)."""
    gaps = logprobs - drawn.old
    zeros = gaps.new_zeros(drawn.sequences)
    sums = zeros.index_add(0, drawn.rows, gaps)
    counts = zeros.index_add(0, drawn.rows, torch.ones_like(gaps))
    return (sums / counts.clamp_min(1)).exp()[drawn.rows]


class EntropyControl:
    """k <- clip(k + delta * sign(target - entropy), 0, k_max), once a step."""

    def __init__(self, target: float, delta: float, k_max: float, k: float = 0.0) -> None:
        self.target, self.delta, self.k_max, self.k = target, delta, k_max, k

    @classmethod
    def of(cls, config: dict[str, float] | None) -> EntropyControl:
        """The controller of a climb's config; without one, k stays at zero."""
        if config is None:
            return cls(0.0, 0.0, 0.0)
        return cls(config["target"], config["delta"], config["k_max"])

    def update(self, entropy: float) -> float:
        """Take a step's entropy; returns the k of the next step."""
        sign = (self.target > entropy) - (self.target < entropy)
        self.k = min(max(self.k + self.delta * sign, 0.0), self.k_max)
        return self.k
