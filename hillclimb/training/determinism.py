"""The deterministic mode: the same recipe on the same cards gives the same bits, run after run.

On a CPU training repeats bit for bit anyway. On a GPU some kernels add in the order in which their
threads come, cuBLAS may choose by what else runs, and NCCL by the topology that it measures.
"""

from __future__ import annotations

import os

import torch

_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}


def be_deterministic() -> None:
    """Use reproducible kernels and collectives in this process; an operation without any raises.

    Call it before the first tensor is on a GPU and before the process group starts: cuBLAS and
    NCCL read their variables only then. Variables that are set already stay as they are.

    Raises:
        RuntimeError: if CUDA has started in this process, or the process group.
    """
    if torch.cuda.is_initialized() or torch.distributed.is_initialized():
        raise RuntimeError(
            "deterministic mode came too late, CUDA or the process group has started: call "
            "be_deterministic() before runtime.start()"
        )
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
