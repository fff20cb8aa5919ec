"""Documents that hold an evaluation item (report §2.3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hillclimb.corpus.ngrams import Hashes, hash_words, ngram_hashes
from hillclimb.recipe.corpus import Decontamination


@dataclass(frozen=True, slots=True)
class Match:
    """An evaluation item that a document holds, and the share of its words that was found."""

    item: str
    overlap: float


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    words: int
    grams: Hashes


class EvaluationIndex:
    """N-grams of every evaluation item, by length of n-gram.

    Args:
        texts: items by evaluation set; an item is named `set[index]`.
        config: length of n-grams, the share that counts, the shortest item.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], config: Decontamination) -> None:
        self.config = config
        self.items = self.too_short = 0
        self._items: dict[int, list[_Item]] = defaultdict(list)
        for name in sorted(texts):
            for index, text in enumerate(texts[name]):
                self._add(f"{name}[{index}]", hash_words(text))
        self._grams: dict[int, Hashes] = {}
        self._owners: dict[int, dict[int, list[int]]] = {}
        for n, items in sorted(self._items.items()):
            owners: dict[int, list[int]] = defaultdict(list)
            for position, item in enumerate(items):
                for gram in np.unique(item.grams).tolist():
                    owners[gram].append(position)
            self._owners[n] = dict(owners)
            self._grams[n] = np.array(sorted(owners), np.uint64)

    def _add(self, name: str, hashes: Hashes) -> None:
        self.items += 1
        if len(hashes) < self.config.min_words:
            self.too_short += 1
            return
        n = min(self.config.ngram, len(hashes))
        self._items[n].append(_Item(name, len(hashes), ngram_hashes(hashes, n)))

    def match(self, hashes: Hashes) -> Match | None:
        """The item of which most is in the document, or None where nothing reaches the share.

        Args:
            hashes: the document's words, `hash_words(text)`.
        """
        best: Match | None = None
        for n, known in self._grams.items():
            grams = np.unique(ngram_hashes(hashes, n))
            found = grams[np.isin(grams, known, assume_unique=True)]
            if not len(found):
                continue
            owners = self._owners[n]
            for position in sorted({p for gram in found.tolist() for p in owners[gram]}):
                item = self._items[n][position]
                overlap = _coverage(np.isin(item.grams, found), n, item.words)
                if overlap >= self.config.overlap and (best is None or overlap > best.overlap):
                    best = Match(item.name, round(overlap, 4))
        return best


def _coverage(found: np.ndarray, n: int, words: int) -> float:
    """The share of an item's words that lie inside n-grams that were found."""
    covered = np.zeros(words, bool)
    for start in np.flatnonzero(found).tolist():
        covered[start : start + n] = True
    return float(covered.mean())
