"""Where existing kernels lose on Hopper: operators with a plain form for any device.

Each has its Triton form in `triton_kernels`, used on CUDA; the plain form is the reference. The
reasons, measured on an H100 at the L12's shapes with 16,384 tokens, are in
`docs/results/model_speed.md`.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("hillclimb::top_experts", mutates_args=())
def top_experts(probs_NE: Tensor, k: int) -> Tensor:
    """Numbers of the k likeliest experts of each token (N, k), the likeliest first."""
    if probs_NE.is_cuda:
        from hillclimb.model.triton_kernels import launch_top_experts

        return launch_top_experts(probs_NE, k)
    return torch.topk(probs_NE, k, dim=-1).indices


@top_experts.register_fake
def _(probs_NE: Tensor, k: int) -> Tensor:
    return probs_NE.new_empty((probs_NE.shape[0], k), dtype=torch.int64)


@torch.library.custom_op("hillclimb::gated_swiglu_backward", mutates_args=())
def gated_swiglu_backward(
    inner_MF: Tensor, gate_M: Tensor, grad_MH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y = gate * silu(a) * b once more, with the gradients of [a, b] and of the gate.

    Args:
        inner_MF: a and b side by side, each (M, H).
        gate_M: weights of the rows, FP32.
        grad_MH: gradient of y.
    """
    if inner_MF.is_cuda:
        from hillclimb.model.triton_kernels import launch_gated_swiglu_backward

        return launch_gated_swiglu_backward(inner_MF, gate_M, grad_MH)
    a, b = inner_MF.float().chunk(2, dim=-1)
    grad, chance = grad_MH.float(), a.sigmoid()
    silu, scaled = a * chance, gate_M[:, None] * grad
    grad_a = scaled * b * (chance + silu * (1 - chance))
    grad_inner = torch.cat((grad_a, scaled * silu), -1).to(inner_MF.dtype)
    return (gate_M[:, None] * silu * b).to(inner_MF.dtype), grad_inner, (grad * silu * b).sum(-1)


@gated_swiglu_backward.register_fake
def _(inner_MF: Tensor, gate_M: Tensor, grad_MH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        inner_MF.new_empty(grad_MH.shape),
        inner_MF.new_empty(inner_MF.shape),
        torch.empty_like(gate_M),
    )


def softmax_slope(
    logits: Tensor, labels: Tensor, vocabulary: int, dtype: torch.dtype, grad: bool = True
) -> tuple[Tensor, Tensor]:
    """-log softmax[label] of every row, and softmax - one_hot; zero in rows without a label.

    Args:
        logits: (N, V + padding).
        labels: (N,), -100 where there is none.
        vocabulary: V; columns from there on have no part.
        dtype: of the gradient.
        grad: False leaves the gradient empty on CUDA.
    """
    if logits.is_cuda:
        from hillclimb.model.triton_kernels import launch_softmax_slope

        return launch_softmax_slope(logits, labels, vocabulary, dtype, grad)
    column = torch.arange(logits.shape[1], device=logits.device)
    inside = logits.masked_fill(column >= vocabulary, -torch.inf)
    norms, void = inside.logsumexp(1), labels < 0
    right = logits.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    slope = (inside - norms[:, None]).exp() - (column == labels[:, None]).to(logits.dtype)
    losses = (norms - right).masked_fill(void, 0.0)
    return losses, slope.masked_fill(void[:, None], 0.0).to(dtype)


class _Float32Linear(torch.autograd.Function):
    """x · W^T in FP32, whose backward splits its FP32 operands into pairs of BF16."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, weight_ED: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x_ND, weight_ED)
        return torch.mm(x_ND, weight_ED.t())

    @staticmethod
    def backward(ctx, grad_NE: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        x_ND, weight_ED = ctx.saved_tensors
        return product_of_pairs(grad_NE, weight_ED), product_of_pairs(grad_NE.t(), x_ND)


def float32_linear(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """x · W^T in FP32; its gradients are products of BF16 pairs (`product_of_pairs`)."""
    return _Float32Linear.apply(x_ND, weight_ED)


def product_of_pairs(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a · b of FP32 operands, each taken as the sum of two BF16 numbers; within 2^-15 of FP32.

    One product on tensor cores over 3K instead of one in plain FP32 over K.
    """
    high_a, high_b = a_MK.to(torch.bfloat16), b_KN.to(torch.bfloat16)
    low_a, low_b = (a_MK - high_a).to(torch.bfloat16), (b_KN - high_b).to(torch.bfloat16)
    left, right = torch.cat((high_a, high_a, low_a), 1), torch.cat((high_b, low_b, high_b), 0)
    if a_MK.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())
