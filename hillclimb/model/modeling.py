"""The decoder: local and global attention, dense and latent-MoE layers (report §2.1-2.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import PreTrainedModel

from hillclimb.model.attention import Attention, AttentionInputs, KVCache, RMSNorm
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.fast import FastInputs, fast_layer
from hillclimb.model.linear_cross_entropy import linear_cross_entropy
from hillclimb.model.moe import LatentMoE, SwiGLU
from hillclimb.model.parallel import Group, own_columns
from hillclimb.model.saving import SavedActivations


class DecoderLayer(nn.Module):
    """x + N_out(F(N_in(x))) for attention, then for the dense or latent-MoE feed-forward."""

    def __init__(self, config: MaiConfig, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.attention_in, self.attention_out = RMSNorm(width, eps), RMSNorm(width, eps)
        self.ffn_in, self.ffn_out = RMSNorm(width, eps), RMSNorm(width, eps)
        self.attention = Attention(config, layer)
        self.ffn: nn.Module = (
            LatentMoE(config) if config.is_moe(layer) else SwiGLU(width, config.dense_ffn_size)
        )
        self.is_moe = config.is_moe(layer)
        self.dropout = nn.Dropout(config.dropout)
        self.saved = SavedActivations()

    def forward(
        self, x_BTD: Tensor, inputs: AttentionInputs | FastInputs, cache: KVCache | None,
        routes_BTK: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Map (B, T, D) to (B, T, D); routes are for a layer of experts only."""
        return self.saved.layer(self, self._sublayers, x_BTD, inputs, cache, routes_BTK)

    def _sublayers(
        self, x_BTD: Tensor, inputs: AttentionInputs | FastInputs, cache: KVCache | None,
        routes_BTK: Tensor | None,
    ) -> Tensor:  # fmt: skip
        if isinstance(inputs, FastInputs):
            return fast_layer(self, x_BTD, inputs, routes_BTK)
        attended = self.attention(self.attention_in(x_BTD), inputs, cache)
        x_BTD = x_BTD + self.dropout(self.attention_out(attended))
        routes = () if routes_BTK is None else (routes_BTK,)
        return x_BTD + self.dropout(self.ffn_out(self.ffn(self.ffn_in(x_BTD), *routes)))


