"""Every rollout to its grader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

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
    """All graders of the toy's problems, their processes included; use as a context."""

    def __init__(
        self, programs: Callable[[], ProgramRunner] = CodeRunner, workers: int = 1
    ) -> None:
        self.pool = GraderPool(workers)
        self.math = MathGrader(self.pool)
        self.judge = RuleJudge()
        self._programs = programs
        self._runner: ProgramRunner | None = None
        self._ran: dict[tuple[str, str], Graded] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.stop()
        if self._runner is not None:
            self._runner.stop()

    def grade(self, rollouts: Sequence[Rollout]) -> None:
        """Set `graded` of every rollout; callers in several threads wait for each other."""
        with self._lock:
            self._grade(rollouts)

    def _grade(self, rollouts: Sequence[Rollout]) -> None:
        math = [r for r in rollouts if r.problem.task["grader"] == "math"]
        verdicts = self.math.grade_many([(_response(r), r.problem.task["answer"]) for r in math])
        for rollout, verdict in zip(math, verdicts, strict=True):
            rollout.graded = verdict
        self._ran.clear()
        graders: dict[str, Callable[[Rollout], Graded]] = {
            "code": self._code,
            "rules": self._rules,
            "safety": self._safety,
            "check": _check,
            "answer": _answer,
        }
        for rollout in rollouts:
            if rollout.problem.task["grader"] != "math":
                rollout.graded = graders[rollout.problem.task["grader"]](rollout)

    def _code(self, rollout: Rollout) -> Graded:
        """Run the answer against the hidden tests; equal answers of a batch run once."""
        structure = think_answer(_last(rollout), think_open=True)
        if not structure.ok:
            return Graded(0.0, structure.fault or "")
        key = (rollout.problem.id, structure.answer.strip())
        if key not in self._ran:
            self._ran[key] = self._run(key[1], rollout.problem.task["tests"])
        return self._ran[key]

    def _run(self, expression: str, tests: list[tuple[list[int], int]]) -> Graded:
        if self._runner is None:
            self._runner = self._programs()
        calls = [CallTest(tuple(given), value) for given, value in tests]
        source = f"def f(x, y):\n    return {expression}\n"
        return grade_function(self._runner, source, "f", calls)

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
