"""An engine whose batches are drawn by servers on other machines; some of them may be dead."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from hillclimb.rollout.calls import Batch, Call, hand_out, joined, take_together
from hillclimb.rollout.engine import BATCH_ROWS, Completion, SamplingParams, batches
from hillclimb.rollout.replicas import Away, Replica
from hillclimb.rollout.soundness import unshared
from hillclimb.rollout.wire import Ask, Weights

SECONDS_A_TOKEN = 1.0
_LOOK = 1.0


@dataclass
class _Job:
    """What one server draws in one call: until when, if it finishes nothing meanwhile.

    Attributes:
        taken: the batches; none once they are to be drawn elsewhere.
        limit: seconds.
    """

    taken: list[Batch]
    limit: float
    since: float = field(default_factory=time.monotonic)


class RemoteEngine:
    """Draws the batches of calls side by side, each on whichever server takes it.

    Several threads may call at once: a server that gets free draws what waits of all of them
    together.

    A server that fails or falls silent is asked again after a growing pause, and its batch goes to
    another one. One that comes back without the weights is sent them. The completions are those
    that `TorchEngine` gives in this process with the same seed, on however many servers.

    A server that shows life and finishes nothing counts as stuck after `patience`, and
    `SECONDS_A_TOKEN` more for each token that its longest answer may have. It is asked for nothing
    until it answers or its process ends, and what it had is drawn elsewhere.

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
        model: PreTrainedModel,
        patience: float = 900.0,
        silence: float = 30.0,
        rows: int = BATCH_ROWS,
        log: Callable[[str], None] = print,
    ) -> None:
        if not urls:
            raise ValueError("there are no rollout servers to ask")
        self._patience, self._rows, self._log = patience, rows, log
        self._weights = Weights.of(unshared(model.state_dict()), 0)
        self._replicas = self._slots(urls, silence)
        self._changed = threading.Condition()
        self._calls: list[Call] = []
        self._since = 0.0
        self._busy: dict[Replica, _Job] = {}
        self._finished: dict[str, float] = {}
        self._stuck: set[str] = set()
        self._away: set[str] = set()
        self._looked = 0.0
        self._notes: deque[str] = deque()
        self._closed = False
        for replica in self._replicas:
            threading.Thread(target=self._work, args=(replica,), daemon=True).start()

    @property
    def version(self) -> int:
        """Version of the weights that calls are drawn with."""
        return self._weights.version

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Keep a copy; each server is sent it with the first batch that it draws.

        Batches of calls under way that are not being drawn then come back interrupted.
        """
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
        call = Call(asks, self._weights)
        with self._changed:
            if not self._calls:
                self._since = time.monotonic()
            self._calls.append(call)
            self._changed.notify_all()
            try:
                while not call.over:
                    self._changed.wait(_LOOK)
                    self._look()
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
                call.interrupt()
            for replica in {replica.url: replica for replica in self._busy}.values():
                threading.Thread(target=replica.interrupt, daemon=True).start()
            self._changed.notify_all()

    def close(self) -> None:
        """Ask no server for anything more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _slots(self, urls: Sequence[str], silence: float) -> list[Replica]:
        """What each thread asks, in the order of `urls`."""
        return [Replica(url, silence) for url in urls]

    def _tell(self) -> None:
        while self._notes:
            self._log(self._notes.popleft())

    def _work(self, replica: Replica) -> None:
        """Draw batches on one server until the engine is closed."""
        while self._wait(replica):
            taken: list[Batch] = []
            try:
                if replica.misses:
                    replica.wake()
                if not (taken := self._take(replica)):
                    continue
                done = replica.draw(joined(taken), taken[0][0].weights)
            except Away:
                self._lost(replica, taken)
            except Exception as error:
                self._settle(replica, taken, error)
            else:
                self._drawn(replica, taken, done)

    def _wait(self, replica: Replica) -> bool:
        """Until there is a batch to draw and the server may be asked; False at the end."""
        with self._changed:
            while not self._closed:
                pause = replica.asleep_until - time.monotonic()
                awake = pause <= 0 and replica.url not in self._stuck
                if awake and any(call.waiting for call in self._calls):
                    return True
                self._changed.wait(pause if pause > 0 else None)
            return False

    def _take(self, replica: Replica) -> list[Batch]:
        """What to draw next. What waits for weights that are not the newest counts as interrupted:
        a server would have to go back to them."""
        with self._changed:
            for call in self._calls:
                if call.weights is not self._weights:
                    call.interrupt()
                    self._changed.notify_all()
            taken = self._choose()
            if taken:
                longest = max(call.asks[index].max_tokens for call, index in taken)
                self._busy[replica] = _Job(taken, self._patience + SECONDS_A_TOKEN * longest)
            return taken

    def _choose(self) -> list[Batch]:
        return take_together(self._calls, self._rows)

    def _drawn(self, replica: Replica, taken: list[Batch], done: list[Completion]) -> None:
        with self._changed:
            if replica.url in self._away:
                self._away.remove(replica.url)
                self._notes.append(f"the rollout server {replica.url} is back")
            hand_out(taken, done)
            self._since = self._finished[replica.url] = time.monotonic()
        self._settle(replica, taken)

    def _lost(self, replica: Replica, taken: list[Batch]) -> None:
        """Put the batches back, and give all calls up where nobody has worked for long."""
        with self._changed:
            self._put_back(taken)
            if replica.url not in self._away:
                self._since = time.monotonic()
                self._miss(replica.url, replica.why)
        self._settle(replica, taken)
        self._give_up()

    def _look(self) -> None:
        """Take back what servers have that finish nothing."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        for replica, job in list(self._busy.items()):
            since = max(job.since, self._finished.get(replica.url, 0.0))
            if now - since > job.limit and replica.url not in self._stuck:
                self._leave(
                    replica.url, f"it has finished nothing in {now - since:.0f} s; end its process"
                )
        self._give_up()

    def _leave(self, url: str, why: str) -> None:
        """Count a server as stuck: whoever waits for it goes on waiting, without a batch."""
        self._stuck.add(url)
        self._miss(url, why)
        for replica in (replica for replica in self._replicas if replica.url == url):
            replica.why = why
            if job := self._busy.get(replica):
                self._put_back(job.taken)
                job.taken.clear()
        self._changed.notify_all()

    def _miss(self, url: str, why: str) -> None:
        """Tell of a server that is away; its other slots need not."""
        self._away.add(url)
        self._notes.append(f"the rollout server {url} is away: {why}")

    def _put_back(self, taken: list[Batch]) -> None:
        for call, index in reversed(taken):
            call.waiting.appendleft(index)

    def _give_up(self) -> None:
        """End all calls where no server is at work, and none was for as long as patience lasts."""
        with self._changed:
            dead = all(
                r.url in self._stuck or (r.misses and r not in self._busy) for r in self._replicas
            )
            if not dead or time.monotonic() - self._since <= self._patience:
                return
            servers = "; ".join(dict.fromkeys(f"{r.url} ({r.why})" for r in self._replicas))
            for call in self._calls:
                call.error = RuntimeError(
                    f"no rollout server has drawn anything for {self._patience:.0f} s: {servers}"
                )
            self._changed.notify_all()

    def _settle(self, replica: Replica, taken: list[Batch], error: Exception | None = None) -> None:
        """The server is free; whoever waits looks anew."""
        with self._changed:
            self._busy.pop(replica, None)
            self._stuck.discard(replica.url)
            for call, _ in taken:
                call.error = call.error or error
            self._changed.notify_all()
