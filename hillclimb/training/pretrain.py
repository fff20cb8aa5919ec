"""One phase of base training: packed sequences, tracked routers and spikes, exact resume."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hillclimb.artifacts import ArtifactWriter
from hillclimb.training.batches import TokenBatch
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.feed import Feed, prefetch
from hillclimb.training.held_out_loss import HeldOutText
from hillclimb.training.learner import Learner
from hillclimb.training.schedule import learning_rate
from hillclimb.training.spans import Spans
from hillclimb.training.spikes import (
    DocumentLosses,
    SpikeWatch,
    document_in_words,
    router_state,
    worst_documents,
)

STEPS_AHEAD = 2


class Pretrainer:
    """Trains one phase; `metrics`, `watch.spikes` and `spans` fill up as it goes."""

    def __init__(
        self, learner: Learner, feed: Feed, config: dict[str, Any], seed: int,
        held_out: HeldOutText | None = None, held_out_every: int = 0,
    ) -> None:  # fmt: skip
        """
        Args:
            held_out: text whose loss is measured on the way.
            held_out_every: steps between two measurements, 0 = none.
        """
        self.learner, self.feed, self.config = learner, feed, config
        self.steps, self.seed = feed.steps, seed
        self.held_out, self.held_out_every = held_out, held_out_every
        self.device = torch.device(learner.engine.device)
        self.metrics: list[dict[str, float]] = []
        self.watch = SpikeWatch(feed.names, config["spike_deviations"])
        self.parts: list[DocumentLosses] = []

    def run(self, out: ArtifactWriter) -> Iterator[dict[str, float]]:
        """Train to the end from wherever the newest checkpoint stands; yields each step's row.

        Raises:
            FloatingPointError: if a loss or gradient is not finite, naming step and documents.
        """
        self.spans = Spans(out, dist.get_rank())
        with Checkpointer(out, self.learner) as checkpoints:
            if state := checkpoints.load():
                self.metrics = state["metrics"]
                self.watch.restore(state)
            first = len(self.metrics)
            with contextlib.closing(prefetch(self._micro_batches(first), STEPS_AHEAD)) as batches:
                for step in range(first, self.steps):
                    row = self._row(step, batches)
                    self.metrics.append(row)
                    yield row
                    if (step + 1) % self.config["checkpoint_every"] == 0 and step + 1 < self.steps:
                        with self.spans.span("checkpoint", step):
                            state = {"metrics": self.metrics, **self.watch.state()}
                            checkpoints.save(step + 1, state)

    def _row(self, step: int, batches: Iterator[list[TokenBatch]]) -> dict[str, float]:
        with self.spans.span("data", step):
            batch = next(batches)
        with self.spans.span("step", step):
            row = self._step(step, batch)
        if self.held_out is None or not self.held_out_every or (step + 1) % self.held_out_every:
            return row
        with self.spans.span("held_out", step):
            return row | self._held_out_losses(self.held_out)

    def _held_out_losses(self, text: HeldOutText) -> dict[str, float]:
        losses = text.by_category(text.token_nll(self.learner.model, self.learner.layout))
        return {f"held_out_{name}": values["nll"] for name, values in losses.items()}

    def _micro_batches(self, first: int) -> Generator[list[TokenBatch]]:
        """This stream's micro-batches of every step; runs in the feed's thread."""
        tokens = self.config["micro_batch_tokens"] * self.learner.layout.context_parallel
        size = max(1, tokens // self.feed.length)
        pinned = self.device.type == "cuda"
        for rows in self.feed.batches(first):
            yield [
                TokenBatch.of(rows[i : i + size], len(self.feed.names), pinned)
                for i in range(0, len(rows), size)
            ]

    def _step(self, step: int, batches: list[TokenBatch]) -> dict[str, float]:
        started = time.perf_counter()
        torch.manual_seed((self.seed * 1_000_003 + step) * 1024 + dist.get_rank())
        size = self.config["batch_tokens"]
        rate = learning_rate(
            self.config["phase"]["schedule"], step * size, self.steps * size
        )  # fmt: skip
        self.parts = []
        sums = self.learner.step(batches, self._loss, rate)
        loss = sums.pop("nll") / (self.feed.batch_rows * self.feed.length)
        if not np.isfinite([loss, sums["grad_norm"]]).all():
            raise FloatingPointError(self._not_finite(step, loss, sums["grad_norm"]))
        totals = self.learner.sums
        spike = self.watch.look(
            step, loss, totals["source_nll"], totals["source_tokens"], self._cause
        )
        return {
            "step": step + 1,
            "tokens": (step + 1) * size,
            "loss": loss,
            "learning_rate": rate,
            **sums,
            "tokens_per_second": size / (time.perf_counter() - started),
            "spike": float(spike),
        }

    def _loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.to(self.device)
        total, nll = model.losses(batch.inputs, batch.segments, batch.labels)
        sources = torch.zeros(len(self.feed.names), device=nll.device)
        by_source = sources.index_add(0, batch.sources.flatten(), nll.detach())
        documents = torch.zeros(len(batch.documents), device=nll.device)
        by_document = documents.index_add(0, batch.places.flatten(), nll.detach())
        self.parts.append(DocumentLosses(batch.documents, batch.document_tokens, by_document))
        counts = batch.source_tokens / self._replicas()
        sums = {"nll": total, "source_nll": by_source, "source_tokens": counts}
        return total / (self.feed.batch_rows * self.feed.length), sums

    def _replicas(self) -> int:
        """Ranks that are given the same rows."""
        return dist.get_world_size() // self.feed.data_world

    def _cause(self, mean: float) -> dict[str, Any]:
        """The documents that put most loss above the mean, and the routers of this step."""
        shares = self.learner.load.shares()
        return {"documents": self._worst(mean), "router": router_state(shares)}

    def _worst(self, mean: float) -> list[dict[str, Any]]:
        shards, found = self.feed.plan.shards, []
        for number, loss, tokens in worst_documents(self.parts, mean, self._replicas()):
            file, row = shards.place(number)
            source = shards.names[shards.sources[number]]
            found.append({"source": source, "file": file, "row": row, "loss": round(loss, 4),
                          "tokens": tokens})  # fmt: skip
        return found

    def _not_finite(self, step: int, loss: float, norm: float) -> str:
        worst = "; ".join(map(document_in_words, self._worst(0.0)))
        kept = step - step % self.config["checkpoint_every"]
        last = f"the checkpoint of step {kept} is intact" if kept else "nothing is saved yet"
        return (
            f"the loss of step {step + 1} is {loss} with a gradient norm of {norm}; its documents, "
            f"worst first: {worst}. Nothing of this step was saved, {last}: look at the documents, "
            "or lower the learning rate's peak"
        )
