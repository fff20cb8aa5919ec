"""Every engine: what it says it drew is what the learner computes, wherever it was drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_support import as_bytes

from hillclimb.rl.groups import Sample
from hillclimb.rl.policy import drawn_logprobs, micro_batches
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.sampling import nucleus
from hillclimb.rollout.torch_engine import TorchEngine

PROMPTS = [[1, 2, 3], [1, 2, 3], [9, 8, 7, 6, 5], [4]]


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.floats(0.05, 1.0))
def test_the_nucleus_is_the_smallest_set_that_reaches_the_mass(weights, top_p):
    probs = torch.tensor([weights]) / sum(weights)
    kept = nucleus(probs, top_p)
    inside = float(probs[kept].sum())
    assert inside >= min(top_p, 1.0) - 1e-5
    assert inside - float(probs[kept].min()) < top_p + 1e-5
    assert float(probs[kept].min()) >= float(probs[~kept].max()) if (~kept).any() else True


def test_the_learner_replays_the_sampler(build, network):
    drawn = build().generate(PROMPTS, SamplingParams(12, top_p=0.9, stop=(0,)), seed=5)
    samples = [
        Sample(
            np.array(p, np.int32), np.array(c.tokens, np.int32), np.ones(len(c.tokens), bool),
            c.logprobs, c.nucleus, 1.0,
        )
        for p, c in zip(PROMPTS, drawn, strict=True)
    ]  # fmt: skip
    for batch in micro_batches(samples, 16, True):
        gap = (drawn_logprobs(network, batch, 1.0) - batch.drawn.engine).abs().max()
        assert float(gap) < 2e-5
        without = batch.kept[:, :0]
        loose = drawn_logprobs(network, type(batch)(**{**vars(batch), "kept": without}), 1.0)
        assert float((loose - batch.drawn.engine).abs().max()) > 1e-3


def test_the_same_seed_draws_the_same_and_another_one_does_not(build):
    engine, params = build(), SamplingParams(16)
    first, again, other = (engine.generate(PROMPTS, params, seed) for seed in (1, 1, 2))
    assert as_bytes(first) == as_bytes(again)
    assert [c.tokens for c in first] != [c.tokens for c in other]


@pytest.mark.parametrize("rows", [512, 3, 1])
@pytest.mark.parametrize("greedy", [False, True])
def test_an_engine_draws_what_the_one_in_this_process_draws(build, network, rows, greedy):
    params = SamplingParams(9, temperature=0.8, top_p=0.9, greedy=greedy, stop=(0, 7))
    expected = TorchEngine(network, rows).generate(PROMPTS * 2, params, seed=2**40 + 1)
    assert as_bytes(build(rows).generate(PROMPTS * 2, params, 2**40 + 1)) == as_bytes(expected)


def test_batches_of_one_call_have_draws_of_their_own(build):
    halves = build(rows=2).generate([[1, 2]] * 4, SamplingParams(16), 1)
    assert [c.tokens for c in halves[:2]] != [c.tokens for c in halves[2:]]


def test_greedy_answers_do_not_depend_on_the_batch(build):
    engine, params = build(), SamplingParams(10, greedy=True)
    together = engine.generate(PROMPTS, params, 0)
    alone = [engine.generate([p], params, 0)[0] for p in PROMPTS]
    assert [c.tokens for c in together] == [c.tokens for c in alone]


def test_a_completion_ends_at_its_stop_token_or_its_limit(build):
    for done in build().generate(PROMPTS * 8, SamplingParams(20, stop=(3, 17)), 0):
        if done.finish == "stop":
            assert done.tokens[-1] in (3, 17)
            assert not {3, 17} & set(done.tokens[:-1])
        else:
            assert len(done.tokens) == 20


def test_an_empty_prompt_is_named_and_no_prompt_is_no_completion(build):
    engine = build()
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.generate([[1], [], [2]], SamplingParams(3), 0)
    assert engine.generate([], SamplingParams(3), 0) == []


def test_new_weights_carry_their_version(build, network):
    engine = build()
    weights = {k: v * 0.5 for k, v in network.state_dict().items()}
    before = engine.generate([[1]], SamplingParams(3), 0)[0]
    engine.load_weights(weights, 7)
    after = engine.generate([[1]], SamplingParams(3), 0)[0]
    assert (before.version, after.version, engine.version) == (0, 7, 7)
    assert not np.array_equal(before.logprobs, after.logprobs)


def test_weights_are_those_of_the_call_that_gave_them(build, network):
    engine, params = build(), SamplingParams(8)
    weights = {k: v * 0.5 for k, v in network.state_dict().items()}
    engine.load_weights(weights, 1)
    before = engine.generate([[1]], params, 0)[0]
    for tensor in weights.values():
        tensor.zero_()
    assert as_bytes(engine.generate([[1]], params, 0)) == as_bytes([before])


def test_rows_that_have_stopped_are_not_drawn_on(network):
    """Of 64 rows one stops now and then; at most a quarter of what is computed is for nothing."""
    engine = TorchEngine(network)
    computed: list[int] = []
    engine.model.layers[0].register_forward_hook(
        lambda _, given, __: computed.append(len(given[0]))
    )
    stop = tuple(range(network.config.vocab_size // 8))
    drawn = engine.generate([[9, 8]] * 64, SamplingParams(60, temperature=9.0, stop=stop), seed=1)
    sizes = sorted(len(completion.tokens) for completion in drawn)
    assert sizes[0] < sizes[-1] < 60
    assert len(computed) == sizes[-1]
    assert sum(computed[1:]) <= (sum(sizes) - 64) / 0.75


def test_weights_that_give_nan_are_named(network):
    engine = TorchEngine(network)
    broken = {name: tensor * torch.nan for name, tensor in network.state_dict().items()}
    engine.load_weights(broken, 7)
    with pytest.raises(FloatingPointError, match="version 7 give NaN"):
        engine.generate(PROMPTS, SamplingParams(4), seed=0)
