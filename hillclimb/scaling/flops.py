"""Floating-point operations per token. A multiply-add counts as two."""

from __future__ import annotations

from hillclimb.recipe.model import ModelRecipe
from hillclimb.scaling.counts import count_parameters, global_layers


def attention_flops(model: ModelRecipe, visible: float) -> float:
    """Scores and weighted sum of one token that sees `visible` tokens in global layers."""
    far = global_layers(model)
    columns = far * visible + (model.layers - far) * min(model.window, visible)
    return 4.0 * model.query_heads * model.head_dim * columns


def training_flops(model: ModelRecipe, vocab_size: int, length: int) -> float:
    """Forward and backward of one token in sequences of `length`.

    Six operations an active parameter, and three times the forward attention; a token sees half
    of its sequence on average. Recomputation is not counted.
    """
    active = count_parameters(model, vocab_size).active
    return 6.0 * active + 3.0 * attention_flops(model, length / 2)


def decode_flops(model: ModelRecipe, vocab_size: int, context: float) -> float:
    """Forward of one new token that follows `context` others."""
    active = count_parameters(model, vocab_size).active
    return 2.0 * active + attention_flops(model, context)
