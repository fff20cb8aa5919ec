"""The gap between engine and learner, with and without what the sampler decided replayed."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hillclimb.environments.tasks import Problem
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl import policy
from hillclimb.rl.groups import Buffer, Group, Sample, no_routes, sample_of
from hillclimb.rl.objective import Objective
from hillclimb.rl.policy import (
    PolicyLoss,
    drawn_logprobs,
    micro_batches,
    with_old_logprobs,
    with_routes,
)
from hillclimb.rl.rollouts import Rollout
from hillclimb.rollout.engine import Completion, SamplingParams, cut
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.torch_engine import TorchEngine

VOCAB, TOP_P, TEMPERATURE = 64, 0.8, 0.9
PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11], [12] * 9] * 4
PARAMS = SamplingParams(16, TEMPERATURE, TOP_P, stop=(1,), routes=True)


@pytest.fixture(scope="module")
def plain() -> MaiForCausalLM:
    config = MaiConfig(
        vocab_size=VOCAB, hidden_size=32, dense_ffn_size=64, latent_size=16, expert_ffn_size=32,
        num_experts=8, head_dim=8, zero_init_attention=False, initializer_range=0.3,
        embedding_range=0.7,
    )  # fmt: skip
    return MaiForCausalLM(config).initialise(0).eval()


@pytest.fixture(scope="module")
def model(plain: MaiForCausalLM) -> MaiForCausalLM:
    """Routers that are torn: of eight experts four are alike to within 1e-7, and so are four."""
    made = copy.deepcopy(plain)
    for moe in made.moe_layers():
        near = 1e-7 * torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
        moe.router.weight.data = moe.router.weight.detach()[[0] * 4 + [4] * 4] + near
    return made


def torn(model: MaiForCausalLM, dtype: torch.dtype = torch.float32) -> TorchEngine:
    """An engine whose routers see scores that are off by about a millionth."""
    engine, generator = TorchEngine(model, dtype=dtype), torch.Generator().manual_seed(7)

    def shake(module: torch.nn.Module, given: tuple[Tensor], scores: Tensor) -> Tensor:
        return scores + (1e-6 * torch.randn(scores.shape, generator=generator)).to(scores.dtype)

    for moe in engine.model.moe_layers():
        moe.router.register_forward_hook(shake)
    return engine


def drawn(engine: TorchEngine) -> list[Sample]:
    done = engine.generate(PROMPTS, PARAMS, seed=0)
    return [one_turn(prompt, completion) for prompt, completion in zip(PROMPTS, done, strict=True)]


def one_turn(prompt: list[int], done: Completion) -> Sample:
    rollout = Rollout(Problem("p", "stem", "k", "k", "q", {}), prompt)
    rollout.take(done)
    return sample_of(rollout, 1.0)


def free(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, routes=no_routes()) for sample in samples]


def gaps(model: MaiForCausalLM, samples: list[Sample], nucleus: bool = True) -> Tensor:
    """log pi - log pi_engine of every drawn token."""
    batches = micro_batches(samples, 64, nucleus)
    with torch.no_grad():
        return torch.cat([drawn_logprobs(model, b, TEMPERATURE) - b.drawn.engine for b in batches])


def test_each_replay_takes_its_part_of_the_gap_away(model: MaiForCausalLM) -> None:
    """In FP32 nothing is left with both; with routes alone the nucleus's mass is."""
    samples = drawn(torn(model))
    mine = with_routes(model, free(samples), 64, version=0)
    own, told = (np.sort(np.concatenate([s.routes for s in many])) for many in (mine, samples))
    assert (own != told).mean() > 0.2, "the engine's experts are not the learner's own"
    both, nucleus = gaps(model, samples), gaps(model, free(samples))
    routes, none = gaps(model, samples, nucleus=False), gaps(model, free(samples), nucleus=False)
    assert float(both.abs().max()) < 1e-5
    assert float(nucleus.abs().mean()) > 0.02
    assert float(none.abs().mean()) > 0.02
    assert (routes < 1e-5).all()
    assert (routes > math.log(TOP_P) - 1e-5).all()
    assert float(routes.abs().max()) > 1e-2


def test_an_engine_in_bf16_is_nearer_with_its_routes(model: MaiForCausalLM) -> None:
    samples = drawn(TorchEngine(model, dtype=torch.bfloat16))
    both, nucleus = gaps(model, samples), gaps(model, free(samples))
    print(f"bf16: mean gap {both.abs().mean():.4f}, with free routes {nucleus.abs().mean():.4f}")
    assert float(both.abs().mean()) < 0.3 * float(nucleus.abs().mean())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.gpu("the learner's fast path is in BF16 on CUDA only")
def test_on_a_gpu_the_fast_path_replays_the_engine(plain: MaiForCausalLM) -> None:
    config = MaiConfig(**{**plain.config.to_diff_dict(), "head_dim": 64})
    model = MaiForCausalLM(config).initialise(0).eval().cuda()
    samples = drawn(TorchEngine(model))
    with torch.no_grad():
        batches = micro_batches(samples, 4096, True, packed=True)
        found = [drawn_logprobs(model, b, TEMPERATURE).cpu() - b.drawn.engine for b in batches]
    assert float(torch.cat(found).abs().mean()) < 0.1


