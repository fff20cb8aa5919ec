"""MAI-Base-1 in vLLM: its paged attention, its sharded linears, its fused experts.

The same sums as `hillclimb.model`, and the same names in checkpoints. The embedding, states between
layers, norms, routers and logits are FP32 whatever the type of the engine, as in the learner: what
is rounded there and not here, or the other way round, comes back as a gap between their
log-probabilities.
Imported by vLLM alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention as PagedAttention
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.platforms import current_platform

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.experts import mix_experts

try:
    from vllm.model_executor.layers.fused_moe import FusedMoEFactory
except ImportError:
    from vllm.model_executor.layers.fused_moe import FusedMoE as FusedMoEFactory

HEAD_SIZES = (32, 64, 96, 128, 192, 256)
VOCABULARY_MULTIPLE = 64


class RMSNorm(nn.Module):
    """x / rms(x) * gain, in FP32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=torch.float32), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Matrix(nn.Module):
    """A weight by itself, (rows, columns)."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.empty(rows, columns, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)


class Attention(nn.Module):
    """Grouped queries with normalised q and k; rotary positions and a window on local layers.

    Attention kernels know few head sizes: others are filled up with zeros.
    """

    def __init__(self, config: MaiConfig, layer: int, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.local = config.layer_types[layer] == "sliding_attention"
        self.head_dim = config.head_dim
        self.padding = min(s for s in HEAD_SIZES if s >= self.head_dim) - self.head_dim
        self.qkv = QKVParallelLinear(
            config.hidden_size, config.head_dim, config.num_attention_heads,
            config.num_key_value_heads, bias=False, prefix=f"{prefix}.qkv",
        )  # fmt: skip
        self.heads, self.kv_heads = self.qkv.num_heads, self.qkv.num_kv_heads
        self.out = RowParallelLinear(
            config.num_attention_heads * config.head_dim, config.hidden_size, bias=False,
            prefix=f"{prefix}.out",
        )  # fmt: skip
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.core = PagedAttention(
            self.heads,
            self.head_dim + self.padding,
            self.head_dim**-0.5,
            self.kv_heads,
            cache_config=vllm_config.cache_config,
            per_layer_sliding_window=config.sliding_window if self.local else None,
            prefix=f"{prefix}.core",
        )

    def forward(self, x_ND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (N, D) to (N, D), in the type of the engine."""
        qkv, _ = self.qkv(x_ND)
        states = qkv.unflatten(-1, (-1, self.head_dim))
        q, k, v = states.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.local:
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        q, k, v = (F.pad(t.to(x_ND.dtype), (0, self.padding)).flatten(1) for t in (q, k, v))
        y = self.core(q, k, v).unflatten(-1, (self.heads, -1))[..., : self.head_dim]
        return self.out(y.flatten(1))[0]


def _rotate(x_NHd: Tensor, cos_N1d: Tensor, sin_N1d: Tensor) -> Tensor:
    a, b = x_NHd.chunk(2, dim=-1)
    return torch.cat((a * cos_N1d - b * sin_N1d, b * cos_N1d + a * sin_N1d), dim=-1)


