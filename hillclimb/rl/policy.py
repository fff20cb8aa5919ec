"""The learner's side of a rollout: what it compares with the sampler's log-probabilities.

With the nucleus replayed, both sides are the same distribution: after temperature, over the tokens
that the sampler could draw. Without, the learner's is over the whole vocabulary, and the sampler's
stays the one that it drew from; at equal weights the ratio is then the nucleus's mass, between
`top_p` and 1, instead of 1.

With routes replayed, each token goes through the experts that it went through when it was fed for
drawing. The gates are the learner's own probabilities of those experts, so its router learns. A
token without a recorded route, such as the last one, is routed freely.

On a GPU a row of a micro-batch holds many samples, as documents of a packed sequence, and all
micro-batches have one shape: kernels are compiled once, and nothing is computed for short samples
beside long ones. On a CPU a row is one sample.
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
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.sampling import mask_of

ROW = 1024


@dataclass(frozen=True)
class Place:
    """Where a micro-batch has the sample of that number."""

    sample: int
    row: int
    start: int


@dataclass(frozen=True)
class PolicyBatch:
    """Samples in rows, one behind the other.

    Attributes:
        places: of the samples, in the order of their drawn tokens.
        tokens: (B, T); segments: (B, T), the sample's place in its row, -1 on padding.
        positions: (N, 2) row and column of the logits that predict each drawn token.
        targets: of the N drawn tokens.
        drawn: what is known of them.
        kept: `Nuclei.pairs` of what the sampler could draw, int32 (2, M); None where it is not
            replayed.
        routes: int16 (B, T, MoE layers, top_k), -1 where free; None where all are.
    """

    places: tuple[Place, ...]
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
            self.places, self.tokens.to(device), self.segments.to(device),
            self.positions.to(device), self.targets.to(device), self.drawn.to(device), kept, routes,
        )  # fmt: skip


def packs(model: MaiForCausalLM) -> bool:
    """Whether rows of this model's micro-batches hold several samples."""
    return bool(model.embed.weight.is_cuda)


def micro_batches(
    samples: Sequence[Sample], tokens: int, nucleus: bool, packed: bool = False
) -> list[PolicyBatch]:
    """Samples of like length together, at most `tokens` tokens a batch, padding counted.

    Args:
        nucleus: whether it is replayed.
        packed: several samples a row, all batches of one shape.
    """
    arranged = _packed(samples, tokens) if packed else _padded(samples, tokens)
    return [_batch(samples, places, shape, nucleus) for places, shape in arranged]


Arranged = list[tuple[list[Place], tuple[int, int]]]


def _by_length(samples: Sequence[Sample]) -> list[int]:
    return sorted(range(len(samples)), key=lambda i: samples[i].length)


def _padded(samples: Sequence[Sample], tokens: int) -> Arranged:
    """One sample a row, as wide as the longest of its batch."""
    batches: list[list[int]] = []
    for index in _by_length(samples):
        if batches and (len(batches[-1]) + 1) * samples[index].length <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return [
        ([Place(i, row, 0) for row, i in enumerate(batch)], (len(batch), samples[batch[-1]].length))
        for batch in batches
    ]


