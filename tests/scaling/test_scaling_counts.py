"""Parameters, cache, operations: numbers computed by hand and the report's table."""

from __future__ import annotations

import pytest

from hillclimb.recipe.load import load_recipe
from hillclimb.recipe.model import ModelRecipe
from hillclimb.scaling.counts import count_parameters, kv_cache_bytes
from hillclimb.scaling.flops import decode_flops, training_flops
from hillclimb.scaling.ladder import ladder, rung

# Report §2.2 Table 1: active, total, hidden, dense, latent, expert, query heads.
TABLE = {
    "L12": ("365M", "3.9B", 1024, 2048, 512, 1536, 16),
    "L18": ("760M", "13B", 1536, 3072, 768, 2304, 16),
    "L24": ("1.5B", "30B", 2048, 4096, 1024, 3072, 24),
    "L30": ("2.6B", "58B", 2560, 5120, 1280, 3840, 32),
    "L36": ("4.0B", "100B", 3072, 6144, 1536, 4608, 32),
    "L42": ("6.1B", "159B", 3584, 7168, 1792, 5376, 40),
    "L66": ("21.7B", "615B", 5632, 11264, 2816, 8448, 64),
    "L78": ("35.6B", "1015B", 6656, 13312, 3328, 9984, 80),
    "MAI-Base-1": ("34.7B", "962B", 6656, 13312, 3072, 10240, 80),
}

TINY = ModelRecipe(
    layers=6, hidden=8, dense_ffn=16, latent=4, expert_ffn=12, query_heads=2, kv_heads=1,
    head_dim=4, experts=4, experts_per_token=2, window=3, global_every=3,
)  # fmt: skip


def as_printed(value: float, printed: str) -> str:
    """`value` with the digits and the unit of the table."""
    unit = {"M": 1e6, "B": 1e9}[printed[-1]]
    digits = len(printed[:-1].partition(".")[2])
    return f"{value / unit:.{digits}f}{printed[-1]}"


def test_the_ladder_is_the_reports_table() -> None:
    rungs = ladder()
    assert [rung.name for rung in rungs] == list(TABLE)
    for size in rungs:
        active, total, *shape = TABLE[size.name]
        model = size.model
        assert shape == [
            model.hidden, model.dense_ffn, model.latent, model.expert_ffn, model.query_heads,
        ]  # fmt: skip
        assert as_printed(size.parameters.active, active) == active
        assert as_printed(size.parameters.total, total) == total


def test_the_full_recipe_is_mai_base_1() -> None:
    recipe = load_recipe("mai-thinking-1")
    assert recipe.model == ladder()[-1].model
    counted = count_parameters(recipe.model, recipe.tokenizer.vocab_size)
    assert counted.total == 962_148_861_440
    assert counted.active == 34_662_417_920


def test_parameters_of_a_tiny_model_by_hand() -> None:
    counted = count_parameters(TINY, vocab_size=10)
    # One layer's attention: q, k, v 8x(2+1+1)x4 = 128, out 8x8 = 64, q and k norms 2x4, norms 4x8.
    assert counted.attention == 6 * (128 + 64 + 8 + 32) + 8
    assert counted.embedding == 80
    assert counted.dense == 3 * (8 * 16 + 8 * 8)
    # Router 8x4, down 8x4, up 4x8; an expert: 4x12 in, 6x4 out.
    assert counted.router == 3 * (32 + 32 + 32)
    assert counted.experts == 3 * 4 * 72
    assert counted.active == counted.total - 3 * 2 * 72


def test_the_cache_of_local_layers_is_bounded_by_the_window() -> None:
    # Two global layers hold everything, four local ones at most 3 tokens; keys and values, 1x4.
    assert kv_cache_bytes(TINY, 2) == 2 * 4 * (2 * 2 + 4 * 2) * 2
    assert kv_cache_bytes(TINY, 100, bytes_per_value=4) == 2 * 4 * (2 * 100 + 4 * 3) * 4


def test_operations_by_hand() -> None:
    active = count_parameters(TINY, 10).active
    # Two heads of four: 4x8 operations a visible column; half of 20 in 2 layers, 3 in 4 layers.
    assert training_flops(TINY, 10, length=20) == 6 * active + 3 * 32 * (2 * 10 + 4 * 3)
    assert decode_flops(TINY, 10, context=2) == 2 * active + 32 * (6 * 2)


def test_pretraining_time_agrees_with_the_reports_goodput() -> None:
    """Ideal time: 51 h are the tenth that is lost (report §2.8), so 459 h are left."""
    recipe = load_recipe("mai-thinking-1")
    work = 30e12 * training_flops(recipe.model, 200_019, 16_384)
    assert work / (8192 * 0.2 * 2.5e15) / 3600 == pytest.approx(459, rel=0.01)


def test_heads_at_halves_go_to_the_even_number() -> None:
    assert [rung(layers).query_heads for layers in (12, 36)] == [16, 32]
