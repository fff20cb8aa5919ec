"""An engine whose batches are drawn by servers on other machines; some of them may be dead."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rollout.engine import BATCH_ROWS, Completion, SamplingParams, batches, undrawn
from hillclimb.rollout.replicas import Away, Replica
from hillclimb.rollout.wire import Ask, Weights


@dataclass
class _Call:
    """One `generate` in progress; there may be several.

    Attributes:
        waiting: batches that nobody draws now.
        since: when last a batch was drawn, or a living server failed.
    """

    asks: list[Ask]
    weights: Weights
    waiting: deque[int]
    since: float
    found: dict[int, list[Completion]] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether all is drawn, or will never be."""
        return self.error is not None or len(self.found) == len(self.asks)


class RemoteEngine:
    """Draws the batches of calls side by side, each on whichever server takes it.

    A server that fails or falls silent is asked again after a growing pause, and its batch goes to
    another one. One that comes back without the weights is sent them. The completions are those
    that `TorchEngine` gives in this process with the same seed, on however many servers.

    Args:
        urls: http://HOST:PORT of each server.
        model: the start, which the servers loaded as well: version 0.
        patience: seconds without a server at work after which a call gives up.
        silence: seconds without a sign of life after which a server counts as dead; several of
            its beats.
        rows: most prompts of a batch; it decides the draws as `TorchEngine`'s does.
        log: told when a server goes away or comes back.

    Raises:
        ValueError: for a URL of another form, or none.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: MaiForCausalLM,
        patience: float = 900.0,
        silence: float = 30.0,
        rows: int = BATCH_ROWS,
        log: Callable[[str], None] = print,
    ) -> None:
        if not urls:
            raise ValueError("there are no rollout servers to ask")
        self._replicas = [Replica(url, silence) for url in urls]
        self._patience, self._rows, self._log = patience, rows, log
        self._weights = Weights.of(model.state_dict(), 0)
        self._vocabulary = model.config.vocab_size
        self._changed = threading.Condition()
        self._calls: list[_Call] = []
        self._busy: set[Replica] = set()
        self._notes: deque[str] = deque()
        self._closed = False
        for replica in self._replicas:
            threading.Thread(target=self._work, args=(replica,), daemon=True).start()

    @property
    def version(self) -> int:
        """Version of the weights that calls are drawn with."""
        return self._weights.version

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Keep a copy; each server is sent it with the first batch that it draws."""
        self._weights = Weights.of(weights, version)

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        """One completion a prompt; the seed decides the draws.

        Raises:
            ValueError: for an empty prompt, naming its position; for what the servers refuse.
            RuntimeError: if no server was at work for as long as patience lasts; it names them.
        """
        parts = batches(prompts, seed, self._rows)
        asks = [Ask.of(batch, params, self._weights) for batch in parts]
        call = _Call(asks, self._weights, deque(range(len(asks))), time.monotonic())
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
            try:
                while not call.over:
                    self._changed.wait()
                    self._tell()
            finally:
                self._calls.remove(call)
        self._tell()
        if call.error is not None:
            raise call.error
        return [done for index in range(len(asks)) for done in call.found[index]]

    def interrupt(self) -> None:
        """End the calls under way: what waits is not begun, what is drawn comes back as it is.

        It does not wait for that.
        """
        with self._changed:
            for call in self._calls:
                while call.waiting:
                    index = call.waiting.popleft()
                    one = undrawn(call.weights.version, self._vocabulary)
                    call.found[index] = [one] * len(call.asks[index].prompts)
            for replica in self._busy:
                threading.Thread(target=replica.interrupt, daemon=True).start()
            self._changed.notify_all()

    def close(self) -> None:
        """Ask no server for anything more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _tell(self) -> None:
        while self._notes:
            self._log(self._notes.popleft())

    def _work(self, replica: Replica) -> None:
        """Draw batches on one server until the engine is closed."""
        while (call := self._wait(replica)) is not None:
            index, was_away = None, replica.misses > 0
            try:
                if was_away:
                    replica.wake()
                if (index := self._take(replica, call)) is None:
                    continue
                done = replica.draw(call.asks[index], call.weights)
            except Away:
                self._lost(replica, call, index)
            except Exception as error:
                self._settle(replica, call, error)
            else:
                if was_away:
                    self._notes.append(f"the rollout server {replica.url} is back")
                self._drawn(replica, call, index, done)

    def _wait(self, replica: Replica) -> _Call | None:
        """The call, once it has a batch to draw and the server may be asked; None at the end."""
        with self._changed:
            while not self._closed:
                pause = replica.asleep_until - time.monotonic()
                call = next((call for call in self._calls if call.waiting), None)
                if pause <= 0 and call is not None:
                    return call
                self._changed.wait(pause if pause > 0 else None)
            return None

    def _take(self, replica: Replica, call: _Call) -> int | None:
        with self._changed:
            if not call.waiting or call.over:
                return None
            self._busy.add(replica)
            return call.waiting.popleft()

    def _drawn(self, replica: Replica, call: _Call, index: int, done: list[Completion]) -> None:
        with self._changed:
            call.found[index] = done
            self._give_time()
        self._settle(replica, call)

    def _lost(self, replica: Replica, call: _Call, index: int | None) -> None:
        """Put the batch back, and give the call up where nobody has worked for long."""
        now = time.monotonic()
        with self._changed:
            if index is not None:
                call.waiting.appendleft(index)
            if replica.misses == 1:
                self._give_time()
                self._notes.append(f"the rollout server {replica.url} is away: {replica.why}")
            dead = all(r.misses and (r not in self._busy or r is replica) for r in self._replicas)
            if dead and now - call.since > self._patience:
                servers = "; ".join(f"{r.url} ({r.why})" for r in self._replicas)
                call.error = RuntimeError(
                    f"no rollout server has drawn anything for {self._patience:.0f} s: {servers}"
                )
        self._settle(replica, call)

    def _give_time(self) -> None:
        """A sign of life: patience begins anew, for all calls."""
        for call in self._calls:
            call.since = time.monotonic()

    def _settle(self, replica: Replica, call: _Call, error: Exception | None = None) -> None:
        """The server is free; whoever waits looks anew."""
        with self._changed:
            self._busy.discard(replica)
            call.error = call.error or error
            self._changed.notify_all()
