"""Optimiser, schedules, base phases and mixtures (report §2.5-2.6)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hillclimb.recipe.base import Section
from hillclimb.recipe.compute import Layout

CATEGORIES = (
    "code", "stem", "math", "books", "pdf", "web", "multilingual", "tools", "dialogue",
)  # fmt: skip


class AdamW(Section):
    """AdamW with the report's separate decays for attention and embedding (report §2.6)."""

    beta1: float = Field(0.95, ge=0, lt=1)
    beta2: float = Field(0.925, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    attention_weight_decay: float = Field(0.01, ge=0)
    embedding_weight_decay: float = Field(0.005, ge=0)
    grad_clip: float = Field(1.0, gt=0)


class Cosine(Section):
    """Linear warm-up, then a cosine from `peak` to `floor`."""

    type: Literal["cosine"] = "cosine"
    peak: float = Field(gt=0)
    floor: float = Field(ge=0)
    warmup_tokens: int = Field(0, ge=0)


class Constant(Section):
    """One learning rate, after an optional linear warm-up."""

    type: Literal["constant"] = "constant"
    peak: float = Field(gt=0)
    warmup_tokens: int = Field(0, ge=0)


Schedule = Annotated[Cosine | Constant, Field(discriminator="type")]


class Phase(Layout):
    """One base-training phase at one sequence length (report §2.6, App. B)."""

    sequence_length: int = Field(gt=1)
    tokens: int = Field(gt=0)
    schedule: Schedule
    micro_batch_tokens: int | None = Field(
        None, gt=0, description="in this phase, instead of base.micro_batch_tokens"
    )


class BaseTraining(Section):
    """The three chained phases of MAI-Base-1."""

    optimizer: AdamW = AdamW()
    batch_tokens: int = Field(gt=0, description="global batch of every phase, in tokens")
    micro_batch_tokens: int = Field(
        gt=0, description="what one rank takes through the model at once"
    )
    dropout: float = Field(0.15, ge=0, lt=1, description="on every sublayer output")
    balance_coefficient: float = Field(1e-2, ge=0)
    checkpoint_every: int = Field(200, gt=0, description="steps between resumable checkpoints")
    held_out_every: int = Field(
        0, ge=0, description="steps between losses on held-out text; 0: at a phase's end only"
    )
    deterministic: bool = Field(
        False, description="the same bytes from run to run on a GPU, at some cost in speed"
    )
    spike_deviations: float = Field(
        8.0, gt=1, description="a loss so many mean deviations over its running mean is a spike"
    )
    phase_16k: Phase
    phase_64k: Phase
    phase_256k: Phase

    def micro_batch(self, phase: Phase) -> int:
        """Tokens that one rank takes through the model at once in `phase`."""
        return phase.micro_batch_tokens or self.micro_batch_tokens

    @model_validator(mode="after")
    def _batches(self) -> BaseTraining:
        for name in ("phase_16k", "phase_64k", "phase_256k"):
            length = getattr(self, name).sequence_length
            if self.batch_tokens % length:
                raise ValueError(
                    f"batch_tokens={self.batch_tokens} must be a multiple of "
                    f"{name}.sequence_length={length}"
                )
        return self


class MixtureRecipe(Section):
    """Shares by category, and the caps on repetition (report §2.5, App. B)."""

    weights: dict[Literal[CATEGORIES], float]  # type: ignore[valid-type]
    epoch_cap: float = Field(8.0, gt=0, description="most passes over one source")
    memorised_nll: float = Field(0.01, gt=0, description="a token below this NLL is memorised")
    memorised_share: float = Field(
        0.5, gt=0, le=1, description="a source with a larger memorised share gets the strict cap"
    )
    strict_epoch_cap: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _positive(self) -> MixtureRecipe:
        if not self.weights or min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0:
            raise ValueError("weights need at least one positive share and none below zero")
        return self


class TokenizerRecipe(Section):
    """Byte-level BPE; digits are split one by one."""

    vocab_size: int = Field(gt=280)
    sample_characters: int = Field(
        8_000_000, gt=0, description="how much of the corpus the merges are learnt from"
    )
