"""The loss over a large vocabulary without its logits in memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

CHUNK = 4096
MULTIPLE = 128
IGNORED = -100


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
        grad_head = hidden_ND.new_zeros(head.shape, dtype=torch.float32) if grad else None
        for hidden, labels, nll, out in zip(
            *(t.split(chunk) for t in (hidden_ND, labels_N, nll_N, grad_hidden)), strict=True
        ):
            logits = _matmul(hidden, head.t())
            losses, norms = _fused(_nll, logits)(logits, labels, vocabulary)
            nll.copy_(losses)
            if grad_head is not None:
                slope = _fused(_slope, logits)(logits, norms, labels, vocabulary, hidden.dtype)
                torch.mm(slope, head, out=out)
                _add_matmul(grad_head, slope.t(), hidden)
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


def _nll(logits: Tensor, labels: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Losses of the rows, zero where ignored, and the logarithms of their softmax's norms."""
    column = torch.arange(logits.shape[1], device=logits.device)
    norms = logits.masked_fill(column >= vocabulary, -torch.inf).logsumexp(1)
    right = logits.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    return (norms - right).masked_fill(labels == IGNORED, 0.0), norms


def _slope(
    logits: Tensor, norms: Tensor, labels: Tensor, vocabulary: int, dtype: torch.dtype
) -> Tensor:
    """softmax - one_hot, zero in ignored rows and padded columns."""
    column = torch.arange(logits.shape[1], device=logits.device)
    slope = (logits - norms[:, None]).exp() - (column == labels[:, None]).float()
    void = (labels == IGNORED)[:, None] | (column >= vocabulary)
    return slope.masked_fill(void, 0.0).to(dtype)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def _fused(function: Any, logits: Tensor) -> Any:
    """The function, compiled into one kernel where the logits are on a GPU."""
    return _compiled(function) if logits.is_cuda else function


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)
