"""The model in FP32 or BF16 by plain products, on a GPU too: what benchmarks compare with."""

from __future__ import annotations

from torch import Tensor

from hillclimb.model.attention import KVCache
from hillclimb.model.modeling import MaiForCausalLM


class Plain(MaiForCausalLM):
    """Never takes the fast path, since it always has a cache."""

    def hidden(
        self, input_ids: Tensor, segments: Tensor | None = None, cache: KVCache | None = None,
        starts: Tensor | None = None, routes: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Final hidden states."""
        batch, length = input_ids.shape
        room = cache or KVCache.empty(self.config, batch, length, self.embed.weight)
        return super().hidden(input_ids, segments, room, starts, routes)
