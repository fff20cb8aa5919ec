"""Block masks against masks of every pair."""

from __future__ import annotations

import pytest
import torch

from hillclimb.model.block_masks import BLOCK, attention_blocks


def segments(kind: str, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    if kind == "one":
        return torch.zeros(2, length, dtype=torch.long)
    if kind == "long":
        return (torch.rand(2, length, generator=generator) < 1 / 300).cumsum(1)
    if kind == "short":
        return (torch.rand(2, length, generator=generator) < 1 / 9).cumsum(1)
    return torch.randint(0, 3, (2, length), generator=generator)


@pytest.mark.parametrize("window", [None, 1, 100, 128, 300, 512])
@pytest.mark.parametrize("length", [128, 640, 901])
@pytest.mark.parametrize("kind", ["one", "long", "short", "mixed"])
def test_every_pair_is_seen_or_not_as_the_dense_mask_says(
    kind: str, length: int, window: int | None
):
    numbers = segments(kind, length)
    mask = attention_blocks(numbers, window)
    b, q, k = torch.meshgrid(
        torch.arange(2), torch.arange(length), torch.arange(length), indexing="ij"
    )
    dense = (q >= k) & (numbers[:, :, None] == numbers[:, None, :])
    if window is not None:
        dense &= q - k < window
    partial = listed(mask.kv_num_blocks, mask.kv_indices)
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (partial & whole).any()
    blocks = b, q // BLOCK, k // BLOCK
    seen = whole[blocks] | (partial[blocks] & mask.mask_mod(b, torch.tensor(0), q, k))
    assert torch.equal(seen, dense)


def listed(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(B, Q, K) of blocks that the lists name."""
    rank = torch.arange(indices.shape[-1])
    named = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
    return named.scatter(-1, indices[:, 0].long(), rank < counts[:, 0, :, None])


def test_most_blocks_of_a_local_layer_are_skipped():
    mask = attention_blocks(torch.zeros(1, 16 * BLOCK, dtype=torch.long), 4 * BLOCK)
    per_row = (mask.kv_num_blocks + mask.full_kv_num_blocks).flatten().tolist()
    assert per_row == [1, 2, 3, 4] + [5] * 12
