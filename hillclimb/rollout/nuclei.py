"""What a sampler could draw at each place, as lists of tokens: short ones, beside a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Nuclei:
    """The nucleus of each of T places. A place that has no tokens here could have any.

    Attributes:
        counts: tokens of each place, int32 (T,).
        ids: these tokens, place after place, int32 (sum of counts,).
    """

    counts: np.ndarray
    ids: np.ndarray

    @classmethod
    def free(cls, places: int) -> Nuclei:
        """Of so many places that could have any token."""
        return cls(np.zeros(places, np.int32), np.zeros(0, np.int32))

    @classmethod
    def of_mask(cls, mask_TV: np.ndarray) -> Nuclei:
        """Of a bool mask (T, V)."""
        return cls.of_bits(np.packbits(mask_TV, axis=1))

    @classmethod
    def of_bits(cls, packed: np.ndarray) -> Nuclei:
        """Of a mask's bits, the highest first, uint8 (T, ceil(V/8)).

        Looks for words of 64 bits that are not 0, of which there are few: on a GPU's host this is
        done for hundreds of places between two tokens.
        """
        missing = -packed.shape[1] % 8
        padded = np.pad(packed, ((0, 0), (0, missing))) if missing else packed
        words = np.ascontiguousarray(padded).view(np.uint64)
        found = np.flatnonzero(words)
        places, columns = np.divmod(found, max(1, words.shape[1]))
        bits = np.unpackbits(words.reshape(-1)[found, None].view(np.uint8), axis=1)
        which, bit = np.nonzero(bits)
        counts = np.bincount(places[which], minlength=len(packed)).astype(np.int32)
        return cls(counts, (columns[which] * 64 + bit).astype(np.int32))

    @classmethod
    def joined(cls, parts: Sequence[Nuclei]) -> Nuclei:
        """Those of all parts, one after another."""
        every = [cls.free(0), *parts]
        return cls(
            np.concatenate([part.counts for part in every]),
            np.concatenate([part.ids for part in every]),
        )

    def __len__(self) -> int:
        return len(self.counts)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Nuclei)
            and np.array_equal(self.counts, other.counts)
            and np.array_equal(self.ids, other.ids)
        )

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, places: slice | np.ndarray) -> Nuclei:
        """Those of some places, in their order."""
        starts = self.counts.cumsum() - self.counts
        counts = self.counts[places]
        return Nuclei(counts, gather(self.ids, starts[places], counts))

    def split(self, ends: np.ndarray) -> list[Nuclei]:
        """Parts that end at these places, the last of them at the end."""
        counts = np.split(self.counts, ends[:-1])
        stops = np.cumsum([part.sum() for part in counts])
        ids = np.split(self.ids, stops[:-1])
        return [Nuclei(c.copy(), i.copy()) for c, i in zip(counts, ids, strict=True)]

    def pairs(self) -> np.ndarray:
        """Place and token of every entry, int32 (2, sum of counts)."""
        places = np.repeat(np.arange(len(self), dtype=np.int32), self.counts)
        return np.stack((places, self.ids))


def gather(ids: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Stretches of `ids` that start there and have so many entries, one after another."""
    own = counts.cumsum() - counts
    return ids[np.repeat(starts - own, counts) + np.arange(counts.sum())]
