"""Servers that show life and never finish what they were asked for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from rollout_support import as_bytes, serving, tiny_network

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl.apart import Closed, _Gate
from hillclimb.rollout import local_server, remote
from hillclimb.rollout.engine import Completion, SamplingParams
from hillclimb.rollout.local_server import LocalServer
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.server import RolloutServer
from hillclimb.rollout.torch_engine import TorchEngine

PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5], [4], [7, 7]]
PARAMS = SamplingParams(12)


class Hanging(TorchEngine):
    """An engine that draws nothing before it is let go."""

    def __init__(self, network: MaiForCausalLM) -> None:
        super().__init__(network)
        self.go_on, self.asked = threading.Event(), threading.Event()

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        self.asked.set()
        self.go_on.wait()
        return super().generate(prompts, params, seed)


@contextmanager
def hanging(network: MaiForCausalLM, calls: int = 1) -> Iterator[tuple[str, Hanging]]:
    """The URL of a server whose engine hangs, with a beat every 50 ms, and the engine."""
    engine = Hanging(network)
    with RolloutServer(("127.0.0.1", 0), network, 0.05, engine, calls) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", engine
        finally:
            engine.go_on.set()
            server.shutdown()


@pytest.fixture(scope="module")
def start() -> MaiForCausalLM:
    return tiny_network()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may take no longer than patience lasts."""
    monkeypatch.setattr(remote, "SECONDS_A_TOKEN", 0.0)


def test_a_server_that_finishes_nothing_is_left_and_its_batch_drawn_elsewhere(start):
    """The draws are those of one process; once it answers, it is asked again."""
    told: list[str] = []
    expected = as_bytes(TorchEngine(start, batch_size=1).generate(PROMPTS, PARAMS, 5))
    with hanging(start) as (stuck, engine), serving(start) as well:
        client = RemoteEngine([stuck, well], start, patience=4, rows=1, log=told.append)
        assert as_bytes(client.generate(PROMPTS, PARAMS, 5)) == expected
        assert engine.asked.is_set()
        [note] = told
        assert note.startswith(f"the rollout server {stuck} is away: it has finished nothing in")
        assert as_bytes(client.generate(PROMPTS, PARAMS, 5)) == expected, "without asking it"
        engine.go_on.set()
        while client._stuck:
            time.sleep(0.01)
        assert as_bytes(client.generate(PROMPTS, PARAMS, 5)) == expected
        assert told[1:] == [f"the rollout server {stuck} is back"]
        client.close()


def test_a_call_that_only_stuck_servers_have_is_given_up(start):
    """However many calls a server takes at a time; all that it has are given up together."""
    with hanging(start, calls=4) as (url, _):
        client = RemoteEngine([url] * 4, start, patience=1, rows=1, log=lambda note: None)
        with pytest.raises(RuntimeError, match=r"no rollout server has drawn .* finished nothing"):
            client.generate(PROMPTS[:3], PARAMS, 5)
        client.close()


def test_a_batch_may_take_longer_the_longer_its_answers_may_be(start, monkeypatch):
    monkeypatch.setattr(remote, "SECONDS_A_TOKEN", 60.0)
    told: list[str] = []
    with serving(start, beat=0.1, busy=3) as slow:
        client = RemoteEngine([slow], start, patience=0.5, log=told.append)
        assert len(client.generate(PROMPTS, PARAMS, 1)) == len(PROMPTS)
        client.close()
    assert not told


def test_a_climb_ends_while_an_engine_hangs(start):
    """Workers that draw ahead of the learner are let go, though nothing comes back to them."""
    found: list[BaseException] = []
    with hanging(start) as (url, engine):
        client = RemoteEngine([url], start, patience=1, log=lambda note: None)
        gate = _Gate(client)

        def draw() -> None:
            try:
                gate.generate(PROMPTS, PARAMS, 1)
            except (Closed, RuntimeError) as error:
                found.append(error)

        worker = threading.Thread(target=draw)
        worker.start()
        engine.asked.wait()
        while worker.is_alive():
            gate.close()
            worker.join(0.1)
        client.close()
    assert len(found) == 1


def test_a_child_that_does_not_come_up_is_ended(monkeypatch):
    monkeypatch.setattr(local_server, "START", 0.5)
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    told: list[str] = []
    with pytest.raises(RuntimeError, match="did not start"):
        LocalServer(words, {}, told.append)
    assert not told


HANGS = """
import sys, threading, time
from hillclimb.rollout.watched import Watched

class Engine:
    def generate(self, prompts, params, seed):
        time.sleep(600)
    def load_weights(self, weights, version):
        time.sleep(600)

engine = Watched(Engine(), stall=0.5, pause=0.2)
if "load" in sys.argv:
    threading.Thread(target=engine.load_weights, args=({}, 1), daemon=True).start()
    while not engine._loads:
        time.sleep(0.01)
threading.Thread(target=engine.watch, daemon=True).start()
time.sleep(2 if "load" in sys.argv else 600)
sys.exit(7)
"""


@pytest.mark.parametrize(("how", "code"), [("call", 1), ("load", 7)])
def test_a_process_whose_engine_makes_no_step_ends(how, code):
    """Not one that waits for calls before it loads weights."""
    done = subprocess.run([sys.executable, "-c", HANGS, how], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("has made no step in" in done.stderr) == (code == 1)
