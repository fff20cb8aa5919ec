"""The learner: blind to the algorithm, it takes losses and makes steps through DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hillclimb.model.fast import keep_weights_in_bf16
from hillclimb.model.modeling import DecoderLayer, MaiForCausalLM
from hillclimb.model.moe import RouterLoad
from hillclimb.training import runtime, zero_state
from hillclimb.training.experts_optimizer import ExpertsOptimizer
from hillclimb.training.fragments import Fragment
from hillclimb.training.layout import Layout
from hillclimb.training.runtime import load_deepspeed

Batch = TypeVar("Batch")
LossFunction = Callable[[Any, Batch], tuple[Tensor, dict[str, Tensor]]]


class Learner:
    """One model and its AdamW under a layout.

    A step takes micro-batches and a function that gives each one's share of the loss: the sum of
    all shares over all micro-batches and ranks is what is minimised.
    """

    def __init__(
        self,
        model: MaiForCausalLM,
        optimizer: dict[str, Any],
        layout: Layout | int,
        balance: float,
        field: str = "layout",
    ) -> None:
        """Lay the model out; it moves to this rank's device.

        Args:
            optimizer: the recipe's optimizer section.
            layout: how, or the ZeRO stage alone.
            balance: weight of the routers' balance loss.
            field: where the recipe says the layout, for messages.
        """
        self.layout = layout if isinstance(layout, Layout) else Layout(zero_stage=layout)
        self.world = dist.get_world_size()
        self.layout.check(model.config, self.world, field)
        self.balance_coefficient, self.clip = balance, optimizer["grad_clip"]
        self.model = model.to(runtime.device())  # type: ignore[arg-type]
        self.names = [name for name, _ in model.named_parameters()]
        if self.layout.precision == "bf16":
            keep_weights_in_bf16(model)
        self.experts = self._share(optimizer)
        self.engine = self._engine(optimizer)
        if self.experts is not None:
            zero_state.join_norm(self.engine.optimizer, self.experts.reduce)
        self.load = RouterLoad(len(model.moe_layers()), model.config.num_experts)
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def _share(self, optimizer: dict[str, Any]) -> ExpertsOptimizer | None:
        """Give the model its groups, and take its experts out where ranks share them."""
        layout = self.layout
        experts, replicas = layout.expert_group(), layout.replica_group()
        self.model.lay_out(layout.context_group(), experts, layout.saved)
        if experts is None:
            return None
        return ExpertsOptimizer(self.model, optimizer, experts, replicas, layout.offload_optimizer)

    def _engine(self, optimizer: dict[str, Any]) -> Any:
        deepspeed = load_deepspeed()
        if self.layout.zero_stage == 3:
            deepspeed.utils.set_z3_leaf_modules(self.model, [DecoderLayer])
        adam = torch.optim.AdamW(
            parameter_groups(self.model, optimizer),
            lr=0.0,
            betas=(optimizer["beta1"], optimizer["beta2"]),
            eps=optimizer["eps"],
        )
        gains = max(p.numel() for p in self.model.parameters() if p.ndim == 1)
        config = _config(self.layout, self.clip, gains)
        return deepspeed.initialize(model=self.model, optimizer=adam, config=config)[0]

    def step(
        self, batches: Sequence[Batch], loss_function: LossFunction[Batch], learning_rate: float
    ) -> dict[str, float]:
        """One optimiser step.

        Returns:
            The scalar metrics of the loss function, summed over micro-batches and ranks, plus
            `grad_norm`, `balance_loss`, `router_max_share`, `router_entropy`. Sums of any shape
            stay in `sums`.
        """
        self.model.train()
        moe = self.model.moe_layers()
        self.load.reset()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        totals: dict[str, Tensor] = {}
        balance = torch.zeros((), dtype=torch.float64, device=runtime.device())
        for index, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            self.engine.optimizer.clear_backward_seen_flag()  # as the engine's own forward does
            loss, metrics = loss_function(self.model, batch)
            mean_LE = torch.stack([layer.mean_E for layer in moe])
            term = self.load.balance(mean_LE, torch.stack([layer.chosen_E for layer in moe]))
            balance = balance + term.detach().double() / len(batches)
            share = self.balance_coefficient / (len(batches) * self.world)
            self.engine.backward((loss + share * term) * self.world)
            for key, value in metrics.items():
                totals[key] = totals[key] + value.detach() if key in totals else value.detach()
        self._update(learning_rate)
        routers = {" balance": balance / self.world, " mean_LE": mean_LE.detach() / self.world}
        sums = all_sum({**totals, **routers})
        state = self._state(sums.pop(" mean_LE"), float(sums.pop(" balance")))
        self.sums = sums
        return {**_scalars(sums), **state}

    def _update(self, learning_rate: float) -> None:
        """Clip by the norm of all gradients, step, and spread the new weights."""
        self.engine.step()
        taken = not self.engine.optimizer.overflow  # a gradient that is not finite is not stepped
        self.steps += taken
        if self.experts is None:
            return
        if taken:
            norm = float(self.engine.get_global_grad_norm())
            self.experts.step(learning_rate, 1.0 / max(1.0, (norm + 1e-6) / self.clip))
        else:
            self.experts.drop()

    def _state(self, mean_LE: Tensor, balance: float) -> dict[str, float]:
        mean_LE = mean_LE.float()
        return {
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "balance_loss": balance,
            "router_max_share": float(self.load.shares().max()),
            "router_entropy": float(-(mean_LE * mean_LE.clamp_min(1e-9).log()).sum(1).mean()),
        }

    def fragments(self, moments: bool = False) -> list[Fragment]:
        """This rank's part of the training state, live and FP32, in whole-parameter coordinates.

        Args:
            moments: make the optimizer's moments, as zeros, where no step has made them yet.
        """
        if moments:
            zero_state.make_moments(self.engine.optimizer)
            if self.experts is not None:
                self.experts.make_moments()
        ours = self.experts.fragments() if self.experts is not None else []
        return zero_state.fragments(self.model, self.engine.optimizer) + ours

    def take(self, steps: int) -> None:
        """Go on from what was put into `fragments()`, as after `steps` steps; on all ranks."""
        self.steps = steps
        zero_state.count_steps(self._inner(), steps)
        zero_state.push_masters(self.engine.optimizer)
        if self.experts is not None:
            self.experts.set_steps(steps)
            self.experts.push()

    def full_weights(self) -> dict[str, Tensor]:
        """The whole model in FP32 on the host of rank 0, elsewhere nothing; a collective."""
        found = self.experts.full_weights() if self.experts is not None else {}
        for name, parameter in self.model.named_parameters():
            whole = zero_state.whole_parameter(parameter)
            if dist.get_rank() == 0:
                found[name] = whole.cpu()
        return {name: found[name] for name in self.names if name in found}

    def _inner(self) -> torch.optim.Optimizer:
        wrapper = self.engine.optimizer
        return getattr(wrapper, "optimizer", wrapper)


def parameter_groups(model: nn.Module, optimizer: dict[str, Any]) -> list[dict[str, Any]]:
    """Weight decay by kind: attention, embedding, everything else; norms have none.

    A group has one type, because ZeRO lays its parameters into one buffer.
    """
    groups: dict[str, list[nn.Parameter]] = {"norm": [], "attention": [], "embedding": [], "": []}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            groups["norm"].append(parameter)
        elif ".attention." in name:
            groups["attention"].append(parameter)
        elif name.startswith("embed"):
            groups["embedding"].append(parameter)
        else:
            groups[""].append(parameter)
    decay = {
        "norm": 0.0,
        "attention": optimizer["attention_weight_decay"],
        "embedding": optimizer["embedding_weight_decay"],
        "": optimizer["weight_decay"],
    }
    return [
        {"params": alike, "weight_decay": decay[name]}
        for name, members in groups.items()
        for dtype in (torch.float32, torch.bfloat16)
        if (alike := [p for p in members if p.dtype == dtype])
    ]


def _config(layout: Layout, clip: float, kept_whole: int) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": layout.zero_stage,
        "contiguous_gradients": False,
        "overlap_comm": False,
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
        "memory_efficient_linear": False,
        "stage3_param_persistence_threshold": kept_whole,
    }
    if layout.offload_optimizer:
        pinned = torch.cuda.is_available()
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def all_sum(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum tensors of any shape over all ranks, in float64; the host waits once."""
    if not values:
        return {}
    names, device = sorted(values), runtime.device()
    flat = torch.cat([values[name].to(device, torch.float64).flatten() for name in names])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(flat)
    parts = flat.cpu().split([values[name].numel() for name in names])
    return {name: part.view(values[name].shape) for name, part in zip(names, parts, strict=True)}


def _scalars(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value.ndim == 0}
