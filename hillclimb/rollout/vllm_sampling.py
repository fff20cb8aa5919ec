"""What runs inside vLLM's workers: the draw itself. Imported there alone.

vLLM's own sampling keeps a generator for each request and asks them one by one, tells nothing of
the tokens that its nucleus left out but their log-probabilities, and makes Python objects of every
one of these. So a logits processor draws, and keeps what it drew and the nucleus until the request
is done; for vLLM the requests are greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from hillclimb.rollout.draw_log import DrawLog
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.rollout.sampling import draw_at

DRAW = "hillclimb_draw"
GREEDY = 1.0, 2.0


class _Row(NamedTuple):
    """A request of ours in the batch; `drawn` is vLLM's own list, which grows."""

    slot: int
    manner: tuple[float, float]
    drawn: list[int]


class Drawer(LogitsProcessor):
    """Draws for requests that ask for it, and leaves vLLM's argmax nothing else to take.

    Requests name themselves, their seed (none for the likeliest tokens), temperature and nucleus
    in `SamplingParams.extra_args[DRAW]`, and have temperature 0 for vLLM. Others pass untouched.
    """

    running: Drawer | None = None

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        model, batch = vllm_config.model_config, vllm_config.scheduler_config.max_num_seqs
        pinned = is_pin_memory and device.type == "cuda"
        self.log = DrawLog(model.get_vocab_size(), model.max_model_len, batch, device, pinned)
        self._device = device
        self._rows: dict[int, _Row] = {}
        self._every = torch.arange(batch, device=device)
        self._peak = torch.tensor(torch.finfo(torch.float32).max, device=device)
        self._arrange()
        Drawer.running = self

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        """Anything goes."""

    def is_argmax_invariant(self) -> bool:
        """No: it decides the argmax."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests from row to row."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, drawn in batch_update.added:
            self._rows.pop(row, None)
            asked = (params.extra_args or {}).get(DRAW)
            if asked:
                name, seed, *manner = asked
                manner = GREEDY if seed is None else tuple(manner)
                self._rows[row] = _Row(self.log.open(name, seed), manner, drawn)
        for source, target, direction in batch_update.moved:
            moved, other = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if direction == MoveDirectionality.SWAP and other is not None:
                self._rows[source] = other
        self._arrange()

    def _arrange(self) -> None:
        """What `apply` needs of a batch, until the next one."""
        order = sorted(self._rows)
        rows = [self._rows[row] for row in order]
        self._slots = np.array([row.slot for row in rows], np.int64)
        self._drawn = [row.drawn for row in rows]
        manners = [row.manner for row in rows]
        self._manner = manners[0] if len(set(manners)) == 1 else None
        self._columns: Any = self._manner
        if rows and self._manner is None:
            self._columns = torch.tensor(manners, device=self._device).T.unsqueeze(-1)
        whole = order == list(range(len(order)))
        self._index = self._every[: len(order)] if whole else torch.tensor(order).to(self._device)
        self._last = order[-1] + 1 if whole and order else None

    def apply(self, logits: Tensor) -> Tensor:
        """Logits (B, V) in FP32, in which the token that was drawn is the likeliest."""
        if not self._drawn:
            return logits
        picked = logits if self._last == len(logits) else logits[self._index]
        places = np.fromiter(map(len, self._drawn), np.int64, len(self._drawn))
        kept = None
        if self._manner == GREEDY:
            tokens = picked.argmax(-1)
            logprobs = picked.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        else:
            uniforms = self.log.uniforms(self._slots, places)
            tokens, logprobs, kept = draw_at(uniforms, picked, *self._columns)
            top_p = self._columns[1]
            if self._manner is None:
                kept &= top_p < 1.0
            elif top_p >= 1.0:
                kept = None
        self.log.put(self._slots, places, logprobs, kept)
        return logits.index_put_((self._index, tokens), self._peak)


class Worker:
    """What each of vLLM's workers can do besides (`worker_extension_cls`)."""

    model_runner: Any

    def hillclimb_drawn(
        self, requests: Sequence[str], lengths: Sequence[int]
    ) -> list[tuple[Nuclei, np.ndarray]]:
        """See `DrawLog.take`."""
        assert Drawer.running is not None
        return Drawer.running.log.take(requests, lengths)

    def hillclimb_repack(self) -> None:
        """Pack the heads anew that share their weights with an embedding.

        On a CPU a reload leaves them with a packed copy of the weights before.
        """
        if not current_platform.is_cpu():
            return
        for module in self.model_runner.model.modules():
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)
