"""Interrupts: what was drawn comes back, goes on under other weights, and knows which drew it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from rollout_support import serving

from hillclimb.environments.sandbox import BubblewrapProvider
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.rl.groups import Sample, sample_of
from hillclimb.rl.policy import with_old_logprobs
from hillclimb.rl.rollouts import Rollout, Sampler
from hillclimb.rollout.engine import Completion, RolloutEngine, SamplingParams
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.torch_engine import TorchEngine

LONG = SamplingParams(3000)
PROMPTS = [[1, 2, 3], [1, 2, 3], [9, 8, 7, 6, 5]]


def interrupted(engine: RolloutEngine, rows: int = 3) -> list[Completion]:
    """What a long call gives that is interrupted until it ends."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(engine.generate, PROMPTS[:rows], LONG, 1)
        while not call.done():
            time.sleep(0.05)
            engine.interrupt()
    return call.result()


def test_an_interrupted_call_returns_what_it_has(build):
    engine = build()
    done = interrupted(engine)
    assert [c.finish for c in done] == ["interrupted"] * 3
    for completion in done:
        drawn = len(completion.tokens)
        assert drawn < LONG.max_tokens
        assert completion.logprobs.shape == (drawn,)
        assert len(completion.nucleus) == drawn
    params = SamplingParams(6)
    assert {c.finish for c in engine.generate(PROMPTS, params, 1)} == {"length"}


def test_batches_that_were_not_begun_come_back_empty(build):
    done = interrupted(build(rows=1))
    assert {c.finish for c in done} == {"interrupted"}
    assert done[-1].tokens == [] or done[0].tokens == []


def test_calls_of_several_threads_are_answered_each_with_its_own(network: MaiForCausalLM) -> None:
    """A busy server draws together what waits; each call gets its own answers, cut as it asked."""
    with serving(network, busy=0.5) as url:
        engine = RemoteEngine([url], network)
        with ThreadPoolExecutor(8) as pool:
            calls = [
                pool.submit(
                    engine.generate, [[i, i + 1]] * 2, SamplingParams(3 + i, greedy=True), i
                )
                for i in range(1, 9)
            ]
            found = [call.result() for call in calls]
        engine.close()
    alone = TorchEngine(network)
    for i, done in enumerate(found, start=1):
        expected = alone.generate([[i, i + 1]] * 2, SamplingParams(3 + i, greedy=True), i)
        assert [c.tokens for c in done] == [c.tokens for c in expected]
        assert [c.finish for c in done] == ["length"] * 2


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(["what f(x) 0123456789/! boxed{}\\"], 300))


def old(network: MaiForCausalLM, weights: dict[str, torch.Tensor], sample: Sample) -> np.ndarray:
    network.load_state_dict(weights)
    (found,) = with_old_logprobs(network, [sample], 4096, True, 1.0)
    assert found.old is not None
    return found.old


def test_a_rollout_goes_on_under_new_weights_and_every_token_is_what_its_weights_give(
    network: MaiForCausalLM, tokenizer: TextTokenizer
) -> None:
    start = {k: v.clone() for k, v in network.state_dict().items()}
    versions = [{k: v * factor for k, v in start.items()} for factor in (1.0, 0.9, 0.8)]
    with serving(network) as url:
        engine = RemoteEngine([url], network)
        sampler = Sampler(engine, tokenizer, "zero", BubblewrapProvider())
        sampler.stop = ()
        rollouts = [Rollout(None, [1, 2, 3 + i]) for i in range(3)]  # type: ignore[arg-type]
        turn = threading.Thread(target=sampler._turn, args=(rollouts, SamplingParams(700), 7))
        turn.start()
        for version in (1, 2):
            while turn.is_alive() and len(rollouts[0].versions) < version:
                time.sleep(0.1)
                engine.load_weights(versions[version], version)
                engine.interrupt()
        turn.join()
        engine.close()
    for rollout in rollouts:
        sample = sample_of(rollout, 1.0)
        assert len(sample.tokens) == 700
        assert rollout.turns == 1
        assert (np.diff(sample.versions) >= 0).all()
        assert len(set(sample.versions.tolist())) >= 2
        for version in set(sample.versions.tolist()):
            mine = sample.versions == version
            gaps = np.abs(old(network, versions[version], sample) - sample.logprobs)
            assert gaps[mine].max() < 1e-4
            assert gaps[~mine].max() > 1e-3
