"""Words and their n-grams as 64-bit hashes: one tokenisation for every comparison of documents."""

from __future__ import annotations

import re

import numpy as np
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import TextNormConfig, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_UNSPACED = (
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
_TOKEN = re.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})\S)+")
_HAS_UNSPACED = re.compile(_UNSPACED)
_SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’)\]]*(?:\s+|$)|(?<=[。！？])")
_NORM = TextNormConfig(norm_numbers=False)
_NORM_ASCII = TextNormConfig(norm_numbers=False, norm_unicode_diacritics=False)
_CACHE_WORDS = 1 << 20
_BASE = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """Space-separated words; scripts written without spaces give one word per character."""
    return _TOKEN.findall(text) if _HAS_UNSPACED.search(text) else text.split()


class PlainTokenizer(WordTokenizer):
    """Words as the Gopher rules count them, at many times the speed of a linguistic tokenizer.

    datatrove's default splits punctuation off, so that ordinary prose fails the rule on words
    without a letter.
    """

    def word_tokenize(self, text: str) -> list[str]:
        """Split into words."""
        return words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Split into sentences."""
        return [text[a:b].strip() for a, b in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Sentences as spans of characters."""
        ends = sorted({match.end() for match in _SENTENCE_END.finditer(text)} | {len(text)})
        starts = [0, *ends[:-1]]
        return [(a, b) for a, b in zip(starts, ends, strict=True) if text[a:b].strip()]


class _WordHashes(dict[str, int]):
    def __init__(self) -> None:
        super().__init__()
        self._hash = create_hash_func(HashConfig(precision=64, hash_fc="xxhash"))

    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHE_WORDS:
            self.clear()
        value = int(self._hash(word))
        self[word] = value
        return value


_word_hashes = _WordHashes()


def hash_words(text: str) -> Hashes:
    """Hashes of the normalised words (lower case, no punctuation or diacritics): (words,).

    Numbers stay as they are, for they are all that tells one exercise from another.
    """
    found = words(simplify_text(text, _NORM_ASCII if text.isascii() else _NORM))
    return np.fromiter(map(_word_hashes.__getitem__, found), np.uint64, len(found))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """Hashes of every n-gram: (max(words - n + 1, 0),)."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    out = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(n):
            out = out * _BASE + hashes[offset : offset + count]
        out ^= out >> np.uint64(29)
        out *= np.uint64(0xBF58476D1CE4E5B9)
        out ^= out >> np.uint64(32)
    return out
