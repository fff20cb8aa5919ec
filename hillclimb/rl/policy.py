"""The learner's side of a rollout: the same log-probabilities, with the nucleus replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl.groups import Sample
from hillclimb.rl.objective import policy_objective
from hillclimb.rollout.sampling import unpack_mask


@dataclass(frozen=True)
class PolicyBatch:
    """Right-padded samples.

    Attributes:
        tokens: (B, T); segments: (B, T), -1 on padding.
        positions: (N, 2) row and column of the logits that predict each drawn token.
        targets, logprobs, advantages: of the N drawn tokens.
        kept: bool (N, V), what the sampler could draw.
    """

    tokens: Tensor
    segments: Tensor
    positions: Tensor
    targets: Tensor
    logprobs: Tensor
    advantages: Tensor
    kept: Tensor


def micro_batches(samples: Sequence[Sample], tokens: int, vocab: int) -> list[PolicyBatch]:
    """Samples of like length together, at most `tokens` padded tokens a batch."""
    batches: list[PolicyBatch] = []
    rows: list[Sample] = []
    for sample in sorted(samples, key=lambda s: s.length):
        if rows and (len(rows) + 1) * sample.length > tokens:
            batches.append(_batch(rows, vocab))
            rows = []
        rows.append(sample)
    return [*batches, _batch(rows, vocab)] if rows else batches


def _batch(rows: list[Sample], vocab: int) -> PolicyBatch:
    width = max(row.length for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), -1, dtype=torch.long)
    positions, targets, logprobs, weights, kept = [], [], [], [], []
    for index, row in enumerate(rows):
        body = torch.cat((torch.from_numpy(row.prompt), torch.from_numpy(row.tokens))).long()
        tokens[index, : row.length], segments[index, : row.length] = body, 0
        columns = torch.from_numpy(row.drawn).nonzero()[:, 0] + len(row.prompt)
        positions.append(torch.stack((torch.full_like(columns, index), columns - 1), dim=1))
        targets.append(body[columns])
        logprobs.append(torch.from_numpy(row.logprobs[row.drawn]))
        weights.append(torch.full((len(columns),), row.advantage))
        kept.append(unpack_mask(row.nucleus[row.drawn], vocab))
    return PolicyBatch(
        tokens, segments, torch.cat(positions), torch.cat(targets), torch.cat(logprobs),
        torch.cat(weights), torch.cat(kept),
    )  # fmt: skip


def replayed_logprobs(model: Any, batch: PolicyBatch, temperature: float) -> Tensor:
    """Log-probabilities (N,) of the drawn tokens; what the sampler excluded is at -inf first."""
    core: MaiForCausalLM = getattr(model, "module", model)
    hidden = core.hidden(batch.tokens, batch.segments)
    picked = hidden[batch.positions[:, 0], batch.positions[:, 1]]
    logits = core.logits(picked) / temperature
    masked = logits.masked_fill(~batch.kept, -torch.inf)
    return masked.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]


@dataclass
class PolicyLoss:
    """The share of a micro-batch in the loss: -sum(objective) / tokens of the global batch."""

    epsilon: float
    outer: float
    temperature: float
    k: float = 0.0
    total_tokens: int = 1

    def __call__(self, model: Any, batch: PolicyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss share, and sums over the drawn tokens."""
        logprobs = replayed_logprobs(model, batch, self.temperature)
        objective, sums = policy_objective(
            logprobs, batch.logprobs, batch.advantages, self.epsilon, self.k, self.outer
        )
        return -objective.sum() / self.total_tokens, sums
