"""An engine that is asked tells which experts every token went through, near or far."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_support import as_bytes, serving, tiny_network

from hillclimb.model.routes import recorded
from hillclimb.rollout.engine import Completion, Finish, SamplingParams
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.wire import FINISHES, pack, unpack

PROMPTS = [[1, 2, 3], [1, 2, 3], [9, 8, 7, 6, 5], [4]]
PARAMS = SamplingParams(12, top_p=0.9, stop=(0, 7, 11), routes=True)


def held(completions: list[Completion]) -> list[object]:
    """Everything in them, routes included."""
    routes = [
        None if c.routes is None else (c.routes.dtype, c.routes.tolist()) for c in completions
    ]
    return [as_bytes(completions), routes]


@torch.no_grad()
def test_the_routes_are_those_of_one_pass_over_prompt_and_answer() -> None:
    network = tiny_network()
    for prompt, done in zip(
        PROMPTS, TorchEngine(network).generate(PROMPTS, PARAMS, 5), strict=True
    ):
        with recorded(network) as last:
            network.hidden(torch.tensor([prompt + done.tokens[:-1]]))
            expected = last()
        assert done.routes is not None
        assert done.routes.shape == (len(prompt) + len(done.tokens) - 1, 3, 2)
        assert np.array_equal(done.routes, expected)


def test_asking_for_routes_changes_no_draw() -> None:
    engine = TorchEngine(tiny_network())
    without = engine.generate(PROMPTS, replace(PARAMS, routes=False), 5)
    assert all(done.routes is None for done in without)
    asked = [replace(done, routes=None) for done in engine.generate(PROMPTS, PARAMS, 5)]
    assert held(asked) == held(without)


def test_an_interrupted_answer_has_the_routes_of_what_was_fed() -> None:
    network = tiny_network()
    whole = TorchEngine(network).generate(PROMPTS, replace(PARAMS, stop=()), 5)
    engine, passes = TorchEngine(network), iter(range(100))
    engine.model.norm.register_forward_hook(
        lambda *_: engine.interrupt() if next(passes) == 4 else None
    )
    for prompt, short, done in zip(
        PROMPTS, engine.generate(PROMPTS, replace(PARAMS, stop=()), 5), whole, strict=True
    ):
        assert (short.finish, short.tokens) == ("interrupted", done.tokens[:5])
        assert short.routes is not None
        assert done.routes is not None
        assert np.array_equal(short.routes, done.routes[: len(prompt) + 4])


@pytest.mark.parametrize("greedy", [False, True])
def test_servers_tell_the_same_routes(greedy: bool) -> None:
    network, params = tiny_network(), replace(PARAMS, greedy=greedy)
    expected = TorchEngine(network, 3).generate(PROMPTS * 2, params, 1)
    with serving(network) as one, serving(network) as two:
        engine = RemoteEngine([one, two], network, rows=3)
        found = engine.generate(PROMPTS * 2, params, 1)
        engine.close()
    assert held(found) == held(expected)


def completion(tokens: int, finish: Finish, routes: int | None) -> Completion:
    generator = np.random.default_rng(tokens)
    told = None if routes is None else generator.integers(0, 2**16, (routes, 3, 2), np.uint16)
    return Completion(
        list(range(tokens)), generator.random(tokens, np.float32),
        Nuclei.of_mask(generator.random((tokens, 40)) > 0.7), finish, tokens, told,
    )  # fmt: skip


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(FINISHES), st.none() | st.integers(1, 6)),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_completions_with_and_without_routes_travel_to_the_bit(
    parts: list[tuple[int, Finish, int | None]],
) -> None:
    sent = [completion(*part) for part in parts]
    assert held(unpack(pack(sent))) == held(sent)


def test_routes_that_are_not_whole_are_refused() -> None:
    done = completion(3, "stop", 5)
    short = replace(done, routes=done.routes[:4])
    broken = pack([short]).replace(b'"route_lengths"', b'"route_numbers"')
    with pytest.raises(ValueError, match="not whole"):
        unpack(broken)
