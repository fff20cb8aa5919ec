"""Process group and DeepSpeed start-up."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import torch
import torch.distributed as dist

_set: list[str] = []


def start(threads: int = 1) -> tuple[int, int]:
    """Join the process group that the environment names; one process alone makes its own.

    Returns:
        (rank, world size).
    """
    torch.set_num_threads(threads)
    if not dist.is_initialized():
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        _set.extend(name for name in alone if name not in os.environ)
        os.environ.update({name: alone[name] for name in _set})
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        load_deepspeed().init_distributed(dist_backend=_backend(), auto_mpi_discovery=False)
    return dist.get_rank(), dist.get_world_size()


def stop() -> None:
    """Leave the process group, and take back the variables that `start` set."""
    if dist.is_initialized():
        load_deepspeed().comm.destroy_process_group()  # forgets its groups too
    while _set:
        os.environ.pop(_set.pop(), None)


def device() -> torch.device:
    """Where this rank computes, and where collectives take their tensors."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load_deepspeed() -> Any:
    """DeepSpeed, told not to compile its shared-memory collective: gloo serves on CPU.

    Its autotuner imports mlflow where it can, over a second of every start, and is not used here.
    It calls collectives by names that PyTorch warns of at each call; that is not for our logs.
    """
    import logging
    import warnings

    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    modules: dict[str, Any] = sys.modules
    modules.setdefault("mlflow", None)
    import deepspeed
    from deepspeed import ops

    if modules["mlflow"] is None:
        del modules["mlflow"]
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