def _packed(samples: Sequence[Sample], tokens: int) -> Arranged:
    """Rows of a power of two that takes the longest sample, as many as `tokens` allow."""
    longest = max((sample.length for sample in samples), default=1)
    width = max(ROW, 1 << (longest - 1).bit_length())
    height = max(1, tokens // width)
    rows: list[list[Place]] = []
    end = width
    for index in _by_length(samples):
        length = samples[index].length
        if end + length > width:
            rows.append([])
            end = 0
        rows[-1].append(Place(index, (len(rows) - 1) % height, end))
        end += length
    return [
        ([place for row in rows[first : first + height] for place in row], (height, width))
        for first in range(0, len(rows), height)
    ]


def _batch(
    samples: Sequence[Sample], places: list[Place], shape: tuple[int, int], nucleus: bool
) -> PolicyBatch:
    tokens = torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, -1, dtype=torch.long)
    numbers = [0] * shape[0]
    positions, targets, owners, engine, old, weights, kept = [], [], [], [], [], [], []
    for owner, place in enumerate(places):
        sample, row = samples[place.sample], place.row
        body = torch.cat((torch.from_numpy(sample.prompt), torch.from_numpy(sample.tokens))).long()
        tokens[row, place.start : place.start + len(body)] = body
        segments[row, place.start : place.start + len(body)] = numbers[row]
        numbers[row] += 1
        columns = torch.from_numpy(sample.drawn).nonzero()[:, 0] + len(sample.prompt)
        before = columns + place.start - 1
        positions.append(torch.stack((torch.full_like(columns, row), before), dim=1))
        targets.append(body[columns])
        owners.append(torch.full_like(columns, owner))
        engine.append(torch.from_numpy(sample.logprobs[sample.drawn]))
        old.append(engine[-1] if sample.old is None else torch.from_numpy(sample.old))
        weights.append(torch.from_numpy(np.full(len(columns), sample.advantage, np.float32)))
        if nucleus:
            kept.append(sample.nucleus[sample.drawn])
    drawn = DrawnTokens(
        torch.cat(engine), torch.cat(old), torch.cat(weights), torch.cat(owners), len(places)
    )
    return PolicyBatch(
        tuple(places), tokens, segments, torch.cat(positions), torch.cat(targets), drawn,
        torch.from_numpy(Nuclei.joined(kept).pairs()) if nucleus else None,
        _routes(samples, places, shape),
    )  # fmt: skip


def _routes(
    samples: Sequence[Sample], places: list[Place], shape: tuple[int, int]
) -> Tensor | None:
    told = [(place, samples[place.sample].routes) for place in places]
    told = [(place, routes) for place, routes in told if len(routes)]
    if not told:
        return None
    forced = torch.full((*shape, *told[0][1].shape[1:]), -1, dtype=torch.int16)
    for place, routes in told:
        forced[place.row, place.start : place.start + len(routes)] = for_model(routes)
    return forced


def drawn_logprobs(model: Any, batch: PolicyBatch, temperature: float) -> Tensor:
    """Log-probabilities (N,) of the drawn tokens; what the batch does not keep is at -inf first."""
    core: MaiForCausalLM = getattr(model, "module", model)
    batch = batch.to(core.embed.weight.device)
    hidden = core.hidden(batch.tokens, batch.segments, routes=batch.routes)
    picked = hidden[batch.positions[:, 0], batch.positions[:, 1]]
    logits = core.logits(picked) / temperature
    if batch.kept is not None:
        logits = logits.masked_fill(~mask_of(batch.kept, *logits.shape), -torch.inf)
    return logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]


@torch.no_grad()
def with_old_logprobs(
    model: MaiForCausalLM, samples: Sequence[Sample], tokens: int, nucleus: bool,
    temperature: float,
) -> list[Sample]:  # fmt: skip
    """The samples with the log-probabilities that the model gives their drawn tokens now."""
    model.eval()
    batches = micro_batches(samples, tokens, nucleus, packs(model))
    found = by_sample([drawn_logprobs(model, batch, temperature) for batch in batches], batches)
    return [replace(sample, old=old) for sample, old in zip(samples, found, strict=True)]


def by_sample(values: Sequence[Tensor], batches: Sequence[PolicyBatch]) -> list[np.ndarray]:
    """What belongs to each sample, in their order, of values (N,) of each batch's drawn tokens."""
    parts: dict[int, np.ndarray] = {}
    for whole, batch in zip(values, batches, strict=True):
        counts = torch.bincount(batch.drawn.rows, minlength=len(batch.places)).tolist()
        split = np.split(whole.float().cpu().numpy(), np.cumsum(counts)[:-1])
        parts |= {place.sample: part for place, part in zip(batch.places, split, strict=True)}
    return [parts[i].copy() for i in range(len(parts))]


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
    asked = [samples[i] for i in wanting]
    for batch in micro_batches(asked, tokens, False, packs(model)):
        there = batch.to(model.embed.weight.device)
        with recorded(model) as routes:
            model.hidden(there.tokens, there.segments)
            passed = routes()
        passed = passed.reshape(*batch.tokens.shape, *passed.shape[1:])
        for place in batch.places:
            i, fed = wanting[place.sample], asked[place.sample].length - 1
            own = passed[place.row, place.start : place.start + fed].copy()
            found[i] = replace(samples[i], routes=own)
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
