"""Step after step of packed rows, read ahead of the learner from shards anywhere."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hillclimb.training.packing import Packed
from hillclimb.training.sampling import Plan, Visit
from hillclimb.training.shards import Texts

T = TypeVar("T")


@dataclass(frozen=True)
class _Loaded:
    """A visit with the tokens that this stream needs; `bases` says where each document begins."""

    visit: Visit
    texts: Texts
    bases: np.ndarray


class Feed:
    """This data stream's rows of every step.

    The plan's documents, each followed by a separator, are cut into rows of `length` + 1 tokens;
    a step takes the next `batch_rows` of them, of which stream r of n takes every n-th from r on.
    Row for row the same, whatever the number of streams; a step is found without reading what
    comes before it. In memory are the visit at work and the next one, and of those only the
    documents of this stream's rows.
    """

    def __init__(
        self, plan: Plan, length: int, separator: int, batch_rows: int, rows: int,
        data_rank: int = 0, data_world: int = 1,
    ) -> None:  # fmt: skip
        """
        Args:
            length: inputs of a row.
            separator: the token that ends a document.
            rows: most rows of the whole phase.
        """
        self.plan, self.length, self.separator = plan, length, separator
        self.batch_rows, self.width = batch_rows, length + 1
        self.data_rank, self.data_world = data_rank, data_world
        self.rows = min(rows, len(plan) // self.width)
        self.steps = self.rows // batch_rows
        self.names = plan.shards.names

    def batches(self, first: int) -> Generator[Packed]:
        """This stream's rows of steps `first` and after; the next visit loads meanwhile."""
        held: dict[int, Future[_Loaded]] = {}
        with ThreadPoolExecutor(1, "visit") as loader:
            for step in range(first, self.steps):
                start = step * self.batch_rows * self.width
                now = self.plan.at(start), self.plan.at(start + self.batch_rows * self.width - 1)
                for number in [number for number in held if number < now[0]]:
                    del held[number]
                for number in range(now[0], min(now[1] + 2, len(self.plan.turns))):
                    if number not in held:
                        held[number] = loader.submit(self._load, number, first)
                yield self._pack(step, [held[n].result() for n in range(now[0], now[1] + 1)])

    def given(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and documents that each source has given to the first steps, on all streams."""
        return self.plan.given(steps * self.batch_rows * self.width)

    def _mine(self, first: int, end: int) -> np.ndarray:
        """This stream's rows among rows `first` to `end`."""
        rows = np.arange(first, max(first, end))
        return rows[rows % self.batch_rows % self.data_world == self.data_rank]

    def _load(self, number: int, first: int) -> _Loaded:
        """Read what this stream's rows from step `first` on need of a visit."""
        visit = self.plan.visit(number)
        end = visit.start + int(visit.starts[-1])
        rows = self._mine(
            max(first * self.batch_rows, visit.start // self.width),
            min(self.steps * self.batch_rows, -(-end // self.width)),
        )
        places = rows * self.width - visit.start
        opens, closes = _span(visit.starts, places, places + self.width)
        marks = np.zeros(len(visit.order) + 1, np.int64)
        np.add.at(marks, opens, 1)
        np.add.at(marks, closes, -1)
        texts = self.plan.shards.read(np.unique(visit.order[np.cumsum(marks)[:-1] > 0]))
        return _Loaded(visit, texts, texts.offsets[np.searchsorted(texts.documents, visit.order)])

    def _pack(self, step: int, loaded: list[_Loaded]) -> Packed:
        rows = self._mine(step * self.batch_rows, (step + 1) * self.batch_rows)
        shape = (len(rows), self.width)
        packed = Packed(
            np.empty(shape, np.int32), np.empty(shape, np.int32), np.empty(shape, np.int16),
            np.empty(shape, np.int32),
        )  # fmt: skip
        for place, row in enumerate(rows.tolist()):
            for part in loaded:
                self._copy(row * self.width, part, packed, place)
        packed.segments[:] -= packed.segments[:, :1]
        return packed

    def _copy(self, start: int, part: _Loaded, packed: Packed, place: int) -> None:
        """Copy what a visit holds of the row that begins at token `start` of the stream."""
        visit, lengths = part.visit, self.plan.lengths
        begin = max(start - visit.start, 0)
        end = min(start + self.width - visit.start, int(visit.starts[-1]))
        if begin >= end:
            return
        (first,), (last,) = _span(visit.starts, np.array([begin]), np.array([end]))
        counts = np.diff(visit.starts[first : last + 1].clip(begin, end))
        ordinals = np.repeat(np.arange(first, last), counts)
        within = np.arange(begin, end) - visit.starts[ordinals]
        documents = visit.order[ordinals]
        body = within < lengths[documents]
        into = slice(begin + visit.start - start, end + visit.start - start)
        tokens = packed.tokens[place, into]
        tokens[:] = self.separator
        tokens[body] = part.texts.tokens[(part.bases[ordinals] + within)[body]]
        packed.segments[place, into] = visit.first + ordinals
        packed.sources[place, into] = self.plan.shards.sources[documents]
        packed.documents[place, into] = documents


def _span(starts: np.ndarray, begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents that [begin, end) touches: the first, and one past the last."""
    first = np.searchsorted(starts, begin, side="right") - 1
    return first.clip(min=0), np.searchsorted(starts, end).clip(max=len(starts) - 1)


def prefetch(items: Generator[T], ahead: int) -> Generator[T]:
    """Run a generator in a thread, at most `ahead` items before whoever takes them.

    A thread and not a process: decoding and copying leave the interpreter's lock alone.
    """
    ready: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: list[T], error: BaseException | None = None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return

    def fill() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    put([item])
                    if stop.is_set():
                        return
            put([])
        except BaseException as error:
            put([], error)

    threading.Thread(target=fill, name="feed", daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
    finally:
        stop.set()
