"""Grading: who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from hillclimb.environments.episodes import Ending
from hillclimb.environments.sandbox.programs import CodeRunner, ProgramRun
from hillclimb.environments.tasks import Problem
from hillclimb.rl.grading import Graders
from hillclimb.rl.rollouts import Rollout

PATIENCE = 30.0


class Watched(CodeRunner):
    """Runs programs, and says when; one that says `slow` begins when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def call(self, source: str, entry: str, calls: Sequence[tuple[object, ...]]) -> ProgramRun:
        self.sources.append(source)
        if "slow" in source:
            self.begun.set()
            assert self.go.wait(PATIENCE)
        return super().call(source, entry, calls)


class Runners:
    """What the graders are given: each runner that they asked for."""

    def __init__(self) -> None:
        self.made: list[Watched] = []

    def __call__(self) -> Watched:
        self.made.append(Watched())
        return self.made[-1]


@pytest.fixture
def runners() -> Runners:
    return Runners()


@pytest.fixture
def graders(runners: Runners) -> Iterator[Graders]:
    with Graders(runners, 2) as made:
        yield made


def answered(text: str, number: int = 0, **task: object) -> Rollout:
    said = f"thinking</think><answer>{text}</answer>"
    task = {"grader": "code", "tests": [([2, 3], 5), ([1, 1], 2)], **task}
    problem = Problem(str(number), "stem", "code", "a function", "what", task)
    return Rollout(problem, [], ending=Ending(said, said))


def scores(rollouts: list[Rollout]) -> list[float | None]:
    assert all(rollout.graded is not None for rollout in rollouts)
    return [rollout.graded.score for rollout in rollouts if rollout.graded is not None]


def test_every_rollout_gets_the_verdict_of_its_own_answer(graders: Graders) -> None:
    math = {"grader": "math", "answer": "5/7"}
    rollouts = [
        answered("x + y"), answered("5/7", **math), answered("x - y"), answered("x +"),
        answered("y + x"), answered("10/15", **math), answered("10/14", **math),
    ]  # fmt: skip
    graders.grade(rollouts)
    assert scores(rollouts) == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_equal_answers_to_a_problem_run_once(graders: Graders, runners: Runners) -> None:
    rollouts = [answered("x + y", number) for number in (0, 0, 1, 0)]
    graders.grade(rollouts)
    assert scores(rollouts) == [1.0] * 4
    assert sum(len(runner.sources) for runner in runners.made) == 2


def test_a_slow_program_does_not_hold_up_another_thread(graders: Graders, runners: Runners) -> None:
    slow, quick = [answered("'slow'")], [answered("x + y")]
    with ThreadPoolExecutor(1) as other:
        waits = other.submit(graders.grade, slow)
        try:
            while not (runners.made and runners.made[0].begun.wait(0.01)):
                assert not waits.done(), waits.exception()
            graders.grade(quick)
            assert scores(quick) == [1.0]
            assert not waits.done()
        finally:
            for runner in runners.made:
                runner.go.set()
        waits.result(PATIENCE)
    assert scores(slow) == [0.0]
