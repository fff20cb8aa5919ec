"""A tiny network, its checkpoint, servers in threads of this process, and completions as bytes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file

from hillclimb.artifacts import ArtifactWriter, Manifest
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import Completion
from hillclimb.rollout.server import RolloutServer


def tiny_network(seed: int = 3) -> MaiForCausalLM:
    config = MaiConfig(vocab_size=40, zero_init_attention=False, embedding_range=0.5)
    return MaiForCausalLM(config).initialise(seed)


def write_checkpoint(folder: Path, network: MaiForCausalLM, fingerprint: str) -> str:
    """The URI of a committed artifact that holds the network."""
    out = ArtifactWriter(str(folder))
    with out.local("model") as model:
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(network.config.to_diff_dict()))
        save_file(dict(network.state_dict()), model / "model.safetensors")
    out.commit(
        Manifest(
            name="start", kind="base_phase", fingerprint=fingerprint, code_version="", seed=0,
            inputs={}, config={}, files=[], metrics={}, summary={}, run={},
        )
    )  # fmt: skip
    return str(folder)


@contextmanager
def serving(
    network: MaiForCausalLM,
    port: int = 0,
    beat: float = 5.0,
    busy: float = 0.0,
    shares: bool = False,
) -> Iterator[str]:
    """The URL of a server that runs in a thread, and first does something else for `busy` s."""
    with RolloutServer(("127.0.0.1", port), network, beat, shares=shares) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        server.work.submit(time.sleep, busy)
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def as_bytes(completions: Sequence[Completion]) -> list[tuple[object, ...]]:
    """All that completions hold, in a form that compares bit by bit."""
    arrays = [
        [(a.dtype, a.shape, a.tobytes()) for a in (c.logprobs, c.nucleus.counts, c.nucleus.ids)]
        for c in completions
    ]
    return [
        (c.tokens, c.finish, c.version, *held) for c, held in zip(completions, arrays, strict=True)
    ]
