"""The model's configuration (report §2.1)."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig


class MaiConfig(PretrainedConfig):
    """Shape of MAI-Base-1. `dense_ffn_size` and `expert_ffn_size` count gate and up together."""

    model_type = "mai"

    def __init__(
        self,
        vocab_size: int = 512,
        num_hidden_layers: int = 6,
        hidden_size: int = 96,
        dense_ffn_size: int = 192,
        latent_size: int = 48,
        expert_ffn_size: int = 128,
        num_experts: int = 8,
        num_experts_per_tok: int = 2,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 2,
        head_dim: int = 24,
        sliding_window: int = 64,
        global_every: int = 6,
        rope_theta: float = 10_000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        embedding_range: float = 0.02,
        zero_init_attention: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.num_hidden_layers = num_hidden_layers
        self.hidden_size = hidden_size
        self.dense_ffn_size = dense_ffn_size
        self.latent_size = latent_size
        self.expert_ffn_size = expert_ffn_size
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.sliding_window = sliding_window
        self.global_every = global_every
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.embedding_range = embedding_range
        self.zero_init_attention = zero_init_attention
        self.dropout = dropout
        kwargs.setdefault("tie_word_embeddings", True)
        kwargs.setdefault("architectures", ["MaiForCausalLM"])
        super().__init__(**kwargs)

    @property
    def layer_types(self) -> list[str]:
        """`sliding_attention`, or `full_attention` in every n-th layer and so in the last one."""
        return [
            "full_attention" if (i + 1) % self.global_every == 0 else "sliding_attention"
            for i in range(self.num_hidden_layers)
        ]

    def is_moe(self, layer: int) -> bool:
        """Dense and MoE layers alternate; the first is dense."""
        return layer % 2 == 1

    @classmethod
    def from_recipe(cls, model: dict[str, Any], vocab_size: int, **kwargs: Any) -> MaiConfig:
        """The configuration that a recipe's model section (as a dict) asks for."""
        return cls(
            vocab_size=vocab_size,
            num_hidden_layers=model["layers"],
            hidden_size=model["hidden"],
            dense_ffn_size=model["dense_ffn"],
            latent_size=model["latent"],
            expert_ffn_size=model["expert_ffn"],
            num_experts=model["experts"],
            num_experts_per_tok=model["experts_per_token"],
            num_attention_heads=model["query_heads"],
            num_key_value_heads=model["kv_heads"],
            head_dim=model["head_dim"],
            sliding_window=model["window"],
            global_every=model["global_every"],
            rope_theta=model["rope_base"],
            rms_norm_eps=model["norm_eps"],
            initializer_range=model["init_std"],
            embedding_range=model["embedding_std"],
            zero_init_attention=model["zero_init_attention"],
            **kwargs,
        )
