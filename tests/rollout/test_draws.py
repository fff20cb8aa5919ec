"""Draws by inverse CDF, and what is remembered of them until a request is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hillclimb.rollout import draw_log
from hillclimb.rollout.draw_log import CHUNK, DrawLog
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.sampling import draw, draw_at, nucleus

UNIFORMS = st.one_of(st.just(0.0), st.just(1 - 2.0**-53), st.floats(0, 1, exclude_max=True))
CPU = torch.device("cpu")


@settings(max_examples=200)
@given(
    st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=12),
    UNIFORMS, st.floats(0.01, 3), st.floats(0.001, 1),
)  # fmt: skip
def test_a_token_is_one_of_its_nucleus_and_has_its_probability(logits, uniform, temperature, p):
    row = torch.tensor([logits], dtype=torch.float32)
    token, logprob, kept = draw_at(torch.tensor([uniform]).double(), row.clone(), temperature, p)
    scaled = row / temperature
    assert bool(kept[0, token])
    assert torch.equal(kept, nucleus(scaled.softmax(-1), p))
    expected = scaled.masked_fill(~kept, -torch.inf).log_softmax(-1)[0, token]
    assert torch.equal(logprob, expected)
    assert bool(logprob.isfinite())


@pytest.mark.parametrize("p", [0.5, 0.97, 1.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_the_last_place_of_a_large_vocabulary_is_still_inside(p, spread):
    noise = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(4, 200_019, generator=noise)
    last = torch.tensor([0.0, 0.5, 1 - 1e-9, 1 - 2.0**-53], dtype=torch.float64)
    tokens, logprobs, kept = draw_at(last, logits, 1.0, p)
    assert bool(kept.gather(1, tokens[:, None]).all())
    assert bool(logprobs.isfinite().all())
    assert int(tokens[0]) == int(logits[0].argmax())


def by_rank(logits, temperature, top_p, noise):
    uniforms = torch.rand(len(logits), generator=noise, dtype=torch.float64)
    return draw_at(uniforms, logits, temperature, top_p)


@pytest.mark.parametrize("drawing", [by_rank, draw])
def test_draws_follow_the_probabilities(drawing):
    rows, noise = 40_000, torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.3, 2.0, -1.0, 1.2, 0.3, -9.0]])
    tokens, logprobs, kept = drawing(logits.expand(rows, -1), 0.8, 0.98, noise)
    chances = (logits / 0.8).masked_fill(~kept[:1], -torch.inf).softmax(-1)[0].double()
    counts = torch.bincount(tokens, minlength=6).double()
    inside = kept[0]
    assert 3 <= int(inside.sum()) < 6
    assert float(counts[~inside].sum()) == 0
    expected = rows * chances[inside]
    assert float(((counts[inside] - expected) ** 2 / expected).sum()) < 20
    assert torch.allclose(logprobs.double(), chances.log()[tokens], atol=1e-6)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("p", [0.5, 0.97, 1.0])
def test_the_least_and_the_greatest_number_draw_inside_the_nucleus(monkeypatch, uniform, p):
    """The first and the last token of the vocabulary are outside where the nucleus is small."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, uniform).double())
    logits = torch.randn(64, 5_000, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, [0, -1]] = -30
    tokens, logprobs, kept = draw(logits, 1.0, p, torch.Generator())
    assert bool(kept.gather(1, tokens[:, None]).all())
    assert bool(logprobs.isfinite().all())


def test_rows_of_different_temperatures_and_nuclei_are_drawn_as_alone():
    noise = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(3, 50, generator=noise), torch.tensor([0.2, 0.7, 0.9]).double()
    manners = torch.tensor([[0.5, 0.9], [1.0, 2.0], [1.7, 0.6]])
    together = draw_at(uniforms, logits, *manners.T.unsqueeze(-1))
    for row, (temperature, p) in enumerate(manners.tolist()):
        alone = draw_at(uniforms[row : row + 1], logits[row : row + 1], temperature, p)
        assert int(together[0][row]) == int(alone[0][0])
        assert torch.allclose(together[1][row], alone[1][0])
        assert torch.equal(together[2][row], alone[2][0])