class SwiGLU(nn.Module):
    """W_down(silu(gate) * up)."""

    def __init__(self, config: MaiConfig, prefix: str) -> None:
        super().__init__()
        half = config.dense_ffn_size // 2
        self.gate_up = MergedColumnParallelLinear(
            config.hidden_size, [half, half], bias=False, prefix=f"{prefix}.gate_up"
        )
        self.down = RowParallelLinear(half, config.hidden_size, bias=False, prefix=f"{prefix}.down")

    def forward(self, x_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """Map FP32 states (N, D) to (N, D)."""
        gate, up = self.gate_up(x_ND.to(dtype))[0].chunk(2, dim=-1)
        return self.down((F.silu(gate.float()) * up.float()).to(dtype))[0]


class Experts(nn.Module):
    """The experts as plain grouped products, for CPUs.

    vLLM's fused experts for CPUs repack their weights and are silently wrong after a reload.
    """

    def __init__(self, config: MaiConfig) -> None:
        super().__init__()
        count, ffn, width = config.num_experts, config.expert_ffn_size, config.latent_size
        self.top_k = config.num_experts_per_tok
        self.gate_up = nn.Parameter(torch.empty(count, ffn, width), requires_grad=False)
        self.down = nn.Parameter(torch.empty(count, width, ffn // 2), requires_grad=False)

    def forward(self, latent_NW: Tensor, logits_NE: Tensor) -> Tensor:
        """sum_k g_k FFN_k(latent)."""
        gates_NK, chosen_NK = logits_NE.softmax(-1).topk(self.top_k, dim=-1)
        gates_NK = gates_NK / gates_NK.sum(-1, keepdim=True)
        return mix_experts(latent_NW, gates_NK, chosen_NK, self.gate_up, self.down)[0]


class LatentMoE(nn.Module):
    """W_up of the experts' mixture of W_down x; the router sees the full state."""

    def __init__(self, config: MaiConfig, prefix: str) -> None:
        super().__init__()
        width, latent = config.hidden_size, config.latent_size
        self.router = Matrix(config.num_experts, width, torch.float32)
        self.latent_down = ReplicatedLinear(
            width, latent, bias=False, prefix=f"{prefix}.latent_down"
        )
        self.latent_up = ReplicatedLinear(latent, width, bias=False, prefix=f"{prefix}.latent_up")
        self.experts: Any = (
            Experts(config)
            if current_platform.is_cpu()
            else FusedMoEFactory(
                num_experts=config.num_experts,
                top_k=config.num_experts_per_tok,
                hidden_size=latent,
                intermediate_size=config.expert_ffn_size // 2,
                renormalize=True,
                scoring_func="softmax",
                activation="silu",
                router_logits_dtype=torch.float32,
                prefix=f"{prefix}.experts",
            )
        )

    def forward(self, x_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """Map FP32 states (N, D) to (N, D)."""
        logits_NE = F.linear(x_ND, self.router.weight)
        latent_NW, _ = self.latent_down(x_ND.to(dtype))
        return self.latent_up(self.experts(latent_NW, logits_NE).to(dtype))[0]


class DecoderLayer(nn.Module):
    """x + N_out(F(N_in(x))) for attention, then for the dense or latent-MoE feed-forward."""

    def __init__(self, config: MaiConfig, layer: int, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.dtype = vllm_config.model_config.dtype
        self.attention_in, self.attention_out = RMSNorm(width, eps), RMSNorm(width, eps)
        self.ffn_in, self.ffn_out = RMSNorm(width, eps), RMSNorm(width, eps)
        self.attention = Attention(config, layer, vllm_config, f"{prefix}.attention")
        self.ffn: nn.Module = (
            LatentMoE(config, f"{prefix}.ffn")
            if config.is_moe(layer)
            else SwiGLU(config, f"{prefix}.ffn")
        )

    def forward(self, x_ND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map FP32 states (N, D) to (N, D)."""
        attended = self.attention(self.attention_in(x_ND).to(self.dtype), cos, sin)
        x_ND = x_ND + self.attention_out(attended)
        return x_ND + self.ffn_out(self.ffn(self.ffn_in(x_ND), self.dtype))


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0})
class Decoder(nn.Module):
    """From tokens to normalised states."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: MaiConfig = vllm_config.model_config.hf_config
        self.pairs, self.theta = config.head_dim // 2, config.rope_theta
        rows = config.vocab_size + -config.vocab_size % VOCABULARY_MULTIPLE
        self.embed = Matrix(rows, config.hidden_size, torch.float32)
        vars(self.embed.weight)["weight_loader"] = _load_first_rows
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, vllm_config, f"{prefix}layers.{i}")
            for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """FP32 states (N, D) of tokens (N,) at positions (N,)."""
        x_ND = F.embedding(input_ids, self.embed.weight)
        rate = self.theta ** (-torch.arange(self.pairs, device=positions.device) / self.pairs)
        angle_N1d = (positions[:, None].float() * rate[None, :])[:, None]
        cos, sin = angle_N1d.cos(), angle_N1d.sin()
        for layer in self.layers:
            x_ND = layer(x_ND, cos, sin)
        return self.norm(x_ND)


class MaiForCausalLM(nn.Module):
    """The network as vLLM wants to call it. Each rank holds the whole embedding."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config: MaiConfig = vllm_config.model_config.hf_config
        self.decoder: Any = Decoder(vllm_config=vllm_config, prefix=prefix)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embeddings of tokens."""
        return F.embedding(input_ids, self.decoder.embed.weight)

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: None = None,
        inputs_embeds: None = None,
    ) -> Tensor:  # fmt: skip
        """States (N, D) of tokens (N,) at positions (N,), FP32."""
        return self.decoder(input_ids, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits (N, V) in FP32; the rows that fill the vocabulary up have none."""
        logits = F.linear(hidden_states, self.decoder.embed.weight)
        return logits[:, : self.config.vocab_size]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take a checkpoint's tensors; returns the parameters that they filled."""
        parameters = dict(self.named_parameters())
        loaded: set[str] = set()
        for name, tensor in weights:
            layer, _, kind = f"decoder.{name}".rpartition(".")
            if kind not in ("gate_up_EFW", "down_EWH"):
                loaded.add(f"{layer}.{kind}")
                _load(parameters[f"{layer}.{kind}"], tensor)
            elif current_platform.is_cpu():
                own = f"{layer}.experts.{'gate_up' if kind == 'gate_up_EFW' else 'down'}"
                loaded.add(own)
                _load(parameters[own], tensor)
            else:
                loaded |= _load_experts(parameters, f"{layer}.experts.", kind, tensor)
        return loaded


def _load(parameter: Any, tensor: Tensor) -> None:
    loader = getattr(parameter, "weight_loader", _load_whole)
    loader(parameter, tensor)


def _load_whole(param: Tensor, loaded_weight: Tensor) -> None:
    param.data.copy_(loaded_weight)


def _load_first_rows(param: Tensor, loaded_weight: Tensor) -> None:
    """vLLM's reload replays this by the names of its arguments."""
    param.data[: len(loaded_weight)].copy_(loaded_weight)
    param.data[len(loaded_weight) :].zero_()


def _load_experts(parameters: dict[str, Any], prefix: str, kind: str, tensor: Tensor) -> set[str]:
    """Give the fused experts their three kinds of weights, each expert's by itself."""
    fused = "w2_weight" if kind == "down_EWH" else "w13_weight"
    name = next(n for n in parameters if n.startswith(prefix) and n.endswith(fused))
    parts = (
        {"w2": tensor}
        if kind == "down_EWH"
        else dict(zip(("w1", "w3"), tensor.chunk(2, dim=1), strict=True))
    )
    for shard, weights in parts.items():
        for expert, weight in enumerate(weights.unbind(0)):
            parameters[name].weight_loader(
                parameters[name], weight, name, shard_id=shard, expert_id=expert
            )
    return {name}
