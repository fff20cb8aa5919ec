"""Loss and its gradient over rows of logits in one Triton kernel.

`torch.compile` of the same formulas takes two kernels and 1.7 times as long: its online softmax
reads at half the memory's bandwidth. `linear_cross_entropy.softmax_slope` is the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 8


def fused_softmax_slope(
    logits: Tensor, labels: Tensor, vocabulary: int, dtype: torch.dtype, grad: bool
) -> tuple[Tensor, Tensor]:
    """As `linear_cross_entropy.softmax_slope`; without `grad` the second tensor is empty."""
    rows, padded = logits.shape
    losses = logits.new_empty(rows)
    slope = logits.new_empty((rows, padded) if grad else 0, dtype=dtype)
    _rows[(rows,)](logits, labels, losses, slope, vocabulary, padded, grad, BLOCK, num_warps=WARPS)
    return losses, slope


@triton.jit
def _rows(
    logits, labels, losses, slope, vocabulary, padded,
    GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: an online softmax, then softmax - one_hot while the row may still be in cache."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * padded
    label = tl.load(labels + row)
    top = -float("inf")
    total = 0.0
    for start in range(0, padded, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + column, mask=column < vocabulary, other=-float("inf"))
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
    norm = top + tl.log(total)
    right = tl.load(logits + tl.maximum(label, 0))
    tl.store(losses + row, tl.where(label < 0, 0.0, norm - right))
    if GRAD:
        slope += row * padded
        for start in range(0, padded, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(logits + column, mask=column < vocabulary, other=-float("inf"))
            y = tl.exp(x - norm) - tl.where(column == label, 1.0, 0.0)
            y = tl.where(label < 0, 0.0, y)
            tl.store(slope + column, y.to(slope.dtype.element_ty), mask=column < padded)
