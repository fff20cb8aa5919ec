"""MAI-Base-1 as a plain Hugging Face model would compute it, for `model_speed.py` to beat.

BF16 throughout with norms in FP32 inside, compiled FlexAttention, experts through
`torch._grouped_mm`, and the loss over chunks of logits under activation checkpointing. It takes the
weights of a `MaiForCausalLM` and reads its modules for nothing else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

from hillclimb.model.attention import Attention, RMSNorm
from hillclimb.model.block_masks import attention_blocks
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.moe import LatentMoE, SwiGLU

CHUNK = 4096
_flex = torch.compile(flex_attention)


def naive_losses(
    model: MaiForCausalLM, ids_BT: Tensor, segments_BT: Tensor | None, labels_BT: Tensor
) -> Tensor:
    """The summed NLL; leaves `mean_E` and `chosen_E` in the MoE layers."""
    config, length = model.config, ids_BT.shape[1]
    segments_BT = torch.zeros_like(ids_BT) if segments_BT is None else segments_BT
    masks = {
        True: attention_blocks(segments_BT, config.sliding_window),
        False: attention_blocks(segments_BT, None),
    }
    half = config.head_dim // 2
    rate = config.rope_theta ** (-torch.arange(half, device=ids_BT.device) / half)
    angle = torch.arange(length, device=ids_BT.device)[:, None].float() * rate
    angle = torch.cat((angle, angle), -1)
    rotary = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    x = model.embed(ids_BT)
    for layer in model.layers:
        mask = masks[layer.attention.local]
        y = _attention(layer.attention, _norm(layer.attention_in, x), mask, rotary)
        x = x + _norm(layer.attention_out, y)
        y = _norm(layer.ffn_in, x)
        y = _moe(layer.ffn, y) if isinstance(layer.ffn, LatentMoE) else _dense(layer.ffn, y)
        x = x + _norm(layer.ffn_out, y)
    x_ND, labels_N = _norm(model.norm, x).flatten(0, 1), labels_BT.flatten()
    total = x.new_zeros((), dtype=torch.float32)
    for hidden, labels in zip(x_ND.split(CHUNK), labels_N.split(CHUNK), strict=True):
        total = total + checkpoint(_nll, hidden, model.embed.weight, labels, use_reentrant=False)
    return total


def _nll(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * wide.to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def _attention(
    module: Attention, x_BTD: Tensor, mask: BlockMask, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    h, g, d = module.heads, module.kv_heads, module.head_dim
    states = module.qkv(x_BTD).unflatten(-1, (h + 2 * g, d)).transpose(1, 2)
    q, k, v = states.split((h, g, g), dim=1)
    q, k = _norm(module.q_norm, q), _norm(module.k_norm, k)
    if module.local:
        q, k = _rotate(q, *rotary), _rotate(k, *rotary)
    y = _flex(q, k, v, block_mask=mask, enable_gqa=h != g)
    return module.out(y.transpose(1, 2).flatten(2))


def _dense(module: SwiGLU, x_BTD: Tensor) -> Tensor:
    gate, up = module.gate_up(x_BTD).chunk(2, dim=-1)
    return module.down(F.silu(gate) * up)


def _moe(module: LatentMoE, x_BTD: Tensor) -> Tensor:
    x_ND = x_BTD.flatten(0, 1)
    probs_NE = F.softmax(module.router(x_ND).float(), dim=-1)
    gates_NK, chosen_NK = torch.topk(probs_NE, module.top_k, dim=-1)
    gates_NK = (gates_NK / gates_NK.sum(-1, keepdim=True)).to(x_ND.dtype)
    order = torch.argsort(chosen_NK.flatten(), stable=True)
    counts_E = torch.bincount(chosen_NK.flatten(), minlength=module.experts)
    module.mean_E, module.chosen_E = probs_NE.mean(0), counts_E
    ends_E = counts_E.cumsum(0).to(torch.int32)
    rows = module.latent_down(x_ND)[order // module.top_k]
    inner = torch._grouped_mm(rows, module.gate_up_EFW.transpose(-2, -1), offs=ends_E)
    gate, up = inner.chunk(2, dim=-1)
    out = torch._grouped_mm(F.silu(gate) * up, module.down_EWH.transpose(-2, -1), offs=ends_E)
    out = out * gates_NK.flatten()[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x_ND.device))
    mixed = out[back].view(*chosen_NK.shape, -1).sum(1)
    return module.latent_up(mixed).view_as(x_BTD)
