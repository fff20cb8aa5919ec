"""The loss without logits against the loss with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hillclimb.model.linear_cross_entropy import linear_cross_entropy

VOCABULARY = 203


def inputs(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 16, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, 16, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (tokens,), generator=generator)


@pytest.mark.parametrize("chunk", [7, 32, 1000])
@pytest.mark.parametrize("ignored", [slice(0, 0), slice(3, 40, 2), slice(None)])
def test_loss_and_gradients_are_those_of_cross_entropy(chunk: int, ignored: slice):
    hidden, weight, labels = inputs(50)
    labels[ignored] = -100
    total, nll = linear_cross_entropy(hidden, weight, labels, chunk)
    found = torch.autograd.grad(0.3 * total, (hidden, weight))
    logits = F.linear(hidden, weight)
    expected = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    assert not nll.requires_grad
    assert torch.allclose(nll, expected, atol=1e-5)
    assert float(total) == pytest.approx(float(expected.sum()), rel=1e-6)
    for a, b in zip(
        found, torch.autograd.grad(0.3 * expected.sum(), (hidden, weight)), strict=True
    ):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-5)


def test_padding_of_the_vocabulary_takes_no_probability():
    hidden, weight, labels = inputs(5)
    total, _ = linear_cross_entropy(hidden * 0, weight, labels)
    assert float(total) == pytest.approx(5 * torch.tensor(float(VOCABULARY)).log().item())


def test_large_logits_do_not_overflow():
    hidden, weight, labels = inputs(5)
    total, _ = linear_cross_entropy(hidden * 1e4, weight, labels)
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(total, (hidden, weight)))


def test_without_a_graph_only_the_loss_is_taken():
    hidden, weight, labels = inputs(20)
    with torch.no_grad():
        quiet, _ = linear_cross_entropy(hidden, weight, labels)
    assert not quiet.requires_grad
    assert float(quiet) == float(linear_cross_entropy(hidden, weight, labels)[0])


def test_a_second_backward_is_refused_rather_than_scaled_twice():
    hidden, weight, labels = inputs(5)
    total, _ = linear_cross_entropy(hidden, weight, labels)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
