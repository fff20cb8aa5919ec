"""The learner's side of a rollout: what it compares with the sampler's log-probabilities.

With the nucleus replayed, both sides are the same distribution: after temperature, over the tokens
that the sampler could draw. Without, the learner's is over the whole vocabulary, and the sampler's
stays the one that it drew from; at equal weights the ratio is then the nucleus's mass, between
`top_p` and 1, instead of 1.

With routes replayed, each token goes through the experts that it went through when it was fed for
drawing. The gates are the learner's own probabilities of those experts, so its router learns. A
token without a recorded route, such as the last one, is routed freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.routes import for_model, recorded
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
        routes: int16 (B, T, MoE layers, top_k), -1 where free; None where all are.
    """

    tokens: Tensor
    segments: Tensor
    positions: Tensor
    targets: Tensor
    drawn: DrawnTokens
    kept: Tensor | None
    routes: Tensor | None = None

    def to(self, device: torch.device) -> PolicyBatch:
        """On another device."""
        kept, routes = (None if t is None else t.to(device) for t in (self.kept, self.routes))
        return PolicyBatch(
            self.tokens.to(device), self.segments.to(device), self.positions.to(device),
            self.targets.to(device), self.drawn.to(device), kept, routes,
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
        weights.append(torch.from_numpy(np.full(len(columns), row.advantage, np.float32)))
        if vocab is not None:
            kept.append(unpack_mask(row.nucleus[row.drawn], vocab))
    places = torch.cat(positions)
    drawn = DrawnTokens(
        torch.cat(engine), torch.cat(old), torch.cat(weights), places[:, 0], len(rows)
    )
    return PolicyBatch(
        tokens, segments, places, torch.cat(targets), drawn, torch.cat(kept) if kept else None,
        _routes(rows, width),
    )  # fmt: skip


def _routes(rows: list[Sample], width: int) -> Tensor | None:
    shape = next((row.routes.shape[1:] for row in rows if len(row.routes)), None)
    if shape is None:
        return None
    routes = torch.full((len(rows), width, *shape), -1, dtype=torch.int16)
    for index, row in enumerate(rows):
        if len(row.routes):
            routes[index, : len(row.routes)] = for_model(row.routes)
    return routes


def drawn_logprobs(model: Any, batch: PolicyBatch, temperature: float) -> Tensor:
    """Log-probabilities (N,) of the drawn tokens; what the batch does not keep is at -inf first."""
    core: MaiForCausalLM = getattr(model, "module", model)
    batch = batch.to(core.embed.weight.device)
    hidden = core.hidden(batch.tokens, batch.segments, routes=batch.routes)
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
        for i, part in zip(rows, _split(logprobs, samples, rows), strict=True):
            found[i] = replace(samples[i], old=part)
    return found


def by_sample(logprobs: np.ndarray, samples: Sequence[Sample], tokens: int) -> list[np.ndarray]:
    """What belongs to each sample of the values (N,) of all drawn tokens, micro-batch by
    micro-batch as `micro_batches` packs them."""
    order = [i for rows in _packed(samples, tokens) for i in rows]
    parts = dict(zip(order, _split(logprobs, samples, order), strict=True))
    return [parts[i] for i in range(len(samples))]


def _split(values: np.ndarray, samples: Sequence[Sample], rows: list[int]) -> list[np.ndarray]:
    return np.split(values, np.cumsum([samples[i].drawn.sum() for i in rows])[:-1])


@torch.no_grad()
def with_routes(
    model: MaiForCausalLM, samples: Sequence[Sample], tokens: int, version: int
) -> list[Sample]:
    """The samples with the routes that the model, at this version of the weights, gives them.

    For engines that tell no routes. Those that have some keep them, and one that other weights
    drew, wholly or in part, stays without.
    """
    model.eval()
    found = list(samples)
    wanting = [
        i for i, s in enumerate(samples) if not len(s.routes) and (s.versions == version).all()
    ]
    for rows in _packed([samples[i] for i in wanting], tokens):
        places = [wanting[row] for row in rows]
        batch = _batch([samples[i] for i in places], None).to(model.embed.weight.device)
        with recorded(model) as routes:
            model.hidden(batch.tokens, batch.segments)
            passed = routes()
        passed = passed.reshape(*batch.tokens.shape, *passed.shape[1:])
        for i, row in zip(places, passed, strict=True):
            found[i] = replace(samples[i], routes=row[: samples[i].length - 1].copy())
    return found


@dataclass
class PolicyLoss:
    """The share of a micro-batch in the loss: -sum(objective) / tokens of the global batch.

    `seen` collects the log-probabilities of the drawn tokens, a micro-batch an entry, where they
    were computed.
    """

    objective: Objective
    temperature: float
    total_tokens: int
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, model: Any, batch: PolicyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss share, and sums over the drawn tokens."""
        logprobs = drawn_logprobs(model, batch, self.temperature)
        self.seen.append(logprobs.detach())
        value, sums = policy_objective(logprobs, batch.drawn.to(logprobs.device), self.objective)
        return -value.sum() / self.total_tokens, sums
