"""A rank's training state in host memory, laid out as the safetensors file that it will be."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from hillclimb.training.fragments import Fragment

_ALIGN = 64
_SIZE = 4


def tensor_name(name: str, start: int, kind: str) -> str:
    """What a fragment's tensor is called in a file."""
    return f"{name}:{start}:{kind}"


class HostCopy:
    """One buffer that is used for every copy and that the writer process reads: a memory file.

    From a GPU the copy runs beside the computation, in a stream of its own, into pinned memory;
    `wait` returns when it is there.
    """

    def __init__(self) -> None:
        self.file = os.memfd_create("hillclimb-checkpoint")
        self.size = 0
        self._views: list[Tensor] = []
        self._buffer: Tensor | None = None
        self._layout: list[tuple[str, int, int, tuple[str, ...]]] = []
        self._pinned = False
        self._stream: torch.cuda.Stream | None = None
        self._event: torch.cuda.Event | None = None

    def take(self, fragments: Sequence[Fragment]) -> None:
        """Copy; what comes from a GPU is there after `wait`, and must not change before."""
        layout = [(f.name, f.start, f.length, tuple(f.tensors)) for f in fragments]
        tensors = [tensor for f in fragments for tensor in f.tensors.values()]
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        if layout != self._layout or on_gpu != self._pinned:
            self._lay_out(fragments, on_gpu)
            self._layout = layout
        if not on_gpu:
            self._copy(tensors)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._copy(tensors)
            self._event = torch.cuda.Event()
            self._event.record()

    def is_whole(self) -> bool:
        """Whether the last copy needs no waiting for."""
        return self._event is None

    def wait(self) -> None:
        """Return when the last copy is whole."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None

    def close(self) -> None:
        """Give the memory back; what the GPU is still copying is not waited for."""
        if self._event is None:
            self._release()
        os.close(self.file)

    def _copy(self, tensors: Sequence[Tensor]) -> None:
        for view, tensor in zip(self._views, tensors, strict=True):
            view.copy_(tensor, non_blocking=True)

    def _lay_out(self, fragments: Sequence[Fragment], pinned: bool) -> None:
        """Size the file for these fragments and write the head, which stays."""
        self._release()
        entries: dict[str, dict[str, object]] = {}
        places, at = [], 0
        for fragment in fragments:
            for kind in fragment.tensors:
                end = at + fragment.length * _SIZE
                entries[tensor_name(fragment.name, fragment.start, kind)] = {
                    "dtype": "F32", "shape": [fragment.length], "data_offsets": [at, end],
                }  # fmt: skip
                places.append((at // _SIZE, end // _SIZE))
                at = end
        head = json.dumps(entries).encode()
        head += b" " * (-(8 + len(head)) % _ALIGN)
        head = len(head).to_bytes(8, "little") + head
        self.size = len(head) + at
        os.ftruncate(self.file, self.size)
        buffer = torch.frombuffer(mmap.mmap(self.file, self.size), dtype=torch.uint8)
        buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        body = buffer[len(head) :].view(torch.float32)
        self._views = [body[start:end] for start, end in places]
        self._buffer, self._pinned = buffer, pinned
        if pinned:
            _check(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), self.size, 0))

    def _release(self) -> None:
        if self._buffer is not None and self._pinned:
            _check(torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr()))
        self._views, self._buffer, self._pinned = [], None, False


def _check(code: object) -> None:
    if int(code) != 0:  # type: ignore[call-overload]
        raise RuntimeError(
            f"CUDA error {code} when the host memory for checkpoints was pinned: raise the limit "
            "of locked memory (ulimit -l)"
        )


def first_not_finite(fragments: Sequence[Fragment]) -> tuple[Fragment, str] | None:
    """The first fragment, and which of its tensors, that holds a NaN or an infinity."""
    places = [(fragment, kind) for fragment in fragments for kind in fragment.tensors]
    by_device: dict[torch.device, list[int]] = {}
    for index, (fragment, kind) in enumerate(places):
        by_device.setdefault(fragment.tensors[kind].device, []).append(index)
    for indices in by_device.values():
        tensors = [places[i][0].tensors[places[i][1]] for i in indices]
        ends = torch.stack([torch.stack(torch.aminmax(tensor)) for tensor in tensors])
        bad = (~torch.isfinite(ends).all(1)).nonzero().flatten().tolist()
        if bad:
            return places[indices[bad[0]]]
    return None
