"""Loss spikes: when the loss jumps, which sources and documents did it, how the router stood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

SETTLED_STEPS = 50
NAMED_SOURCES = 5
NAMED_DOCUMENTS = 8
BUSIEST_EXPERTS = 3
KEPT = 0.95


@dataclass
class DocumentLosses:
    """Loss of one micro-batch by document; the sums stay on the device until they are asked for.

    Attributes:
        documents: document numbers, (K,).
        tokens: tokens with a label, (K,).
        nll: their summed loss on this rank, (K,).
    """

    documents: np.ndarray
    tokens: np.ndarray
    nll: Tensor


class SpikeWatch:
    """Running means of the loss, in all and by source, and what is over them."""

    def __init__(self, names: tuple[str, ...], deviations: float) -> None:
        self.names, self.deviations = names, deviations
        self.spikes: list[dict[str, Any]] = []
        self.mean_loss: float | None = None
        self.deviation = 0.0
        self.source_means: list[float] = []

    def state(self) -> dict[str, Any]:
        """What decides the future, as JSON."""
        return {
            "spikes": self.spikes,
            "mean_loss": self.mean_loss,
            "deviation": self.deviation,
            "source_means": self.source_means,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.spikes, self.mean_loss = state["spikes"], state["mean_loss"]
        self.deviation, self.source_means = state["deviation"], state["source_means"]

    def look(
        self,
        step: int,
        loss: float,
        sums: Tensor,
        counts: Tensor,
        cause: Callable[[float], dict[str, Any]],
    ) -> bool:
        """Compare with the running means, then move them; a spike is added to `spikes`.

        Args:
            step: from zero.
            sums: summed loss of each source, (sources,).
            counts: tokens of each source, (sources,).
            cause: further keys of a spike's record, given the running mean; called for a spike
                alone, on all ranks.
        """
        means = (sums / counts.clamp_min(1)).tolist()
        seen = [bool(n) for n in counts.tolist()]
        excess = 0.0 if self.mean_loss is None else loss - self.mean_loss
        spike = step > SETTLED_STEPS and excess > self.deviations * self.deviation
        self.deviation = KEPT * self.deviation + (1 - KEPT) * abs(excess)
        if spike and self.mean_loss is not None:
            record = {"step": step + 1, "loss": loss, "mean": self.mean_loss}
            sources = {"sources": self._risen(means, seen)}
            self.spikes.append(record | sources | cause(self.mean_loss))
        self.mean_loss = (
            loss if self.mean_loss is None else KEPT * self.mean_loss + (1 - KEPT) * loss
        )
        self.source_means = [
            KEPT * before + (1 - KEPT) * now if found else before
            for before, now, found in zip(self.source_means or means, means, seen, strict=True)
        ]
        return bool(spike)

    def _risen(self, means: list[float], seen: list[bool]) -> dict[str, float]:
        """The sources whose loss rose most, and by how much."""
        rise = {
            name: round(now - before, 4)
            for name, now, before, found in zip(
                self.names, means, self.source_means, seen, strict=True
            )
            if found
        }
        return dict(sorted(rise.items(), key=lambda item: -item[1])[:NAMED_SOURCES])


def worst_documents(
    parts: list[DocumentLosses], mean: float, replicas: int = 1
) -> list[tuple[int, float, int]]:
    """Documents of the whole batch, those first that put most loss above `mean`; on all ranks.

    Args:
        parts: this rank's micro-batches.
        replicas: ranks that count the same tokens.

    Returns:
        (number, loss a token, tokens); losses that are not finite come first.
    """
    documents = np.concatenate([part.documents for part in parts])
    sums = torch.cat([part.nll for part in parts]).double().cpu().numpy()
    mine = (documents, sums, np.concatenate([part.tokens for part in parts]))
    ranks: list[Any] = [mine]
    if dist.is_initialized() and dist.get_world_size() > 1:
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
    numbers, where = np.unique(np.concatenate([r[0] for r in ranks]), return_inverse=True)
    total = np.bincount(where, weights=np.concatenate([r[1] for r in ranks]))
    tokens = np.bincount(where, weights=np.concatenate([r[2] for r in ranks])) / replicas
    above = np.where(np.isfinite(total), total - mean * tokens, np.inf)
    order = np.lexsort((numbers, -above))[:NAMED_DOCUMENTS]
    loss = total / np.maximum(tokens, 1)
    return [(int(numbers[i]), float(loss[i]), int(tokens[i])) for i in order]


def router_state(shares_LE: Tensor) -> list[dict[str, Any]]:
    """Each MoE layer's largest share, entropy of its shares in nats, and busiest experts.

    Args:
        shares_LE: share of each expert in its layer's choices.
    """
    shares_LE = shares_LE.double().cpu()
    entropy = -(shares_LE * shares_LE.clamp_min(1e-12).log()).sum(1)
    top = shares_LE.topk(min(BUSIEST_EXPERTS, shares_LE.shape[1]), dim=1)
    return [
        {
            "max_share": round(float(top.values[layer, 0]), 4),
            "entropy": round(float(entropy[layer]), 4),
            "busiest": top.indices[layer].tolist(),
        }
        for layer in range(len(shares_LE))
    ]


def in_one_line(spike: dict[str, Any]) -> str:
    """A spike's record as one sentence for the log."""
    sources = ", ".join(f"{name} {rise:+.2f}" for name, rise in spike["sources"].items())
    share = max((layer["max_share"] for layer in spike["router"]), default=math.nan)
    return (
        f"loss spike at step {spike['step']}: {spike['loss']:.3f} over a mean of "
        f"{spike['mean']:.3f}; sources {sources}; documents "
        f"{', '.join(map(document_in_words, spike['documents'][:3]))}; largest share of an expert "
        f"{share:.2f}"
    )


def document_in_words(document: dict[str, Any]) -> str:
    """Where a document lies and what it lost."""
    return (
        f"{document['source']} {document['file']} row {document['row']} (loss "
        f"{document['loss']:.2f})"
    )