def log_of(vocabulary: int = 11, context: int = 1000) -> DrawLog:
    return DrawLog(vocabulary, context, 64, CPU, pinned=False)


def numbers(log: DrawLog, slots: list[int], places: list[int]) -> list[float]:
    return log.uniforms(np.array(slots), np.array(places)).tolist()


def test_numbers_are_decided_by_seed_and_place_alone():
    log, other = log_of(), log_of()
    a, b, plain = log.open("a", 5), log.open("b", 6), log.open("c", None)
    places = [0, CHUNK - 1, CHUNK, 3 * CHUNK, 1, 0]
    found = [numbers(log, [a, b, plain], [place] * 3) for place in places]
    assert found[0] == found[-1]
    assert all(row[2] == 0 for row in found)
    drawn = {number for row in found for number in row[:2]}
    assert len(drawn) == 2 * len(set(places))
    assert all(0 <= number < 1 for number in drawn)
    other.open("x", 9)
    slot = other.open("y", 5)
    assert [numbers(other, [slot], [place])[0] for place in places] == [row[0] for row in found]


def test_numbers_are_spread_evenly():
    log = log_of()
    slots = [log.open(str(seed), seed) for seed in range(64)]
    found = np.array([numbers(log, slots, [place] * 64) for place in range(600)])
    counts = np.histogram(found, 20, (0, 1))[0]
    assert ((counts - found.size / 20) ** 2 / (found.size / 20)).sum() < 50
    assert abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 0.02


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_is_taken_is_what_was_put_last_at_each_place(data):
    """Requests come, wait, lose their memory, move and go in any order."""
    log, truth, count = log_of(), {}, 0
    noise = torch.Generator().manual_seed(0)
    for _ in range(data.draw(st.integers(1, 40))):
        if data.draw(st.booleans()) or not truth:
            count += 1
            truth[str(count)] = []
        names = data.draw(st.lists(st.sampled_from(sorted(truth)), unique=True, min_size=1))
        slots = np.array([log.open(name, int(name)) for name in names])
        keep = [data.draw(st.booleans()) for _ in names]
        places = np.array([len(truth[name]) for name in names])
        logprobs = torch.randn(len(names), generator=noise)
        kept = torch.rand(len(names), 11, generator=noise) > 0.5
        log.put(slots, places, logprobs, kept)
        for index, name in enumerate(names):
            if keep[index]:
                truth[name].append((kept[index].numpy(), float(logprobs[index])))
        if data.draw(st.integers(0, 3)) == 0:
            check(log, {name: truth.pop(name) for name in names})
    check(log, truth)


def check(log: DrawLog, truth: dict[str, list]) -> None:
    found = log.take(list(truth), [len(places) for places in truth.values()])
    for (nuclei, logprobs), places in zip(found, truth.values(), strict=True):
        masks = np.array([mask for mask, _ in places], bool).reshape(-1, 11)
        assert nuclei == Nuclei.of_mask(masks)
        assert logprobs.tolist() == [logprob for _, logprob in places]


def test_likeliest_tokens_have_no_nucleus_and_unknown_requests_nothing():
    log = log_of()
    slots = np.array([log.open("a", None)])
    for place in range(3):
        log.put(slots, np.array([place]), torch.tensor([-float(place)]), None)
    (nuclei, logprobs), (none, nothing) = log.take(["a", "never begun"], [3, 0])
    assert (nuclei, none) == (Nuclei.free(3), Nuclei.free(0))
    assert logprobs.tolist() == [0, -1, -2]
    assert nothing.shape == (0,)


def test_memory_of_requests_that_are_done_is_used_again(monkeypatch):
    monkeypatch.setattr(draw_log, "GROWTH", 1)
    log = log_of()
    for turn in range(30):
        names = [f"{turn} {row}" for row in range(64)]
        slots = np.array([log.open(name, 0) for name in names])
        for place in range(3):
            log.put(slots, np.full(64, place), torch.zeros(64), torch.ones(64, 11) > 0)
        log.take(names, [3] * 64)
    assert len(log._logprobs) == 64 * 3
    assert len(log._ids) < 4 * 64 * 3 * 11
