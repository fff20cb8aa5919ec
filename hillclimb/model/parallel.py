"""All-to-alls inside the model: heads for tokens around attention, rows for experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

Group = dist.ProcessGroup


class _SwapBlocks(Function):
    """Block i of the first dimension goes to rank i of the group; its own inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:  # type: ignore[override]
        """Blocks in the order of the ranks that they came from."""
        ctx.group = group
        return _swapped(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Gradients go back where the blocks came from."""
        return _swapped(grad, ctx.group), None


def _swapped(x: Tensor, group: Group) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x, group=group)
    return out


def own_columns(length: int, group: Group | None) -> slice:
    """The columns of a row of `length` tokens that this rank of a context group computes.

    Raises:
        ValueError: if the ranks do not divide the row.
    """
    if group is None:
        return slice(0, length)
    if length % group.size():
        raise ValueError(
            f"context_parallel is {group.size()}, which does not divide rows of {length} tokens: "
            "change it or the phase's sequence_length"
        )
    size = length // group.size()
    return slice(group.rank() * size, (group.rank() + 1) * size)


def heads_for_tokens(qkv_BtHd: Tensor, heads: int, kv_heads: int, group: Group) -> list[Tensor]:
    """Queries, keys and values of whole rows for this rank's share of the heads.

    Key heads fewer than ranks go to every rank whose queries read them.

    Args:
        qkv_BtHd: of this rank's tokens, heads in the order q, k, v.

    Returns:
        q (B, T, heads / ranks, d), then k and v (B, T, kv_heads / ranks or 1, d).
    """
    ranks = group.size()
    copies = max(1, ranks // kv_heads)
    q, k, v = qkv_BtHd.split((heads, kv_heads, kv_heads), dim=2)
    if copies > 1:
        k, v = k.repeat_interleave(copies, 2), v.repeat_interleave(copies, 2)
    shares = [t.unflatten(2, (ranks, -1)) for t in (q, k, v)]
    sizes = [t.shape[3] for t in shares]
    blocks = torch.cat(shares, 3).permute(2, 0, 1, 3, 4)
    whole_CBtHd = _SwapBlocks.apply(blocks, group)
    whole_BTHd = whole_CBtHd.transpose(0, 1).flatten(1, 2)
    return list(whole_BTHd.split(sizes, dim=2))


def tokens_for_heads(y_BTHd: Tensor, group: Group) -> Tensor:
    """The way back: all heads (B, T / ranks, heads, d) of this rank's tokens."""
    blocks = y_BTHd.unflatten(1, (group.size(), -1)).transpose(0, 1)
    mine_CBtHd = _SwapBlocks.apply(blocks, group)
    return mine_CBtHd.permute(1, 2, 0, 3, 4).flatten(2, 3)


class _ExchangeRows(Function):
    """Rows to and from the ranks of a group, as many as each pair of ranks has."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Group
    ) -> Tensor:
        """What came, in the order of the ranks."""
        ctx.plan = sent, received, group
        return _exchanged(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """Gradients go back where the rows came from."""
        sent, received, group = ctx.plan
        return _exchanged(grad, received, sent, group), None, None, None


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out


class Dispatch:
    """One layer's rows on their way to the ranks that hold their experts, and back.

    The host waits once, for how many rows each pair of ranks exchanges.
    """

    def __init__(self, counts_E: Tensor, group: Group) -> None:
        """Tell every rank how many rows to expect.

        Args:
            counts_E: how many of this rank's rows each of all experts gets.
        """
        self.group = group
        mine_PE = counts_E.view(group.size(), -1).contiguous()
        self.theirs_PE = torch.empty_like(mine_PE)
        dist.all_to_all_single(self.theirs_PE, mine_PE, group=group)
        self.sent, self.received = torch.stack((mine_PE.sum(1), self.theirs_PE.sum(1))).tolist()

    def experts(self) -> Tensor:
        """Which of this rank's experts each row that came is for, counted from 0."""
        ranks, experts = self.theirs_PE.shape
        numbers = torch.arange(experts, device=self.theirs_PE.device).repeat(ranks)
        return numbers.repeat_interleave(self.theirs_PE.flatten(), output_size=sum(self.received))

    def out(self, rows_M: Tensor) -> Tensor:
        """Rows (M, ...) in order of their expert go out; what comes is in order of its rank."""
        came: Tensor = _ExchangeRows.apply(rows_M, self.sent, self.received, self.group)
        return came

    def back(self, rows_M: Tensor) -> Tensor:
        """Rows in the order they came go back; returns them in the order they were sent."""
        came: Tensor = _ExchangeRows.apply(rows_M, self.received, self.sent, self.group)
        return came
