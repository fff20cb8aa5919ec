"""A rollout server that draws with vLLM. Runs in vLLM's own environment.

    python -m hillclimb.rollout.vllm_worker --checkpoint URI --fingerprint HEX --port 29600

It speaks as `hillclimb.rollout.server` does, so `RemoteEngine` draws on servers of either kind.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
CALLS = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, the end of the process that `--owner` names, or vLLM fails or hangs."""
    args = parser().parse_args(argv)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from hillclimb.artifacts import ArtifactError
    from hillclimb.rollout.server import RolloutServer, end, end_with, start_folder
    from hillclimb.rollout.vllm_local import LocalVllm
    from hillclimb.rollout.vllm_options import arguments
    from hillclimb.rollout.watched import Watched

    signal.signal(signal.SIGTERM, end)
    if args.owner:
        end_with(args.owner)
    try:
        folder = args.model or start_folder(args.checkpoint, args.fingerprint)
        reference = network(folder)
        engine = LocalVllm(folder, reference, arguments(args.options))
        place, watched = (args.host, args.port), Watched(engine)
        shares = args.owner is not None
        server = RolloutServer(place, reference, engine=watched, calls=CALLS, shares=shares)
    except (ArtifactError, OSError, ValueError) as error:
        print(f"the rollout server cannot start: {error}", file=sys.stderr, flush=True)
        return 1
    with server:
        for work in (server.serve_forever, watched.watch):
            threading.Thread(target=work, daemon=True).start()
        print(f"serving at {args.host}:{server.server_address[1]}", flush=True)
        try:
            engine.run()
        except Exception:
            traceback.print_exc()
        os._exit(1)


def network(folder: Path) -> Any:
    """The folder's network on the CPU, in FP32: ours, or whatever transformers knows."""
    from hillclimb.model.configuration import MaiConfig
    from hillclimb.model.folder import read_config, read_network

    if read_config(folder).get("model_type") == MaiConfig.model_type:
        return read_network(folder).eval()
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def parser() -> argparse.ArgumentParser:
    """The words that the command takes."""
    parser = argparse.ArgumentParser(prog="python -m hillclimb.rollout.vllm_worker")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--checkpoint", help="URI of the climb's start")
    start.add_argument("--model", type=Path, help="a Hugging Face folder with the start")
    parser.add_argument("--fingerprint", default="", help="of the checkpoint")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen at (default: any)")
    parser.add_argument("--port", type=int, required=True, help="0 is any free one")
    parser.add_argument("--owner", type=int, help="process id of the parent, to end with it")
    parser.add_argument("--options", default="{}", help="arguments of vllm.LLM, a JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
