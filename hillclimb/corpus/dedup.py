"""Exact and near-duplicates: a document goes where a better-ranked kept one already says it.

Rank is the source's priority, then length (the longest first), then identity, so what remains
does not depend on the order of arrival. Only digests and signatures are held in memory.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
from numpy.typing import NDArray

from hillclimb.corpus.ngrams import Hashes, PlainTokenizer, ngram_hashes
from hillclimb.recipe.corpus import MinHash

_CHUNK = 2048
_SAMPLE = 4
_MIN_SAMPLED = 16


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that deduplication knows of a document.

    `signature` is (bands, rows) uint32, `sampled` the sorted n-gram hashes divisible by 4; both
    are None for documents exempt from near-duplicate search.
    """

    id: str
    priority: int
    chars: int
    digest: bytes
    signature: NDArray[np.uint32] | None
    sampled: Hashes | None

    @property
    def rank(self) -> tuple[int, int, str]:
        """Smaller is kept."""
        return (self.priority, -self.chars, self.id)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Why a document is dropped: by which step, and the evidence."""

    step: str
    detail: str


def exact_digest(text: str) -> bytes:
    """BLAKE2b over the lower-cased, trimmed text (the report's MD5, report App. A.1)."""
    data = text.lower().strip().encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()


class Signer:
    """MinHash signatures by datatrove's permutations."""

    def __init__(self, config: MinHash) -> None:
        self.config = config
        self._minhash = MinhashDedupSignature(
            "memory://minhash",
            MinhashConfig(
                n_grams=config.ngram,
                num_buckets=config.bands,
                hashes_per_bucket=config.rows,
                seed=config.seed,
                hash_config=HashConfig(precision=32, hash_fc="xxhash"),
            ),
            language=PlainTokenizer(),  # type: ignore[arg-type]
        )

    def sign(self, words: Hashes) -> tuple[NDArray[np.uint32], Hashes] | None:
        """Signature and sampled n-grams of a document, or None if it is shorter than an n-gram."""
        grams = np.unique(ngram_hashes(words, self.config.ngram))
        if not len(grams):
            return None
        parts = (
            np.array(self._minhash.get_signature(grams[at : at + _CHUNK, None]), np.uint32)
            for at in range(0, len(grams), _CHUNK)
        )
        signature = next(parts)
        for part in parts:
            np.minimum(signature, part, out=signature)
        return signature, grams[grams % np.uint64(_SAMPLE) == 0]


def find_duplicates(fingerprints: list[Fingerprint], config: MinHash) -> dict[str, Duplicate]:
    """The documents to drop, by id.

    The order of `fingerprints` does not matter, and nothing is dropped from what is left over.

    Args:
        fingerprints: one per document; ids are distinct.
        config: bands and thresholds.
    """
    dropped: dict[str, Duplicate] = {}
    digests: dict[bytes, str] = {}
    near = _NearIndex(config)
    contained = _Containment(config.containment)
    for doc in sorted(fingerprints, key=lambda f: f.rank):
        duplicate = _exact(doc, digests) or near.find(doc) or contained.find(doc)
        if duplicate:
            dropped[doc.id] = duplicate
        else:
            digests[doc.digest] = doc.id
            near.add(doc)
            contained.add(doc)
    return dropped


def _exact(doc: Fingerprint, digests: dict[bytes, str]) -> Duplicate | None:
    twin = digests.get(doc.digest)
    return Duplicate("exact_dedup", f"same text as {twin}") if twin else None


class _NearIndex:
    """Kept documents by band; candidates must agree in `threshold` of all hashes."""

    def __init__(self, config: MinHash) -> None:
        self.threshold = config.threshold
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._kept: list[Fingerprint] = []

    def find(self, doc: Fingerprint) -> Duplicate | None:
        if doc.signature is None:
            return None
        candidates = sorted(
            {index for key in _bands(doc.signature) for index in self._buckets.get(key, ())}
        )
        for index in candidates:
            kept = self._kept[index]
            similarity = float(np.mean(kept.signature == doc.signature))
            if similarity >= self.threshold:
                return Duplicate("near_dedup", f"{similarity:.2f} similar to {kept.id}")
        return None

    def add(self, doc: Fingerprint) -> None:
        if doc.signature is not None:
            for key in _bands(doc.signature):
                self._buckets[key].append(len(self._kept))
            self._kept.append(doc)


def _bands(signature: NDArray[np.uint32]) -> list[tuple[int, bytes]]:
    return [(band, row.tobytes()) for band, row in enumerate(signature)]


class _Containment:
    """The sampled n-grams of everything kept: finds chapters inside a book kept whole."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._seen: set[int] = set()

    def find(self, doc: Fingerprint) -> Duplicate | None:
        if doc.sampled is None or len(doc.sampled) < _MIN_SAMPLED:
            return None
        share = sum(gram in self._seen for gram in doc.sampled.tolist()) / len(doc.sampled)
        if share < self.threshold:
            return None
        return Duplicate("containment_dedup", f"{share:.2f} of it is in kept documents")

    def add(self, doc: Fingerprint) -> None:
        if doc.sampled is not None:
            self._seen.update(doc.sampled.tolist())
