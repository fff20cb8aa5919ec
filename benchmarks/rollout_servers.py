"""Rollout servers against the engine in one process: `python benchmarks/rollout_servers.py`.

A toy-sized, untrained model draws two batches, on one thread a process. Servers are processes of
this machine: the numbers hold the costs of HTTP, of copies and of weights, not those of a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file

from hillclimb.artifacts import ArtifactWriter, Manifest
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.folder import MODEL
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import BATCH_ROWS, RolloutEngine, SamplingParams
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.wire import Weights, pack

BATCHES, TOKENS, REPEATS = 2, 32, 5
PROMPTS = [[1 + i % 400, 2, 3, 4] for i in range(BATCHES * BATCH_ROWS // 16) for _ in range(16)]
PARAMS = SamplingParams(TOKENS)


def main() -> None:
    """Print tokens a second, and what crosses the wire."""
    torch.set_num_threads(1)
    model = MaiForCausalLM(MaiConfig()).initialise(0)
    changed = {name: tensor * 1.01 for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        urls = start_servers(stack, Path(folder), model, 2)
        engines: dict[str, RolloutEngine] = {
            "in this process": TorchEngine(model),
            "one server": RemoteEngine(urls[:1], model),
            "two servers": RemoteEngine(urls, model),
        }
        rates = dict.fromkeys(engines, 0.0)
        for seed in range(REPEATS):
            for name, engine in engines.items():
                rates[name] = max(rates[name], tokens_per_second(engine, seed))
        for name, rate in rates.items():
            ratio = rate / rates["in this process"]
            print(f"{name:16} {rate:8,.0f} tokens/s  {ratio:.2f}x")
        print(f"new weights      {1000 * update_seconds(engines['one server'], changed):.0f} ms")
    done = TorchEngine(model).generate(PROMPTS[:BATCH_ROWS], PARAMS, 0)
    size, tokens = len(pack(done)), sum(len(c.tokens) for c in done)
    print(f"answers          {size / tokens:.0f} bytes a token, {size / 2**20:.1f} MiB a batch")
    print(f"weights          {len(Weights.of(model.state_dict(), 0).body) / 2**20:.1f} MiB")


def start_servers(stack: ExitStack, folder: Path, model: MaiForCausalLM, count: int) -> list[str]:
    """The URLs of servers that have loaded the model."""
    out, fingerprint = ArtifactWriter(f"{folder}/start"), "ab" * 32
    with out.local(MODEL) as place:
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(model.config.to_diff_dict()))
        save_file(dict(model.state_dict()), place / "model.safetensors")
    identity = {"name": "start", "kind": "base_phase", "fingerprint": fingerprint}
    empty = {"inputs": {}, "config": {}, "files": [], "metrics": {}, "summary": {}, "run": {}}
    out.commit(Manifest.model_validate({**identity, **empty, "code_version": "", "seed": 0}))
    words = ["--checkpoint", out.uri, "--fingerprint", fingerprint, "--host", "127.0.0.1"]
    urls = []
    for _ in range(count):
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "hillclimb.rollout.server", *words, "--port", "0"],
                stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
        stack.callback(process.kill)
        assert process.stdout is not None
        urls.append(f"http://{process.stdout.readline().split()[-1]}")
    return urls


def tokens_per_second(engine: RolloutEngine, seed: int) -> float:
    """Of one call."""
    started = time.perf_counter()
    done = engine.generate(PROMPTS, PARAMS, seed)
    return sum(len(c.tokens) for c in done) / (time.perf_counter() - started)


def update_seconds(engine: RolloutEngine, weights: dict[str, torch.Tensor]) -> float:
    """What a call of one token takes longer with new weights, the best of several."""
    found = []
    for version in range(1, REPEATS + 1):
        seconds = []
        for again in (False, True):
            started = time.perf_counter()
            if not again:
                engine.load_weights(weights, version)
            engine.generate([[1]], SamplingParams(1), 0)
            seconds.append(time.perf_counter() - started)
        found.append(seconds[0] - seconds[1])
    return min(found)


if __name__ == "__main__":
    main()
