"""The model's shape (report §2.1-2.2)."""

from __future__ import annotations

from pydantic import Field, model_validator

from hillclimb.recipe.base import Section


class ModelRecipe(Section):
    """MAI-Base-1's shape. `*_ffn` sizes are the first linear's output, gate and up together."""

    layers: int = Field(gt=0, description="decoder layers; a multiple of `global_every`")
    hidden: int = Field(gt=0)
    dense_ffn: int = Field(gt=0, description="gate+up of the dense layers; the inner width is half")
    latent: int = Field(gt=0, description="width in which the experts work")
    expert_ffn: int = Field(gt=0, description="gate+up of one expert; the inner width is half")
    query_heads: int = Field(gt=0)
    kv_heads: int = 8
    head_dim: int = 128
    experts: int = 512
    experts_per_token: int = 8
    window: int = Field(512, gt=0, description="attention window of the local layers, in tokens")
    global_every: int = Field(6, gt=0, description="every n-th layer is global, without positions")
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    embedding_std: float = Field(
        0.02, gt=0, description="narrow models need more: 1.0 lets copying emerge early at width 96"
    )
    zero_init_attention: bool = Field(
        True, description="start with the gain of attention's output norm at zero"
    )

    @model_validator(mode="after")
    def _divisible(self) -> ModelRecipe:
        if self.layers % self.global_every:
            raise ValueError(
                f"layers={self.layers} must be a multiple of global_every={self.global_every}, "
                "so that the last layer is global"
            )
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"query_heads={self.query_heads} must be a multiple of kv_heads={self.kv_heads}"
            )
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} exceeds experts={self.experts}"
            )
        if self.head_dim % 2 or self.dense_ffn % 2 or self.expert_ffn % 2:
            raise ValueError("head_dim, dense_ffn and expert_ffn must be even")
        return self
