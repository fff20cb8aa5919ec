"""The base class of every recipe section."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of a recipe: unknown keys are refused, defaults are the vetted values."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
