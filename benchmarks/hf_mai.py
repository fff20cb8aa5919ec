"""The MAI model as transformers' `generate` and TRL's trainers want it (transformers 5.24).

The layers are the model's own modules, so weights and gradients are shared with it. Without a
cache, tokens take the model's own way, on a GPU in rows of whole multiples of `COLUMNS`, so that
few shapes are compiled; with one, keys and values go through transformers' cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from hillclimb.model.attention import Attention
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import DecoderLayer, MaiForCausalLM

COLUMNS = 128
MASKS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


class HfBackbone(nn.Module):
    """Everything below the head: tokens to final hidden states."""

    def __init__(self, mai: MaiForCausalLM) -> None:
        super().__init__()
        self.mai, self.config = mai, mai.config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, D) of tokens (B, T); masked columns are another document."""
        if not use_cache:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
            missing = -input_ids.shape[1] % COLUMNS if input_ids.is_cuda else 0
            ids, segments = F.pad(input_ids, (0, missing)), F.pad(mask, (0, missing)) - 1
            hidden = self.mai.hidden(ids, segments)[:, : input_ids.shape[1]]
            return BaseModelOutputWithPast(last_hidden_state=hidden)
        cache = DynamicCache(config=self.config) if cache is None else cache
        return BaseModelOutputWithPast(
            last_hidden_state=self._cached(input_ids, attention_mask, cache), cache=cache
        )

    def _cached(self, input_ids: Tensor, attention_mask: Tensor | None, cache: Cache) -> Tensor:
        past = cache.get_seq_length()
        x = self.mai.embed(input_ids)
        columns = torch.arange(past, past + input_ids.shape[1], device=x.device)
        half = self.config.head_dim // 2
        rate = self.config.rope_theta ** (-torch.arange(half, device=x.device) / half)
        angles = columns[:, None].float() * rate[None, :]
        rotary = angles.cos(), angles.sin()
        given = (self.config, x, attention_mask, cache, columns[None])
        masks = {kind: make(*given) for kind, make in MASKS.items()}
        for index, layer in enumerate(self.mai.layers):
            assert isinstance(layer, DecoderLayer)
            mask = masks[self.config.layer_types[index]]
            attended = _attend(layer.attention, layer.attention_in(x), mask, rotary, cache)
            x = x + layer.attention_out(attended)
            x = x + layer.ffn_out(layer.ffn(layer.ffn_in(x)))
        return self.mai.norm(x)


def _attend(
    attention: Attention, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor],
    cache: Cache,
) -> Tensor:  # fmt: skip
    batch, length, _ = x.shape
    h, g, d = attention.heads, attention.kv_heads, attention.head_dim
    qkv = attention.qkv(x).view(batch, length, h + 2 * g, d).transpose(1, 2)
    q, k, v = qkv.split((h, g, g), dim=1)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.local:
        q, k = _rotate(q, *rotary), _rotate(k, *rotary)
    k, v = cache.update(k, v, attention.layer)
    whole = mask is None and length > 1
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole, enable_gqa=h != g)
    return attention.out(y.transpose(1, 2).reshape(batch, length, h * d))


def _rotate(x_BHTd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_BHTd.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class HfMai(PreTrainedModel, GenerationMixin):
    """A `MaiForCausalLM` in transformers' clothes; its weights stay where they are."""

    config_class = MaiConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, mai: MaiForCausalLM) -> None:
        super().__init__(mai.config)
        self.model = HfBackbone(mai)
        self.lm_head = nn.Linear(mai.config.hidden_size, mai.config.vocab_size, bias=False)
        self.lm_head.weight = mai.embed.weight

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.mai.embed

    def get_output_embeddings(self) -> nn.Module:
        """The head, which has the embedding's weight."""
        return self.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the weights are there."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of all columns, or of the last `logits_to_keep`; positions are columns."""
        found = self.model(input_ids, attention_mask, cache, use_cache)
        hidden = found.last_hidden_state[:, -logits_to_keep:]
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden),  # type: ignore[arg-type]
            cache=found.cache,
        )
