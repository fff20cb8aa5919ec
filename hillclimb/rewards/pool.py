"""Graders in processes that can be killed.

A symbolic comparison may hang or eat all memory, and a timeout inside its own process does not
help. Each worker here is a fresh interpreter (never a fork of the caller, which may hold a large
model), grades one item at a time, and is killed with all that it started when the item passes its
deadline. The item is then ungraded, a new worker takes its place, and the batch goes on.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hillclimb.rewards.graded import Graded

LOAD_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Task:
    """One call `function(**arguments) -> Graded`; the function as "module:name"."""

    function: str
    arguments: Mapping[str, object]


class _Worker:
    """One grader process: a line of JSON in, then "started" and a verdict out."""

    def __init__(self, memory: int) -> None:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hillclimb.rewards.pool_worker", str(memory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.index = -1  # of the item in hand
        self.deadline = 0.0
        self._line = b""
        self.end = weakref.finalize(self, _end, self.process)

    def take(self, index: int, task: Task, deadline_s: float) -> None:
        request = {
            "function": task.function,
            "arguments": dict(task.arguments),
            "deadline_s": deadline_s,
        }
        self.index, self.deadline = index, time.monotonic() + LOAD_TIMEOUT_S
        with suppress(BrokenPipeError):  # a dead worker is found out when it is read
            self.stdin.write(json.dumps(request).encode() + b"\n")
            self.stdin.flush()

    def messages(self) -> list[dict[str, object]] | None:
        """The messages that have come; None if the process has ended."""
        chunk = os.read(self.stdout.fileno(), 65536)
        if not chunk:
            return None
        *lines, self._line = (self._line + chunk).split(b"\n")
        return [json.loads(line) for line in lines]


class GraderPool:
    """A context manager around the workers; each is started when first needed.

    Several threads may grade at a time, and share the workers item by item.

    `deadline_s` bounds one item (loading its grader's libraries is not counted, it happens once
    per worker), `memory` the address space of a worker in bytes.
    """

    def __init__(self, workers: int = 2, deadline_s: float = 5.0, memory: int = 2 * 2**30) -> None:
        self.deadline_s, self.memory = deadline_s, memory
        self.lost = 0  # workers that were killed or died
        self._idle: list[_Worker] = []
        self._lock, self._free = threading.Lock(), threading.Semaphore(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.stop()

    def stop(self) -> None:
        """End every worker; a later batch starts new ones."""
        with self._lock:
            while self._idle:
                self._idle.pop().end()

    def grade_many(self, tasks: Sequence[Task]) -> list[Graded]:
        """Grade every task; results in the order of the tasks, None scores where it failed."""
        return _Batch(self, tasks).run()

    def take(self, wait: bool) -> _Worker | None:
        """A worker; None where all are busy and `wait` is false. It is to be given back."""
        if not self._free.acquire(blocking=wait):
            return None
        try:
            with self._lock:
                while self._idle:
                    worker = self._idle.pop()
                    if worker.process.poll() is None:
                        return worker
                    worker.end()
            return _Worker(self.memory)
        except BaseException:
            self._free.release()
            raise

    def give_back(self, worker: _Worker, lost: bool) -> None:
        """Let another item have it, or end it and let another worker take its place."""
        with self._lock:
            self.lost += lost
            if not lost:
                self._idle.append(worker)
        if lost:
            worker.end()
        self._free.release()


class _Batch:
    """One call of `grade_many`."""

    def __init__(self, pool: GraderPool, tasks: Sequence[Task]) -> None:
        self.pool, self.tasks = pool, tasks
        self.waiting = deque(range(len(tasks)))
        self.busy: list[_Worker] = []
        self.results: dict[int, Graded] = {}
        self.selector = selectors.DefaultSelector()

    def run(self) -> list[Graded]:
        try:
            while self.waiting or self.busy:
                while self.waiting and (worker := self.pool.take(wait=not self.busy)):
                    self._assign(worker)
                self._wait()
        finally:
            for worker in list(self.busy):
                self._release(worker, lost=True)
            self.selector.close()
        return [self.results[index] for index in range(len(self.tasks))]

    def _assign(self, worker: _Worker) -> None:
        index = self.waiting.popleft()
        self.busy.append(worker)
        self.selector.register(worker.stdout, selectors.EVENT_READ, worker)
        worker.take(index, self.tasks[index], self.pool.deadline_s)

    def _wait(self) -> None:
        left = min(worker.deadline for worker in self.busy) - time.monotonic()
        for key, _ in self.selector.select(max(0, left)):
            self._listen(key.data)
        now = time.monotonic()
        for worker in [worker for worker in self.busy if worker.deadline <= now]:
            self._lose(worker, f"killed: no verdict in {self.pool.deadline_s:g} s")

    def _listen(self, worker: _Worker) -> None:
        messages = worker.messages()
        if messages is None:
            self._lose(worker, "the grader's process ended")
            return
        for message in messages:
            if "started" in message:
                worker.deadline = time.monotonic() + self.pool.deadline_s
            elif message.get("retire"):
                self._lose(worker, str(message["reason"]))
            else:
                self.results[worker.index] = Graded(message["score"], message["reason"])  # type: ignore[arg-type]
                self._release(worker, lost=False)

    def _lose(self, worker: _Worker, reason: str) -> None:
        self.results[worker.index] = Graded(None, reason)
        self._release(worker, lost=True)

    def _release(self, worker: _Worker, lost: bool) -> None:
        self.busy.remove(worker)
        self.selector.unregister(worker.stdout)
        self.pool.give_back(worker, lost)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
