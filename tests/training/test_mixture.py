"""Mixtures and packing: counted by hand, and as properties."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from reference_packing import TokenTable, pack, sample_documents

from hillclimb.training.mixture import plan_mixture
from hillclimb.training.schedule import cosine, learning_rate

AVAILABLE = {"a": ("code", 100), "b": ("code", 300), "c": ("math", 50)}


def used(**changes) -> dict[str, int]:
    arguments = {
        "available": AVAILABLE,
        "weights": {"code": 0.8, "math": 0.2},
        "tokens": 200,
        "epoch_cap": 4.0,
        "strict_epoch_cap": 1.0,
        "memorised_share": 0.5,
    }
    return {s.source: s.used for s in plan_mixture(**{**arguments, **changes})}


def test_categories_by_weight_and_sources_by_size():
    assert used() == {"a": 40, "b": 120, "c": 40}


def test_a_capped_source_gives_the_rest_to_the_others():
    assert used(tokens=2000) == {"a": 400, "b": 1200, "c": 200}
    assert used(tokens=1200) == {"a": 250, "b": 750, "c": 200}


def test_a_memorised_source_gets_the_strict_cap():
    shares = used(tokens=1200, memorised={"c": 0.9})
    assert shares == {"a": 287, "b": 862, "c": 50}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500), min_size=1),
    st.integers(1, 5000),
    st.floats(0.5, 8),
)
def test_no_source_exceeds_its_cap_and_the_total_is_met_where_it_can_be(sizes, tokens, cap):
    available = {name: ("code", size) for name, size in sizes.items()}
    shares = plan_mixture(available, {"code": 1.0}, tokens, cap, cap, 0.5)
    assert all(s.epochs <= cap + 1e-9 for s in shares)
    reachable = min(tokens, cap * sum(sizes.values()))
    assert abs(sum(s.used for s in shares) - reachable) <= len(sizes) + 1


def table(lengths: list[int], sources: list[int]) -> TokenTable:
    bodies = [np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return TokenTable(np.concatenate(bodies), offsets, np.array(sources, np.int32), ("x", "y"))


def test_packing_cuts_and_numbers_documents():
    packed = pack(table([3, 2, 4], [0, 1, 0]), np.array([0, 1, 2]), length=3, separator=0)
    assert packed.tokens.tolist() == [[1, 1, 1, 0], [2, 2, 0, 3], [3, 3, 3, 0]]
    assert packed.segments.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert packed.sources.tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_sources_repeat_until_their_budget_is_met():
    found = sample_documents(table([3, 2, 4], [0, 1, 0]), {"x": 12, "y": 5}, seed=0)
    assert sorted(found.tolist()) == [0, 0, 1, 1, 1, 2, 2]


def test_schedules():
    assert cosine(0, 100, 1.0, 0.1, 10) == 0.0
    assert cosine(10, 100, 1.0, 0.1, 10) == 1.0
    assert abs(cosine(55, 100, 1.0, 0.1, 10) - 0.55) < 1e-9
    assert abs(cosine(100, 100, 1.0, 0.1, 10) - 0.1) < 1e-9
    assert learning_rate({"type": "constant", "peak": 2.0, "warmup_tokens": 4}, 1, 9) == 0.5
