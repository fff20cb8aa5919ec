"""Bytes on one accelerator: training with ZeRO and expert parallelism, rollouts, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from hillclimb.recipe.model import ModelRecipe
from hillclimb.scaling.counts import attention_layer, count_parameters, gated, kv_cache_bytes

GIB = 2.0**30
STATE_BYTES = 12
"""Of one parameter: its FP32 master and AdamW's two moments."""
LOSS_CHUNK = 4096
"""Tokens whose logits a GPU holds at once."""


class Sharding(Protocol):
    """How training is laid out; a base phase and `compute.post_training` both are one."""

    @property
    def zero_stage(self) -> int:
        """1, 2, 3: optimizer, gradients, weights sharded as well."""

    @property
    def expert_parallel(self) -> int:
        """Ranks that split the experts between them."""

    @property
    def activations(self) -> str:
        """`kept`, `recomputed` or `on_host`."""

    @property
    def weights(self) -> str:
        """How matrices are stored: `fp32` or `bf16`."""

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
    product_bytes: int,
) -> Memory:
    """What one rank holds while it trains on `tokens` tokens at once.

    Weights are stored as the layout says; gradients, master weights and moments are FP32 (report
    §2.6). A stage that shards something still gathers the largest layer of it. Experts that ranks
    split between them are whole on their ranks at every stage, but for master weights and
    moments. Of activations, all layers are kept; or each layer's FP32 residual input, and one
    layer at a time is recomputed; or that one layer alone, the inputs being on the host. With
    BF16 products the loss takes `LOSS_CHUNK` tokens at a time.

    Args:
        product_bytes: of a number in matrix products.
    """
    counted, stage = count_parameters(model, vocab_size), layout.zero_stage
    parallel = layout.expert_parallel
    own = counted.experts / parallel if parallel > 1 else 0.0
    zero = counted.shared if own else counted.total
    gathered = min(zero, zero / ranks + _largest_layer(model, vocab_size, 0 if own else 1))
    return Memory(
        weights=(2 if layout.weights == "bf16" else 4) * (own + (gathered if stage == 3 else zero)),
        gradients=4 * (own + (gathered if stage >= 2 else zero)),
        optimizer=0 if layout.offload_optimizer else STATE_BYTES * counted.total / ranks,
        activations=_activations(model, tokens, product_bytes, layout.activations),
        logits=2 * 4 * (tokens if product_bytes == 4 else min(tokens, LOSS_CHUNK)) * vocab_size,
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


def weights_bytes(model: ModelRecipe, vocab_size: int) -> int:
    """Size of the weights in an artifact, in FP32."""
    return 4 * count_parameters(model, vocab_size).total


def training_state_bytes(model: ModelRecipe, vocab_size: int) -> int:
    """Size of a resumable checkpoint: master weights and two moments, in FP32."""
    return STATE_BYTES * count_parameters(model, vocab_size).total


def _largest_layer(model: ModelRecipe, vocab_size: int, experts: int) -> float:
    """Parameters of the largest layer, with all of its experts (1) or without them (0)."""
    routed = experts * model.experts * gated(model.latent, model.expert_ffn)
    router = model.hidden * model.experts + 2 * model.hidden * model.latent
    dense = gated(model.hidden, model.dense_ffn)
    return max(attention_layer(model) + max(routed + router, dense), vocab_size * model.hidden)


def _activations(model: ModelRecipe, tokens: int, product_bytes: int, how: str) -> float:
    """Residual inputs of all layers and one layer in full, each with its gradients."""
    inputs = 4 * model.layers * model.hidden
    attention = (2 * model.query_heads + 2 * model.kv_heads) * model.head_dim + 2 * model.hidden
    dense = 2 * model.hidden + 3 * model.dense_ffn // 2
    expert = 2 * model.latent + 3 * model.expert_ffn // 2
    routed = 2 * model.hidden + 2 * model.latent + model.experts_per_token * expert + model.experts
    if how == "kept":
        layers = attention * model.layers + (dense + routed) * model.layers / 2
        return float(tokens) * (inputs + 2 * product_bytes * layers)
    one = 2 * product_bytes * (attention + max(dense, routed))
    return float(tokens) * (one if how == "on_host" else inputs + one)
