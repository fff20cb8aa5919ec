"""The model against slow, obvious references."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hillclimb.model.attention import AttentionInputs, KVCache
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.moe import LatentMoE, RouterLoad
from hillclimb.recipe.load import load_recipe
from hillclimb.scaling.counts import count_parameters


def small(**changes) -> MaiForCausalLM:
    config = MaiConfig(
        vocab_size=64, hidden_size=32, dense_ffn_size=64, latent_size=16, expert_ffn_size=24,
        num_experts=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=5,
        zero_init_attention=False, **changes,
    )  # fmt: skip
    return MaiForCausalLM(config).initialise(1).eval()


def test_five_local_layers_to_one_global_and_dense_first():
    config = MaiConfig(num_hidden_layers=12)
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == [5, 11]
    assert [config.is_moe(i) for i in range(4)] == [False, True, False, True]


def test_initialisation_follows_the_report():
    model = MaiForCausalLM(MaiConfig(num_hidden_layers=6, hidden_size=96)).initialise(0)
    layer = model.layers[1]
    assert float(layer.attention_out.weight.abs().max()) == 0.0
    assert float(layer.ffn_out.weight.min()) == 1.0
    assert float(layer.ffn.latent_up.weight.std()) == pytest.approx(0.02 / math.sqrt(12), rel=0.05)
    assert float(layer.attention.qkv.weight.std()) == pytest.approx(0.02, rel=0.05)


def test_the_toy_has_the_parameters_that_the_plan_counts():
    recipe = load_recipe("toy")
    model = MaiForCausalLM(
        MaiConfig.from_recipe(recipe.model.model_dump(), recipe.tokenizer.vocab_size)
    )
    counted = count_parameters(recipe.model, recipe.tokenizer.vocab_size)
    assert sum(p.numel() for p in model.parameters()) == counted.total


def test_latent_moe_equals_a_loop_over_tokens():
    model = small()
    moe = model.moe_layers()[0]
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([one_token(moe, x[0, t]) for t in range(6)])[None]
    assert torch.allclose(moe(x), expected, atol=1e-6)


def one_token(moe: LatentMoE, x: torch.Tensor) -> torch.Tensor:
    chances = F.softmax(moe.router(x), dim=-1)
    gates, chosen = chances.topk(moe.top_k)
    latent, mixed = moe.latent_down(x), torch.zeros(16)
    for gate, expert in zip(gates / gates.sum(), chosen, strict=True):
        a, b = (moe.gate_up_EFW[expert] @ latent).chunk(2)
        mixed = mixed + gate * (moe.down_EWH[expert] @ (F.silu(a) * b))
    return moe.latent_up(mixed)


def test_the_balance_loss_is_one_when_the_router_is_even():
    load, even = RouterLoad(2, 4), torch.full((2, 4), 0.25)
    assert float(load.balance(even, torch.tensor([[2, 2, 2, 2], [0, 8, 0, 0]]))) == 1.0
    skewed = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    assert float(load.balance(skewed, torch.tensor([[8, 0, 0, 0], [0, 8, 0, 0]]))) == (
        4 * (10 / 16 + 1) / 2
    )
    assert load.shares().tolist() == [[10 / 16, 2 / 16, 2 / 16, 2 / 16], [0, 1, 0, 0]]


def test_the_cache_changes_nothing():
    model = small()
    ids = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
        cache, starts = KVCache.empty(model.config, 3, 32), torch.zeros(3, dtype=torch.long)
        parts = [model.hidden(ids[:, :9], cache=cache, starts=starts)]
        parts += [model.hidden(ids[:, t : t + 1], cache=cache, starts=starts) for t in range(9, 17)]
    assert torch.allclose(model.logits(torch.cat(parts, 1)), whole, atol=1e-5)


def test_packed_documents_do_not_see_each_other():
    model = small()
    ids = torch.randint(0, 64, (1, 12), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 5 + [1] * 7])
    with torch.no_grad():
        packed = model(ids, segments=segments).logits
        alone = model(ids[:, 5:]).logits
    assert torch.allclose(packed[:, 5:], alone, atol=1e-5)


def test_a_local_layer_sees_its_window_and_no_more():
    model = small(num_hidden_layers=6, global_every=6)
    attention = model.layers[0].attention
    ids = torch.arange(12)[None]
    inputs = AttentionInputs.of(model.config, ids, 0, None, None)
    assert attention.local
    assert inputs.local[0, 0, 11].nonzero().flatten().tolist() == [7, 8, 9, 10, 11]
    assert inputs.full[0, 0, 11].all()


def test_a_model_survives_a_round_trip(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    again = MaiForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
