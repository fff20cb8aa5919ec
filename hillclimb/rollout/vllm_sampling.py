"""What runs inside vLLM's workers: nucleus sampling that says what it kept. Imported there alone.

vLLM's own nucleus tells nothing of the tokens it left out but their log-probabilities, a whole
vocabulary of them for every token. So the nucleus is a logits processor: it masks the logits, and
keeps the mask in packed bits until the request is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from hillclimb.rollout.sampling import nucleus

NUCLEUS, REQUEST = "hillclimb_top_p", "hillclimb_request"


class NucleusRecorder(LogitsProcessor):
    """Masks logits outside the nucleus of requests that ask for one, and remembers the mask.

    Requests name their nucleus and themselves in `SamplingParams.extra_args`. It runs after
    temperature, so the log-probabilities that vLLM calls processed are those of the nucleus.
    """

    running: NucleusRecorder | None = None

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, tuple[str, float, list[int]]] = {}
        self.kept: dict[str, dict[int, tuple[np.ndarray, int]]] = {}
        self.vocabulary, self.pinned = vllm_config.model_config.get_vocab_size(), is_pin_memory
        NucleusRecorder.running = self

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        """Anything goes."""

    def is_argmax_invariant(self) -> bool:
        """The likeliest token is always inside."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests from row to row."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, _, drawn in batch_update.added:
            self.rows.pop(row, None)
            asked = params.extra_args or {}
            if NUCLEUS in asked:
                self.rows[row] = (asked[REQUEST], asked[NUCLEUS], drawn)
        for source, target, direction in batch_update.moved:
            moved, other = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if direction == MoveDirectionality.SWAP and other is not None:
                self.rows[source] = other

    def apply(self, logits: Tensor) -> Tensor:
        """Logits (B, V), after temperature, with -inf outside the nucleus."""
        rows = sorted(row for row in self.rows if row < len(logits))
        if not rows:
            return logits
        every = len(rows) == len(logits)
        picked = logits if every else logits[rows]
        top_p = [self.rows[row][1] for row in rows]
        limit = top_p[0] if len(set(top_p)) == 1 else logits.new_tensor(top_p)[:, None]
        kept = nucleus(picked.softmax(-1), limit)
        bits = self._to_host(_packed(kept)).numpy()
        for index, row in enumerate(rows):
            name, _, drawn = self.rows[row]
            self.kept.setdefault(name, {})[len(drawn)] = bits, index
        if every:
            return logits.masked_fill_(~kept, -torch.inf)
        logits[rows] = picked.masked_fill(~kept, -torch.inf)
        return logits

    def take(self, requests: Sequence[str], lengths: Sequence[int]) -> list[np.ndarray]:
        """Masks of finished requests, uint8 (T, ceil(V/8)) each, which are then forgotten.

        A place that was computed more than once counts as it was the last time: the first
        tokens of a long prompt, and requests that lost their memory, draw in vain.
        """
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [self._take(name, length) for name, length in zip(requests, lengths, strict=True)]

    def _take(self, request: str, length: int) -> np.ndarray:
        places = self.kept.pop(request, {})
        masks = np.empty((length, (self.vocabulary + 7) // 8), np.uint8)
        for place in range(length):
            bits, index = places[place]
            masks[place] = bits[index]
        return masks

    def _to_host(self, bits: Tensor) -> Tensor:
        if not bits.is_cuda:
            return bits
        host = torch.empty(bits.shape, dtype=bits.dtype, pin_memory=self.pinned)
        return host.copy_(bits, non_blocking=True)


def _packed(kept_BV: Tensor) -> Tensor:
    """`sampling.pack_mask` on the tensor's own device: bits, the highest first."""
    padded = torch.nn.functional.pad(kept_BV, (0, -kept_BV.shape[1] % 8))
    weights = 2 ** torch.arange(7, -1, -1, device=kept_BV.device)
    return (padded.unflatten(1, (-1, 8)) * weights).sum(-1).to(torch.uint8)


class Worker:
    """What each of vLLM's workers can do besides (`worker_extension_cls`)."""

    model_runner: Any

    def hillclimb_masks(self, requests: Sequence[str], lengths: Sequence[int]) -> list[np.ndarray]:
        """See `NucleusRecorder.take`."""
        assert NucleusRecorder.running is not None
        return NucleusRecorder.running.take(requests, lengths)

    def hillclimb_repack(self) -> None:
        """Pack the heads anew that share their weights with an embedding.

        On a CPU a reload leaves them with a packed copy of the weights before.
        """
        if not current_platform.is_cpu():
            return
        for module in self.model_runner.model.modules():
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)
