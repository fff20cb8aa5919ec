"""The decoder on a GPU: the same model, in fewer and larger kernels.

BF16 products with weights cast where they are used; FP32 for the residual stream, norms, router,
softmaxes, the sum over experts and the loss (report §2.8). Each sublayer is one compiled function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hillclimb.model.block_masks import attention_blocks
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.experts import mix_experts, mix_shared_experts
from hillclimb.model.kernels import float32_linear, top_experts
from hillclimb.model.moe import LatentMoE, SwiGLU, forced, shares
from hillclimb.model.parallel import heads_for_tokens, tokens_for_heads

if TYPE_CHECKING:
    from hillclimb.model.modeling import DecoderLayer

ONE_DOCUMENT = [SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
TILES: Any = {
    "fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3,
    "BACKEND": "TRITON",  # its decoding kernel, which it takes for short rows, knows no such tiles
}  # fmt: skip
KEPT_IN_FP32 = ("embed.weight", "router.weight")


def keep_weights_in_bf16(model: nn.Module) -> None:
    """Hold matrices in BF16, so that no step casts them; embedding, router and norms stay FP32.

    For training, the FP32 master weights are then the optimizer's.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.endswith(KEPT_IN_FP32):
            parameter.data = parameter.data.to(torch.bfloat16)


@dataclass(frozen=True)
class FastInputs:
    """What all layers of one forward share.

    Attributes:
        local: where a local layer may look.
        full: the same for global layers; None for cuDNN's kernel, where a row is one document.
        rotary: cosines and sines of local layers, (T, head_dim/2) each.
    """

    local: BlockMask
    full: BlockMask | None
    rotary: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, ids_BT: Tensor, segments_BT: Tensor | None, config: MaiConfig) -> FastInputs:
        """Masks of packed documents, or of one document a row.

        Deterministic algorithms leave only FlexAttention's kernels, which want a mask.
        """
        unmasked = segments_BT is None and not torch.are_deterministic_algorithms_enabled()
        segments = torch.zeros_like(ids_BT) if segments_BT is None else segments_BT
        half, device = config.head_dim // 2, ids_BT.device
        rate = config.rope_theta ** (-torch.arange(half, device=device) / half)
        angle = torch.arange(ids_BT.shape[1], device=device)[:, None].float() * rate[None, :]
        return cls(
            attention_blocks(segments, config.sliding_window),
            None if unmasked else attention_blocks(segments, None),
            (angle.cos(), angle.sin()),
        )


def fast_layer(
    layer: DecoderLayer, x_BTD: Tensor, inputs: FastInputs, routes_BTK: Tensor | None = None
) -> Tensor:
    """One decoder layer over FP32 states; does what `DecoderLayer.forward` does."""
    x_BTD = _attention_sublayer(layer, x_BTD, inputs)
    ffn, eps, dropout = layer.ffn, layer.ffn_in.eps, _dropout(layer)
    if isinstance(ffn, SwiGLU):
        return _compiled(_dense)(
            x_BTD, layer.ffn_in.weight, ffn.gate_up.weight, ffn.down.weight,
            layer.ffn_out.weight, eps, dropout,
        )  # fmt: skip
    assert isinstance(ffn, LatentMoE)
    before = layer.ffn_in.weight, ffn.router.weight, ffn.latent_down.weight
    after = ffn.latent_up.weight, layer.ffn_out.weight
    experts = ffn.gate_up_EFW, ffn.down_EWH
    if ffn.group is None:
        x_BTD, mean_E, chosen_E, chosen_NK = _compiled(_latent_moe)(
            x_BTD, *before, *experts, *after, routes_BTK, ffn.top_k, eps, dropout
        )
    else:
        latent_NW, gates_NK, chosen_NK, mean_E = _compiled(_route)(
            x_BTD, *before, routes_BTK, ffn.top_k, eps
        )
        mixed_NW, chosen_E = mix_shared_experts(latent_NW, gates_NK, chosen_NK, *experts, ffn.group)
        x_BTD = _compiled(_leave_latent)(x_BTD, mixed_NW, *after, eps, dropout)
    if layer.training and ffn.watched:
        ffn.mean_E, ffn.chosen_E = mean_E, chosen_E
    if ffn.recording:
        ffn.routes_NK = chosen_NK
    return x_BTD


def _attention_sublayer(layer: DecoderLayer, x_BTD: Tensor, inputs: FastInputs) -> Tensor:
    """One compiled function, or three around two all-to-alls where ranks share rows."""
    attention, eps, dropout = layer.attention, layer.attention_in.eps, _dropout(layer)
    mask, rotary = (inputs.local, inputs.rotary) if attention.local else (inputs.full, None)
    heads, kv_heads, group = attention.heads, attention.kv_heads, attention.group
    before = layer.attention_in.weight, attention.qkv.weight
    gains = attention.q_norm.weight, attention.k_norm.weight
    after = attention.out.weight, layer.attention_out.weight
    if group is None:
        return _compiled(_attention)(
            x_BTD, *before, *gains, *after, mask, rotary, heads, kv_heads, eps, dropout
        )
    states = _compiled(_project)(x_BTD, *before, attention.head_dim, eps)
    q, k, v = heads_for_tokens(states, heads, kv_heads, group)
    y = tokens_for_heads(_compiled(_attend)(q, k, v, *gains, mask, rotary, eps), group)
    return _compiled(_leave_attention)(x_BTD, y, *after, eps, dropout)


