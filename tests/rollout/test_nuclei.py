"""Nuclei as lists of tokens: the same as masks, whatever is done to them."""

from __future__ import annotations

import numpy as np
from engine_support import as_mask
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hillclimb.rollout.nuclei import Nuclei

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=19))


def freed(mask: np.ndarray) -> np.ndarray:
    """A place without tokens could have any."""
    return np.where(mask.any(1, keepdims=True), mask, True)


def test_places_and_tokens_by_hand() -> None:
    nuclei = Nuclei.of_mask(np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool))
    assert nuclei.counts.tolist() == [2, 0, 1]
    assert nuclei.ids.tolist() == [1, 3, 0]
    assert nuclei.pairs().tolist() == [[0, 0, 2], [1, 3, 0]]
    assert as_mask(nuclei, 4).tolist() == [[0, 1, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0]]


@given(MASKS)
def test_bits_and_masks_give_the_same(mask: np.ndarray) -> None:
    nuclei = Nuclei.of_mask(mask)
    assert Nuclei.of_bits(np.packbits(mask, axis=1)) == nuclei
    assert np.array_equal(as_mask(nuclei, mask.shape[1]), freed(mask))


@given(MASKS, st.data())
def test_places_are_picked_joined_and_split_as_rows_are(
    mask: np.ndarray, data: st.DataObject
) -> None:
    nuclei, rows = Nuclei.of_mask(mask), np.arange(len(mask))
    picked = np.array(data.draw(st.lists(st.sampled_from(list(rows)))), int)
    some = np.array(data.draw(st.lists(st.booleans(), min_size=len(mask), max_size=len(mask))))
    cut = data.draw(st.integers(0, len(mask)))
    for places in (picked, some, slice(cut), slice(cut, None)):
        assert nuclei[places] == Nuclei.of_mask(mask[places])
    assert Nuclei.joined([nuclei[:cut], nuclei[cut:]]) == nuclei
    assert nuclei.split(np.array([cut, len(mask)])) == [nuclei[:cut], nuclei[cut:]]


def test_those_of_nothing_are_joined_to_none() -> None:
    assert Nuclei.joined([]) == Nuclei.free(0)
