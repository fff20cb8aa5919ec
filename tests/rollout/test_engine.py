"""The in-process engine: what it says it drew is what the learner computes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl.groups import Sample
from hillclimb.rl.policy import micro_batches, replayed_logprobs
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.sampling import nucleus, pack_mask, unpack_mask
from hillclimb.rollout.torch_engine import TorchEngine

PROMPTS = [[1, 2, 3], [1, 2, 3], [9, 8, 7, 6, 5], [4]]


def engine(batch_size: int = 512) -> TorchEngine:
    model = MaiForCausalLM(
        MaiConfig(vocab_size=40, zero_init_attention=False, embedding_range=0.5)
    ).initialise(3)
    return TorchEngine(model, batch_size)


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.floats(0.05, 1.0))
def test_the_nucleus_is_the_smallest_set_that_reaches_the_mass(weights, top_p):
    probs = torch.tensor([weights]) / sum(weights)
    kept = nucleus(probs, top_p)
    inside = float(probs[kept].sum())
    assert inside >= min(top_p, 1.0) - 1e-5
    assert inside - float(probs[kept].min()) < top_p + 1e-5
    assert float(probs[kept].min()) >= float(probs[~kept].max()) if (~kept).any() else True


def test_masks_survive_packing():
    mask = torch.rand(3, 5, 41, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(unpack_mask(pack_mask(mask), 41), mask)


def test_the_learner_replays_the_sampler():
    drawn = engine().generate(PROMPTS, SamplingParams(12, top_p=0.9, stop=(0,)), seed=5)
    samples = [
        Sample(
            np.array(p, np.int32), np.array(c.tokens, np.int32), np.ones(len(c.tokens), bool),
            c.logprobs, c.nucleus, 1.0,
        )
        for p, c in zip(PROMPTS, drawn, strict=True)
    ]  # fmt: skip
    model = engine().model
    for batch in micro_batches(samples, 16, 40):
        gap = (replayed_logprobs(model, batch, 1.0) - batch.logprobs).abs().max()
        assert float(gap) < 2e-5
        without = batch.kept | True
        loose = replayed_logprobs(model, type(batch)(**{**vars(batch), "kept": without}), 1.0)
        assert float((loose - batch.logprobs).abs().max()) > 1e-3


def test_the_same_seed_draws_the_same_and_another_one_does_not():
    params = SamplingParams(16)
    first, again, other = (engine().generate(PROMPTS, params, seed) for seed in (1, 1, 2))
    assert [c.tokens for c in first] == [c.tokens for c in again]
    assert [c.tokens for c in first] != [c.tokens for c in other]


def test_greedy_answers_do_not_depend_on_the_batch():
    params = SamplingParams(10, greedy=True)
    together = engine().generate(PROMPTS, params, 0)
    alone = [engine().generate([p], params, 0)[0] for p in PROMPTS]
    assert [c.tokens for c in together] == [c.tokens for c in alone]


def test_a_completion_ends_at_its_stop_token_or_its_limit():
    for done in engine().generate(PROMPTS * 8, SamplingParams(20, stop=(3, 17)), 0):
        if done.finish == "stop":
            assert done.tokens[-1] in (3, 17)
            assert not {3, 17} & set(done.tokens[:-1])
        else:
            assert len(done.tokens) == 20


def test_new_weights_carry_their_version():
    rollouts = engine()
    weights = {k: v * 0.5 for k, v in rollouts.model.state_dict().items()}
    before = rollouts.generate([[1]], SamplingParams(3), 0)[0]
    rollouts.load_weights(weights, 7)
    after = rollouts.generate([[1]], SamplingParams(3), 0)[0]
    assert (before.version, after.version) == (0, 7)
    assert not np.array_equal(before.logprobs, after.logprobs)
