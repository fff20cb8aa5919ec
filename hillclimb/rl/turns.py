"""Where a climb's groups come from. Here: drawn in turns with learning, the synchronous mode."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from hillclimb.environments.tasks import Problem
from hillclimb.rl.curriculum import PromptQueue
from hillclimb.rl.groups import Buffer, Group
from hillclimb.rl.metrics import Row, Update
from hillclimb.rl.workers import ProblemWorker

SEEDS = 4
Problems = dict[str, list[Problem]]
Prepare = Callable[[list[Group]], list[Group]]


class Source(Protocol):
    """What gives a climb its groups, an update at a time."""

    def begin(self, version: int) -> Update:
        """The engine has the weights of `version`; draw what the first step of this update needs.

        What comes in until the update ends is added to the answer.
        """

    def batches(self, prepare: Prepare) -> Iterator[list[Group]]:
        """The groups of each step of this update, made ready by `prepare`."""

    def stood_still(self) -> float:
        """The share of the time since the last call in which nothing was drawn, by design."""

    def state(self) -> dict[str, Any]:
        """JSON: prompts `taken` of each specialist and `in_flight`, `columns` of rows to repeat."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""

    def close(self) -> None:
        """Draw nothing more."""


class Turns:
    """Draws until the update's steps have their groups, while the learner waits; then it waits."""

    def __init__(
        self,
        config: dict[str, Any],
        worker: ProblemWorker,
        queue: PromptQueue,
        buffer: Buffer,
        problems: Problems,
        seed: int,
    ) -> None:
        self.config, self.worker, self.problems, self.seed = config, worker, problems, seed
        self.queue, self.buffer, self.version = queue, buffer, 0
        self._columns: Row = {}
        self._asked, self._drawing = time.perf_counter(), 0.0

    def begin(self, version: int) -> Update:
        """Fill the buffer for the update's gradient steps."""
        started = time.perf_counter()
        self.version = version
        wanted = self.config["staleness"]["steps_per_update"] * self.config["batch_groups"]
        found, draws = Update(before=self._columns), 0
        found.groups["stale"] = self.buffer.drop_stale(version)
        while len(self.buffer.groups) < wanted and self._may_draw(found, draws):
            self._draw(found, draws)
            draws += 1
        self._drawing += time.perf_counter() - started
        self._columns = found.carried()
        return found

    def batches(self, prepare: Prepare) -> Iterator[list[Group]]:
        """All are made ready first; less than a batch waits, unless draws are limited."""
        size, limited = self.config["batch_groups"], self.config["draws_per_update"] is not None
        batches: list[list[Group]] = []
        while len(batches) < self.config["staleness"]["steps_per_update"] and (
            len(self.buffer.groups) >= (1 if limited else size)
        ):
            batches.append(self.buffer.take(size))
        return iter([prepare(groups) for groups in batches])

    def stood_still(self) -> float:
        """Whenever the learner learns."""
        asked, drawing = self._asked, self._drawing
        self._asked, self._drawing = time.perf_counter(), 0.0
        return 1.0 - drawing / (self._asked - asked)

    def state(self) -> dict[str, Any]:
        """How many prompts were taken: between updates none is in flight."""
        return {"taken": dict(self.queue.taken), "in_flight": [], "columns": self._columns}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.queue.taken = dict(state["taken"])
        self._columns = state["columns"]

    def close(self) -> None:
        """Nothing goes on by itself."""

    def _may_draw(self, found: Update, draws: int) -> bool:
        """Whether draws are left where they are limited, and problems not tried where not."""
        most = self.config["draws_per_update"]
        if most is not None:
            return draws < int(most)
        return not self.queue.gone_through(found.tried, found.prompts)

    def _seed(self, draw: int) -> int:
        """A seed for each draw: even, since the early samples' is this one and the rest's the next.

        Draws beyond the first `SEEDS` would repeat those of the next update.
        """
        if draw < SEEDS:
            return ((self.seed * 4096 + self.version) * SEEDS + draw) * 2
        return seed_of(self.seed, self.version, draw)

    def _draw(self, found: Update, draw: int) -> None:
        prompts = self.queue.take(self.config["prompts_per_update"])
        found.prompts += len(prompts)
        found.tried.update(prompts)
        problems = [self.problems[name][index] for name, index in prompts]
        for group in self.worker.work(found, problems, self._seed(draw)):
            self.buffer.add(replace(group, update=self.version))


def seed_of(*numbers: int) -> int:
    """An even seed of 49 bits for a place in a climb."""
    told = " ".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:6]) * 2
