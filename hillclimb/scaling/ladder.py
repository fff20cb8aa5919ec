"""The scaling ladder: one shape at every size (report §2.2 Table 1)."""

from __future__ import annotations

from dataclasses import dataclass

from hillclimb.recipe.model import ModelRecipe
from hillclimb.scaling.counts import Parameters, count_parameters

VOCABULARY = 200_019
RUNGS = (12, 18, 24, 30, 36, 42, 66, 78)


@dataclass(frozen=True)
class Rung:
    """One size of the ladder."""

    name: str
    model: ModelRecipe
    parameters: Parameters


def rung(layers: int) -> ModelRecipe:
    """The model of `layers` layers by the ladder's rules.

    Width D = layers * 256/3, dense feed-forward 2D, latent D/2, experts three times the latent,
    8 * round(layers / 8) query heads, where halves go to the even number.
    """
    hidden = layers * 256 // 3
    return ModelRecipe(
        layers=layers,
        hidden=hidden,
        dense_ffn=2 * hidden,
        latent=hidden // 2,
        expert_ffn=3 * (hidden // 2),
        query_heads=8 * round(layers / 8),
    )


def ladder() -> list[Rung]:
    """Every rung, and MAI-Base-1, whose latent and experts leave the rules.

    Its latent is 3072 instead of 3328, so that it divides by 512, and its experts are 10240.
    """
    models = {f"L{layers}": rung(layers) for layers in RUNGS}
    models["MAI-Base-1"] = rung(78).model_copy(update={"latent": 3072, "expert_ffn": 10_240})
    return [Rung(n, m, count_parameters(m, VOCABULARY)) for n, m in models.items()]
