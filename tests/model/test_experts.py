"""Grouped experts against one expert and one token at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hillclimb.model.experts import mix_experts
from hillclimb.model.kernels import (
    float32_linear,
    gated_swiglu_backward,
    product_of_pairs,
    top_experts,
)

TOKENS, K, EXPERTS, WIDTH, INNER = 37, 3, 6, 16, 8


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(TOKENS, WIDTH, generator=generator)
    chances = torch.randn(TOKENS, EXPERTS, generator=generator).softmax(-1)
    chances[:, 4] = 0.0
    gates, chosen = chances.topk(K)
    gate_up = torch.randn(EXPERTS, 2 * INNER, WIDTH, generator=generator)
    down = torch.randn(EXPERTS, WIDTH, INNER, generator=generator)
    for leaf in (latent, gates, gate_up, down):
        leaf.requires_grad_()
    return latent, gates, chosen, gate_up, down


def one_by_one(latent, gates, chosen, gate_up, down) -> torch.Tensor:
    rows = []
    for token in range(TOKENS):
        row = torch.zeros(WIDTH)
        for place in range(K):
            expert = int(chosen[token, place])
            a, b = (gate_up[expert] @ latent[token]).chunk(2)
            row = row + gates[token, place] * (down[expert] @ (F.silu(a) * b))
        rows.append(row)
    return torch.stack(rows)


def test_grouped_experts_equal_one_by_one_with_gradients():
    """Expert 4 gets no token: its gradients are zero, not missing."""
    latent, gates, chosen, gate_up, down = inputs()
    found, counts = mix_experts(latent, gates, chosen, gate_up, down)
    expected = one_by_one(latent, gates, chosen, gate_up, down)
    weight = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    leaves = (latent, gates, gate_up, down)
    assert torch.allclose(found, expected, atol=1e-5)
    assert counts.tolist() == torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
    assert int(counts[4]) == 0
    left = torch.autograd.grad((found * weight).sum(), leaves)
    right = torch.autograd.grad((expected * weight).sum(), leaves)
    for a, b in zip(left, right, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_no_token_is_dropped_when_all_want_the_same_experts():
    latent, gates, chosen, gate_up, down = inputs()
    same = chosen[:1].expand_as(chosen).contiguous()
    found, counts = mix_experts(latent, gates, same, gate_up, down)
    assert counts.max() == TOKENS
    assert torch.allclose(found, one_by_one(latent, gates, same, gate_up, down), atol=1e-5)


def test_the_gated_activation_differentiates_like_autograd():
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(9, 10, generator=generator).requires_grad_()
    gate = torch.rand(9, generator=generator).requires_grad_()
    grad = torch.randn(9, 5, generator=generator)
    a, b = inner.chunk(2, dim=-1)
    y = gate[:, None] * F.silu(a) * b
    expected = (y, *torch.autograd.grad(y, (inner, gate), grad))
    for left, right in zip(gated_swiglu_backward(inner, gate, grad), expected, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_the_routers_gradients_keep_sixteen_bits():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator).requires_grad_()
    weight = torch.randn(32, 128, generator=generator).requires_grad_()
    grad = torch.randn(64, 32, generator=generator)
    y = float32_linear(x, weight)
    assert torch.equal(y, x @ weight.t())
    exact = grad.double() @ weight.double()
    left, _ = torch.autograd.grad(y, (x, weight), grad)
    assert float((left - exact).norm() / exact.norm()) < 2**-15
    halves = grad.bfloat16() @ weight.bfloat16()
    assert float((halves - exact).norm() / exact.norm()) > 2**-10
    assert torch.equal(left, product_of_pairs(grad, weight))


def test_the_top_experts_are_torchs():
    probs = torch.rand(50, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(top_experts(probs, 4), probs.topk(4).indices)
