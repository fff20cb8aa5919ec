"""Groups that are drawn while the learner learns: the asynchronous mode, bounded (report §3.6).

Problem workers are threads: each takes a prompt, draws and grades its group, and takes the next
one. The engine is elsewhere, so they mostly wait for it. The learner takes over whole groups, in
its own thread; it alone changes the buffer. New weights interrupt the engine: rollouts under way
go on with them, and each token knows its version.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hillclimb.rl.apart import Apart, Closed
from hillclimb.rl.curriculum import PromptQueue
from hillclimb.rl.groups import Buffer, Group
from hillclimb.rl.metrics import Update
from hillclimb.rl.turns import Prepare, Problems, seed_of
from hillclimb.rl.workers import ProblemWorker

Prompt = tuple[str, int]
HURRY = 0.2


class Ahead:
    """`prompts_per_update` problem workers, which pause while the buffer is full.

    It is full with the groups of `staleness.ahead` updates. A prompt is in flight from when a
    worker takes it until the learner takes over what became of it.
    """

    def __init__(
        self,
        config: dict[str, Any],
        worker: ProblemWorker,
        queue: PromptQueue,
        buffer: Buffer,
        problems: Problems,
        seed: int,
        apart: Apart,
    ) -> None:
        self.config, self.worker, self.problems, self.seed = config, worker, problems, seed
        self.queue, self.buffer, self.apart = queue, buffer, apart
        staleness, self.size = config["staleness"], int(config["batch_groups"])
        self.steps = int(staleness["steps_per_update"])
        self.bound = int(staleness["ahead"]) * self.steps * self.size
        self.version, self.found = 0, Update()
        self.in_flight: dict[int, Prompt] = {}
        self._again: deque[tuple[int, Prompt]] = deque()
        self._done: deque[tuple[int, Update, list[Group]]] = deque()
        self._fruitless = Update()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._error: BaseException | None = None
        self._still = _Stillness()

    def begin(self, version: int) -> Update:
        """Go on with the new weights, and wait for a batch."""
        self.apart.interrupt()
        with self._changed:
            self.version, self.found = version, Update(before=self.found.carried())
            self._start()
            self._wait()
        return self.found

    def batches(self, prepare: Prepare) -> Iterator[list[Group]]:
        """A batch for each step as soon as it is there; fewer where problems give no more."""
        for _ in range(self.steps):
            with self._changed:
                self._wait()
                groups = self.buffer.take(self.size) if self._enough() else []
                self._fruitless = Update()
                self._changed.notify_all()
            if not groups:
                return
            yield prepare(groups)

    def stood_still(self) -> float:
        """The share of the workers' time that they waited for room in the buffer."""
        with self._changed:
            return self._still.share(len(self._threads))

    def state(self) -> dict[str, Any]:
        """Prompts taken, and those in flight: they are drawn again."""
        with self._changed:
            flying = [[number, *prompt] for number, prompt in sorted(self.in_flight.items())]
            told = {"taken": dict(self.queue.taken), "in_flight": flying}
            return {**told, "columns": self.found.carried()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave: what was in flight comes first."""
        self.queue.taken = dict(state["taken"])
        self._again = deque((number, (name, index)) for number, name, index in state["in_flight"])
        self.in_flight = dict(self._again)
        self.found = Update(before=state["columns"])

    def close(self) -> None:
        """Stop the workers; what they have finished is taken over, the rest is let go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.apart.close()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(HURRY)
                self.apart.close()
        with self._changed:
            self._take_over()

    def _start(self) -> None:
        if self._threads:
            return
        for _ in range(self.config["prompts_per_update"]):
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        self._still.share(1)

    def _wait(self) -> None:
        """Until there is a batch, or no hope of one."""
        while True:
            self._take_over()
            self.found.groups["stale"] += self.buffer.drop_stale(self.version)
            self._changed.notify_all()
            if self._error is not None:
                raise self._error
            if len(self.buffer.groups) >= self.size or self._in_vain():
                return
            self._changed.wait()

    def _take_over(self) -> None:
        """What the workers have finished: tallies into the update, groups into the buffer."""
        while self._done:
            number, found, groups = self._done.popleft()
            del self.in_flight[number]
            first = self.found.sorted_groups
            self.found.absorb(found)
            self._fruitless.absorb(Update(tried=found.tried, prompts=found.prompts))
            for group in groups:
                number = first + group.number
                self.buffer.add(replace(group, update=self.version, number=number))

    def _in_vain(self) -> bool:
        """Whether so many prompts gave no batch that the learner should not wait for more."""
        limit, gone = self.config["draws_per_update"], self._fruitless
        if limit is not None:
            return gone.prompts >= limit * self.config["prompts_per_update"]
        return self.queue.gone_through(gone.tried, gone.prompts)

    def _enough(self) -> bool:
        """Whether there is a batch; a short one does where draws are limited."""
        limited = self.config["draws_per_update"] is not None
        return len(self.buffer.groups) >= (1 if limited else self.size)

    def _work(self) -> None:
        """A problem worker's life."""
        try:
            while (taken := self._next()) is not None:
                number, prompt = taken
                found = Update(tried={prompt}, prompts=1)
                problem = self.problems[prompt[0]][prompt[1]]
                groups = self.worker.work(found, [problem], seed_of(self.seed, number))
                with self._changed:
                    self._done.append((number, found, groups))
                    self._changed.notify_all()
        except Closed:
            return
        except BaseException as error:
            with self._changed:
                self._error = None if self._closed else error
                self._changed.notify_all()

    def _next(self) -> tuple[int, Prompt] | None:
        """The next prompt, once there is room for its group; None at the end."""
        with self._changed:
            self._still.change(1)
            while self._is_full() and not self._closed:
                self._changed.wait()
            self._still.change(-1)
            if self._closed:
                return None
            if self._again:
                return self._again.popleft()
            number = sum(self.queue.taken.values())
            self.in_flight[number] = self.queue.take(1)[0]
            return number, self.in_flight[number]

    def _is_full(self) -> bool:
        waiting = sum(len(groups) for _, _, groups in self._done)
        return len(self.buffer.groups) + waiting >= self.bound


class _Stillness:
    """How long how many workers stood still."""

    def __init__(self) -> None:
        self._asked = self._changed = time.perf_counter()
        self._count, self._sum = 0, 0.0

    def change(self, by: int) -> None:
        """So many more stand still from now on."""
        now = time.perf_counter()
        self._sum += self._count * (now - self._changed)
        self._count, self._changed = self._count + by, now

    def share(self, workers: int) -> float:
        """Of the time of all workers since the last call."""
        self.change(0)
        share = self._sum / max(1e-9, workers * (self._changed - self._asked))
        self._asked, self._sum = self._changed, 0.0
        return share
