"""LatentMoE: the router sees the full state, the experts work in a shared latent (report §2.2)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.parallel import Dispatch, Group

_LEAST = 1e-20


class Linear(nn.Linear):
    """x · W^T without bias, in the type of x whatever the weight is stored in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, inputs) to (…, outputs)."""
        return F.linear(x, self.weight.to(x.dtype))


class SwiGLU(nn.Module):
    """W_down(silu(gate) * up), gate and up from one linear without bias."""

    def __init__(self, width: int, ffn_size: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, ffn_size)
        self.down = Linear(ffn_size // 2, width)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Map (…, D) to (…, D)."""
        gate, up = self.gate_up(x_TD).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class RouterLoad:
    """How often each expert of each layer was chosen in the current optimiser step, on all ranks.

    The balance loss of a micro-batch uses the counts of the whole step so far, summed over all
    ranks: aggregation matters more than the kind of loss (report §2.2). One collective serves all
    layers.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.counts_LE = torch.zeros(layers, experts, dtype=torch.float64)

    def balance(self, mean_LE: Tensor, chosen_LE: Tensor) -> Tensor:
        """Add one micro-batch, and give its balance loss: 1 when every expert is used alike.

        Args:
            mean_LE: mean router probabilities, with their graph.
            chosen_LE: how many tokens chose each expert on this rank.
        """
        chosen = chosen_LE.detach().double()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(chosen)
        self.counts_LE = self.counts_LE.to(chosen.device) + chosen
        return mean_LE.shape[1] * (self.shares().to(mean_LE) * mean_LE).sum(1).mean()

    def shares(self) -> Tensor:
        """f (L, E): each expert's share of its layer's choices in the step so far."""
        return self.counts_LE / self.counts_LE.sum(1, keepdim=True).clamp_min(1.0)

    def reset(self) -> None:
        """Start the next step."""
        self.counts_LE.zero_()


def forced(routes_BTK: Tensor, chosen_NK: Tensor) -> Tensor:
    """The experts that tokens go through: the given ones, the router's where those are negative."""
    routes_NK = routes_BTK.flatten(0, 1).to(chosen_NK.dtype)
    return torch.where(routes_NK < 0, chosen_NK, routes_NK)


def shares(probs_NK: Tensor) -> Tensor:
    """The experts' probabilities over their sum; forced experts may all be next to impossible."""
    return probs_NK / probs_NK.sum(-1, keepdim=True).clamp_min(_LEAST)


class LatentMoE(nn.Module):
    """y = W_up sum_e g_e FFN_e(W_down x), top-k of a softmax over all experts, renormalised.

    Dropless: every token reaches its k experts. Rows are sorted by expert, so each expert is one
    matrix product. With a `group`, this rank holds its share of the experts only, and rows travel
    to the ranks that hold theirs.
    """

    def __init__(self, config: MaiConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.experts = config.num_experts
        self.router = Linear(config.hidden_size, config.num_experts)
        self.latent_down = Linear(config.hidden_size, config.latent_size)
        self.latent_up = Linear(config.latent_size, config.hidden_size)
        width, ffn = config.latent_size, config.expert_ffn_size
        self.gate_up_EFW = nn.Parameter(torch.empty(config.num_experts, ffn, width))
        self.down_EWH = nn.Parameter(torch.empty(config.num_experts, width, ffn // 2))
        self.mean_E = self.chosen_E = torch.empty(0)
        self.group: Group | None = None
        self.watched, self.recording = True, False
        self.routes_NK = torch.empty(0)

    def forward(self, x_BTD: Tensor, routes_BTK: Tensor | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D); in training leaves `mean_E` and `chosen_E` for the load.

        Not so where it is not `watched`: a layer that is computed once more for its gradients.
        While `recording`, leaves the chosen experts in `routes_NK`.

        Args:
            routes_BTK: experts that tokens must go through; see `MaiForCausalLM.hidden`.
        """
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        probs_NE = F.softmax(self.router(x_ND).float(), dim=-1)
        gates_NK, chosen_NK = torch.topk(probs_NE, self.top_k, dim=-1)
        if routes_BTK is not None:
            chosen_NK = forced(routes_BTK, chosen_NK)
            gates_NK = probs_NE.gather(1, chosen_NK)
        gates_NK = shares(gates_NK)
        counts_E = torch.bincount(chosen_NK.flatten(), minlength=self.experts)
        if self.training and self.watched:
            self.mean_E, self.chosen_E = probs_NE.mean(0), counts_E
        if self.recording:
            self.routes_NK = chosen_NK
        latent_NW = self.latent_down(x_ND)
        mixed_NW = self._dispatch(latent_NW, gates_NK, chosen_NK, counts_E)
        return self.latent_up(mixed_NW).view_as(x_BTD)

    def _dispatch(
        self, latent_NW: Tensor, gates_NK: Tensor, chosen_NK: Tensor, counts_E: Tensor
    ) -> Tensor:
        order = torch.sort(chosen_NK.flatten(), stable=True).indices
        token_M = torch.div(order, self.top_k, rounding_mode="floor")
        out_MW = self._experts(latent_NW.index_select(0, token_M), counts_E)
        weighted = out_MW * gates_NK.flatten().index_select(0, order)[:, None]
        return torch.zeros_like(latent_NW).index_add(0, token_M, weighted.to(latent_NW.dtype))

    def _experts(self, rows_MW: Tensor, counts_E: Tensor) -> Tensor:
        """Each row through its expert; rows are in order of their expert."""
        if self.group is None:
            return self._products(rows_MW, counts_E)
        dispatch = Dispatch(counts_E, self.group)
        order_M = torch.sort(dispatch.experts(), stable=True).indices
        rows_MW = dispatch.out(rows_MW).index_select(0, order_M)
        out_MW = self._products(rows_MW, dispatch.theirs_PE.sum(0))
        return dispatch.back(out_MW.index_select(0, torch.argsort(order_M)))

    def _products(self, rows_MW: Tensor, counts_E: Tensor) -> Tensor:
        outs = []
        for rows_W, gate_up, down in zip(
            rows_MW.split(counts_E.tolist()),
            self.gate_up_EFW.unbind(0),
            self.down_EWH.unbind(0),
            strict=True,
        ):
            gate, up = F.linear(rows_W, gate_up.to(rows_W.dtype)).chunk(2, dim=-1)
            outs.append(F.linear(F.silu(gate) * up, down.to(rows_W.dtype)))
        return torch.cat(outs)
