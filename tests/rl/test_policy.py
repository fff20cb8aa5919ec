"""What the learner compares with the sampler, on a tiny model that samples for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl.groups import Sample
from hillclimb.rl.objective import Objective
from hillclimb.rl.policy import PolicyLoss, drawn_logprobs, micro_batches, with_old_logprobs
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.sampling import mask_of
from hillclimb.rollout.torch_engine import TorchEngine

VOCAB, TEMPERATURE, TOP_P = 64, 0.8, 0.7


@pytest.fixture(scope="module")
def model() -> MaiForCausalLM:
    config = MaiConfig(
        vocab_size=VOCAB, hidden_size=32, dense_ffn_size=64, latent_size=16, expert_ffn_size=32,
        num_experts=4, head_dim=8,
    )  # fmt: skip
    return MaiForCausalLM(config).initialise(0)


def sampled(model: MaiForCausalLM, top_p: float = TOP_P) -> list[Sample]:
    """Rollouts of three lengths; the last has an observation in its middle."""
    prompts = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]
    params = SamplingParams(9, TEMPERATURE, top_p, stop=(1,))
    done = TorchEngine(model).generate(prompts, params, seed=0)
    samples = [
        Sample(
            np.array(prompt, np.int32), np.array(d.tokens, np.int32), np.ones(len(d.tokens), bool),
            d.logprobs, d.nucleus, advantage,
        )
        for prompt, d, advantage in zip(prompts, done, (1.0, -0.5, 0.25), strict=True)
    ]  # fmt: skip
    samples[2].drawn[2:4] = False
    return samples


def gaps(model: MaiForCausalLM, samples: list[Sample], nucleus: bool) -> torch.Tensor:
    """log pi - log pi_engine of every drawn token."""
    batches = micro_batches(samples, 20, nucleus)
    with torch.no_grad():
        return torch.cat([drawn_logprobs(model, b, TEMPERATURE) - b.drawn.engine for b in batches])


def test_with_the_nucleus_replayed_both_sides_agree(model: MaiForCausalLM) -> None:
    assert gaps(model, sampled(model), nucleus=True).abs().max() < 1e-5


def test_without_replay_the_ratio_starts_at_the_nucleus_s_mass(model: MaiForCausalLM) -> None:
    samples = sampled(model)
    masses = gaps(model, samples, nucleus=False).exp()
    assert (masses < 1 - 1e-4).any()
    assert (masses > TOP_P - 1e-5).all()
    assert (masses < 1 + 1e-5).all()
    (batch,) = micro_batches(samples, 10_000, True)
    with torch.no_grad():
        hidden = model.hidden(batch.tokens, batch.segments)
        picked = hidden[batch.positions[:, 0], batch.positions[:, 1]]
        chances = (model.logits(picked) / TEMPERATURE).softmax(-1)
    assert batch.kept is not None
    kept = (chances * mask_of(batch.kept, *chances.shape)).sum(-1)
    assert torch.allclose(masses.sort().values, kept.sort().values, atol=1e-5)


def test_where_everything_can_be_drawn_replay_changes_nothing(model: MaiForCausalLM) -> None:
    samples = sampled(model, top_p=1.0)
    assert torch.allclose(
        gaps(model, samples, nucleus=False), gaps(model, samples, nucleus=True), atol=1e-6
    )


def changed(model: MaiForCausalLM) -> MaiForCausalLM:
    """The model a few steps later."""
    other = MaiForCausalLM(model.config)
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other


def gradient(
    model: MaiForCausalLM, samples: list[Sample], objective: Objective, packed: bool = False
) -> torch.Tensor:
    """Of the embedding, over all micro-batches."""
    model.zero_grad()
    tokens = int(sum(sample.drawn.sum() for sample in samples))
    for batch in micro_batches(samples, 20, True, packed):
        PolicyLoss(objective, TEMPERATURE, tokens)(model, batch)[0].backward()
    assert model.embed.weight.grad is not None
    return model.embed.weight.grad.clone()


def test_the_old_policy_is_what_the_learner_says_before_the_update(model: MaiForCausalLM) -> None:
    samples, later = sampled(model), changed(model)
    old = with_old_logprobs(later, samples, 20, True, TEMPERATURE)
    assert [len(s.old) for s in old if s.old is not None] == [int(s.drawn.sum()) for s in samples]
    for batch in micro_batches(old, 20, True):
        with torch.no_grad():
            again = drawn_logprobs(later, batch, TEMPERATURE)
        assert torch.allclose(again, batch.drawn.old, atol=1e-6)
        assert (batch.drawn.old - batch.drawn.engine).abs().max() > 0.01


def test_an_engine_that_is_right_needs_no_correction(model: MaiForCausalLM) -> None:
    """Ratios are one and so are the weights: the truncated objective is the report's."""
    samples = sampled(model)
    corrected = with_old_logprobs(model, samples, 20, True, TEMPERATURE)
    plain = gradient(model, samples, Objective(0.4, 2.5, 50.0))
    truncated = gradient(model, corrected, Objective(0.4, 2.5, 50.0, cap=2.0))
    assert torch.allclose(plain, truncated, atol=1e-6)


def test_an_engine_that_is_wrong_by_a_factor_is_put_right(model: MaiForCausalLM) -> None:
    """It says half the chance: uncorrected, all ratios are two, and bad tokens count double."""
    samples = [replace(s, logprobs=s.logprobs - np.float32(np.log(2))) for s in sampled(model)]
    right = gradient(model, sampled(model), Objective(0.4, 1.5, 50.0))
    corrected = with_old_logprobs(model, samples, 20, True, TEMPERATURE)
    capped = gradient(model, corrected, Objective(0.4, 1.5, 50.0, cap=1.0))
    assert torch.allclose(right, capped, atol=1e-6)
    plain = gradient(model, samples, Objective(0.4, 1.5, 50.0))
    assert not torch.allclose(right, plain, atol=1e-4)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_rows_of_many_samples_give_the_gradient_of_rows_of_one(
    model: MaiForCausalLM, ratio: Literal["token", "sequence"]
) -> None:
    """The learner is another one than drew, so that sequences have ratios of their own."""
    samples, objective = sampled(model) * 3, Objective(0.9, 1.1, ratio=ratio)
    later = changed(model)
    apart, together = (gradient(later, samples, objective, packed) for packed in (False, True))
    assert float(apart.abs().max()) > 1e-4
    assert torch.allclose(apart, together, atol=1e-6)


lengths = st.lists(st.integers(2, 1500), min_size=1, max_size=40)


@given(lengths, st.sampled_from([20, 1024, 5000]))
def test_packed_batches_have_one_shape_and_every_sample_once(sizes: list[int], most: int) -> None:
    samples = [of_length(size) for size in sizes]
    batches = micro_batches(samples, most, False, packed=True)
    assert len({batch.tokens.shape for batch in batches}) == 1
    rows, width = batches[0].tokens.shape
    assert rows * width <= max(most, width)
    assert width < max(1025, 2 * max(sizes))
    placed = [place.sample for batch in batches for place in batch.places]
    assert sorted(placed) == list(range(len(sizes)))
    assert sum(int((batch.segments >= 0).sum()) for batch in batches) == sum(sizes)


def of_length(size: int) -> Sample:
    """One token of prompt, the rest drawn."""
    count = size - 1
    return Sample(
        np.zeros(1, np.int32), np.zeros(count, np.int32), np.ones(count, bool),
        np.zeros(count, np.float32), Nuclei.free(count), 1.0,
    )  # fmt: skip
