"""Every line of the report's §2.1-2.2 that `test_model` leaves open, by hand or by slow loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hillclimb.model.attention import Attention, AttentionInputs, _rotate
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM

WINDOW = 3


def small(**changes) -> MaiForCausalLM:
    values = {
        "vocab_size": 32, "hidden_size": 16, "dense_ffn_size": 24, "latent_size": 8,
        "expert_ffn_size": 12, "num_experts": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4, "sliding_window": WINDOW,
        "zero_init_attention": False, "initializer_range": 0.3, "embedding_range": 1.0,
    }  # fmt: skip
    return MaiForCausalLM(MaiConfig(**{**values, **changes})).initialise(1).eval()


def rms(x: torch.Tensor, gain: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x / math.sqrt(float((x * x).mean()) + eps) * gain


def rotated(x: torch.Tensor, position: int, base: float = 10_000.0) -> torch.Tensor:
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = position * base ** (-i / half)
        c, s = math.cos(angle), math.sin(angle)
        out[i] = x[i] * c - x[i + half] * s
        out[i + half] = x[i + half] * c + x[i] * s
    return out


def attention(module: Attention, states: list[torch.Tensor], local: bool) -> list[torch.Tensor]:
    """Grouped queries by loops: query head h reads key-value head h // 2."""
    heads, kv, width = 4, 2, 4
    out = []
    for t in range(len(states)):
        pieces = []
        for h in range(heads):
            scores, values = [], []
            for s in range(t + 1):
                if local and t - s >= WINDOW:
                    continue
                q = module.qkv.weight[h * width : (h + 1) * width] @ states[t]
                row = (heads + h // 2) * width
                k = module.qkv.weight[row : row + width] @ states[s]
                row += kv * width
                values.append(module.qkv.weight[row : row + width] @ states[s])
                q, k = rms(q, module.q_norm.weight), rms(k, module.k_norm.weight)
                if local:
                    q, k = rotated(q, t), rotated(k, s)
                scores.append(q @ k / math.sqrt(width))
            chances = torch.stack(scores).softmax(0)
            pieces.append((chances[:, None] * torch.stack(values)).sum(0))
        out.append(module.out.weight @ torch.cat(pieces))
    return out


def feed_forward(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    def swiglu(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        a, b = (gate_up @ x).chunk(2)
        return down @ (a * torch.sigmoid(a) * b)

    if not hasattr(module, "router"):
        return swiglu(x, module.gate_up.weight, module.down.weight)
    chances = (module.router.weight @ x).softmax(0)
    best = sorted(range(4), key=lambda e: -float(chances[e]))[: module.top_k]
    latent, mixed = module.latent_down.weight @ x, torch.zeros(8)
    for e in best:
        gate = chances[e] / sum(chances[i] for i in best)
        mixed = mixed + gate * swiglu(latent, module.gate_up_EFW[e], module.down_EWH[e])
    return module.latent_up.weight @ mixed


@torch.no_grad()
def test_the_whole_model_equals_loops_over_tokens_heads_and_experts():
    model = small()
    for norm in [m for m in model.modules() if type(m).__name__ == "RMSNorm"]:
        norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(0, 32, (9,), generator=torch.Generator().manual_seed(0))
    states = [model.embed.weight[int(i)] for i in ids]
    for number, layer in enumerate(model.layers):
        normed = [rms(x, layer.attention_in.weight) for x in states]
        mixed = attention(layer.attention, normed, local=number % 6 != 5)
        states = [
            x + rms(y, layer.attention_out.weight) for x, y in zip(states, mixed, strict=True)
        ]
        states = [
            x + rms(feed_forward(layer.ffn, rms(x, layer.ffn_in.weight)), layer.ffn_out.weight)
            for x in states
        ]
    logits = torch.stack([model.embed.weight @ rms(x, model.norm.weight) for x in states])
    assert torch.allclose(model(ids[None]).logits[0], logits, atol=1e-4)


def test_there_are_no_biases_no_shared_expert_and_one_matrix_of_the_vocabulary():
    model = small(vocab_size=37)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "bias" in name]
    assert [name for name, p in model.named_parameters() if 37 in p.shape] == ["embed.weight"]
    assert sorted(name for name in names if name.startswith("layers.1.ffn.")) == [
        "layers.1.ffn.down_EWH", "layers.1.ffn.gate_up_EFW", "layers.1.ffn.latent_down.weight",
        "layers.1.ffn.latent_up.weight", "layers.1.ffn.router.weight",
    ]  # fmt: skip


def test_tied_embeddings_learn_from_both_ends():
    """A token that is never read still gets a gradient as a possible output, and the other way."""
    model = small()
    ids = torch.tensor([[1, 2, 3]])
    model(ids, labels=torch.tensor([[4, 5, 6]])).loss.backward()
    rows = model.embed.weight.grad.abs().sum(1)
    assert rows[9] > 0
    total = model.hidden(ids).square().sum()
    inside = torch.autograd.grad(total, model.embed.weight)[0].abs().sum(1)
    assert (inside[[1, 2, 3]] > 0).all()
    assert inside[9] == 0


@torch.no_grad()
def test_a_global_layer_knows_no_order_and_a_local_one_does():
    model = small(sliding_window=64)
    x = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    mixed_up = torch.cat((x[:, [4, 2, 6, 0, 5, 1, 3]], x[:, 7:]), 1)
    inputs = AttentionInputs.of(model.config, torch.zeros(1, 8, dtype=torch.long), 0, None, None)
    for number, same in ((5, True), (4, False)):
        module = model.layers[number].attention
        ends = [module(y, inputs, None)[0, -1] for y in (x, mixed_up)]
        assert torch.allclose(*ends, atol=1e-6) is same


def test_rotary_positions_by_hand():
    """At position 1 the first pair turns by 1 rad, the second of two by 1/100 rad."""
    model = small()
    inputs = AttentionInputs.of(model.config, torch.zeros(1, 3, dtype=torch.long), 0, None, None)
    x = torch.tensor([1.0, 1.0, 0.0, 0.0])
    turned = _rotate(x, inputs.cos[1], inputs.sin[1])
    expected = [math.cos(1), math.cos(0.01), math.sin(1), math.sin(0.01)]
    assert turned.tolist() == pytest.approx(expected, abs=1e-6)


def test_queries_and_keys_have_unit_size_before_they_meet():
    """Ten times the projection changes nothing: the norm takes it out."""
    model, louder = small(), small()
    with torch.no_grad():
        for layer in louder.layers:
            layer.attention.qkv.weight[: 6 * 4].mul_(10.0)
        ids = torch.arange(12)[None]
        assert torch.allclose(model(ids).logits, louder(ids).logits, atol=1e-4)


@torch.no_grad()
def test_the_model_is_dropless_when_every_token_wants_the_same_experts():
    moe = small().moe_layers()[0].train()
    x = torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(0)).abs()
    moe.router.weight.zero_()
    moe.router.weight[2], moe.router.weight[3] = 9.0, 8.0
    y = moe(x)
    assert moe.chosen_E.tolist() == [0, 0, 50, 50]
    assert torch.allclose(y[0], torch.stack([feed_forward(moe, row) for row in x[0]]), atol=1e-5)


def test_projections_into_the_residual_start_smaller_and_no_others():
    model = MaiForCausalLM(MaiConfig(num_hidden_layers=6, embedding_range=0.5)).initialise(0)
    into = {"attention.out.weight", "ffn.down.weight", "ffn.latent_up.weight"}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            scaled = any(name.endswith(end) for end in into)
            std = 0.5 if name == "embed.weight" else 0.02 / math.sqrt(12) if scaled else 0.02
            assert float(weight.std()) == pytest.approx(std, rel=0.1), name


def test_zero_init_leaves_attention_out_and_its_gain_ready_to_learn():
    """Only the gain is zero: it has a gradient, which a zero projection as well would kill."""
    model = small(zero_init_attention=True)
    ids = torch.arange(10)[None]
    model(ids, labels=ids).loss.backward()
    layer = model.layers[0]
    assert float(layer.attention_out.weight.abs().max()) == 0.0
    assert float(layer.attention_out.weight.grad.abs().max()) > 0.0
    assert float(layer.attention.out.weight.abs().min()) > 0.0


def test_zero_init_keeps_routers_even_at_depth():
    """Softmax starts as a causal mean, so attention makes tokens alike and routers one-sided.

    The largest expert's load over the even load, at the start of 24 layers, mean of three seeds:
    with attention it grows from the first four MoE layers to the last four; with zero-init the
    tokens stay apart, and it neither grows nor is it large.
    """
    first, last = (torch.stack([overload(True, s) for s in range(3)]).mean(0)).tolist()
    plain_first, plain_last = (torch.stack([overload(False, s) for s in range(3)]).mean(0)).tolist()
    assert last < 1.15 * first
    assert plain_last > 1.3 * plain_first
    assert plain_last > 1.5 * last


@torch.no_grad()
def overload(zero_init: bool, seed: int) -> torch.Tensor:
    config = MaiConfig(
        vocab_size=256, num_hidden_layers=24, hidden_size=64, dense_ffn_size=128, latent_size=32,
        expert_ffn_size=32, num_experts=16, head_dim=16, sliding_window=512, embedding_range=4.0,
        zero_init_attention=zero_init,
    )  # fmt: skip
    model = MaiForCausalLM(config).initialise(seed).train()
    model.hidden(torch.randint(0, 256, (2, 256), generator=torch.Generator().manual_seed(seed)))
    loads = torch.stack([layer.chosen_E.double() for layer in model.moe_layers()])
    ratio = loads.max(1).values / loads.mean(1)
    return torch.stack((ratio[:4].mean(), ratio[-4:].mean()))


def test_the_losses_of_the_model_are_those_of_its_logits():
    model, ids = small(), torch.arange(10)[None]
    labels = torch.tensor([[5, -100, 7, 1, 2, 3, -100, 9, 9, 9]])
    total, nll = model.losses(ids, None, labels)
    expected = F.cross_entropy(model(ids).logits[0], labels[0], reduction="none")
    assert torch.equal(nll, expected)
    assert torch.equal(total, expected.sum())
