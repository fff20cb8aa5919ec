"""The loss over a large vocabulary without its logits in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from hillclimb.model.kernels import softmax_slope

CHUNK = 4096
MULTIPLE = 128


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax(hidden · weight^T)[label], and each token's share of it.

    Logits exist for `chunk` tokens at a time. Their gradients are taken on the way forward, so
    nothing is computed twice. Products take operands of hidden's type, logits and sums are FP32,
    and the gradient of the weight is gathered in FP32. The vocabulary is padded to a multiple of
    128 for as long as this runs, because matrix products over an odd width are slow; the padding
    has no part in the loss.

    Args:
        hidden_ND: final states.
        weight_VD: the output head.
        labels_N: the right tokens, -100 where a token does not count.
        chunk: tokens whose logits are held at once.

    Returns:
        The sum with its graph, and (N,) FP32 without one, zero where a token does not count.
    """
    total, nll_N = _LinearCrossEntropy.apply(
        hidden_ND, weight_VD, labels_N, chunk, torch.is_grad_enabled()
    )
    return total, nll_N


class _LinearCrossEntropy(Function):
    """See `linear_cross_entropy`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, chunk: int, grad: bool
    ) -> tuple[Tensor, Tensor]:
        """The sum and its parts; keeps the gradients for a sum whose own gradient is one."""
        vocabulary = weight_VD.shape[0]
        head = F.pad(weight_VD.to(hidden_ND.dtype), (0, 0, 0, -vocabulary % MULTIPLE))
        nll_N = hidden_ND.new_empty(labels_N.shape, dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_ND)
        grad_head = None
        for hidden, labels, nll, out in zip(
            *(t.split(chunk) for t in (hidden_ND, labels_N, nll_N, grad_hidden)), strict=True
        ):
            logits = _matmul(hidden, head.t())
            losses, slope = softmax_slope(logits, labels, vocabulary, hidden.dtype, grad)
            nll.copy_(losses)
            if grad:
                torch.mm(slope, head, out=out)
                grad_head = _add_matmul(grad_head, slope.t(), hidden)
        if grad_head is not None:
            ctx.save_for_backward(grad_hidden, grad_head[:vocabulary])
            ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nll_N)
        return nll_N.sum(), nll_N

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The kept gradients times that of the sum."""
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = grad_weight.mul_(grad).to(ctx.weight_dtype)
        return (grad_hidden * grad).to(grad_hidden.dtype), scaled, None, None, None


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


def _add_matmul(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a · b, in place, or a · b alone."""
    if total is None:
        return _matmul(a, b)
    if a.is_cuda and a.dtype != torch.float32:
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    return total.addmm_(a.float(), b.float())
