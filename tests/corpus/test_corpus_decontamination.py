"""A planted evaluation item is found, what only looks like one is left alone."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from hillclimb.corpus.decontamination import EvaluationIndex
from hillclimb.corpus.ngrams import hash_words
from hillclimb.recipe.corpus import Decontamination

ITEM = (
    "A farmer has 17 sheep and sells all but 9 of them at the market in town, then buys twice as "
    "many goats as the sheep that are left. How many animals does the farmer have in the end?"
)
SHORT = "Which gas do green plants take up from the air?"
INDEX = EvaluationIndex({"sums": ["What is 7 + 5?", ITEM], "facts": [SHORT]}, Decontamination())


def found(text: str, index: EvaluationIndex = INDEX) -> str | None:
    match = index.match(hash_words(text))
    return match.item if match else None


def filler(seed: int, words: int = 300) -> str:
    rng = random.Random(seed)
    nouns = ["time", "place", "water", "stone", "light", "house", "river"]
    return " ".join(rng.choice(nouns) for _ in range(words))


def test_a_planted_item_is_named() -> None:
    assert found(f"{filler(1)} {ITEM.upper()} {filler(2)}") == "sums[1]"
    assert found(f"{filler(1)}\n\n> {SHORT}\n{filler(2)}") == "facts[0]"


def test_other_texts_are_left() -> None:
    assert found(filler(3)) is None
    assert found(ITEM.replace("17", "18").replace("sells", "gives").replace("town", "June")) is None
    assert found("Which gas do green plants give off to the air?") is None
    assert found("What is 7 + 5? It is 12.") is None


def test_overlap_counts_the_share_of_words() -> None:
    half = " ".join(ITEM.split()[:26])
    assert found(f"{filler(4)} {half} {filler(5)}") is None
    most = " ".join(ITEM.split()[:35])
    match = INDEX.match(hash_words(f"{filler(4)} {most} {filler(5)}"))
    assert match is not None
    assert match.overlap == round(35 / len(hash_words(ITEM)), 4)


def test_items_too_short_are_counted() -> None:
    assert (INDEX.items, INDEX.too_short) == (3, 1)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(8, 60), before=st.integers(0, 80), seed=st.integers(0, 10**6))
def test_any_planted_item_is_found(length: int, before: int, seed: int) -> None:
    rng = random.Random(seed)
    item = " ".join(f"t{rng.randrange(10**6)}" for _ in range(length))
    index = EvaluationIndex({"s": [item]}, Decontamination())
    assert found(f"{filler(seed, before)} {item} {filler(seed + 1, 50)}", index) == "s[0]"
    assert found(filler(seed, 200), index) is None
