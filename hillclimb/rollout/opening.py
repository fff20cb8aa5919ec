"""Which engine a climb draws with: the surroundings decide where, the recipe whether beside it."""

from __future__ import annotations

import os
from collections.abc import Callable

from hillclimb.artifacts import Artifact
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import RolloutEngine
from hillclimb.rollout.local_server import LocalEngine
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.vllm_servers import VllmServers

SERVERS = "HILLCLIMB_ROLLOUT_SERVERS"
ENGINE = "HILLCLIMB_ENGINE"
PATIENCE = 2700.0


def open_engine(
    start: Artifact,
    model: MaiForCausalLM,
    beside: bool,
    threads: int = 1,
    log: Callable[[str], None] = print,
) -> RolloutEngine:
    """The engine of a climb; the caller closes it.

    Servers where `HILLCLIMB_ROLLOUT_SERVERS` names some (http://HOST:PORT, by commas), which draw
    with vLLM where `HILLCLIMB_ENGINE` is `vllm`; they may take 45 minutes to come up. Without
    servers, vLLM in a child process where `HILLCLIMB_ENGINE` says so; else the engine of this
    package, in a child process where it draws `beside` the learner, in this process where they take
    turns. The draws of all but vLLM are the same.

    Args:
        start: the checkpoint of `model`.
        threads: of a child process.

    Raises:
        ValueError: for another engine.
    """
    kind = os.environ.get(ENGINE, "torch")
    if kind not in ("torch", "vllm"):
        raise ValueError(f"{ENGINE} is {kind!r}: set it to torch or vllm, or leave it out")
    if servers := os.environ.get(SERVERS):
        client = VllmServers if kind == "vllm" else RemoteEngine
        return client(servers.split(","), model, PATIENCE, log=log)
    if kind == "vllm":
        from hillclimb.rollout.vllm_engine import VllmEngine

        return VllmEngine(model, log=log)
    if beside:
        return LocalEngine(start.uri, start.fingerprint, model, threads, log)
    return TorchEngine(model)
