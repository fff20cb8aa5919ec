"""Deduplication: what remains does not depend on order, and is free of duplicates."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hillclimb.corpus.dedup import Fingerprint, Signer, exact_digest, find_duplicates
from hillclimb.corpus.extraction import html_to_text, normalise
from hillclimb.corpus.ngrams import hash_words
from hillclimb.recipe.corpus import MinHash

CONFIG = MinHash()
SIGNER = Signer(CONFIG)


def fingerprint(name: str, text: str, priority: int = 0) -> Fingerprint:
    signed = SIGNER.sign(hash_words(text))
    signature, sampled = signed or (None, None)
    return Fingerprint(name, priority, len(text), exact_digest(text), signature, sampled)


def prose(seed: int, length: int = 400) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(length)]


def altered(words: list[str], share: float, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join("changed" if rng.random() < share else word for word in words)


def test_one_of_each_kind() -> None:
    base = prose(1, 2000)
    documents = [
        fingerprint("whole", " ".join(base)),
        fingerprint("same", "  " + " ".join(base).upper(), priority=1),
        fingerprint("near", altered(base, 0.01), priority=1),
        fingerprint("part", " ".join(base[300:900]), priority=1),
        fingerprint("other", " ".join(prose(2, 2000)), priority=1),
    ]
    dropped = find_duplicates(documents, CONFIG)
    assert {name: duplicate.step for name, duplicate in dropped.items()} == {
        "same": "exact_dedup", "near": "near_dedup", "part": "containment_dedup",
    }  # fmt: skip
    assert dropped["near"].detail.endswith("similar to whole")


def test_the_threshold_separates() -> None:
    """Altering a word changes five 5-grams: 1% leaves a Jaccard of about 0.9, 8% about 0.5."""
    base = prose(3, 3000)
    kept = fingerprint("a", " ".join(base))
    assert find_duplicates([kept, fingerprint("b", altered(base, 0.01), 1)], CONFIG)
    assert not find_duplicates([kept, fingerprint("c", altered(base, 0.08), 1)], CONFIG)


def test_priority_beats_length_and_length_beats_name() -> None:
    text = " ".join(prose(4))
    documents = [
        fingerprint("long", text + " one more", 1),
        fingerprint("short", text, 0),
        fingerprint("z", text + " and two more", 1),
    ]
    assert set(find_duplicates(documents, CONFIG)) == {"long", "z"}
    assert set(find_duplicates([documents[0], documents[2]], CONFIG)) == {"long"}


def test_exempt_documents_are_only_compared_whole() -> None:
    text = " ".join(prose(5))
    bare = [
        Fingerprint(name, 0, len(t), exact_digest(t), None, None)
        for name, t in (("a", text), ("b", text + " x"), ("c", text))
    ]
    assert set(find_duplicates(bare, CONFIG)) == {"c"}


VARIANTS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.01, 0.03, 0.06]), st.integers(0, 2)),
    min_size=2,
    max_size=10,
)


@settings(max_examples=40, deadline=None)
@given(variants=VARIANTS, order=st.randoms(use_true_random=False))
def test_order_does_not_matter_and_a_second_pass_finds_nothing(
    variants: list[tuple[int, float, int]], order: random.Random
) -> None:
    documents = [
        fingerprint(f"d{i}", altered(prose(seed, 150), share, i), priority)
        for i, (seed, share, priority) in enumerate(variants)
    ]
    dropped = find_duplicates(documents, CONFIG)
    shuffled = documents.copy()
    order.shuffle(shuffled)
    assert find_duplicates(shuffled, CONFIG) == dropped
    left = [document for document in documents if document.id not in dropped]
    assert left
    assert find_duplicates(left, CONFIG) == {}


@pytest.fixture(scope="module")
def editions(shared_data: Path) -> dict[str, Fingerprint]:
    """Three editions of three books and two versions of one site, by repository and path."""
    wanted = (
        "pride-and-prejudice", "frankenstein", "sherlock-holmes", "Frankenstein",
        "Pride-and-Prejudice", "Sherlock-Holmes", "kafka-site",
    )  # fmt: skip
    found = {}
    for priority, name in enumerate(("books", "web_html_en")):
        with gzip.open(shared_data / "corpus" / f"{name}.jsonl.gz", "rt") as stream:
            for row in map(json.loads, stream):
                if not any(part in row["repo"] for part in wanted):
                    continue
                text = row["text"]
                if text.lstrip("\ufeff \n").startswith("<"):
                    text = html_to_text(text)
                key = f"{row['repo']}:{row['path']}"
                found[key] = fingerprint(key, normalise(text), priority)
    return found


def test_editions_of_books_are_found(editions: dict[str, Fingerprint]) -> None:
    books = {key: value for key, value in editions.items() if "kafka" not in key}
    dropped = find_duplicates(list(books.values()), CONFIG)
    steps: dict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    for key in books:
        repo = key.split(":")[0]
        total[repo] += 1
        if key in dropped:
            steps[repo][dropped[key].step] += 1
    for repo in total:
        if repo.startswith("GITenberg"):
            assert total[repo] == 2
            assert steps[repo]["near_dedup"] == 1, repo
        else:
            assert steps[repo]["containment_dedup"] >= 0.8 * total[repo], repo


def test_two_versions_of_a_site_are_found(editions: dict[str, Fingerprint]) -> None:
    pages = {key: value for key, value in editions.items() if "kafka" in key}
    dropped = find_duplicates(list(pages.values()), CONFIG)
    versions: dict[str, list[str]] = defaultdict(list)
    for key in pages:
        versions[key.split(":", 1)[1].partition("/")[2]].append(key)
    both = [keys for page, keys in versions.items() if page and len(keys) == 2]
    assert len(both) >= 25
    found = sum(any(key in dropped for key in keys) for keys in both)
    assert found >= 0.8 * len(both)
