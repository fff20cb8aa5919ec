"""Other causal language models through the same engine, and one that vLLM's CPU form breaks."""

from __future__ import annotations

import pytest
import torch
from engine_support import PROMPTS, gap, require_vllm, same_draws
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig
from transformers.modeling_utils import PreTrainedModel

from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.vllm_engine import VllmEngine

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip
pytestmark = [
    pytest.mark.vllm("a child process for each model"),
    pytest.mark.slow("vLLM takes its time to start"),
]


def made(config: LlamaConfig | Qwen3MoeConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0.0, 0.15)
    return model


def later(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight * 1.2 + 0.01 for name, weight in model.state_dict().items()}


def test_a_llama_with_a_tied_head_is_drawn_from_and_takes_new_weights():
    require_vllm()
    model = made(LlamaConfig(**SIZES, tie_word_embeddings=True))
    engine = VllmEngine(model, {"max_model_len": 256})
    before = engine.generate(PROMPTS, SamplingParams(24), 0)
    assert gap(model, PROMPTS, before) < 1e-4
    weights = later(model)
    engine.load_weights(weights, 2)
    after = engine.generate(PROMPTS, SamplingParams(24), 0)
    engine.close()
    model.load_state_dict(weights)
    assert gap(model, PROMPTS, after) < 1e-4
    assert not same_draws(before, after)


def test_an_engine_that_a_reload_breaks_is_refused():
    """vLLM's fused experts on a CPU: right at first, and after a reload fluently wrong."""
    require_vllm()
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    model = made(Qwen3MoeConfig(**SIZES, **sizes))
    engine = VllmEngine(model, {"max_model_len": 256}, patience=0.0)
    assert gap(model, PROMPTS, engine.generate(PROMPTS, SamplingParams(24), 0)) < 1e-4
    with pytest.raises(RuntimeError, match=r"engine is wrong after loading .* version 2: .* nats"):
        engine.load_weights(later(model), 2)
    with pytest.raises(RuntimeError, match="the rollout engine is wrong"):
        engine.generate(PROMPTS, SamplingParams(24), 0)
    engine.close()
