"""Which 128×128 blocks of an attention matrix hold anything, for FlexAttention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attention_blocks(segments_BT: Tensor, window: int | None) -> BlockMask:
    """Causal attention within documents, and within `window` tokens where one is given.

    Blocks are judged by the least and greatest document number of their rows and columns: none
    visible, all visible, or left to the element-wise mask. No mask of T×T elements is made and
    the host waits for nothing.

    Args:
        segments_BT: the document number of every token, in any order.
        window: how many tokens a query sees, itself included; None for all before it.
    """
    length = segments_BT.shape[1]
    missing = -length % BLOCK
    padded = torch.cat((segments_BT, segments_BT[:, -1:].expand(-1, missing)), 1)
    blocks = padded.unflatten(1, (-1, BLOCK))
    low, high = blocks.amin(2), blocks.amax(2)
    low_Q, high_Q, low_K, high_K = low[:, :, None], high[:, :, None], low[:, None], high[:, None]
    first = torch.arange(low.shape[1], device=low.device) * BLOCK
    nearest = first[:, None] - first[None, :] - (BLOCK - 1)
    farthest = first[:, None] - first[None, :] + (BLOCK - 1)
    some = (farthest >= 0) & (low_Q <= high_K) & (low_K <= high_Q)
    whole = (nearest >= 0) & (low_Q == high_Q) & (low_K == high_K) & (low_Q == low_K)
    if window is not None:
        some, whole = some & (nearest < window), whole & (farthest < window)
    if missing:
        whole = whole & (first + BLOCK <= length)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_mod(segments_BT, window),
        seq_lengths=(length, length),
    )


def _ordered(visible_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """Number of marked blocks of each row, and the row's block numbers with the marked first."""
    marks = visible_BQK[:, None].to(torch.int32)
    order = torch.argsort(marks, dim=-1, descending=True, stable=True)
    return marks.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _mask_mod(segments_BT: Tensor, window: int | None) -> MaskMod:
    def full(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (segments_BT[b, q] == segments_BT[b, k])

    if window is None:
        return full
    reach = window

    def local(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < reach) & (segments_BT[b, q] == segments_BT[b, k])

    return local
