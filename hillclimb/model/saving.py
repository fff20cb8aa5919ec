"""What a forward pass keeps for its gradients: all, the layers' inputs, or copies on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from hillclimb.model.moe import LatentMoE


@dataclass(frozen=True)
class SavedActivations:
    """How a model in training keeps what its gradients need.

    Attributes:
        recomputed: each layer keeps its input and is computed again on the way back.
        on_host: what is kept waits in the host's memory.
    """

    recomputed: bool = False
    on_host: bool = False

    def layer(self, layer: nn.Module, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """A layer's function of its inputs; dropout repeats itself, routers are counted once."""
        if not (self.recomputed and torch.is_grad_enabled()):
            return function(*inputs)
        again: Tensor = checkpoint(
            function, *inputs, use_reentrant=False, context_fn=partial(_contexts, layer)
        )
        return again

    def forward(self) -> AbstractContextManager[Any]:
        """Around a whole forward pass."""
        if not (self.on_host and torch.is_grad_enabled()):
            return nullcontext()
        return saved_tensors_hooks(_to_host, _from_host)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _unwatched(layer)


@contextmanager
def _unwatched(layer: nn.Module) -> Iterator[None]:
    routed = [module for module in layer.modules() if isinstance(module, LatentMoE)]
    for module in routed:
        module.watched = False
    try:
        yield
    finally:
        for module in routed:
            module.watched = True


def _to_host(tensor: Tensor) -> tuple[torch.device | None, Tensor]:
    """A copy in pinned memory, made in the stream's order.

    Weights stay where they are, and so does what has gaps: compiled code wants its strides back.
    """
    whole = tensor if tensor._base is None else tensor._base
    if (whole.is_leaf and whole.requires_grad) or not tensor.is_floating_point():
        return None, tensor
    if not tensor.is_cuda:
        return tensor.device, tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    if host.stride() != tensor.stride():
        return None, tensor
    return tensor.device, host.copy_(tensor, non_blocking=True)


def _from_host(kept: tuple[torch.device | None, Tensor]) -> Tensor:
    device, tensor = kept
    return tensor if device is None else tensor.to(device, non_blocking=True)
