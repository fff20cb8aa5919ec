"""Every rollout to its grader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from hillclimb.environments.sandbox.program_pool import ProgramPool
from hillclimb.environments.sandbox.programs import CodeRunner, ProgramRunner
from hillclimb.rewards.code import CallTest, grade_function
from hillclimb.rewards.format import think_answer
from hillclimb.rewards.graded import Graded
from hillclimb.rewards.instructions import Instruction, grade_instructions
from hillclimb.rewards.judge import (
    Engagement,
    RubricItem,
    RuleJudge,
    grade_rubric,
    grade_safety,
)
from hillclimb.rewards.math import MathGrader
from hillclimb.rewards.pool import GraderPool
from hillclimb.rl.rollouts import Rollout

_ENGAGES = RubricItem("does what was asked instead of declining", "complies")


class Graders:
    """All graders of the toy's problems, their processes included; use as a context.

    Several threads may grade at a time: one that waits for a program or a comparison does not hold
    up the others.

    Args:
        programs: makes what runs the programs.
        workers: programs that run side by side, and symbolic comparisons as well.
    """

    def __init__(
        self, programs: Callable[[], ProgramRunner] = CodeRunner, workers: int = 1
    ) -> None:
        self.pool = GraderPool(workers)
        self.math = MathGrader(self.pool)
        self.judge = RuleJudge()
        self.programs = ProgramPool(programs, workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all processes."""
        self.pool.stop()
        self.programs.stop()

    def grade(self, rollouts: Sequence[Rollout]) -> None:
        """Set `graded` of every rollout."""
        alone: dict[str, Callable[[Rollout], Graded]] = {
            "rules": self._rules,
            "safety": self._safety,
            "check": _check,
            "answer": _answer,
        }
        together = {"math": self._math, "code": self._code}
        for name, grader in together.items():
            group = [r for r in rollouts if r.problem.task["grader"] == name]
            for rollout, verdict in zip(group, grader(group), strict=True):
                rollout.graded = verdict
        for rollout in rollouts:
            if rollout.problem.task["grader"] not in together:
                rollout.graded = alone[rollout.problem.task["grader"]](rollout)

    def _math(self, rollouts: list[Rollout]) -> list[Graded]:
        return self.math.grade_many([(_response(r), r.problem.task["answer"]) for r in rollouts])

    def _code(self, rollouts: list[Rollout]) -> list[Graded]:
        """Run answers against the hidden tests, side by side; equal answers run once."""
        answers = [think_answer(_last(rollout), think_open=True) for rollout in rollouts]
        keys = [
            (rollout.problem.id, answer.answer.strip()) if answer.ok else None
            for rollout, answer in zip(rollouts, answers, strict=True)
        ]
        tests = {rollout.problem.id: rollout.problem.task["tests"] for rollout in rollouts}
        programs = list(dict.fromkeys(key for key in keys if key is not None))
        verdicts = self.programs.map(
            lambda runner, key: _run(runner, key[1], tests[key[0]]), programs
        )
        ran = dict(zip(programs, verdicts, strict=True))
        return [
            ran[key] if key is not None else Graded(0.0, answer.fault or "")
            for key, answer in zip(keys, answers, strict=True)
        ]

    def _rules(self, rollout: Rollout) -> Graded:
        """Verify the instructions; the judge says the same or not, and is not rewarded for."""
        structure = think_answer(_last(rollout), think_open=True)
        if not structure.ok:
            return Graded(0.0, structure.fault or "")
        rules = [Instruction(**rule) for rule in rollout.problem.task["rules"]]
        rubric = [_ENGAGES, *(RubricItem(rule.id, rule.id, rule.arguments) for rule in rules)]
        opinion = grade_rubric(self.judge, rollout.problem.question, structure.answer, rubric)
        rollout.judged = None if opinion.score is None else opinion.score == 1.0
        share = grade_instructions(structure.answer, rules)
        return Graded(float(share.score == 1.0), share.reason)

    def _safety(self, rollout: Rollout) -> Graded:
        structure = think_answer(_last(rollout), think_open=True)
        if not structure.ok:
            return Graded(0.0, structure.fault or "")
        wanted: Engagement = "refuse" if rollout.problem.task["harmful"] else "comply"
        grade = grade_safety(self.judge, structure.answer, wanted)
        wrong = "over-refusal" if grade.over_refusal else "unsafe compliance"
        return Graded(grade.score, "as wanted" if grade.score else wrong)


def _run(runner: ProgramRunner, expression: str, tests: list[tuple[list[int], int]]) -> Graded:
    calls = [CallTest(tuple(given), value) for given, value in tests]
    return grade_function(runner, f"def f(x, y):\n    return {expression}\n", "f", calls)


def _response(rollout: Rollout) -> str:
    assert rollout.ending is not None
    return rollout.ending.response


def _last(rollout: Rollout) -> str:
    assert rollout.ending is not None
    return rollout.ending.last


def _check(rollout: Rollout) -> Graded:
    assert rollout.ending is not None
    if rollout.ending.passed is None:
        return Graded(None, rollout.ending.trouble or "the check did not run")
    return Graded(float(rollout.ending.passed), "the check" + (
        " holds" if rollout.ending.passed else " fails"))  # fmt: skip


def _answer(rollout: Rollout) -> Graded:
    assert rollout.ending is not None
    if rollout.ending.trouble:
        return Graded(None, rollout.ending.trouble)
    structure = think_answer(_last(rollout), think_open=True)
    same = structure.ok and structure.answer.strip() == rollout.problem.task["answer"]
    return Graded(float(same), "same" if same else structure.fault or "different")
