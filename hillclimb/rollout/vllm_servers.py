"""Rollout servers that draw with vLLM (`vllm_worker`), as a climb on a cluster uses them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

from transformers.modeling_utils import PreTrainedModel

from hillclimb.rollout.calls import Batch, take_together
from hillclimb.rollout.engine import Completion, undrawn
from hillclimb.rollout.remote import RemoteEngine
from hillclimb.rollout.replicas import Away, Replica
from hillclimb.rollout.wire import Ask, Weights

CALLS = 32
SILENCE = 60.0


class Slot(Replica):
    """One of the batches that a server draws at a time.

    Weights that the server lacks are sent by one slot while the others wait for it. A batch for
    weights that are not the newest any more comes back undrawn: no slot takes the server back.

    Args:
        sending: held by whoever sends; the same for all of a server.
        draws: whether a batch for these weights is still to be drawn.
    """

    def __init__(
        self,
        url: str,
        silence: float,
        sending: threading.RLock,
        draws: Callable[[Weights], bool],
    ) -> None:
        super().__init__(url, silence)
        self.sending, self._draws = sending, draws

    def draw(self, ask: Ask, weights: Weights) -> list[Completion]:
        """See `Replica.draw`."""
        ready = False
        try:
            with self.sending:
                self._prepare(weights)
            ready = True
            return super().draw(ask, weights)
        except Away as away:
            if not self._draws(weights):
                self.misses, self.asleep_until = 0, 0.0
                return [undrawn(weights.version)] * len(ask.prompts)
            if not ready:
                self._missed(away)
            raise

    def send(self, weights: Weights) -> None:
        """See `Replica.send`; older weights than the newest are not sent.

        Raises:
            Away: for these too.
        """
        with self.sending:
            if not self._draws(weights):
                raise Away(f"version {weights.version} is not the newest any more")
            super().send(weights)

    def _prepare(self, weights: Weights) -> None:
        told = self._call("GET", "/health", b"", self._silence) or b""
        if weights.sha256.encode() not in told:
            self.send(weights)


class VllmServers(RemoteEngine):
    """`RemoteEngine` that asks each server for several batches at a time.

    vLLM itself draws side by side what it is given, so calls are not joined, and each has a seed
    of its own: the draws are those of `VllmEngine`, up to rounding.

    Arguments are those of `RemoteEngine`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: PreTrainedModel,
        patience: float,
        log: Callable[[str], None] = print,
    ) -> None:
        super().__init__([*urls] * CALLS, model, patience, SILENCE, log=log)

    def _slots(self, urls: Sequence[str], silence: float) -> list[Replica]:
        sending: dict[str, threading.RLock] = defaultdict(threading.RLock)
        return [Slot(url, silence, sending[url], self._draws) for url in urls]

    def _draws(self, weights: Weights) -> bool:
        return weights is self._weights

    def _choose(self) -> list[Batch]:
        waiting = [call for call in self._calls if call.waiting and not call.over]
        return take_together(waiting[:1], self._rows)
