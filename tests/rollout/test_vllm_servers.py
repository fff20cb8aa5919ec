"""The client of vLLM servers, over servers of the in-process engine: they speak the same."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rollout_support import as_bytes, serving, tiny_network

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import Batch, SamplingParams
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.vllm_servers import CALLS, Slot, VllmServers
from hillclimb.rollout.wire import Ask, Weights

PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5], [4]]
PARAMS = SamplingParams(12)


@pytest.fixture(scope="module")
def start() -> MaiForCausalLM:
    return tiny_network()


def test_calls_are_drawn_apart_and_each_server_is_sent_new_weights_once(start, capsys):
    weights, seeds = {k: v * 0.7 for k, v in start.state_dict().items()}, range(12)
    alone = TorchEngine(start)
    alone.load_weights(weights, 1)
    expected = [as_bytes(alone.generate(PROMPTS, PARAMS, seed)) for seed in seeds]
    with serving(start) as one, serving(start) as two:
        client = VllmServers([one, two], start, patience=30)
        client.load_weights(weights, 1)
        with ThreadPoolExecutor(len(seeds)) as pool:
            found = pool.map(lambda seed: client.generate(PROMPTS, PARAMS, seed), seeds)
            assert [as_bytes(done) for done in found] == expected
        client.close()
    assert 1 <= capsys.readouterr().out.count("took the weights of version 1") <= 2


def test_a_server_that_goes_and_comes_back_is_told_of_once(start):
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    client = VllmServers([f"http://127.0.0.1:{port}"], start, patience=60, log=told.append)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.generate, PROMPTS, PARAMS, seed) for seed in range(4)]
        while sum(replica.misses > 0 for replica in client._replicas) < 4:
            time.sleep(0.01)
        with serving(start, port):
            assert [len(call.result()) for call in calls] == [3] * 4
    client.close()
    assert [note.partition(" is ")[2].partition(":")[0] for note in told] == ["away", "back"]


def test_a_batch_for_weights_that_are_not_the_newest_comes_back_undrawn(start, capsys):
    with serving(start) as url:
        client = VllmServers([url], start, patience=30)
        assert len(client._replicas) == CALLS
        old = Weights.of(start.state_dict(), 7)
        done = client._replicas[0].draw(Ask.of(Batch(PROMPTS, 1), PARAMS, old), old)
        client.close()
    assert [(c.tokens, c.finish, c.version) for c in done] == [([], "interrupted", 7)] * 3
    assert "took the weights" not in capsys.readouterr().out


@pytest.mark.parametrize("seen", [False, True])
def test_a_server_never_goes_back_to_weights_that_were_replaced(start, capsys, monkeypatch, seen):
    """Nor where they were still there when the slot looked; and the server is not away."""
    later = Weights.of({k: v * 0.7 for k, v in start.state_dict().items()}, 8)
    with serving(start) as url:
        slot = Slot(url, 30.0, threading.RLock(), lambda weights: weights is later)
        slot.send(later)
        if seen:
            monkeypatch.setattr(slot, "_prepare", lambda weights: None)
        capsys.readouterr()
        old = Weights.of(start.state_dict(), 7)
        done = slot.draw(Ask.of(Batch(PROMPTS, 1), PARAMS, old), old)
        assert slot.misses == 0
    assert [(c.tokens, c.finish, c.version) for c in done] == [([], "interrupted", 7)] * 3
    assert "took the weights" not in capsys.readouterr().out
