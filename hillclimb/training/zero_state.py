"""What DeepSpeed's ZeRO optimizers keep on this rank, and where it belongs in the whole model.

Stages 1 and 2 cut a flat buffer of all parameters of a group into one piece a rank, so a piece
holds parts of a few parameters; stage 3 cuts every parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hillclimb.training.fragments import Fragment

MOMENTS = ("exp_avg", "exp_avg_sq")


def fragments(model: nn.Module, optimizer: Any) -> list[Fragment]:
    """The live FP32 state of this rank by parameter, padding left out."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for parameter, start, flat, offset, length in _places(optimizer):
        state = optimizer.optimizer.state.get(flat, {})
        whole = {"master": flat.data, **{key: state[key] for key in MOMENTS if key in state}}
        tensors = {key: value.narrow(0, offset, length) for key, value in whole.items()}
        found.append(Fragment(names[id(parameter)], start, tensors))
    return found


def _places(optimizer: Any) -> Iterator[tuple[nn.Parameter, int, Tensor, int, int]]:
    """Parameter, start in it, flat master that holds the numbers, offset there, how many."""
    if partitioned(optimizer):
        for group in optimizer.fp16_groups:
            for parameter in group:
                index, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
                start = size * dist.get_rank()
                length = min(size, parameter.ds_numel - start)
                if length > 0:
                    yield parameter, start, _masters(optimizer)[index], offset, length
        return
    for flat, group in zip(_masters(optimizer), optimizer.bit16_groups, strict=True):
        for parameter in group:
            if parameter._hp_mapping is not None:
                here = parameter._hp_mapping.hp_fragment_address
                there = parameter._hp_mapping.lp_fragment_address
                if here.numel > 0:
                    yield parameter, there.start, flat, here.start, here.numel


def partitioned(optimizer: Any) -> bool:
    """Whether the parameters themselves are cut: stage 3."""
    return hasattr(optimizer, "fp32_partitioned_groups_flat")


def _masters(optimizer: Any) -> list[Tensor]:
    if partitioned(optimizer):
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)


def make_moments(optimizer: Any) -> None:
    """Zeros, where AdamW has made no moments yet."""
    for flat in _masters(optimizer):
        if not optimizer.optimizer.state.get(flat):
            optimizer.optimizer.state[flat] = empty_moments(flat)


def empty_moments(master: Tensor) -> dict[str, Tensor]:
    """AdamW's state before its first step."""
    zeros = {key: torch.zeros_like(master.detach()) for key in MOMENTS}
    return {"step": torch.tensor(0.0), **zeros}


def count_steps(adam: torch.optim.Optimizer, steps: int) -> None:
    """Set AdamW's count of steps, which its bias correction reads."""
    for state in adam.state.values():
        if "step" in state:
            state["step"] = torch.full_like(state["step"], float(steps))


@torch.no_grad()
def push_masters(optimizer: Any) -> None:
    """Copy the masters into the model's weights; a collective."""
    if not partitioned(optimizer):
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for index in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def join_norm(optimizer: Any, norm: Callable[[], Tensor]) -> None:
    """Make the norm that clips the gradients, and is reported, that of all and of `norm` too."""
    from deepspeed.runtime.utils import combine_grad_norm_groups

    if partitioned(optimizer):
        groups = optimizer._get_norm_groups

        def with_ours() -> list[Tensor]:
            norms = list(groups())
            return [*norms, norm().to(norms[0].device)]

        optimizer._get_norm_groups = with_ours
        return
    whole = optimizer.scaled_global_norm

    def joined(norm_type: int = 2) -> Tensor:
        theirs = torch.as_tensor(whole(norm_type))
        combined: Tensor = combine_grad_norm_groups([theirs, norm().to(theirs.device)])
        return combined

    optimizer.scaled_global_norm = joined


def whole_parameter(parameter: nn.Parameter) -> Tensor:
    """A parameter in FP32, whole; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    if not hasattr(parameter, "ds_id") and parameter.dtype == torch.float32:
        return parameter.detach()
    whole: Tensor = safe_get_full_fp32_param(parameter)
    return whole.detach()
