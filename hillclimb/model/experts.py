"""The experts of a LatentMoE layer as grouped matrix products (report §2.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from hillclimb.model.kernels import gated_swiglu_backward
from hillclimb.model.parallel import Dispatch, Group


def mix_experts(
    latent_NW: Tensor, gates_NK: Tensor, chosen_NK: Tensor, gate_up_EFW: Tensor, down_EWH: Tensor
) -> tuple[Tensor, Tensor]:
    """sum_k g_k FFN_k(latent) of every token, and how many tokens chose each expert.

    Dropless and without a word to the host. Rows are sorted by expert, stably; the gate multiplies
    the inner activation, so the rows that come out are only added, in FP32 and in a fixed order.

    Args:
        latent_NW: states, in the type of the experts.
        gates_NK: weights of the chosen experts, FP32.
        chosen_NK: their numbers.
        gate_up_EFW, down_EWH: the experts' weights; F counts gate and up together, H = F / 2.
    """
    order_M, ends_E, place_NK = _sort_rows(chosen_NK, gate_up_EFW.shape[0])
    mixed = _Experts.apply(latent_NW, gates_NK, gate_up_EFW, down_EWH, order_M, ends_E, place_NK)
    return mixed, torch.diff(ends_E, prepend=ends_E.new_zeros(1))


def mix_shared_experts(
    latent_NW: Tensor, gates_NK: Tensor, chosen_NK: Tensor, gate_up_EFW: Tensor, down_EWH: Tensor,
    group: Group,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `mix_experts`, where each rank of a group holds its share of the experts.

    Args:
        chosen_NK: numbers among all experts.
        gate_up_EFW, down_EWH: weights of this rank's experts.
    """
    width = latent_NW.dtype
    order_M, ends_E, place_NK = _sort_rows(chosen_NK, group.size() * gate_up_EFW.shape[0])
    counts_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
    dispatch = Dispatch(counts_E, group)
    rows_MW = dispatch.out(_Spread.apply(latent_NW, order_M, place_NK))
    gates_M1 = dispatch.out(gates_NK.flatten().index_select(0, order_M)[:, None])
    if len(rows_MW):
        chosen_M1 = dispatch.experts()[:, None]
        rows_MW, _ = mix_experts(
            rows_MW, gates_M1, chosen_M1, gate_up_EFW.to(width), down_EWH.to(width)
        )
    else:
        rows_MW = rows_MW * gates_M1.to(width)
    return _Collect.apply(dispatch.back(rows_MW), order_M, place_NK), counts_E


class _Spread(Function):
    """Every token's state to each of its rows."""

    @staticmethod
    def forward(ctx: Any, latent_NW: Tensor, order_M: Tensor, place_NK: Tensor) -> Tensor:  # type: ignore[override]
        """Rows in order of their expert."""
        ctx.save_for_backward(place_NK)
        return latent_NW[order_M // place_NK.shape[1]]

    @staticmethod
    def backward(ctx: Any, grad_MW: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """The sum over a token's rows."""
        return _gather_sum(grad_MW, *ctx.saved_tensors), None, None


class _Collect(Function):
    """The sum over every token's rows, in FP32 and one after another."""

    @staticmethod
    def forward(ctx: Any, rows_MW: Tensor, order_M: Tensor, place_NK: Tensor) -> Tensor:  # type: ignore[override]
        """States of the tokens."""
        ctx.save_for_backward(order_M, place_NK)
        return _gather_sum(rows_MW, place_NK)

    @staticmethod
    def backward(ctx: Any, grad_NW: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """A token's gradient to each of its rows."""
        order_M, place_NK = ctx.saved_tensors
        return grad_NW[order_M // place_NK.shape[1]], None, None


def _sort_rows(chosen_NK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in order of their expert, where each expert's rows end, and each row's place."""
    flat_M = chosen_NK.flatten().to(torch.int16)
    sorted_M, order_M = torch.sort(flat_M, stable=True)
    numbers_E = torch.arange(experts, device=flat_M.device, dtype=torch.int16)
    ends_E = torch.searchsorted(sorted_M, numbers_E, right=True, out_int32=True)
    rows_M = torch.arange(flat_M.shape[0], device=flat_M.device)
    place_M = torch.empty_like(order_M).scatter_(0, order_M, rows_M)
    return order_M, ends_E, place_M.view_as(chosen_NK)


def _activate(inner_MF: Tensor, gate_M: Tensor) -> Tensor:
    """gate * silu(a) * b, in FP32 inside."""
    a, b = inner_MF.float().chunk(2, dim=-1)
    return (gate_M[:, None] * (a * a.sigmoid()) * b).to(inner_MF.dtype)


def _gather_sum(rows_MW: Tensor, place_NK: Tensor) -> Tensor:
    """For every token the sum of its rows, added in FP32, one after another."""
    total = rows_MW[place_NK[:, 0]].float()
    for k in range(1, place_NK.shape[1]):
        total = total + rows_MW[place_NK[:, k]].float()
    return total.to(rows_MW.dtype)


class _Experts(Function):
    """Keeps the latent and the inner products; permuted rows and activations are made again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, latent_NW: Tensor, gates_NK: Tensor, gate_up_EFW: Tensor, down_EWH: Tensor,
        order_M: Tensor, ends_E: Tensor, place_NK: Tensor,
    ) -> Tensor:  # fmt: skip
        """See `mix_experts`."""
        token_M = order_M // place_NK.shape[1]
        gate_M = gates_NK.flatten()[order_M]
        inner_MF = torch._grouped_mm(latent_NW[token_M], gate_up_EFW.transpose(-2, -1), offs=ends_E)
        active_MH = _activate(inner_MF, gate_M)
        out_MW = torch._grouped_mm(active_MH, down_EWH.transpose(-2, -1), offs=ends_E)
        ctx.save_for_backward(
            latent_NW, gate_M, gate_up_EFW, down_EWH, inner_MF, token_M, ends_E, place_NK
        )
        return _gather_sum(out_MW, place_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NW: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the latent, the gates and both weights."""
        latent_NW, gate_M, gate_up_EFW, down_EWH, inner_MF, token_M, ends_E, place_NK = (
            ctx.saved_tensors
        )
        grad_MW = grad_NW[token_M]
        grad_active = torch._grouped_mm(grad_MW, down_EWH, offs=ends_E)
        active_MH, grad_inner, grad_gate_M = gated_swiglu_backward(inner_MF, gate_M, grad_active)
        grad_down = torch._grouped_mm(grad_MW.t(), active_MH, offs=ends_E)
        grad_gate_up = torch._grouped_mm(grad_inner.t(), latent_NW[token_M], offs=ends_E)
        grad_rows = torch._grouped_mm(grad_inner, gate_up_EFW, offs=ends_E)
        grad_latent = _gather_sum(grad_rows, place_NK)
        return grad_latent, grad_gate_M[place_NK], grad_gate_up, grad_down, None, None, None
