"""Weights that never leave the GPU: a buffer of the learner's that its engine's process opens.

CUDA IPC gives another process of the same machine the learner's memory, also where that process
computes on another GPU. What travels is a description in JSON, with the handle in hexadecimal.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hillclimb.rollout.wire import Weights

PLACE = "shared-weights"
ALIGNMENT = 256


class SharedBuffer:
    """Room for one version of the weights, on the GPU that they are on.

    Whoever writes a version sees to it that nobody reads the one before.

    Args:
        tensors: of the start; later ones have the same names, shapes and types.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._table: list[list[Any]] = []
        end = 0
        for name, tensor in tensors.items():
            self._table.append([name, str(tensor.dtype)[6:], list(tensor.shape), end])
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        device = next(iter(tensors.values())).device
        self._buffer = torch.empty(end, dtype=torch.uint8, device=device)
        self._handle = _printed(self._buffer.untyped_storage()._share_cuda_())
        self._views = views(self._buffer, self._table)
        self._nonce = secrets.token_hex(8)

    def write(self, tensors: Mapping[str, Tensor], version: int) -> Weights:
        """Copy a version in; what is returned tells another process where it is."""
        for name, view in self._views.items():
            view.copy_(tensors[name])
        torch.cuda.synchronize(self._buffer.device)
        told = {
            "version": version, "nonce": self._nonce, "handle": self._handle,
            "tensors": self._table,
        }  # fmt: skip
        body = json.dumps(told).encode()
        return Weights(version, hashlib.sha256(body).hexdigest(), body, PLACE)


def opened(body: bytes) -> dict[str, Tensor]:
    """The tensors that another process of this machine described, on this process's GPU.

    Raises:
        ValueError: if they cannot be reached from here.
    """
    try:
        told = json.loads(body)
        _, *rest = (bytes.fromhex(x) if isinstance(x, str) else x for x in told["handle"])
        torch.cuda.init()
        device = torch.cuda.current_device()
        storage = torch.UntypedStorage._new_shared_cuda(device, *rest)
        buffer = torch.empty(0, dtype=torch.uint8, device=f"cuda:{device}").set_(storage)
        return views(buffer, told["tensors"])
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the shared weights cannot be opened here: {error}") from error


def views(buffer: Tensor, table: list[list[Any]]) -> dict[str, Tensor]:
    """Tensors in a buffer of bytes, by (name, type, shape, offset in bytes)."""
    found = {}
    for name, dtype, shape, start in table:
        kind = getattr(torch, dtype)
        size = math.prod(shape) * kind.itemsize
        found[name] = buffer[start : start + size].view(kind).view(shape)
    return found


def _printed(handle: tuple[Any, ...]) -> list[Any]:
    """What PyTorch needs to open a storage elsewhere, for JSON."""
    return [part.hex() if isinstance(part, bytes) else part for part in handle]