def _dropout(layer: DecoderLayer) -> float:
    return layer.dropout.p if layer.training else 0.0


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, fullgraph=True)


def _norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm in FP32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain.float()


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def _add(x: Tensor, y: Tensor, gain: Tensor, eps: float, dropout: float) -> Tensor:
    """x + dropout(norm(y)), in FP32."""
    return x + F.dropout(_norm(y, gain, eps), dropout, training=dropout > 0)


def _rotate(x_BTHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_BTHd.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _attention(
    x_BTD: Tensor, gain_in: Tensor, qkv: Tensor, gain_q: Tensor, gain_k: Tensor, out: Tensor,
    gain_out: Tensor, mask: BlockMask | None, rotary: tuple[Tensor, Tensor] | None, heads: int,
    kv_heads: int, eps: float, dropout: float,
) -> Tensor:  # fmt: skip
    states = _project(x_BTD, gain_in, qkv, gain_q.shape[0], eps)
    q, k, v = states.split((heads, kv_heads, kv_heads), dim=2)
    y = _attend(q, k, v, gain_q, gain_k, mask, rotary, eps)
    return _leave_attention(x_BTD, y, out, gain_out, eps, dropout)


def _project(x_BTD: Tensor, gain_in: Tensor, qkv: Tensor, width: int, eps: float) -> Tensor:
    """Queries, keys and values (B, T, heads, d) in BF16."""
    return _linear(_norm(x_BTD, gain_in, eps).to(torch.bfloat16), qkv).unflatten(-1, (-1, width))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, gain_q: Tensor, gain_k: Tensor, mask: BlockMask | None,
    rotary: tuple[Tensor, Tensor] | None, eps: float,
) -> Tensor:  # fmt: skip
    """Attention over whole rows, (B, T, heads, d) each."""
    q, k = _norm(q, gain_q, eps), _norm(k, gain_k, eps)
    if rotary is not None:
        q, k = _rotate(q, *rotary), _rotate(k, *rotary)
    q, k, v = (t.to(torch.bfloat16).transpose(1, 2) for t in (q, k, v))
    if mask is None:
        with sdpa_kernel(ONE_DOCUMENT):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        y = flex_attention(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=TILES)
    return y.transpose(1, 2)


def _leave_attention(
    x_BTD: Tensor, y_BTHd: Tensor, out: Tensor, gain_out: Tensor, eps: float, dropout: float
) -> Tensor:
    return _add(x_BTD, _linear(y_BTHd.flatten(2), out), gain_out, eps, dropout)


def _dense(
    x_BTD: Tensor, gain_in: Tensor, gate_up: Tensor, down: Tensor, gain_out: Tensor, eps: float,
    dropout: float,
) -> Tensor:  # fmt: skip
    gate, up = _linear(_norm(x_BTD, gain_in, eps).to(torch.bfloat16), gate_up).chunk(2, dim=-1)
    inner = (F.silu(gate.float()) * up.float()).to(torch.bfloat16)
    return _add(x_BTD, _linear(inner, down), gain_out, eps, dropout)


def _latent_moe(
    x_BTD: Tensor, gain_in: Tensor, router: Tensor, latent_down: Tensor, gate_up_EFW: Tensor,
    down_EWH: Tensor, latent_up: Tensor, gain_out: Tensor, routes_BTK: Tensor | None, top_k: int,
    eps: float, dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    latent_NW, gates_NK, chosen_NK, mean_E = _route(
        x_BTD, gain_in, router, latent_down, routes_BTK, top_k, eps
    )
    mixed_NW, chosen_E = mix_experts(
        latent_NW, gates_NK, chosen_NK, gate_up_EFW.to(latent_NW.dtype),
        down_EWH.to(latent_NW.dtype),
    )  # fmt: skip
    x_BTD = _leave_latent(x_BTD, mixed_NW, latent_up, gain_out, eps, dropout)
    return x_BTD, mean_E, chosen_E, chosen_NK


def _route(
    x_BTD: Tensor, gain_in: Tensor, router: Tensor, latent_down: Tensor,
    routes_BTK: Tensor | None, top_k: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Latent states, gates and numbers of the chosen experts, mean probabilities."""
    normed_ND = _norm(x_BTD, gain_in, eps).flatten(0, 1)
    probs_NE = F.softmax(float32_linear(normed_ND, router.float()), dim=-1)
    chosen_NK = top_experts(probs_NE.detach(), top_k)
    if routes_BTK is not None:
        chosen_NK = forced(routes_BTK, chosen_NK)
    gates_NK = shares(probs_NE.gather(1, chosen_NK))
    latent_NW = _linear(normed_ND.to(torch.bfloat16), latent_down)
    return latent_NW, gates_NK, chosen_NK, probs_NE.mean(0)


def _leave_latent(
    x_BTD: Tensor, mixed_NW: Tensor, latent_up: Tensor, gain_out: Tensor, eps: float, dropout: float
) -> Tensor:
    y_BTD = _linear(mixed_NW, latent_up).view(x_BTD.shape)
    return _add(x_BTD, y_BTD, gain_out, eps, dropout)
