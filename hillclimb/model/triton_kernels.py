"""Triton forms of `kernels`, for CUDA only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def launch_top_experts(probs_NE: Tensor, k: int) -> Tensor:
    """`kernels.top_experts`; the lower number wins a tie."""
    tokens, experts = probs_NE.shape
    chosen = torch.empty((tokens, k), dtype=torch.int64, device=probs_NE.device)
    rows = 4
    _top_rows[(triton.cdiv(tokens, rows),)](
        probs_NE.contiguous(), chosen, tokens, experts, k, triton.next_power_of_2(experts), rows,
        num_warps=4,
    )  # fmt: skip
    return chosen


@triton.jit
def _top_rows(  # type: ignore[no-untyped-def]
    probs, chosen, tokens, experts,
    K: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < tokens)[:, None] & (column < experts)[None, :]
    x = tl.load(probs + row[:, None] * experts + column[None, :], mask=inside, other=-1.0)
    for place in range(K):
        best = tl.argmax(x, 1, tie_break_left=True)
        tl.store(chosen + row * K + place, best.to(tl.int64), mask=row < tokens)
        x = tl.where(column[None, :] == best[:, None], -1.0, x)


def launch_gated_swiglu_backward(
    inner_MF: Tensor, gate_M: Tensor, grad_MH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.gated_swiglu_backward`: one pass over each row."""
    rows, width = grad_MH.shape
    active, grad_gate = torch.empty_like(grad_MH), torch.empty_like(gate_M)
    grad_inner = torch.empty_like(inner_MF)
    _swiglu_rows[(rows,)](
        inner_MF.contiguous(), gate_M.contiguous(), grad_MH.contiguous(), active, grad_inner,
        grad_gate, width, triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return active, grad_inner, grad_gate


@triton.jit
def _swiglu_rows(  # type: ignore[no-untyped-def]
    inner, gates, grads, actives, grad_inners, grad_gates, width, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    a = tl.load(inner + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(inner + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grads + row * width + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gates + row)
    chance = tl.sigmoid(a)
    silu = a * chance
    scaled = gate * grad
    kind = grad_inners.dtype.element_ty
    tl.store(actives + row * width + column, (gate * silu * b).to(kind), mask=inside)
    grad_a = scaled * b * (chance + silu * (1 - chance))
    tl.store(grad_inners + row * 2 * width + column, grad_a.to(kind), mask=inside)
    tl.store(grad_inners + row * 2 * width + width + column, (scaled * silu).to(kind), mask=inside)
    tl.store(grad_gates + row, tl.sum(grad * silu * b, 0))


def launch_softmax_slope(
    logits: Tensor, labels: Tensor, vocabulary: int, dtype: torch.dtype, grad: bool
) -> tuple[Tensor, Tensor]:
    """`kernels.softmax_slope`; without `grad` the second tensor is empty."""
    rows, padded = logits.shape
    losses = logits.new_empty(rows)
    slope = logits.new_empty((rows, padded) if grad else 0, dtype=dtype)
    _softmax_rows[(rows,)](
        logits, labels, losses, slope, vocabulary, padded, grad, 8192, num_warps=8
    )
    return losses, slope


@triton.jit
def _softmax_rows(  # type: ignore[no-untyped-def]
    logits, labels, losses, slope, vocabulary, padded,
    GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """An online softmax, then softmax - one_hot."""
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
