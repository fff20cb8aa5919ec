"""The recipe: everything that decides what is made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hillclimb.recipe.base import Section
from hillclimb.recipe.climb import SPECIALISTS, ClimbRecipe, Consolidation, Evaluation, Specialist
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.corpus import CorpusRecipe
from hillclimb.recipe.model import ModelRecipe
from hillclimb.recipe.training import BaseTraining, MixtureRecipe, TokenizerRecipe


class FinalClimb(Section):
    """The light climb that ends the recipe (report §3.5)."""

    climb: ClimbRecipe
    shares: dict[Literal[SPECIALISTS], float]  # type: ignore[valid-type]


class Recipe(Section):
    """One whole machine, from raw documents to the final model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    corpus: CorpusRecipe
    tokenizer: TokenizerRecipe
    pretraining_mixture: MixtureRecipe
    midtraining_mixture: MixtureRecipe
    model: ModelRecipe
    base: BaseTraining
    specialists: dict[Literal[SPECIALISTS], Specialist]  # type: ignore[valid-type]
    consolidation: Consolidation
    final: FinalClimb
    evaluation: Evaluation
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _all_specialists(self) -> Recipe:
        missing = [name for name in SPECIALISTS if name not in self.specialists]
        if missing:
            raise ValueError(f"specialists lacks {', '.join(missing)}")
        return self
