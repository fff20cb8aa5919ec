"""Packed rows as tensors: on the host in the feed's thread, on the device when their turn comes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hillclimb.training.packing import Packed


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch: inputs, segments, labels, sources and places, each (B, T).

    Attributes:
        labels: the next tokens, -100 where they are of another document.
        sources: source of each label.
        places: where each label's document is in `documents`.
        documents: numbers of the documents row by row, on the host, (K,).
        document_tokens: labels of each that count, on the host, (K,).
        source_tokens: labels of each source, all of them, on the host, (sources,).
    """

    inputs: Tensor
    segments: Tensor
    labels: Tensor
    sources: Tensor
    places: Tensor
    documents: np.ndarray
    document_tokens: np.ndarray
    source_tokens: Tensor

    @classmethod
    def of(cls, rows: Packed, sources: int, pinned: bool) -> TokenBatch:
        """Rows as tensors of the host, in pinned memory where they go to a GPU."""

        def tensor(array: np.ndarray) -> Tensor:
            made = torch.from_numpy(array.astype(np.int64))
            return made.pin_memory() if pinned else made

        same = rows.segments[:, 1:] == rows.segments[:, :-1]
        numbers = rows.documents[:, 1:]
        begins = np.ones(same.shape, bool)
        begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        places = np.cumsum(begins).reshape(same.shape) - 1
        by_source = np.bincount(rows.sources[:, 1:].ravel(), minlength=sources)
        return cls(
            inputs=tensor(rows.tokens[:, :-1]),
            segments=tensor(rows.segments[:, :-1]),
            labels=tensor(np.where(same, rows.tokens[:, 1:], -100)),
            sources=tensor(rows.sources[:, 1:]),
            places=tensor(places),
            documents=numbers[begins],
            document_tokens=np.bincount(places[same], minlength=int(begins.sum())),
            source_tokens=torch.from_numpy(by_source.astype(np.float64)),
        )

    def to(self, device: torch.device) -> TokenBatch:
        """The (B, T) tensors on a device; from pinned memory the host does not wait."""
        return replace(
            self,
            inputs=self.inputs.to(device, non_blocking=True),
            segments=self.segments.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            sources=self.sources.to(device, non_blocking=True),
            places=self.places.to(device, non_blocking=True),
        )
