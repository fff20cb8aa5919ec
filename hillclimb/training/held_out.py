"""How a model in training predicts text it does not learn from."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from hillclimb.model.modeling import MaiForCausalLM


@torch.no_grad()
def token_nll(model: MaiForCausalLM, documents: list[np.ndarray], length: int) -> list[np.ndarray]:
    """NLL of every token but the first of each document, which is cut at `length` + 1 tokens."""
    model.eval()
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    found: list[np.ndarray] = [np.empty(0)] * len(documents)
    for start in range(0, len(order), 32):
        chunk = order[start : start + 32]
        rows = [documents[i][: length + 1] for i in chunk]
        width = max(map(len, rows))
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        for row, body in enumerate(rows):
            tokens[row, : len(body)] = torch.from_numpy(body.astype(np.int64))
        logits = model.logits(model.hidden(tokens[:, :-1]))
        nll = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        for index, body, row in zip(chunk, rows, nll.view(len(rows), -1), strict=True):
            found[index] = row[: len(body) - 1].numpy().astype(np.float64)
    return found
