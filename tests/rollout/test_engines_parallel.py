"""vLLM over several workers that share one copy of the weights, as pods of several GPUs run it."""

from __future__ import annotations

import pytest
from engine_support import PROMPTS, gap, require_vllm, wrong_masks

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.vllm_engine import VllmEngine


@pytest.mark.vllm("a child with two workers")
@pytest.mark.slow("starts vLLM with two workers")
def test_two_workers_draw_with_the_models_log_probabilities_before_and_after_a_load() -> None:
    require_vllm()
    config = MaiConfig(vocab_size=43, zero_init_attention=False, embedding_range=0.25)
    start, later = (MaiForCausalLM(config).initialise(seed).eval() for seed in (3, 4))
    engine = VllmEngine(start, {"max_model_len": 256, "tensor_parallel_size": 2})
    try:
        for version, model in enumerate((start, later)):
            if version:
                engine.load_weights(dict(model.state_dict()), version)
            done = engine.generate(PROMPTS, SamplingParams(24, 1.0, 0.9), seed=5)
            assert {c.version for c in done} == {version}
            assert gap(model, PROMPTS, done) < 1e-4
            assert wrong_masks(model, PROMPTS, done, 1.0, 0.9) == 0
    finally:
        engine.close()
