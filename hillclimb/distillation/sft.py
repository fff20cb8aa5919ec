"""Supervised fine-tuning on traces; only what the policy wrote counts in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hillclimb.artifacts import ArtifactWriter
from hillclimb.environments.templates import Template, render
from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.learner import Learner
from hillclimb.training.schedule import cosine
from hillclimb.training.spans import Spans


@dataclass(frozen=True)
class Trace:
    """A tokenised trace: int32 (T,), and which tokens are learnt, bool (T,)."""

    tokens: np.ndarray
    learnt: np.ndarray


@dataclass(frozen=True)
class TraceBatch:
    """Right-padded traces, each (B, T): inputs, segments (-1 on padding), labels."""

    inputs: Tensor
    segments: Tensor
    labels: Tensor


def tokenise_trace(
    question: str, response: str, template: Template, tokenizer: TextTokenizer
) -> Trace:
    """The question in a template, then the response; tool responses are read, not learnt."""
    tokens = tokenizer.encode(render(question, template))
    learnt = [False] * len(tokens)
    rest = response
    while rest:
        turn, marker, rest = rest.partition("<tool_response>")
        ids = tokenizer.encode(turn)
        tokens += ids
        learnt += [True] * len(ids)
        if marker:
            shown, _, rest = rest.partition("</tool_response><think>")
            ids = tokenizer.encode(f"<tool_response>{shown}</tool_response><think>")
            tokens += ids
            learnt += [False] * len(ids)
    return Trace(np.asarray(tokens, np.int32), np.asarray(learnt, bool))


class FineTuner:
    """Epochs over traces in an order that the seed decides, with exact resume."""

    def __init__(
        self, learner: Learner, traces: list[Trace], config: dict[str, Any], seed: int
    ) -> None:
        self.learner, self.traces, self.config, self.seed = learner, traces, config, seed
        self.per_epoch = max(1, -(-len(traces) // config["batch_sequences"]))
        self.steps = self.per_epoch * config["epochs"]
        self.rows: list[dict[str, float]] = []

    def run(self, out: ArtifactWriter) -> Iterator[dict[str, float]]:
        """Train to the end from the newest checkpoint; yields each step's row."""
        self.spans = Spans(out)
        with Checkpointer(out, self.learner) as checkpoints:
            state = checkpoints.load()
            self.rows = state["rows"] if state else []
            for step in range(len(self.rows), self.steps):
                with self.spans.span("step", step):
                    row = self._step(step)
                self.rows.append(row)
                yield row
                if (step + 1) % self.config["checkpoint_every"] == 0 and step + 1 < self.steps:
                    with self.spans.span("checkpoint", step):
                        checkpoints.save(step + 1, {"rows": self.rows})

    def _step(self, step: int) -> dict[str, float]:
        torch.manual_seed(self.seed * 1_000_003 + step)
        traces = self._batch(step)
        learnt = int(sum(trace.learnt.sum() for trace in traces))
        config = self.config
        rate = cosine(
            step + 1, self.steps, config["peak"], config["floor"],
            config["warmup_share"] * self.steps,
        )  # fmt: skip

        def loss(model: Any, batch: TraceBatch) -> tuple[Tensor, dict[str, Tensor]]:
            logits = model(batch.inputs, segments=batch.segments).logits
            nll = F.cross_entropy(
                logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum"
            )
            return nll / learnt, {"nll": nll}

        sums = self.learner.step(padded_batches(traces, config["micro_batch_tokens"]), loss, rate)
        return {
            "step": step + 1,
            "loss": sums["nll"] / learnt,
            "learning_rate": rate,
            "grad_norm": sums["grad_norm"],
            "balance_loss": sums["balance_loss"],
        }

    def _batch(self, step: int) -> list[Trace]:
        epoch, index = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.traces))
        size = self.config["batch_sequences"]
        return [self.traces[i] for i in order[index * size : (index + 1) * size]]


def padded_batches(traces: list[Trace], tokens: int) -> list[TraceBatch]:
    """Traces of like length together, at most `tokens` padded tokens a batch."""
    batches: list[TraceBatch] = []
    rows: list[Trace] = []
    for trace in sorted(traces, key=lambda t: len(t.tokens)):
        if rows and (len(rows) + 1) * len(trace.tokens) > tokens:
            batches.append(_padded(rows))
            rows = []
        rows.append(trace)
    return [*batches, _padded(rows)] if rows else batches


def _padded(rows: list[Trace]) -> TraceBatch:
    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), -1, dtype=torch.long)
    labels = torch.full((len(rows), width), -100, dtype=torch.long)
    for index, row in enumerate(rows):
        size = len(row.tokens)
        body = torch.from_numpy(row.tokens).long()
        tokens[index, :size], segments[index, :size] = body, 0
        labels[index, :size] = body.masked_fill(~torch.from_numpy(row.learnt), -100)
    return TraceBatch(tokens[:, :-1], segments[:, :-1], labels[:, 1:])
