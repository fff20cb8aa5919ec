"""AdamW for experts that are shared out over ranks, beside DeepSpeed's for everything else.

DeepSpeed's own expert parallelism refuses ZeRO-3 (its MoE) or experts in a latent (AutoEP), so it
never sees these weights: they leave the model's parameters, and this steps them as ZeRO-2 would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.moe import LatentMoE
from hillclimb.model.parallel import Group
from hillclimb.training.fragments import Fragment
from hillclimb.training.zero_state import count_steps, empty_moments

WEIGHTS = ("gate_up_EFW", "down_EWH")


@dataclass
class _Weight:
    """One weight of one layer, for this rank's experts.

    Attributes:
        name, shape: of the whole weight.
        live: what the model computes with, (E / ranks, ...).
        flat: the same numbers and padding, in as many pieces as ranks hold these experts.
        master: this rank's piece in FP32; `flat`'s own where that is FP32 on the same device.
        grad: sum of the micro-batches' gradients of `flat` in FP32.
    """

    name: str
    shape: torch.Size
    live: Tensor
    flat: Tensor
    master: Tensor
    grad: Tensor | None = None

    def gather_gradient(self, live: Tensor) -> None:
        """Add a micro-batch's gradient, which has the type of the weight."""
        assert live.grad is not None
        if self.grad is None:
            self.grad = torch.zeros_like(self.flat, dtype=torch.float32)
        self.grad[: live.numel()] += live.grad.flatten()
        live.grad = None


class ExpertsOptimizer:
    """Takes the experts out of a model's parameters and keeps this rank's share of them.

    Gradients are summed over the ranks that hold the same experts, each of which keeps the state
    of its piece, steps it and gives the result to the others.
    """

    def __init__(
        self,
        model: MaiForCausalLM,
        optimizer: dict[str, Any],
        experts: Group,
        replicas: Group | None,
        on_host: bool,
    ) -> None:
        self.experts, self.replicas = experts, replicas
        self.pieces = replicas.size() if replicas else 1
        self.piece = replicas.rank() if replicas else 0
        self.weights = [
            self._share(module, f"{name}.{weight}", weight, on_host)
            for name, module in model.named_modules()
            if isinstance(module, LatentMoE)
            for weight in WEIGHTS
        ]
        self.adam = torch.optim.AdamW(
            [weight.master for weight in self.weights],
            lr=0.0,
            betas=(optimizer["beta1"], optimizer["beta2"]),
            eps=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
        )

    def _share(self, module: LatentMoE, name: str, weight: str, on_host: bool) -> _Weight:
        whole = module._parameters.pop(weight)
        assert whole is not None
        mine = whole.detach().chunk(self.experts.size())[self.experts.rank()]
        size = -(-mine.numel() // self.pieces)
        flat = mine.new_zeros(size * self.pieces)
        flat[: mine.numel()] = mine.flatten()
        live = flat[: mine.numel()].view(mine.shape).requires_grad_()
        setattr(module, weight, live)
        device = torch.device("cpu") if on_host else flat.device
        master = flat.narrow(0, size * self.piece, size).to(device, torch.float32)
        made = _Weight(name, whole.shape, live, flat, master.requires_grad_())
        live.register_post_accumulate_grad_hook(made.gather_gradient)
        return made

    def reduce(self) -> Tensor:
        """Average the gradients over all ranks as DeepSpeed does; returns their global norm."""
        squares = self.weights[0].flat.new_zeros((), dtype=torch.float32)
        for weight in self.weights:
            grad = self._summed(weight) / dist.get_world_size()
            weight.grad = None
            squares += grad.square().sum()
            weight.master.grad = grad.to(weight.master.device)
        dist.all_reduce(squares)
        return squares.sqrt()

    def _summed(self, weight: _Weight) -> Tensor:
        """This rank's piece of the gradient, summed over the ranks with the same experts."""
        grad = weight.grad
        if grad is None:
            grad = torch.zeros_like(weight.flat, dtype=torch.float32)
        if self.replicas is None:
            return grad
        piece = grad.new_empty(weight.master.numel())
        dist.reduce_scatter_single(piece, grad, group=self.replicas)
        return piece

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float) -> None:
        """Step with the gradients of `reduce` times `scale`."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        for weight in self.weights:
            assert weight.master.grad is not None
            weight.master.grad.mul_(scale)
        self.adam.step()
        self.adam.zero_grad()
        self.push()

    def drop(self) -> None:
        """Forget all gradients."""
        self.adam.zero_grad()
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def push(self) -> None:
        """Copy the masters into the weights that the model computes with; a collective."""
        for weight in self.weights:
            size = weight.master.numel()
            piece = weight.flat.narrow(0, size * self.piece, size)
            piece.copy_(weight.master)
            if self.replicas is not None:
                dist.all_gather_single(weight.flat, piece.clone(), group=self.replicas)

    def make_moments(self) -> None:
        """Zeros, where AdamW has made no moments yet."""
        for weight in self.weights:
            if not self.adam.state.get(weight.master):
                self.adam.state[weight.master] = empty_moments(weight.master)

    def set_steps(self, steps: int) -> None:
        """AdamW's count of steps."""
        count_steps(self.adam, steps)

    def fragments(self) -> list[Fragment]:
        """The live state of this rank, in coordinates of the whole weights."""
        found = []
        for weight in self.weights:
            size, mine = weight.master.numel(), weight.live.numel()
            length = min(size, mine - size * self.piece)
            if length > 0:
                state = {"master": weight.master.detach(), **self.adam.state.get(weight.master, {})}
                tensors = {k: v.narrow(0, 0, length) for k, v in state.items() if k != "step"}
                start = self.experts.rank() * mine + size * self.piece
                found.append(Fragment(weight.name, start, tensors))
        return found

    def full_weights(self) -> dict[str, Tensor]:
        """All experts in FP32 on the host of rank 0, by name; a collective."""
        found = {}
        for weight in self.weights:
            master = weight.master.detach().to(weight.flat.device)
            mine = master
            if self.replicas is not None:
                mine = master.new_empty(weight.flat.shape)
                dist.all_gather_single(mine, master, group=self.replicas)
            mine = mine[: weight.live.numel()].contiguous()
            whole = mine.new_empty(weight.shape)
            dist.all_gather_single(whole.view(-1), mine, group=self.experts)
            if dist.get_rank() == 0:
                found[weight.name] = whole.cpu()
        return found
