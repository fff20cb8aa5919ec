"""Where stages run. Nothing here is identity, except the number of ranks of a stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hillclimb.recipe.base import Section
from hillclimb.recipe.kubernetes import Kubernetes


class Accelerator(Section):
    """One accelerator, or one CPU core, as the planner counts it."""

    name: str = "cpu-core"
    flops: float = Field(36e9, gt=0, description="sustained peak FLOP/s of one")
    memory_gib: float = Field(6.0, gt=0)
    weight_bytes: Literal[2, 4] = Field(4, description="of a weight in matrix products; 2 is BF16")
    utilisation: float = Field(
        0.4, gt=0, le=1, description="share of the peak that training reaches"
    )
    decode_utilisation: float = Field(0.1, gt=0, le=1)


class Layout(Section):
    """How training is laid out over its ranks and their memory (report §2.8)."""

    zero_stage: Literal[1, 2, 3] = 2
    context_parallel: int = Field(1, ge=1, description="ranks that share every sequence")
    expert_parallel: int = Field(1, ge=1, description="ranks that split the experts between them")
    activations: Literal["kept", "recomputed", "on_host"] = Field(
        "kept", description="between forward and backward; on_host: recomputed, inputs offloaded"
    )
    weights: Literal["fp32", "bf16"] = Field(
        "fp32", description="how matrices are stored; products on a GPU are BF16 either way"
    )
    offload_optimizer: bool = Field(False, description="moments and master weights on the host")

    @model_validator(mode="after")
    def _storage(self) -> Layout:
        if self.weights == "bf16" and self.zero_stage != 2:
            raise ValueError(f"weights=bf16 needs zero_stage=2, not {self.zero_stage}")
        return self


class Compute(Section):
    """Sizes of the launches."""

    accelerator: Accelerator = Accelerator()
    base_ranks: int = Field(1, gt=0, description="data-parallel processes of base training")
    climb_ranks: int = Field(1, gt=0)
    climb_rollout_accelerators: int = Field(0, ge=0, description="besides the learner's")
    rollout_server: int = Field(1, gt=0, description="accelerators that share one copy of weights")
    sft_ranks: int = Field(1, gt=0, description="processes of students and the consolidation")
    evaluation_ranks: int = Field(
        1, gt=0, description="processes that share the scorecard's models"
    )
    post_training: Layout = Field(Layout(), description="climbs and fine-tuning")
    parallel_stages: int = Field(2, gt=0, description="independent stages made at a time")
    threads: int = Field(1, gt=0, description="CPU threads of one rank")
    usd_per_hour: float = Field(0.0, ge=0, description="price of one accelerator-hour")
    kubernetes: Kubernetes | None = Field(None, description="the cluster that stages run on")
