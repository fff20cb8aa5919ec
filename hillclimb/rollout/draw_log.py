"""What a batch of requests draws with and what it drew, on the host, until a request is done.

Nothing here is done for one request at a time: a step of several hundred requests has a few
milliseconds, and belongs to one Python thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hillclimb.rollout.nuclei import Nuclei, gather

CHUNK = 256
GROWTH = 1 << 16


class DrawLog:
    """Uniform numbers to draw with, and nuclei and log-probabilities of what was drawn.

    A request has a slot from `open` to `take`. Each place of its answer has one uniform number,
    which its seed decides, and one row of the store; a place that is drawn again (the first tokens
    of a long prompt, requests that lost their memory) gets the same number and the same row. A
    nucleus comes from the device as bits, and is kept as its tokens: few of a large vocabulary.

    Args:
        vocabulary: tokens in a mask.
        context: places that an answer can have.
        batch: requests in a step, at most.
        device: where the steps are computed.
        pinned: whether what is copied from there waits in page-locked memory.
    """

    def __init__(
        self, vocabulary: int, context: int, batch: int, device: torch.device, pinned: bool
    ) -> None:
        width = (vocabulary + 63) // 64 * 8
        self._device = device
        self._slots: dict[str, int] = {}
        self._seeds: list[int | None] = []
        self._spare: list[int] = []
        self._chunks = np.empty(0, np.int64)
        self._uniforms = np.empty((0, CHUNK))
        self._rows = np.empty((0, context + 1), np.int32)
        self._free: list[int] = []
        self._logprobs = np.empty(0, np.float32)
        self._counts, self._starts = np.empty(0, np.int32), np.empty(0, np.int64)
        self._ids, self._end, self._live = np.empty(0, np.int32), 0, 0
        self._bits = 2 ** torch.arange(7, -1, -1, device=device).to(torch.uint8)
        self._stages = [_Stage(batch, width, device, pinned) for _ in range(2)]

    def open(self, name: str, seed: int | None) -> int:
        """The slot of a request; without a seed it takes the likeliest tokens."""
        slot = self._slots.get(name)
        if slot is None:
            if not self._spare:
                self._add_slots()
            slot = self._slots[name] = self._spare.pop()
            self._seeds[slot], self._chunks[slot] = seed, -1
            self._rows[slot] = -1
        return slot

    def uniforms(self, slots: np.ndarray, places: np.ndarray) -> Tensor:
        """FP64 (B,), on the device: the numbers from [0, 1) of these places."""
        chunks = places // CHUNK
        for index in np.flatnonzero(self._chunks[slots] != chunks):
            slot, chunk = slots[index], chunks[index]
            self._chunks[slot] = chunk
            self._uniforms[slot] = _uniforms(self._seeds[slot], int(chunk))
        host = self._stages[0].uniforms[: len(slots)]
        host.numpy()[:] = self._uniforms[slots, places % CHUNK]
        return host.to(self._device, non_blocking=True)

    def put(
        self, slots: np.ndarray, places: np.ndarray, logprobs_B: Tensor, kept_BV: Tensor | None
    ) -> None:
        """Remember a step; it comes to the host while the next one is computed."""
        stage = self._stages[0]
        stage.fill(slots, places, logprobs_B, None if kept_BV is None else self._packed(kept_BV))
        self._stages.reverse()
        self._flush(self._stages[0])

    def take(self, names: Sequence[str], lengths: Sequence[int]) -> list[tuple[Nuclei, np.ndarray]]:
        """Forget requests; returns the nuclei and log-probabilities of their T tokens."""
        for stage in self._stages:
            self._flush(stage)
        return [self._take(name, length) for name, length in zip(names, lengths, strict=True)]

    def _take(self, name: str, length: int) -> tuple[Nuclei, np.ndarray]:
        slot = self._slots.pop(name, None)
        if slot is None:
            return Nuclei.free(0), self._logprobs[:0].copy()
        rows = self._rows[slot, :length]
        assert (rows >= 0).all()
        counts = self._counts[rows]
        nuclei = Nuclei(counts, gather(self._ids, self._starts[rows], counts))
        every = self._rows[slot]
        every = every[every >= 0]
        self._forget(every)
        self._free.extend(every.tolist())
        self._spare.append(slot)
        return nuclei, self._logprobs[rows]

    def _packed(self, kept_BV: Tensor) -> Tensor:
        """The mask as bits, the highest first, in words of 64, on its own device."""
        padded = torch.nn.functional.pad(kept_BV, (0, -kept_BV.shape[1] % 64))
        return (padded.unflatten(1, (-1, 8)) * self._bits).sum(-1, dtype=torch.uint8)

    def _flush(self, stage: _Stage) -> None:
        """Move a step from its stage to the store."""
        if stage.waiting is None:
            return
        stage.wait()
        slots, places, masked = stage.waiting
        stage.waiting = None
        rows = self._rows[slots, places]
        fresh = np.flatnonzero(rows < 0)
        rows[fresh] = self._new_rows(len(fresh))
        self._rows[slots, places] = rows
        self._logprobs[rows] = stage.logprobs.numpy()[: len(rows)]
        self._forget(rows)
        if masked:
            self._keep(rows, Nuclei.of_bits(stage.masks.numpy()[: len(rows)]))

    def _forget(self, rows: np.ndarray) -> None:
        """Let go of the nuclei of some rows."""
        self._live -= int(self._counts[rows].sum())
        self._counts[rows] = 0

    def _keep(self, rows: np.ndarray, nuclei: Nuclei) -> None:
        if self._end + len(nuclei.ids) > len(self._ids):
            self._make_room(len(nuclei.ids))
        self._counts[rows] = nuclei.counts
        self._starts[rows] = self._end + nuclei.counts.cumsum() - nuclei.counts
        end = self._end + len(nuclei.ids)
        self._ids[self._end : end] = nuclei.ids
        self._end, self._live = end, self._live + len(nuclei.ids)

    def _make_room(self, count: int) -> None:
        """Move what is alive to the front of a store with as much room again."""
        alive = np.flatnonzero(self._counts)
        counts = self._counts[alive]
        ids = np.empty(2 * (self._live + count) + GROWTH, np.int32)
        ids[: self._live] = gather(self._ids, self._starts[alive], counts)
        self._starts[alive] = counts.cumsum() - counts
        self._ids, self._end = ids, self._live

    def _new_rows(self, count: int) -> list[int]:
        if count > len(self._free):
            start = len(self._logprobs)
            stop = start + max(count, GROWTH)
            self._logprobs.resize(stop, refcheck=False)
            self._counts.resize(stop, refcheck=False)
            self._starts.resize(stop, refcheck=False)
            self._free.extend(range(stop - 1, start - 1, -1))
        left = len(self._free) - count
        rows = self._free[left:]
        del self._free[left:]
        return rows

    def _add_slots(self) -> None:
        start = len(self._seeds)
        stop = 2 * start or 64
        self._seeds.extend([None] * (stop - start))
        self._chunks.resize(stop, refcheck=False)
        self._uniforms.resize((stop, CHUNK), refcheck=False)
        self._rows.resize((stop, self._rows.shape[1]), refcheck=False)
        self._spare.extend(range(stop - 1, start - 1, -1))


class _Stage:
    """Memory for one step on its way between the device and the host, used again and again."""

    def __init__(self, batch: int, width: int, device: torch.device, pinned: bool) -> None:
        self.uniforms = torch.empty(batch, dtype=torch.float64, pin_memory=pinned)
        self.logprobs = torch.empty(batch, dtype=torch.float32, pin_memory=pinned)
        self.masks = torch.empty(batch, width, dtype=torch.uint8, pin_memory=pinned)
        self.waiting: tuple[np.ndarray, np.ndarray, bool] | None = None
        self._copied = torch.cuda.Event() if device.type == "cuda" else None

    def fill(
        self, slots: np.ndarray, places: np.ndarray, logprobs_B: Tensor, masks: Tensor | None
    ) -> None:
        """Start copying a step."""
        self.logprobs[: len(slots)].copy_(logprobs_B, non_blocking=True)
        if masks is not None:
            self.masks[: len(slots)].copy_(masks, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self.waiting = slots, places, masks is not None

    def wait(self) -> None:
        """Wait until the step is here."""
        if self._copied is not None:
            self._copied.synchronize()


def _uniforms(seed: int | None, chunk: int) -> np.ndarray:
    """Numbers (CHUNK,) of a request from place `chunk * CHUNK` on: Philox, four to a count."""
    if seed is None:
        return np.zeros(CHUNK)
    bits = np.random.Philox(key=seed, counter=chunk * CHUNK // 4)
    return np.random.Generator(bits).random(CHUNK)
