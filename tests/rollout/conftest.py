"""Engines of each kind over one tiny network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from rollout_support import serving, tiny_network

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import BATCH_ROWS, RolloutEngine
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.torch_engine import TorchEngine

Build = Callable[..., RolloutEngine]


@pytest.fixture
def network() -> MaiForCausalLM:
    return tiny_network()


@pytest.fixture(params=["torch", "one server", "two servers"])
def build(request: pytest.FixtureRequest, network: MaiForCausalLM) -> Iterator[Build]:
    """Makes an engine of each kind, with batches of a size."""
    with ExitStack() as stack:

        def make(rows: int = BATCH_ROWS) -> RolloutEngine:
            if request.param == "torch":
                return TorchEngine(network, rows)
            count = 1 if request.param == "one server" else 2
            urls = [stack.enter_context(serving(network)) for _ in range(count)]
            engine = RemoteEngine(urls, network, rows=rows)
            stack.callback(engine.close)
            return engine

        yield make
