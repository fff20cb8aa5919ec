"""Attention: grouped queries, windows, caches, and rows shared by ranks (report §2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.moe import Linear
from hillclimb.model.parallel import Group, heads_for_tokens, tokens_for_heads


class RMSNorm(nn.Module):
    """x / rms(x) * gain, computed in FP32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


@dataclass
class AttentionInputs:
    """What attention needs besides the states.

    Attributes:
        local: bool mask (B, 1, T, S), True where a local layer may look.
        full: the same for global layers.
        cos, sin: rotary tables for the T query positions, (T, head_dim/2) or (B, 1, T, head_dim/2).
    """

    local: Tensor
    full: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(
        cls, config: MaiConfig, ids: Tensor, past: int, segments: Tensor | None,
        starts: Tensor | None,
    ) -> AttentionInputs:  # fmt: skip
        """For tokens (B, T) after `past` cached ones; see `MaiForCausalLM.hidden`."""
        length, device = ids.shape[1], ids.device
        query = torch.arange(past, past + length, device=device)
        key = torch.arange(past + length, device=device)
        distance = query[:, None] - key[None, :]
        full = (distance >= 0)[None, None]
        if segments is not None:
            full = full & (segments[:, None, :, None] == segments[:, None, None, :])
        if starts is not None:
            visible = key[None, :] >= starts[:, None]
            full = full & (visible[:, None, None, :] | (distance == 0)[None, None])
        local = full & (distance < config.sliding_window)[None, None]
        half = config.head_dim // 2
        rate = config.rope_theta ** (-torch.arange(half, device=device) / half)
        angle = query[:, None].float() * rate[None, :]
        return cls(local, full, angle.cos(), angle.sin())


@dataclass
class KVCache:
    """Keys and values of all layers, (L, B, H_kv, S_max, d); `length` columns are filled."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(
        cls, config: MaiConfig, batch: int, columns: int, like: Tensor | None = None
    ) -> KVCache:
        """Room for `columns` tokens of `batch` sequences, of the type and device of `like`."""
        shape = (
            config.num_hidden_layers, batch, config.num_key_value_heads, columns, config.head_dim
        )  # fmt: skip
        one = torch.empty(0) if like is None else like
        return cls(one.new_zeros(shape), one.new_zeros(shape))

    def write(self, layer: int, k_BHTd: Tensor, v_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Append T columns to a layer; returns everything up to them."""
        end = self.length + k_BHTd.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BHTd
        self.values[layer, :, :, self.length : end] = v_BHTd
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> KVCache:
        """Keep (or repeat) the given rows."""
        rows = rows.to(self.keys.device)
        return KVCache(
            self.keys.index_select(1, rows), self.values.index_select(1, rows), self.length
        )


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on q and k; rotary positions on local layers only.

    With a `group`, rows are cut into its ranks' tokens: two all-to-alls give each rank whole rows
    of some of the heads and take the results back, so windows, documents and positions are exact.
    """

    def __init__(self, config: MaiConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.local = config.layer_types[layer] == "sliding_attention"
        self.window = config.sliding_window
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = Linear(config.hidden_size, width)
        self.out = Linear(self.heads * self.head_dim, config.hidden_size)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.group: Group | None = None

    def forward(self, x_BTD: Tensor, inputs: AttentionInputs, cache: KVCache | None) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        batch, length, _ = x_BTD.shape
        h, g, d = self.heads, self.kv_heads, self.head_dim
        qkv = self.qkv(x_BTD).view(batch, length, h + 2 * g, d)
        if self.group is None:
            q, k, v = qkv.transpose(1, 2).split((h, g, g), dim=1)
        else:
            q, k, v = (t.transpose(1, 2) for t in heads_for_tokens(qkv, h, g, self.group))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.local:
            q, k = _rotate(q, inputs.cos, inputs.sin), _rotate(k, inputs.cos, inputs.sin)
        mask = inputs.local if self.local else inputs.full
        if cache is not None:
            k, v = cache.write(self.layer, k, v)
            if self.local and length == 1 and k.shape[2] > self.window:
                k, v = k[:, :, -self.window :], v[:, :, -self.window :]
                mask = mask[..., -self.window :]
        gqa = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)
        y = y.transpose(1, 2)
        if self.group is not None:
            y = tokens_for_heads(y, self.group)
        return self.out(y.reshape(batch, length, h * d))


def _rotate(x_BHTd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_BHTd.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_BHTd.dtype)
