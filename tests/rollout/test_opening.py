"""Which engine a climb gets."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from rollout_support import as_bytes, serving, tiny_network, write_checkpoint

from hillclimb.artifacts import Artifact
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.local_server import LocalEngine
from hillclimb.rollout.opening import ENGINE, SERVERS, open_engine
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.vllm_servers import VllmServers

PROMPTS, PARAMS = [[1, 2, 3], [4, 5]], SamplingParams(12)


@pytest.fixture
def start(tmp_path: Path) -> Artifact:
    return Artifact(write_checkpoint(tmp_path / "start", tiny_network(), "ab" * 32))


def test_an_engine_that_does_not_exist_is_refused(
    start: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENGINE, "sglang")
    with pytest.raises(ValueError, match="HILLCLIMB_ENGINE is 'sglang': set it to torch or vllm"):
        open_engine(start, tiny_network(), beside=True)


def test_named_servers_come_first_and_turns_are_drawn_in_this_process(
    start: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network()
    here = open_engine(start, network, beside=False)
    assert isinstance(here, TorchEngine)
    with serving(network) as url:
        monkeypatch.setenv(SERVERS, url)
        there = open_engine(start, network, beside=True)
        found = as_bytes(there.generate(PROMPTS, PARAMS, 1))
        there.close()
    assert found == as_bytes(here.generate(PROMPTS, PARAMS, 1))


def test_named_servers_may_draw_with_vllm(start: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVERS, "http://a:1,http://b:1")
    for kind, made in (("vllm", VllmServers), ("torch", RemoteEngine)):
        monkeypatch.setenv(ENGINE, kind)
        engine = open_engine(start, tiny_network(), beside=False)
        engine.close()
        assert type(engine) is made


@pytest.mark.slow("starts a server twice")
def test_an_engine_beside_is_a_child_that_is_replaced_when_it_dies(start: Artifact) -> None:
    told: list[str] = []
    network = tiny_network()
    engine = open_engine(start, network, beside=True, log=told.append)
    assert isinstance(engine, LocalEngine)
    first = engine.server.process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    expected = as_bytes(TorchEngine(network).generate(PROMPTS, PARAMS, 1))
    assert as_bytes(engine.generate(PROMPTS, PARAMS, 1)) == expected
    second = engine.server.process
    assert second is not None
    engine.close()
    assert second.pid != first.pid
    while second.poll() is None:
        time.sleep(0.01)
    assert "the rollout server ended with -9: it is started anew" in told
