"""One phase of base training: packed sequences, tracked routers and spikes, exact resume."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hillclimb.artifacts import ArtifactWriter
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.learner import Learner
from hillclimb.training.packing import Packed
from hillclimb.training.schedule import learning_rate
from hillclimb.training.spans import Spans

SETTLED_STEPS = 50


@dataclass(frozen=True)
class TokenBatch:
    """Rows of a packed batch: inputs, segments, labels, sources, each (B, T)."""

    inputs: Tensor
    segments: Tensor
    labels: Tensor
    sources: Tensor


class Pretrainer:
    """Trains one phase; `metrics`, `spikes` and `spans` fill up as it goes."""

    def __init__(
        self, learner: Learner, packed: Packed, names: tuple[str, ...], config: dict[str, Any],
        seed: int,
    ) -> None:  # fmt: skip
        self.learner, self.packed, self.names, self.config = learner, packed, names, config
        self.length = packed.tokens.shape[1] - 1
        self.rows = config["batch_tokens"] // self.length
        self.steps = len(packed) // self.rows
        self.seed, self.rank = seed, dist.get_rank()
        self.metrics: list[dict[str, float]] = []
        self.spikes: list[dict[str, Any]] = []
        self.mean_loss: float | None = None
        self.deviation = 0.0
        self.source_means: list[float] = []

    def run(self, out: ArtifactWriter) -> Iterator[dict[str, float]]:
        """Train to the end from wherever the newest checkpoint stands; yields each step's row."""
        self.spans = Spans(out, self.rank)
        with Checkpointer(out, self.learner) as checkpoints:
            if state := checkpoints.load():
                self._restore(state)
            for step in range(len(self.metrics), self.steps):
                with self.spans.span("step", step):
                    row = self._step(step)
                self.metrics.append(row)
                yield row
                if (step + 1) % self.config["checkpoint_every"] == 0 and step + 1 < self.steps:
                    with self.spans.span("checkpoint", step):
                        checkpoints.save(step + 1, self._state())

    def _restore(self, state: dict[str, Any]) -> None:
        self.metrics, self.spikes = state["metrics"], state["spikes"]
        self.mean_loss, self.source_means = state["mean_loss"], state["source_means"]
        self.deviation = state["deviation"]

    def _state(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics,
            "spikes": self.spikes,
            "mean_loss": self.mean_loss,
            "deviation": self.deviation,
            "source_means": self.source_means,
        }

    def _step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        torch.manual_seed((self.seed * 1_000_003 + step) * 1024 + self.rank)
        tokens = step * self.config["batch_tokens"]
        rate = learning_rate(
            self.config["phase"]["schedule"], tokens, self.steps * self.config["batch_tokens"]
        )
        with self.spans.span("data", step):
            batches = self._micro_batches(step)
        sums = self.learner.step(batches, self._loss, rate)
        loss = sums.pop("nll") / (self.rows * self.length)
        if not np.isfinite(loss):
            raise FloatingPointError(self._not_finite(step, loss))
        spike = self._watch(step, loss)
        return {
            "step": step + 1,
            "tokens": tokens + self.config["batch_tokens"],
            "loss": loss,
            "learning_rate": rate,
            **sums,
            "tokens_per_second": self.config["batch_tokens"] / (time.perf_counter() - started),
            "spike": float(spike),
        }

    def _rows(self, step: int) -> np.ndarray:
        return np.arange(step * self.rows, (step + 1) * self.rows)

    def _micro_batches(self, step: int) -> list[TokenBatch]:
        mine = self._rows(step)[self.rank :: dist.get_world_size()]
        size = max(1, self.config["micro_batch_tokens"] // self.length)
        return [self._batch(mine[i : i + size]) for i in range(0, len(mine), size)]

    def _batch(self, rows: np.ndarray) -> TokenBatch:
        tokens = torch.from_numpy(self.packed.tokens[rows]).long()
        segments = torch.from_numpy(self.packed.segments[rows]).long()
        sources = torch.from_numpy(self.packed.sources[rows]).long()
        labels = tokens[:, 1:].masked_fill(segments[:, 1:] != segments[:, :-1], -100)
        return TokenBatch(tokens[:, :-1], segments[:, :-1], labels, sources[:, 1:])

    def _loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        total, nll = model.losses(batch.inputs, batch.segments, batch.labels)
        sources = torch.zeros(len(self.names), device=nll.device)
        by_source = sources.index_add(0, batch.sources.flatten(), nll.detach())
        counts = torch.bincount(batch.sources.flatten(), minlength=len(self.names)).double()
        sums = {"nll": total, "source_nll": by_source, "source_tokens": counts}
        return total / (self.rows * self.length), sums

    def _watch(self, step: int, loss: float) -> bool:
        """Compare with the running mean; a spike is recorded with the sources that drove it."""
        sums, counts = self.learner.sums["source_nll"], self.learner.sums["source_tokens"]
        means = (sums / counts.clamp_min(1)).tolist()
        excess = 0.0 if self.mean_loss is None else loss - self.mean_loss
        limit = self.config["spike_deviations"] * self.deviation
        spike = step > SETTLED_STEPS and excess > limit
        self.deviation = 0.95 * self.deviation + 0.05 * abs(excess)
        if spike and self.source_means:
            rise = {
                name: round(now - before, 4)
                for name, now, before, n in zip(
                    self.names, means, self.source_means, counts.tolist(), strict=True
                )
                if n
            }
            worst = dict(sorted(rise.items(), key=lambda item: -item[1])[:5])
            self.spikes.append(
                {"step": step + 1, "loss": loss, "mean": self.mean_loss, "sources": worst}
            )
        self.mean_loss = loss if self.mean_loss is None else 0.95 * self.mean_loss + 0.05 * loss
        previous = self.source_means or means
        self.source_means = [
            0.95 * before + 0.05 * now if n else before
            for before, now, n in zip(previous, means, counts.tolist(), strict=True)
        ]
        return bool(spike)

    def _not_finite(self, step: int, loss: float) -> str:
        documents = np.unique(self.packed.documents[self._rows(step)])[:8].tolist()
        return (
            f"the loss of step {step + 1} is {loss}; the batch's first documents are {documents}. "
            "The last checkpoint is intact: lower the learning rate's peak or look at them"
        )
