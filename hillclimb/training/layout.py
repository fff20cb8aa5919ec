"""How one model is laid out over ranks, and the process groups of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.parallel import Group
from hillclimb.model.saving import SavedActivations


@dataclass(frozen=True)
class Layout:
    """ZeRO over all ranks; inside that, ranks share rows (context) and experts.

    Ranks of a context group follow each other, and so do those of an expert group, so that their
    all-to-alls stay inside a node where they can. The two may be the same ranks.

    Attributes:
        zero_stage: 1, 2 or 3.
        context_parallel: ranks that share each row's tokens.
        expert_parallel: ranks that share the experts.
        activation_checkpointing: layers keep their inputs only and are computed again.
        offload_optimizer: masters and moments stay in the host's memory, and step there.
        offload_activations: what the forward pass keeps waits in the host's memory.
        precision: in which matrices are stored; masters and sums of gradients are FP32 in either
            case. BF16 needs ZeRO-2: DeepSpeed's stage 3 has one type for all weights, and its
            stage 1 adds up micro-batches in the weights' type.
    """

    zero_stage: int = 2
    context_parallel: int = 1
    expert_parallel: int = 1
    activation_checkpointing: bool = False
    offload_optimizer: bool = False
    offload_activations: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"

    def check(self, config: MaiConfig, ranks: int, field: str) -> None:
        """Refuse what cannot be.

        Args:
            ranks: processes of the launch.
            field: where the recipe says the layout, for the message.

        Raises:
            ValueError: naming the field and what it may be.
        """
        for name in ("context_parallel", "expert_parallel"):
            degree = getattr(self, name)
            if ranks % degree:
                raise ValueError(
                    f"{field}.{name} is {degree}, which does not divide the launch's {ranks} ranks"
                    ": change it or the number of ranks"
                )
        if self.precision == "bf16" and self.zero_stage != 2:
            raise ValueError(
                f"{field}.zero_stage is {self.zero_stage}: weights stored in BF16 need zero_stage 2"
            )
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        context = self.context_parallel
        if heads % context or (kv_heads % context and context % kv_heads):
            raise ValueError(
                f"{field}.context_parallel is {context}: it must divide the {heads} query heads, "
                f"and divide the {kv_heads} key heads or be a multiple of them"
            )
        if config.num_experts % self.expert_parallel:
            raise ValueError(
                f"{field}.expert_parallel is {self.expert_parallel}: it must divide the "
                f"{config.num_experts} experts"
            )

    @property
    def data_world(self) -> int:
        """Streams that a batch's rows are split over."""
        return _ranks() // self.context_parallel

    @property
    def data_rank(self) -> int:
        """The stream that this rank reads."""
        return _rank() // self.context_parallel

    @property
    def saved(self) -> SavedActivations:
        """What a forward pass keeps."""
        return SavedActivations(self.activation_checkpointing, self.offload_activations)

    def context_group(self) -> Group | None:
        """The ranks that share this rank's rows; all ranks must ask."""
        degree = self.context_parallel
        return _group([range(first, first + degree) for first in range(0, _ranks(), degree)])

    def expert_group(self) -> Group | None:
        """The ranks that hold all experts together; all ranks must ask."""
        degree = self.expert_parallel
        return _group([range(first, first + degree) for first in range(0, _ranks(), degree)])

    def replica_group(self) -> Group | None:
        """The ranks that hold the same experts; all ranks must ask."""
        degree = self.expert_parallel
        return _group([range(first, _ranks(), degree) for first in range(degree)])


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _group(sets: list[range]) -> Group | None:
    """This rank's group of those made; None where it would be alone."""
    if len(sets[0]) == 1:
        return None
    groups = [(ranks, dist.new_group(list(ranks))) for ranks in sets]
    return next(group for ranks, group in groups if _rank() in ranks)