def test_at_equal_weights_the_ratios_of_a_step_are_one(model: MaiForCausalLM) -> None:
    """So are those against the learner's own old policy; without routes they are not."""
    samples = drawn(torn(model))
    loss = PolicyLoss(Objective(0.99, 1.01), TEMPERATURE, 1)
    for given, clipped in ((samples, False), (free(samples), True)):
        shares = [
            loss(model, batch)[1]["trust_clipped"] for batch in micro_batches(given, 64, True)
        ]
        assert (int(sum(shares)) > 0) is clipped
    old = with_old_logprobs(model, samples, 64, True, TEMPERATURE)
    for batch in micro_batches(old, 64, True):
        assert torch.allclose(batch.drawn.old, batch.drawn.engine, atol=1e-5)


def test_routes_that_no_engine_tells_are_the_learners_at_the_weights_that_drew(
    plain: MaiForCausalLM,
) -> None:
    """What other weights drew, wholly or in part, has none; what is told stays."""
    told = drawn(TorchEngine(plain))
    silent = free(told)
    for found, expected in zip(with_routes(plain, silent, 64, 0), told, strict=True):
        assert np.array_equal(found.routes, expected.routes)
    assert all(len(s.routes) == 0 for s in with_routes(plain, silent, 64, version=1))
    later = np.where(np.arange(len(silent[0].tokens)) > 2, 1, 0).astype(np.int32)
    mixed = replace(silent[0], versions=later)
    first, second = with_routes(plain, [mixed, told[1]], 64, version=0)
    assert len(first.routes) == 0
    assert second.routes is told[1].routes


def test_rows_of_many_samples_have_the_same_routes_and_log_probabilities(
    plain: MaiForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = drawn(TorchEngine(plain))
    silent = free(samples)
    apart = with_routes(plain, silent, 64, 0)
    before = with_old_logprobs(plain, samples, 64, True, TEMPERATURE)
    monkeypatch.setattr(policy, "packs", lambda model: True)
    for found, expected in zip(with_routes(plain, silent, 64, 0), apart, strict=True):
        assert np.array_equal(np.sort(found.routes), np.sort(expected.routes))
    after = with_old_logprobs(plain, samples, 64, True, TEMPERATURE)
    for found, expected in zip(after, before, strict=True):
        assert found.old is not None
        assert expected.old is not None
        assert np.allclose(found.old, expected.old, atol=1e-5)


def completion(tokens: int, routes: range | None, version: int, finish: str = "stop") -> Completion:
    told = None if routes is None else np.array(routes, np.uint16)[:, None, None]
    return Completion(
        [5] * tokens, np.full(tokens, -0.1, np.float32), Nuclei.free(tokens),
        finish, version, told,
    )  # fmt: skip


def test_every_token_has_the_route_and_the_weights_of_its_own_turn() -> None:
    """The second turn feeds 3 + 2 + 2 tokens once more; of those, only three are new to it."""
    rollout = Rollout(Problem("p", "stem", "k", "k", "q", {}), [1, 2, 3])
    rollout.take(completion(2, range(0, 4), version=4))
    rollout.observe([8, 9])
    rollout.take(completion(3, range(100, 109), version=5))
    sample = sample_of(rollout, 1.0)
    assert sample.versions.tolist() == [4, 4, 4, 4, 5, 5, 5]
    assert sample.routes[:, 0, 0].tolist() == [0, 1, 2, 3, 104, 105, 106, 107, 108]
    assert (len(sample.routes), sample.length) == (9, 10)


def test_an_answer_that_was_interrupted_goes_on_with_other_weights() -> None:
    rollout = Rollout(Problem("p", "stem", "k", "k", "q", {}), [1, 2, 3])
    rollout.take(completion(2, range(0, 4), 4, "interrupted"))
    rollout.take(completion(0, range(50, 54), 5, "interrupted"))
    rollout.take(completion(2, range(100, 106), 6))
    sample = sample_of(rollout, 1.0)
    assert sample.versions.tolist() == [4, 4, 6, 6]
    assert sample.routes[:, 0, 0].tolist() == [0, 1, 2, 3, 104, 105]
    assert rollout.version == 4


def test_a_cut_answer_keeps_the_routes_of_what_is_left() -> None:
    short = cut(completion(5, range(0, 7), 0), 2)
    assert (len(short.tokens), short.finish) == (2, "length")
    assert short.routes is not None
    assert short.routes[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_waiting_group_keeps_routes_and_versions(model: MaiForCausalLM) -> None:
    samples = drawn(TorchEngine(model))[:2]
    samples[1] = replace(samples[1], routes=no_routes())
    buffer = Buffer(8, [Group(tuple(samples), 0, 0.5)])
    (group,) = Buffer.restore(8, *buffer.state()).groups
    for found, expected in zip(group.samples, samples, strict=True):
        for name in ("versions", "routes"):
            left, right = getattr(found, name), getattr(expected, name)
            assert (left.dtype, left.shape) == (right.dtype, right.shape)
            assert np.array_equal(left, right)
