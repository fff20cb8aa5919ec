"""Rollout servers that draw with vLLM (`vllm_worker`), as a climb on a cluster uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers.modeling_utils import PreTrainedModel

from hillclimb.rollout.calls import Batch, take_together
from hillclimb.rollout.remote import RemoteEngine

CALLS = 32
SILENCE = 60.0


class VllmServers(RemoteEngine):
    """`RemoteEngine` that asks each server for several batches at a time.

    vLLM itself draws side by side what it is given, so calls are not joined, and each has a seed
    of its own: the draws are those of `VllmEngine`, up to rounding.

    Args:
        urls: http://HOST:PORT of each server.
        model: the start, which the servers loaded as well: version 0.
        patience: seconds without a server at work after which a call gives up.
        log: told when a server goes away or comes back.

    Raises:
        ValueError: for a URL of another form, or none.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: PreTrainedModel,
        patience: float,
        log: Callable[[str], None] = print,
    ) -> None:
        super().__init__([*urls] * CALLS, model, patience, SILENCE, log=log)

    def _choose(self) -> list[Batch]:
        waiting = [call for call in self._calls if call.waiting and not call.over]
        return take_together(waiting[:1], self._rows)
