"""The fast path against the plain one: its formulas on a CPU, its kernels where there is a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hillclimb.model.attention import AttentionInputs
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.fast import FastInputs, keep_weights_in_bf16
from hillclimb.model.kernels import gated_swiglu_backward, softmax_slope, top_experts
from hillclimb.model.modeling import MaiForCausalLM

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def model(head_dim: int = 16) -> MaiForCausalLM:
    config = MaiConfig(
        vocab_size=203, hidden_size=64, dense_ffn_size=128, latent_size=32, expert_ffn_size=64,
        num_experts=4, head_dim=head_dim, sliding_window=100, zero_init_attention=False,
    )  # fmt: skip
    return MaiForCausalLM(config).initialise(1).train()


def batch(length: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 203, (2, length), generator=generator)
    segments = (torch.rand(2, length, generator=generator) < 1 / 80).cumsum(1)
    labels = torch.randint(0, 203, (2, length), generator=generator)
    labels[:, ::7] = -100
    return ids.to(device), segments.to(device), labels.to(device)


def plain_hidden(network: MaiForCausalLM, ids: Tensor, segments: Tensor | None) -> Tensor:
    inputs = AttentionInputs.of(network.config, ids, 0, segments, None)
    x = network.embed(ids)
    for layer in network.layers:
        x = layer(x, inputs, None)
    return network.norm(x)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_the_fast_formulas_are_the_models_within_bf16(packed: bool):
    network = model()
    ids, segments, _ = batch(300)
    given = segments if packed else None
    expected = plain_hidden(network, ids, given)
    chosen = [layer.chosen_E for layer in network.moe_layers()]
    with torch.compiler.set_stance("force_eager"):
        inputs, x = FastInputs.of(ids, given, network.config), network.embed(ids).float()
        for layer in network.layers:
            x = layer(x, inputs, None)
    assert x.dtype == torch.float32
    assert off(network.norm(x), expected) < 0.02
    for layer, before in zip(network.moe_layers(), chosen, strict=True):
        assert int(layer.chosen_E.sum()) == int(before.sum())
        assert int((layer.chosen_E - before).abs().sum()) <= 0.02 * int(before.sum())


def test_matrices_in_bf16_leave_embedding_routers_and_norms_in_fp32():
    network = model()
    keep_weights_in_bf16(network)
    wide = {name for name, p in network.named_parameters() if p.dtype == torch.float32}
    assert wide == {
        name
        for name, p in network.named_parameters()
        if p.ndim == 1 or name == "embed.weight" or name.endswith("router.weight")
    }


@needs_gpu
@pytest.mark.gpu("Triton kernels run on CUDA only")
def test_kernels_equal_their_plain_forms():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(1001, 512, generator=generator)
    assert torch.equal(top_experts(probs.cuda(), 8).cpu(), top_experts(probs, 8))
    inner = torch.randn(999, 200, generator=generator).bfloat16()
    gate = torch.rand(999, generator=generator)
    grad = torch.randn(999, 100, generator=generator).bfloat16()
    left = gated_swiglu_backward(inner.cuda(), gate.cuda(), grad.cuda())
    for a, b in zip(left, gated_swiglu_backward(inner.float(), gate, grad.float()), strict=True):
        assert off(a.cpu(), b) < 0.004
    logits = 9 * torch.randn(77, 20_096, generator=generator)
    labels = torch.randint(0, 20_001, (77,), generator=generator)
    labels[::5] = -100
    left = softmax_slope(logits.cuda(), labels.cuda(), 20_001, torch.float32)
    for a, b in zip(left, softmax_slope(logits, labels, 20_001, torch.float32), strict=True):
        assert off(a.cpu(), b) < 1e-5


@needs_gpu
@pytest.mark.gpu("FlexAttention differentiates on CUDA only")
@pytest.mark.parametrize(("packed", "length"), [(True, 901), (False, 512)])
def test_loss_and_gradients_are_the_models_within_bf16(packed: bool, length: int):
    network = model(head_dim=64).cuda()
    ids, segments, labels = batch(length, "cuda")
    given = segments if packed else None
    total, nll = network.losses(ids, given, labels)
    total.backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    logits = network.logits(plain_hidden(network, ids, given)).flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), reduction="none")
    expected.sum().backward()
    assert off(nll, expected) < 0.005
    left = torch.cat([found[name].flatten() for name, _ in network.named_parameters()])
    right = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert off(left, right) < 0.05


@needs_gpu
@pytest.mark.gpu("counts what the host waits for on CUDA")
def test_the_host_waits_for_nothing_in_a_step():
    network = model(head_dim=64).cuda()
    ids, segments, labels = batch(512, "cuda")
    network.losses(ids, segments, labels)[0].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        network.losses(ids, segments, labels)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
