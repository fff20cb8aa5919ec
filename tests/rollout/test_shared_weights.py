"""Weights that an engine's process reads in the learner's memory."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rollout_support import as_bytes, serving, tiny_network, write_checkpoint

from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.local_server import LocalServer
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.replicas import Replica, Unreached
from hillclimb.rollout.shared_weights import PLACE, SharedBuffer, opened, views
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.vllm_engine import own_gpus
from hillclimb.rollout.wire import Weights

PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5], [4]]
PARAMS = SamplingParams(24)
FINGERPRINT = "ab" * 32
shapes = st.lists(st.integers(1, 5), max_size=3)
kinds = st.sampled_from(["float32", "bfloat16", "int64"])


@given(st.lists(st.tuples(shapes, kinds), min_size=1, max_size=5))
def test_views_are_the_tensors_of_a_buffer(wanted: list[tuple[list[int], str]]) -> None:
    table = [[str(i), kind, shape, 1024 * i] for i, (shape, kind) in enumerate(wanted)]
    buffer = torch.zeros(1024 * len(table), dtype=torch.uint8)
    found = views(buffer, table)
    for number, tensor in found.items():
        tensor.fill_(int(number) + 1)
    for number, (shape, kind) in enumerate(wanted):
        tensor = found[str(number)]
        assert (list(tensor.shape), str(tensor.dtype)) == (shape, f"torch.{kind}")
        assert bool((tensor == number + 1).all())


@pytest.mark.parametrize("body", [b"{}", b"[]", b"nonsense", b'{"handle": [0, "ab"]}'])
def test_what_cannot_be_opened_is_said_in_one_sentence(body: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be opened here"):
        opened(body)


@pytest.mark.parametrize(
    ("shares", "why"), [(True, "cannot be opened here"), (False, "opens no memory of others")]
)
def test_a_server_that_does_not_reach_them_says_so_and_keeps_its_own(
    shares: bool, why: str
) -> None:
    network = tiny_network()
    before = TorchEngine(network).generate(PROMPTS, PARAMS, 0)
    body = json.dumps({"handle": [0], "tensors": []}).encode()
    weights = Weights(1, hashlib.sha256(body).hexdigest(), body, PLACE)
    with serving(network, shares=shares) as url:
        with pytest.raises(Unreached, match=why):
            Replica(url, 5.0).send(weights)
        engine = RemoteEngine([url], network)
        assert as_bytes(engine.generate(PROMPTS, PARAMS, 0)) == as_bytes(before)
        engine.close()


@pytest.mark.parametrize(
    ("visible", "options", "expected"),
    [
        (None, {}, "3"),
        ("4,5,6,7", {"tensor_parallel_size": 2}, "6,7"),
    ],
)
def test_vllm_has_the_last_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, options: dict[str, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert own_gpus(options) == {"CUDA_VISIBLE_DEVICES": expected}


def test_a_gpu_alone_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert own_gpus({}) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.gpu("a process opens the memory of another one's GPU")
def test_another_process_reads_each_version_where_it_is(tmp_path: Path) -> None:
    start, later = tiny_network(), tiny_network(5)
    uri = write_checkpoint(tmp_path / "start", start, FINGERPRINT)
    words = [sys.executable, "-m", "hillclimb.rollout.server", "--checkpoint", uri,
             "--fingerprint", FINGERPRINT]  # fmt: skip
    server = LocalServer(words, {}, print)
    replica = Replica(server.url, 30.0)
    buffer = SharedBuffer({n: t.cuda() for n, t in start.state_dict().items()})
    for version, network in ((1, start), (2, later), (3, later)):
        weights = buffer.write({n: t.cuda() for n, t in network.state_dict().items()}, version)
        replica.send(weights)
    engine = RemoteEngine([server.url], start)
    engine._weights = weights
    expected = TorchEngine(later)
    expected.load_weights(later.state_dict(), 3)
    found = engine.generate(PROMPTS, PARAMS, 0)
    assert as_bytes(found) == as_bytes(expected.generate(PROMPTS, PARAMS, 0))
    engine.close()
    server.close()
