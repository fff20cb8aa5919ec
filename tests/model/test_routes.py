"""Routes recorded in one pass and forced in another, against slow loops, on both paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.fast import FastInputs, _latent_moe
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.moe import LatentMoE
from hillclimb.model.routes import for_model, recorded
from hillclimb.model.saving import SavedActivations

EXPERTS, K, TOKENS = 6, 2, 13


def network(**changes: object) -> MaiForCausalLM:
    values = {
        "vocab_size": 40, "hidden_size": 32, "dense_ffn_size": 48, "latent_size": 16,
        "expert_ffn_size": 32, "num_experts": EXPERTS, "num_experts_per_tok": K, "head_dim": 16,
        "zero_init_attention": False, "initializer_range": 0.3, "embedding_range": 1.0,
    }  # fmt: skip
    return MaiForCausalLM(MaiConfig(**{**values, **changes})).initialise(1)


def tokens() -> Tensor:
    return torch.randint(0, 40, (2, TOKENS), generator=torch.Generator().manual_seed(0))


def other_routes(layers: int = 3) -> Tensor:
    """Experts that no router asked for, two different ones a token."""
    scores = torch.rand(2, TOKENS, layers, EXPERTS, generator=torch.Generator().manual_seed(5))
    return scores.topk(K).indices


def routed(model: MaiForCausalLM, routes: Tensor | None) -> tuple[Tensor, np.ndarray]:
    with recorded(model) as last:
        hidden = model.hidden(tokens().to(model.embed.weight.device), routes=routes)
        return hidden, last().reshape(2, TOKENS, -1, K)


@torch.no_grad()
def test_the_routes_of_a_free_pass_give_its_states_to_the_bit() -> None:
    model = network()
    free, routes = routed(model, None)
    assert (routes.dtype, routes.shape) == (np.uint16, (2, TOKENS, 3, K))
    again, same = routed(model, for_model(routes))
    assert torch.equal(free, again)
    assert np.array_equal(routes, same)
    assert not model.moe_layers()[0].recording, "recording ends with its block"


@torch.no_grad()
def test_tokens_go_where_they_are_told_and_the_others_where_they_want() -> None:
    model, told = network(), other_routes()
    free, routes = routed(model, None)
    told[:, 4:] = -1
    states, found = routed(model, told)
    assert np.array_equal(found[:, :4], told[:, :4].numpy())
    assert not np.array_equal(found[:, :4], routes[:, :4])
    assert not torch.allclose(states[:, :4], free[:, :4], atol=1e-2)
    nothing, freely = routed(model, torch.full((2, TOKENS, 3, K), -1, dtype=torch.int16))
    assert torch.equal(nothing, free)
    assert np.array_equal(freely, routes)


def slowly(moe: LatentMoE, x_ND: Tensor, chosen_NK: Tensor) -> Tensor:
    """One token and one expert at a time."""
    rows = []
    for x, chosen in zip(x_ND, chosen_NK.tolist(), strict=True):
        chances = (moe.router.weight @ x).softmax(0)
        latent = moe.latent_down.weight @ x
        mixed = torch.zeros_like(latent)
        for e in chosen:
            a, b = (moe.gate_up_EFW[e] @ latent).chunk(2)
            gate = chances[e] / sum(chances[other] for other in chosen)
            mixed = mixed + gate * (moe.down_EWH[e] @ (F.silu(a) * b))
        rows.append(moe.latent_up.weight @ mixed)
    return torch.stack(rows)


def test_forced_experts_and_their_gradients_are_those_of_slow_loops() -> None:
    moe, chosen = network().moe_layers()[0].train(), other_routes()[:, :, 0]
    x = torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    slope = torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(3))
    leaves = [x, *moe.parameters()]
    found = moe(x, chosen)
    expected = slowly(moe, x.flatten(0, 1), chosen.flatten(0, 1)).view_as(found)
    assert torch.allclose(found, expected, atol=1e-4)
    left = torch.autograd.grad((found * slope).sum(), leaves)
    right = torch.autograd.grad((expected * slope).sum(), leaves)
    for a, b in zip(left, right, strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-4)
    router = left[1 + [name for name, _ in moe.named_parameters()].index("router.weight")]
    assert float(router.abs().max()) > 0.1, "the router learns from the experts it is given"


def test_the_balance_loss_counts_the_experts_that_were_used() -> None:
    model, told = network().train(), other_routes()
    model.hidden(tokens(), routes=told)
    for number, moe in enumerate(model.moe_layers()):
        used = torch.bincount(told[:, :, number].flatten(), minlength=EXPERTS)
        assert torch.equal(moe.chosen_E, used)
        assert float(moe.mean_E.sum()) == pytest.approx(1.0)


def test_experts_that_have_become_impossible_give_numbers() -> None:
    moe = network().moe_layers()[0]
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0] = 100.0
    x = torch.ones(1, 1, 32, requires_grad=True)
    y = moe(x, torch.tensor([[[3, 4]]]))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in moe.parameters())


def gradients(saved: SavedActivations) -> tuple[list[Tensor], Tensor]:
    model = network(dropout=0.2).train().lay_out(None, None, saved)
    torch.manual_seed(5)
    hidden = model.hidden(tokens(), routes=other_routes())
    hidden.square().sum().backward()
    return [p.grad for p in model.parameters()], torch.stack(
        [moe.chosen_E for moe in model.moe_layers()]
    )


def test_layers_that_are_computed_again_are_forced_again() -> None:
    plain, counts = gradients(SavedActivations())
    for saved in (SavedActivations(recomputed=True), SavedActivations(True, on_host=True)):
        found, again = gradients(saved)
        assert torch.equal(again, counts)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_routes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"routes are \(2, 13, 2, 2\), .* want \(2, 13, 3, 2\)"):
        network().hidden(tokens(), routes=other_routes(layers=2))


@torch.no_grad()
def test_the_fast_formulas_take_the_same_routes_within_bf16() -> None:
    model, told = network(), other_routes()
    expected, _ = routed(model, told)
    free, _ = routed(model, None)
    with torch.compiler.set_stance("force_eager"), recorded(model) as last:
        inputs, x = FastInputs.of(tokens(), None, model.config), model.embed(tokens()).float()
        forced = iter(told.to(torch.int16).unbind(2))
        for layer in model.layers:
            x = layer(x, inputs, None, next(forced) if layer.is_moe else None)
        routes = last()
    assert np.array_equal(routes.reshape(2, TOKENS, 3, K), told.numpy())
    error = (model.norm(x) - expected).norm() / expected.norm()
    assert float(error) < 0.02 < 0.2 < float((free - expected).norm() / expected.norm())


def test_the_fast_router_learns_from_forced_experts() -> None:
    model, told = network(), other_routes()[:, :, 0]
    layer = model.layers[1]
    moe = layer.ffn
    x = torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    slope = torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(3))
    leaves = [x, moe.router.weight, moe.gate_up_EFW, moe.down_EWH]
    found, mean, counts, _ = _latent_moe(
        x, layer.ffn_in.weight, moe.router.weight, moe.latent_down.weight, moe.gate_up_EFW,
        moe.down_EWH, moe.latent_up.weight, layer.ffn_out.weight, told, K, 1e-6, 0.0,
    )  # fmt: skip
    normed = layer.ffn_in(x).flatten(0, 1)
    expected = x + layer.ffn_out(slowly(moe, normed, told.flatten(0, 1)).view_as(x))
    assert torch.equal(counts, torch.bincount(told.flatten(), minlength=EXPERTS))
    assert float(mean.sum()) == pytest.approx(1.0)
    left = torch.autograd.grad((found * slope).sum(), leaves)
    right = torch.autograd.grad((expected * slope).sum(), leaves)
    for a, b in zip((found, *left), (expected, *right), strict=True):
        assert float((a - b).norm() / b.norm()) < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.gpu("the fast path compiles for CUDA only")
def test_the_compiled_path_takes_routes_and_learns_from_them() -> None:
    model = network(head_dim=64).cuda().train()
    free, routes = routed(model, None)
    again, same = routed(model, for_model(routes).cuda())
    assert np.array_equal(routes, same)
    assert float((again - free).norm() / free.norm()) < 0.01
    forced, found = routed(model, other_routes().cuda())
    assert np.array_equal(found, other_routes().numpy())
    forced.square().sum().backward()
    router = model.moe_layers()[0].router.weight.grad
    assert router is not None
    assert float(router.abs().max()) > 0


@pytest.mark.slow("starts two ranks")
def test_ranks_that_share_rows_and_experts_are_forced_alike() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(Path(__file__).with_name("routes_once.py"))],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    off = json.loads(line)
    assert off["states"] < 1e-5
    assert off["fast"] < 1e-2
    assert off["gradients"] < 1e-4
    assert off["free"] > 0.1
