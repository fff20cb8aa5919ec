"""What every engine must do, held against the model itself: the in-process engine, and vLLM."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from engine_support import PROMPTS, gap, logits_of, require_vllm, same_draws, wrong_masks

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import RolloutEngine, SamplingParams
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.vllm_engine import PYTHON, VllmEngine
from hillclimb.rollout.vllm_options import OPTIONS

WINDOW = 16


@pytest.fixture(scope="module")
def start() -> MaiForCausalLM:
    """Windows shorter than prompts, a head size and a vocabulary that vLLM has to fill up."""
    config = MaiConfig(
        vocab_size=43, zero_init_attention=False, embedding_range=0.25, sliding_window=WINDOW
    )
    return MaiForCausalLM(config).initialise(3).eval().requires_grad_(False)


@pytest.fixture(
    scope="module", params=["torch", pytest.param("vllm", marks=pytest.mark.vllm("a child"))]
)
def shared(request: pytest.FixtureRequest, start: MaiForCausalLM) -> Iterator[RolloutEngine]:
    if request.param == "torch":
        yield TorchEngine(start)
        return
    require_vllm()
    engine = VllmEngine(start, {"max_model_len": 2048})
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: RolloutEngine, start: MaiForCausalLM) -> RolloutEngine:
    """The module's engine with the start's weights again."""
    if shared.version:
        shared.load_weights(dict(start.state_dict()), 0)
    return shared


def changed(model: MaiForCausalLM) -> MaiForCausalLM:
    """The same network some steps later: every weight is another one."""
    other, noise = MaiForCausalLM(model.config), torch.Generator().manual_seed(1)
    for name, weight in model.state_dict().items():
        step = 0.05 * torch.randn(weight.shape, generator=noise)
        other.get_parameter(name).data.copy_(weight * 1.1 + step)
    return other.eval().requires_grad_(False)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.7, 0.97), (1.3, 1.0)])
def test_log_probabilities_and_masks_are_the_models(engine, start, temperature, top_p, capsys):
    params = SamplingParams(40, temperature, top_p)
    done = engine.generate(PROMPTS * 4, params, seed=5)
    found = gap(start, PROMPTS * 4, done, temperature)
    with capsys.disabled():
        print(f" {type(engine).__name__} T={temperature} p={top_p}: gap {found:.1e} nats", end="")
    assert found < 1e-4
    assert wrong_masks(start, PROMPTS * 4, done, temperature, top_p) == 0
    assert all(c.finish == "length" and len(c.tokens) == 40 for c in done)


def test_the_same_seed_draws_the_same_and_another_one_does_not(engine):
    first, again, other = (engine.generate(PROMPTS, SamplingParams(24), s) for s in (1, 1, 2))
    assert same_draws(first, again)
    assert [c.tokens for c in first] != [c.tokens for c in other]
    assert first[0].tokens != first[1].tokens


def test_greedy_answers_are_the_likeliest_tokens(engine, start):
    done = engine.generate(PROMPTS, SamplingParams(24, greedy=True), 0)
    for prompt, completion in zip(PROMPTS, done, strict=True):
        logits = logits_of(start, prompt, completion)
        taken = logits.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        assert float((logits.max(1).values - taken).max()) < 1e-4
        assert completion.nucleus == Nuclei.free(len(completion.tokens))
    assert gap(start, PROMPTS, done) < 1e-4


def test_an_answer_ends_with_its_stop_token_or_at_its_limit(engine, start):
    done = engine.generate(PROMPTS * 8, SamplingParams(30, stop=(3, 17)), 0)
    assert {c.finish for c in done} == {"stop", "length"}
    for completion in done:
        if completion.finish == "stop":
            assert completion.tokens[-1] in (3, 17)
            assert not {3, 17} & set(completion.tokens[:-1])
        else:
            assert len(completion.tokens) == 30
        assert len(completion.logprobs) == len(completion.nucleus) == len(completion.tokens)
    assert gap(start, PROMPTS * 8, done) < 1e-4


def test_an_empty_prompt_is_named_and_no_prompt_is_no_completion(engine):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.generate([[1], [], [2]], SamplingParams(3), 0)
    assert engine.generate([], SamplingParams(3), 0) == []


def test_weights_change_in_place_and_prefixes_of_the_old_ones_are_forgotten(engine, start):
    params, prompts = SamplingParams(24), [list(range(1, 41)) * 3] * 4
    before = engine.generate(prompts, params, 0)
    later = changed(start)
    engine.load_weights(dict(later.state_dict()), 7)
    after = engine.generate(prompts, params, 0)
    assert (before[0].version, after[0].version, engine.version) == (0, 7, 7)
    assert gap(start, prompts, before) < 1e-4
    assert gap(later, prompts, after) < 1e-4
    assert gap(start, prompts, after) > 0.1
    engine.load_weights(dict(start.state_dict()), 8)
    assert same_draws(engine.generate(prompts, params, 0), before)


def test_what_is_interrupted_comes_back_as_far_as_it_was_and_can_go_on(engine, start):
    done = []
    asked = threading.Thread(
        target=lambda: done.extend(engine.generate(PROMPTS, SamplingParams(1900), 0))
    )
    asked.start()
    time.sleep(0.7)
    while asked.is_alive():
        engine.interrupt()
        time.sleep(0.05)
    assert {c.finish for c in done} == {"interrupted"}
    for completion in done:
        assert len(completion.logprobs) == len(completion.nucleus) == len(completion.tokens) < 1900
        assert completion.nucleus.counts.all()
    assert gap(start, PROMPTS, done) < 1e-4
    contexts = [p + c.tokens for p, c in zip(PROMPTS, done, strict=True)]
    rest = engine.generate(contexts, SamplingParams(8), 1)
    assert [c.finish for c in rest] == ["length"] * 4
    assert gap(start, contexts, rest) < 1e-4


def test_new_weights_do_not_wait_for_answers_under_way(engine, start):
    if isinstance(engine, TorchEngine):
        pytest.skip("the in-process engine has one caller")
    later, done = changed(start), []
    engine.load_weights(dict(start.state_dict()), 8)
    threads = [
        threading.Thread(
            target=lambda s=seed: done.extend(engine.generate(PROMPTS, SamplingParams(1900), s))
        )
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    engine.load_weights(dict(later.state_dict()), 9)
    after = engine.generate(PROMPTS, SamplingParams(12), 0)
    for thread in threads:
        thread.join()
    assert {c.finish for c in done} == {"interrupted"}
    assert {c.version for c in done} <= {8, 9}
    assert {c.version for c in after} == {9}
    assert gap(later, PROMPTS, after) < 1e-4
    engine.load_weights(dict(start.state_dict()), 10)


def test_calls_of_several_threads_are_drawn_side_by_side(engine, start):
    if isinstance(engine, TorchEngine):
        pytest.skip("the in-process engine has one caller")
    alone = [engine.generate(PROMPTS, SamplingParams(24), seed) for seed in range(4)]
    together: dict[int, list] = {}
    threads = [
        threading.Thread(
            target=lambda s=seed: together.update(
                {s: engine.generate(PROMPTS, SamplingParams(24), s)}
            )
        )
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_draws(alone[seed], together[seed]) for seed in range(4))


def test_calls_of_every_manner_are_drawn_side_by_side(engine, start):
    if isinstance(engine, TorchEngine):
        pytest.skip("the in-process engine has one caller")
    manners = [
        SamplingParams(60, greedy=True),
        SamplingParams(40, 0.7, 0.9, stop=(3,)),
        SamplingParams(50, 1.3, 1.0, stop=(17,)),
    ]
    together: dict[int, list] = {}
    threads = [
        threading.Thread(
            target=lambda i=i: together.update({i: engine.generate(PROMPTS * 4, manners[i], 8)})
        )
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for params, done in ((manners[i], together[i]) for i in range(3)):
        assert gap(start, PROMPTS * 4, done, params.temperature) < 1e-4
        if not params.greedy:
            found = wrong_masks(start, PROMPTS * 4, done, params.temperature, params.top_p)
            assert found == 0
            assert {c.finish for c in done} == {"stop", "length"}


@pytest.mark.slow("vLLM is started once more")
def test_requests_that_lose_their_memory_draw_the_same_again(engine, start):
    if isinstance(engine, TorchEngine):
        pytest.skip("the in-process engine has no blocks")
    params, prompts = SamplingParams(120), PROMPTS * 2
    with closing(VllmEngine(start, {"max_model_len": 256, "num_gpu_blocks_override": 12})) as tight:
        found, expected = (each.generate(prompts, params, 4) for each in (tight, engine))
    assert gap(start, prompts, found) < 1e-4
    assert wrong_masks(start, prompts, found, 1.0, params.top_p) == 0
    same = sum(a.tokens == b.tokens for a, b in zip(found, expected, strict=True))
    assert same >= len(prompts) - 1, "rounding may move a draw, but hardly ever"


@pytest.mark.slow("vLLM is started once more")
def test_a_child_that_dies_is_noticed_and_started_anew_with_its_weights(engine, start, capsys):
    if isinstance(engine, TorchEngine):
        pytest.skip("the in-process engine has no child")
    later = changed(start)
    engine.load_weights(dict(later.state_dict()), 5)
    before = engine.generate(PROMPTS, SamplingParams(12), 3)
    engine.server.process.kill()
    after = engine.generate(PROMPTS, SamplingParams(12), 3)
    assert same_draws(before, after)
    assert after[0].version == 5
    assert "started anew" in capsys.readouterr().out


def test_a_prompt_that_leaves_no_room_is_named(engine):
    if isinstance(engine, TorchEngine):
        pytest.skip("the in-process engine has no limit")
    with pytest.raises(ValueError, match=r"prompt 0 has 2048 tokens .* raise max_model_len"):
        engine.generate([[1] * 2048], SamplingParams(3), 0)
    cut = engine.generate([[1] * 2040], SamplingParams(30), 0)[0]
    assert (len(cut.tokens), cut.finish) == (8, "length")


def test_without_vllm_the_fix_is_named(start, monkeypatch, tmp_path):
    monkeypatch.setenv(PYTHON, str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match=f"run `make vllm`, or set {PYTHON}"):
        VllmEngine(start)


def test_options_that_are_no_object_are_refused(start, monkeypatch):
    require_vllm()
    monkeypatch.setenv(OPTIONS, "[1]")
    with pytest.raises(ValueError, match=f"{OPTIONS} is no JSON object"):
        VllmEngine(start)