class MaiForCausalLM(PreTrainedModel):
    """MAI-Base-1 with its (tied) output head."""

    config_class = MaiConfig
    base_model_prefix = "model"
    config: MaiConfig

    def __init__(self, config: MaiConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.saved = SavedActivations()
        self.context: Group | None = None
        self.post_init()

    def lay_out(
        self, context: Group | None, experts: Group | None, saved: SavedActivations
    ) -> MaiForCausalLM:
        """Share the work: rows over the ranks of `context`, experts over those of `experts`.

        Each rank then gives `losses` the same whole rows and computes its own tokens. The caller
        leaves each layer the experts that are this rank's.
        """
        self.context, self.saved = context, saved
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.saved, layer.attention.group = saved, context
            if isinstance(layer.ffn, LatentMoE):
                layer.ffn.group = experts
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, which is the output head too."""
        return self.embed

    def get_output_embeddings(self) -> None:
        """None: the head is the embedding itself, not a tied copy."""
        return

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: `initialise` sets every weight, checkpoints set them otherwise."""

    @torch.no_grad()
    def initialise(self, seed: int) -> MaiForCausalLM:
        """N(0, std); projections into the residual scaled by 1/sqrt(2L); zero-init attention.

        Zero-init sets the gain of attention's output norm to zero and nothing else (report §2.2).
        """
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        residual = std / math.sqrt(2 * self.config.num_hidden_layers)
        into_residual = ("attention.out.weight", "ffn.down.weight", "ffn.latent_up.weight")
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                zero = self.config.zero_init_attention and "attention_out" in name
                weight.fill_(0.0 if zero else 1.0)
            else:
                scale = residual if name.endswith(into_residual) else std
                scale = self.config.embedding_range if name.startswith("embed") else scale
                weight.normal_(0.0, scale, generator=generator)
        return self

    def moe_layers(self) -> list[LatentMoE]:
        """The latent-MoE blocks, in depth order."""
        return [m for m in self.modules() if isinstance(m, LatentMoE)]

    def hidden(
        self,
        input_ids: Tensor,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        starts: Tensor | None = None,
        routes: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, D) of tokens (B, T); of its own ones, where ranks share rows.

        On a GPU, tokens without a cache take the fast path, whose products are in BF16.

        Args:
            input_ids: tokens.
            segments: (B, T) document numbers of a packed sequence; tokens see their own only.
            cache: keys and values of earlier columns; T new ones are appended.
            starts: (B,) first real column of left-padded rows (with a cache).
            routes: (B, T, MoE layers, top_k) experts that each token must go through, in whole
                numbers of any type, -1 where the router chooses. The gates are the router's own
                probabilities of those experts, and so are their gradients.

        Raises:
            ValueError: for routes of another number of layers or experts.
        """
        past = cache.length if cache is not None else 0
        inputs: AttentionInputs | FastInputs
        x = self.embed(input_ids[:, own_columns(input_ids.shape[1], self.context)])
        if input_ids.is_cuda and cache is None:
            inputs, x = FastInputs.of(input_ids, segments, self.config), x.float()
        else:
            inputs = AttentionInputs.of(self.config, input_ids, past, segments, starts)
        forced = self._routes(input_ids, routes)
        with self.saved.forward():
            for layer in self.layers:
                x = layer(x, inputs, cache, next(forced) if layer.is_moe else None)
        if cache is not None:
            cache.length += input_ids.shape[1]
        return self.norm(x)

    def _routes(self, input_ids: Tensor, routes: Tensor | None) -> Iterator[Tensor | None]:
        """What each MoE layer is told, in depth order."""
        moe = self.moe_layers()
        if routes is None:
            return iter([None] * len(moe))
        shape = (*input_ids.shape, len(moe), self.config.num_experts_per_tok)
        if routes.shape != shape:
            raise ValueError(f"routes are {tuple(routes.shape)}, this model and batch want {shape}")
        columns = own_columns(input_ids.shape[1], self.context)
        return iter(routes[:, columns].unbind(2))

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Output logits in FP32."""
        return F.linear(hidden_BTD.float(), self.embed.weight.float())

    def losses(
        self, input_ids: Tensor, segments: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The summed NLL of labels (B, T), -100 = ignored, and each token's (B*T,) in FP32.

        Only the sum has a graph on a GPU, where the logits are never held whole. Where ranks share
        rows, the sum is over this rank's tokens, and those of the others count zero.
        """
        total, nll = self(input_ids, segments, labels, summed=True)
        return total, nll

    def _losses(
        self, input_ids: Tensor, segments: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(input_ids, segments)
        columns = own_columns(labels.shape[1], self.context)
        mine = labels[:, columns].flatten()
        if input_ids.is_cuda:
            states = hidden.flatten(0, 1).to(torch.bfloat16)
            total, nll = linear_cross_entropy(states, self.embed.weight, mine)
        else:
            logits = self.logits(hidden).flatten(0, 1)
            nll = F.cross_entropy(logits, mine, ignore_index=-100, reduction="none")
            total = nll.sum()
        if self.context is not None:
            whole = torch.zeros(labels.shape, device=nll.device)
            whole[:, columns] = nll.detach().view(len(labels), -1)
            nll = whole.flatten()
        return total, nll

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        segments: Tensor | None = None,
        labels: Tensor | None = None,
        summed: bool = False,
        **_: Any,
    ) -> CausalLMOutput | tuple[Tensor, Tensor]:
        """Logits (B, T, V); with labels (-100 = ignored, already shifted) the mean loss too.

        Args:
            summed: give what `losses` gives. All training passes through here, because ZeRO-3
                gathers weights when modules are called.
        """
        if summed and labels is not None:
            return self._losses(input_ids, segments, labels)
        if self.context is not None:
            raise ValueError("logits of whole rows need context_parallel: 1")
        logits = self.logits(self.hidden(input_ids, segments))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=logits)  # type: ignore[arg-type]
