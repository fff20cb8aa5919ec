"""Programs side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hillclimb.environments.sandbox.programs import ProgramRunner

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProgramPool:
    """Up to `workers` threads, each with a runner of its own; both start when first needed.

    The threads stay to the end, because a sandbox ends with the thread that started it. Callers
    in several threads share them.

    Args:
        runners: makes a runner.
    """

    def __init__(self, runners: Callable[[], ProgramRunner], workers: int) -> None:
        self._runners = runners
        self._threads = ThreadPoolExecutor(workers, "programs")
        self._mine = threading.local()
        self._made: list[ProgramRunner] = []

    def map(
        self, work: Callable[[ProgramRunner, Item], Result], items: Iterable[Item]
    ) -> list[Result]:
        """What `work` makes of each item, in their order."""
        return list(self._threads.map(lambda item: work(self._runner(), item), items))

    def stop(self) -> None:
        """Let what runs end, and end the runners; nothing is run after it."""
        self._threads.shutdown(cancel_futures=True)
        for runner in self._made:
            runner.stop()

    def _runner(self) -> ProgramRunner:
        if not hasattr(self._mine, "runner"):
            self._mine.runner = self._runners()
            self._made.append(self._mine.runner)
        runner: ProgramRunner = self._mine.runner
        return runner
