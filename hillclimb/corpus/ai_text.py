"""Scoring text for having been written by a language model (report §2.4, App. A.1).

A scorer is anything with `score` and `card`. The embedded one is a logistic model over hashed
word and character n-grams; `scripts/train_ai_text_scorer.py` makes its weights and its card. It
knows English, and the families of models in its card: it removes what is plainly theirs at a
bounded rate of false alarms, and is no proof of authorship.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

TABLE_BITS = 18
WINDOW = 1200
MAX_WINDOWS = 3
WEIGHTS = "ai_text_scorer.npz"
CARD = "ai_text_scorer.json"

_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+|[^\w\s]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(64 - TABLE_BITS)
_CHAR_NGRAMS = (3, 4, 5)


class AITextScorer(Protocol):
    """Says how likely texts are to be a model's.

    `card` describes the scorer and must hold `calibration`: per domain, the scores of held-out
    human texts from the highest down, from which `threshold` derives.
    """

    @property
    def card(self) -> Mapping[str, Any]:
        """Data, quality, calibration and limits of the scorer."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """A value in [0, 1] per text, higher for more model-like: (texts,)."""


class HashedNgramScorer:
    """The embedded scorer.

    Args:
        coefficients: one weight per hash bucket, (2**18,).
        intercept: the bias of the logistic model.
        card: what `AITextScorer.card` gives.
    """

    def __init__(
        self, coefficients: NDArray[np.float32], intercept: float, card: Mapping[str, Any]
    ) -> None:
        self._coefficients = coefficients
        self._intercept = intercept
        self.card = card

    @classmethod
    def load(cls, folder: Path | None = None) -> HashedNgramScorer:
        """Read weights and card from `folder`, or the ones that the package brings.

        Raises:
            ValueError: if the weights are not those of this feature layout.
        """
        base = folder or resources.files("hillclimb.corpus") / "data"
        card = json.loads((base / CARD).read_text(encoding="utf-8"))
        with (base / WEIGHTS).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            quantised = arrays["coefficients"]
            scale, intercept = float(arrays["scale"]), float(arrays["intercept"])
        if quantised.shape != (1 << TABLE_BITS,):
            raise ValueError(
                f"{WEIGHTS} has {quantised.shape[0]} buckets, this version uses {1 << TABLE_BITS}: "
                "run scripts/train_ai_text_scorer.py"
            )
        return cls(quantised.astype(np.float32) * np.float32(scale), intercept, card)

    def save(self, folder: Path) -> None:
        """Write weights, quantised to one byte each, and the card."""
        scale = float(np.abs(self._coefficients).max()) / 127 or 1.0
        quantised = np.round(self._coefficients / scale).astype(np.int8)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / WEIGHTS,
            coefficients=quantised,
            scale=np.float64(scale),
            intercept=np.float64(self._intercept),
        )
        text = json.dumps(self.card, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Mean over windows of the logit, as a probability: (texts,)."""
        return np.array([self._probability(text) for text in texts], np.float64)

    def _probability(self, text: str) -> float:
        logits = []
        for window in windows(text):
            buckets, values = features(window)
            logits.append(float(values @ self._coefficients[buckets]) + self._intercept)
        return 1 / (1 + math.exp(-sum(logits) / len(logits))) if logits else 0.0


def windows(text: str) -> list[str]:
    """The first three stretches of 1,200 characters, with white space made single blanks."""
    flat = _SPACE.sub(" ", text[: 2 * WINDOW * MAX_WINDOWS]).strip()
    end = min(len(flat), WINDOW * MAX_WINDOWS)
    pieces = [flat[at : at + WINDOW] for at in range(0, end, WINDOW)]
    return [piece for piece in pieces if len(piece) >= WINDOW // 4] or pieces[:1]


def features(window: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Hash buckets of word 1-2-grams and byte 3-5-grams, with log counts of unit length.

    Both halves have length one, so that neither drowns the other. A bucket may occur twice.
    """
    halves = [_counted(_word_hashes(window)), _counted(_char_hashes(window))]
    buckets = np.concatenate([half[0] for half in halves])
    return buckets, np.concatenate([half[1] for half in halves])


def _word_hashes(window: str) -> NDArray[np.uint64]:
    words = [xxhash.xxh64_intdigest(word) for word in _WORD.findall(window.lower())]
    unigrams = np.array(words, np.uint64)
    with np.errstate(over="ignore"):
        bigrams = unigrams[:-1] * _MULTIPLIER + unigrams[1:]
        return np.concatenate([unigrams, bigrams]) * _MULTIPLIER


def _char_hashes(window: str) -> NDArray[np.uint64]:
    data = np.frombuffer(window.encode("utf-8", "replace"), np.uint8).astype(np.uint64)
    data += np.uint64(1)
    found = []
    with np.errstate(over="ignore"):
        for n in _CHAR_NGRAMS:
            count = max(len(data) - n + 1, 0)
            rolling = np.full(count, n, np.uint64)
            for offset in range(n):
                rolling = rolling * _MULTIPLIER + data[offset : offset + count]
            rolling ^= rolling >> np.uint64(31)
            found.append(rolling * _MULTIPLIER)
    return np.concatenate(found)


def _counted(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    buckets, counts = np.unique((hashes >> _SHIFT).astype(np.intp), return_counts=True)
    values = np.log1p(counts.astype(np.float32))
    values /= np.float32(max(float(np.linalg.norm(values)), 1e-9))
    return buckets, values


def threshold(card: Mapping[str, Any], domain: str, rate: float) -> float:
    """The score above which a text of `domain` is dropped, at most `rate` of human ones.

    With n calibration scores it is the ceil((n+1)(1-rate))-th smallest, which bounds the expected
    rate for a new human text. A domain with too few for that takes the larger of its own highest
    score and the threshold over all domains; an unknown domain takes the largest threshold of any.
    """
    calibration: Mapping[str, Sequence[float]] = card["calibration"]
    if domain not in calibration:
        return max(threshold(card, known, rate) for known in calibration)
    own = _order_statistic(calibration[domain], rate)
    if own is not None:
        return own
    pooled = _order_statistic([s for scores in calibration.values() for s in scores], rate)
    return max(1.0 if pooled is None else pooled, *calibration[domain])


def _order_statistic(scores: Sequence[float], rate: float) -> float | None:
    ascending = sorted(scores)
    index = math.ceil((len(ascending) + 1) * (1 - rate)) - 1
    return ascending[index] if index < len(ascending) else None
