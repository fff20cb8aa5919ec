"""Loss on held-out text by category, on all of it or on a bounded sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training.held_out import token_nll
from hillclimb.training.layout import Layout


class HeldOutText:
    """Held-out documents with their categories; the same on every rank."""

    def __init__(
        self, rows: list[dict[str, Any]], length: int, category_tokens: int | None = None
    ) -> None:
        """
        Args:
            rows: `category`, `tokens`, `bytes` of each document.
            length: inputs of a row; longer documents are cut.
            category_tokens: of each category, the first documents until so many tokens.
        """
        self.length = length
        self.rows: list[dict[str, Any]] = []
        taken: dict[str, int] = {}
        for row in rows:
            before = taken.get(row["category"], 0)
            if category_tokens is None or before < category_tokens:
                self.rows.append(row)
                taken[row["category"]] = before + min(len(row["tokens"]), length + 1)
        self.categories = sorted({row["category"] for row in self.rows})

    def token_nll(self, model: MaiForCausalLM, layout: Layout) -> list[np.ndarray]:
        """NLL of every token but the first of each document; on all ranks."""
        documents = [np.asarray(row["tokens"], np.int32) for row in self.rows]
        return token_nll(model, documents, self.length, layout)

    def by_category(self, nll: list[np.ndarray]) -> dict[str, dict[str, float]]:
        """`nll` a token, `bpb` (bits a byte) and `tokens` of every category."""
        sums = np.zeros((len(self.categories), 3))
        for row, values in zip(self.rows, nll, strict=True):
            share = (len(values) + 1) / max(len(row["tokens"]), 1)
            sums[self.categories.index(row["category"])] += (
                float(values.sum()), float(len(values)), row["bytes"] * share,
            )  # fmt: skip
        return {
            name: {
                "nll": nll / max(tokens, 1),
                "bpb": nll / max(size, 1) / math.log(2),
                "tokens": tokens,
            }
            for name, (nll, tokens, size) in zip(self.categories, sums.tolist(), strict=True)
        }
