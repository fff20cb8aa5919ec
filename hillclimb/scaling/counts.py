"""Counting what a model holds: parameters in all and per token, and the key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

from hillclimb.recipe.model import ModelRecipe


@dataclass(frozen=True)
class Parameters:
    """Parameters by where they are.

    Attributes:
        embedding: the vocabulary's matrix, which is the output head too (counted once).
        attention: projections and all RMSNorm gains, of all layers and the final norm.
        dense: feed-forwards of the dense layers.
        router: routers and the shared projections into and out of the latent.
        experts: all experts of all layers.
        active_experts: the experts that one token passes through.
    """

    embedding: int
    attention: int
    dense: int
    router: int
    experts: int
    active_experts: int

    @property
    def shared(self) -> int:
        """Everything but the experts."""
        return self.embedding + self.attention + self.dense + self.router

    @property
    def total(self) -> int:
        """All parameters."""
        return self.shared + self.experts

    @property
    def active(self) -> int:
        """Parameters that take part in one token, with the embedding (report §2.2 Table 1)."""
        return self.shared + self.active_experts


def moe_layers(model: ModelRecipe) -> int:
    """Layers with experts: every second one, the first is dense."""
    return model.layers // 2


def global_layers(model: ModelRecipe) -> int:
    """Layers that attend to everything."""
    return model.layers // model.global_every


def attention_layer(model: ModelRecipe) -> int:
    """Parameters of one layer's attention, its query and key norms and the four sublayer norms."""
    inner = model.query_heads * model.head_dim
    qkv = model.hidden * (model.query_heads + 2 * model.kv_heads) * model.head_dim
    return qkv + inner * model.hidden + 2 * model.head_dim + 4 * model.hidden


def gated(width: int, ffn: int) -> int:
    """Parameters of a SwiGLU whose first linear puts out `ffn` (gate and up together)."""
    return width * ffn + ffn // 2 * width


def count_parameters(model: ModelRecipe, vocab_size: int) -> Parameters:
    """Count the parameters of `model` with a vocabulary of `vocab_size` tokens."""
    with_experts = moe_layers(model)
    expert = gated(model.latent, model.expert_ffn)
    router = model.hidden * model.experts + 2 * model.hidden * model.latent
    return Parameters(
        embedding=vocab_size * model.hidden,
        attention=model.layers * attention_layer(model) + model.hidden,
        dense=(model.layers - with_experts) * gated(model.hidden, model.dense_ffn),
        router=with_experts * router,
        experts=with_experts * model.experts * expert,
        active_experts=with_experts * model.experts_per_token * expert,
    )


def kv_cache_bytes(model: ModelRecipe, context: int, bytes_per_value: int = 2) -> int:
    """Bytes that keys and values of one sequence of `context` tokens take.

    Local layers keep at most the window.
    """
    far = global_layers(model)
    tokens = far * context + (model.layers - far) * min(model.window, context)
    return 2 * model.kv_heads * model.head_dim * tokens * bytes_per_value
