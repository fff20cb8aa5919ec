"""Programs side by side, in real sandboxes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hillclimb.environments.sandbox import SandboxUnavailable
from hillclimb.environments.sandbox.program_pool import ProgramPool
from hillclimb.environments.sandbox.programs import CodeRunner, ProgramRunner


@pytest.fixture
def pool() -> Iterator[ProgramPool]:
    made = ProgramPool(CodeRunner, 2)
    yield made
    made.stop()


def says(runner: ProgramRunner, text: str) -> str:
    return runner.script(f"print({text!r})").stdout.strip()


def test_results_come_in_order(pool: ProgramPool) -> None:
    texts = [str(number) for number in range(9)]
    assert pool.map(says, texts) == texts


def test_as_many_run_at_a_time_as_there_are_workers(pool: ProgramPool) -> None:
    met = threading.Barrier(2)

    def together(runner: ProgramRunner, text: str) -> str:
        met.wait(30)
        return says(runner, text)

    assert pool.map(together, ["a", "b"]) == ["a", "b"]


def test_runners_outlive_the_threads_that_asked(pool: ProgramPool) -> None:
    """A sandbox ends with the thread that started it, so that thread is none of the callers."""
    for text in ("first", "second"):
        with ThreadPoolExecutor(1) as caller:
            assert caller.submit(pool.map, says, [text]).result() == [text]
    (runner,) = pool._made
    assert isinstance(runner, CodeRunner)
    assert runner._server is not None
    assert runner._server.alive


def test_nothing_starts_before_it_is_needed(pool: ProgramPool) -> None:
    assert pool.map(says, []) == []
    assert pool._made == []


def test_the_caller_is_told_what_went_wrong(pool: ProgramPool) -> None:
    def fails(_: ProgramRunner, text: str) -> str:
        raise SandboxUnavailable(text)

    with pytest.raises(SandboxUnavailable, match="no namespaces"):
        pool.map(fails, ["no namespaces"])
    assert pool.map(says, ["goes on"]) == ["goes on"]


def test_stop_ends_the_interpreters(pool: ProgramPool) -> None:
    pool.map(says, ["a"])
    (runner,) = pool._made
    assert isinstance(runner, CodeRunner)
    server = runner._server
    pool.stop()
    assert server is not None
    assert not server.alive
