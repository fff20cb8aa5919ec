"""An engine whose process ends where it hangs, so that whoever keeps the process starts it anew."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from torch import Tensor

from hillclimb.rollout.engine import Completion, RolloutEngine, SamplingParams

STALL = 900.0
PAUSE = 5.0


class Watched:
    """`RolloutEngine` over one that does what it is asked in turn, between two of its steps.

    A server shows life in threads of its own, also while a kernel or a collective never returns. A
    call without prompts costs nothing and comes back as soon as a step has ended.

    Args:
        engine: takes calls of several threads.
        stall: seconds that a step may take, kernels compiled at their first use included.
        pause: seconds between two looks.
    """

    def __init__(self, engine: RolloutEngine, stall: float = STALL, pause: float = PAUSE) -> None:
        self._engine, self._stall, self._pause = engine, stall, pause
        self._loads = 0
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """Version of the weights in use."""
        return self._engine.version

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Take new weights; a load may wait for the calls before it for as long as they take."""
        with self._lock:
            self._loads += 1
        try:
            self._engine.load_weights(weights, version)
        finally:
            with self._lock:
                self._loads -= 1

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        """One completion a prompt."""
        return self._engine.generate(prompts, params, seed)

    def interrupt(self) -> None:
        """Have the calls under way return with what they have."""
        self._engine.interrupt()

    def close(self) -> None:
        """Release what the engine holds."""
        self._engine.close()

    def watch(self) -> None:
        """Look again and again, and end the process where the engine's step does not end.

        It does not look while weights wait: a look would wait behind them.
        """
        while True:
            time.sleep(self._pause)
            back = threading.Event()
            if self._loads:
                continue
            threading.Thread(target=self._ask, args=(back,), daemon=True).start()
            if not back.wait(self._stall):
                told = f"the engine has made no step in {self._stall:.0f} s: its process ends"
                print(told, file=sys.stderr, flush=True)
                os._exit(1)

    def _ask(self, back: threading.Event) -> None:
        with suppress(RuntimeError):
            self._engine.generate([], SamplingParams(0), 0)
        back.set()
