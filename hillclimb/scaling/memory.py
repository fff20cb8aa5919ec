"""Bytes on one accelerator: training with ZeRO and expert parallelism, rollouts, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from hillclimb.recipe.model import ModelRecipe
from hillclimb.scaling.counts import attention_layer, count_parameters, gated, kv_cache_bytes

GIB = 2.0**30


class Sharding(Protocol):
    """How training is laid out; a base phase and `compute.post_training` both are one."""

    @property
    def zero_stage(self) -> int:
        """0: everything replicated; 1, 2, 3: optimizer, gradients, weights sharded as well."""

    @property
    def expert_parallel(self) -> int:
        """Ranks that split the experts between them."""

    @property
    def activations(self) -> str:
        """`kept`, `recomputed` or `on_host`."""

    @property
    def offload_optimizer(self) -> bool:
        """Whether moments and master weights are on the host."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one accelerator, by what they are for."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts().values())

    @property
    def largest(self) -> str:
        """The name of the largest part."""
        return max(self.parts(), key=self.parts().__getitem__)

    def parts(self) -> dict[str, float]:
        """Bytes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: Memory) -> Memory:
        mine, theirs = self.parts(), other.parts()
        return Memory(**{name: mine[name] + theirs[name] for name in mine})


def training_memory(
    model: ModelRecipe,
    vocab_size: int,
    layout: Sharding,
    ranks: int,
    tokens: int,
    weight_bytes: int,
) -> Memory:
    """What one rank holds while it trains on `tokens` tokens at once.

    Weights of matrix products take `weight_bytes`; gradients, moments and (beside BF16 weights)
    the master copy are FP32 (report §2.6). A stage that shards something still gathers the
    largest layer of it. Of activations, all layers are kept; or each layer's FP32 residual input,
    and one layer at a time is recomputed; or that one layer alone, the inputs being on the host.
    """
    counted = count_parameters(model, vocab_size)
    whole = counted.shared + counted.experts / layout.expert_parallel
    shard = counted.total / ranks
    gathered = _largest_layer(model, vocab_size, layout.expert_parallel)
    stage = layout.zero_stage
    per_moment = 8 + (4 if weight_bytes < 4 else 0)
    return Memory(
        weights=weight_bytes * (min(whole, shard + gathered) if stage == 3 else whole),
        gradients=4 * (min(whole, shard + gathered) if stage >= 2 else whole),
        optimizer=0 if layout.offload_optimizer else per_moment * (shard if stage else whole),
        activations=_activations(model, tokens, weight_bytes, layout.activations),
        logits=2 * 4 * tokens * vocab_size,
    )


def rollout_memory(
    model: ModelRecipe,
    vocab_size: int,
    server: int,
    sequences: int,
    context: int,
    weight_bytes: int,
) -> Memory:
    """What one accelerator of a rollout server holds, with `sequences` sequences of its own.

    The server's accelerators split the weights and their sequences (expert and data parallel).
    """
    total = count_parameters(model, vocab_size).total
    return Memory(
        weights=weight_bytes * total / server,
        logits=4 * sequences * vocab_size,
        cache=sequences * kv_cache_bytes(model, context, weight_bytes),
    )


def weights_bytes(model: ModelRecipe, vocab_size: int, weight_bytes: int) -> int:
    """Size of the weights in an artifact."""
    return weight_bytes * count_parameters(model, vocab_size).total


def training_state_bytes(model: ModelRecipe, vocab_size: int, weight_bytes: int) -> int:
    """Size of a resumable checkpoint: weights, FP32 master copy if they are BF16, two moments."""
    master = 4 if weight_bytes < 4 else 0
    return (weight_bytes + master + 8) * count_parameters(model, vocab_size).total


def _largest_layer(model: ModelRecipe, vocab_size: int, expert_parallel: int) -> float:
    experts = model.experts * gated(model.latent, model.expert_ffn) / expert_parallel
    router = model.hidden * model.experts + 2 * model.hidden * model.latent
    dense = gated(model.hidden, model.dense_ffn)
    return max(attention_layer(model) + max(experts + router, dense), vocab_size * model.hidden)


def _activations(model: ModelRecipe, tokens: int, weight_bytes: int, how: str) -> float:
    """Residual inputs of all layers and one layer in full, each with its gradients."""
    inputs = 4 * model.layers * model.hidden
    attention = (2 * model.query_heads + 2 * model.kv_heads) * model.head_dim + 2 * model.hidden
    dense = 2 * model.hidden + 3 * model.dense_ffn // 2
    expert = 2 * model.latent + 3 * model.expert_ffn // 2
    routed = 2 * model.hidden + 2 * model.latent + model.experts_per_token * expert + model.experts
    if how == "kept":
        layers = attention * model.layers + (dense + routed) * model.layers / 2
        return float(tokens) * (inputs + 2 * weight_bytes * layers)
    one = 2 * weight_bytes * (attention + max(dense, routed))
    return float(tokens) * (one if how == "on_host" else inputs + one)
