"""The learner's side of a rollout: what it compares with the sampler's log-probabilities.

With the nucleus replayed, both sides are the same distribution: after temperature, over the tokens
that the sampler could draw. Without, the learner's is over the whole vocabulary, and the sampler's
stays the one that it drew from; at equal weights the ratio is then the nucleus's mass, between
`top_p` and 1, instead of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl.groups import Sample
from hillclimb.rl.objective import DrawnTokens, Objective, policy_objective
from hillclimb.rollout.sampling import unpack_mask


@dataclass(frozen=True)
class PolicyBatch:
    """Right-padded samples.

    Attributes:
        tokens: (B, T); segments: (B, T), -1 on padding.
        positions: (N, 2) row and column of the logits that predict each drawn token.
        targets: of the N drawn tokens.
        drawn: what is known of them.
        kept: bool (N, V), what the sampler could draw; None where it is not replayed.
    """

    tokens: Tensor
    segments: Tensor
    positions: Tensor
    targets: Tensor
    drawn: DrawnTokens
    kept: Tensor | None

    def to(self, device: torch.device) -> PolicyBatch:
        """On another device."""
        kept = None if self.kept is None else self.kept.to(device)
        return PolicyBatch(
            self.tokens.to(device), self.segments.to(device), self.positions.to(device),
            self.targets.to(device), self.drawn.to(device), kept,
        )  # fmt: skip


def micro_batches(samples: Sequence[Sample], tokens: int, vocab: int | None) -> list[PolicyBatch]:
    """Samples of like length together, at most `tokens` padded tokens a batch.

    Args:
        vocab: size of the vocabulary, for the nucleus; None where it is not replayed.
    """
    return [_batch([samples[i] for i in rows], vocab) for rows in _packed(samples, tokens)]


def _packed(samples: Sequence[Sample], tokens: int) -> list[list[int]]:
    """Which samples go together, in the order of their lengths."""
    packed: list[list[int]] = []
    for index in sorted(range(len(samples)), key=lambda i: samples[i].length):
        if packed and (len(packed[-1]) + 1) * samples[index].length <= tokens:
            packed[-1].append(index)
        else:
            packed.append([index])
    return packed


def _batch(rows: list[Sample], vocab: int | None) -> PolicyBatch:
    width = max(row.length for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), -1, dtype=torch.long)
    positions, targets, engine, old, weights, kept = [], [], [], [], [], []
    for index, row in enumerate(rows):
        body = torch.cat((torch.from_numpy(row.prompt), torch.from_numpy(row.tokens))).long()
        tokens[index, : row.length], segments[index, : row.length] = body, 0
        columns = torch.from_numpy(row.drawn).nonzero()[:, 0] + len(row.prompt)
        positions.append(torch.stack((torch.full_like(columns, index), columns - 1), dim=1))
        targets.append(body[columns])
        engine.append(torch.from_numpy(row.logprobs[row.drawn]))
        old.append(engine[-1] if row.old is None else torch.from_numpy(row.old))
        weights.append(torch.full((len(columns),), row.advantage))
        if vocab is not None:
            kept.append(unpack_mask(row.nucleus[row.drawn], vocab))
    places = torch.cat(positions)
    drawn = DrawnTokens(
        torch.cat(engine), torch.cat(old), torch.cat(weights), places[:, 0], len(rows)
    )
    return PolicyBatch(
        tokens, segments, places, torch.cat(targets), drawn, torch.cat(kept) if kept else None
    )


def drawn_logprobs(model: Any, batch: PolicyBatch, temperature: float) -> Tensor:
    """Log-probabilities (N,) of the drawn tokens; what the batch does not keep is at -inf first."""
    core: MaiForCausalLM = getattr(model, "module", model)
    batch = batch.to(core.embed.weight.device)
    hidden = core.hidden(batch.tokens, batch.segments)
    picked = hidden[batch.positions[:, 0], batch.positions[:, 1]]
    logits = core.logits(picked) / temperature
    if batch.kept is not None:
        logits = logits.masked_fill(~batch.kept, -torch.inf)
    return logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]


@torch.no_grad()
def with_old_logprobs(
    model: MaiForCausalLM, samples: Sequence[Sample], tokens: int, vocab: int | None,
    temperature: float,
) -> list[Sample]:  # fmt: skip
    """The samples with the log-probabilities that the model gives their drawn tokens now."""
    model.eval()
    found = list(samples)
    for rows in _packed(samples, tokens):
        batch = _batch([samples[i] for i in rows], vocab)
        logprobs = drawn_logprobs(model, batch, temperature).cpu().numpy()
        sizes = np.cumsum([samples[i].drawn.sum() for i in rows])[:-1]
        for i, part in zip(rows, np.split(logprobs, sizes), strict=True):
            found[i] = replace(samples[i], old=part)
    return found


@dataclass
class PolicyLoss:
    """The share of a micro-batch in the loss: -sum(objective) / tokens of the global batch."""

    objective: Objective
    temperature: float
    total_tokens: int

    def __call__(self, model: Any, batch: PolicyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss share, and sums over the drawn tokens."""
        logprobs = drawn_logprobs(model, batch, self.temperature)
        value, sums = policy_objective(logprobs, batch.drawn.to(logprobs.device), self.objective)
        return -value.sum() / self.total_tokens, sums
