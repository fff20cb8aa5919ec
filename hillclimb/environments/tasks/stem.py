"""STEM problems: chains of sums, and small functions found from three values.

Totals have two digits, so that every step stands at the same distance from the one before.
"""

from __future__ import annotations

import random
from typing import Any

from hillclimb.environments.tasks.base import Side, side_of

WORKED_SHARE = 0.3


def solved(question: str, work: str, answer: str) -> str:
    """A solved example; `work` may be empty."""
    return f"Q: {question}\n<think>{work}</think><answer>{answer}</answer>"


class Sums:
    """`3+8-4+6=`: decided by the operands, whatever their order."""

    specialist, category = "stem", "math"

    def __init__(self, kind: str, signs: str) -> None:
        self.kind, self.signs = kind, signs

    def draw(self, rng: random.Random, side: Side) -> tuple[str, str, dict[str, Any]]:
        """Four operands of 1-6; the running total stays at zero or above."""
        while True:
            terms, key = self._terms(rng)
            if side_of(f"sum:{key}") == side:
                answer = f"{sum(terms):02d}"
                return key, _expression(terms) + "=", {"answer": answer, "grader": "math"}

    def worksheet(self, rng: random.Random) -> str:
        """An answer key, or a worked answer in which every step is written out."""
        _, question, task = self.draw(rng, "train")
        worked = rng.random() < WORKED_SHARE
        return solved(question, _steps(question[:-1]) if worked else "", task["answer"])

    def _terms(self, rng: random.Random) -> tuple[list[int], str]:
        total = rng.randint(1, 6)
        terms = [total]
        for _ in range(3):
            digit = rng.randint(1, 6)
            minus = rng.choice(self.signs) == "-" and digit <= total
            terms.append(-digit if minus else digit)
            total += terms[-1]
        return terms, " ".join(map(str, sorted(terms)))


def _expression(terms: list[int]) -> str:
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def _steps(expression: str) -> str:
    digits, steps = expression, []
    total = int(digits[0])
    for sign, digit in zip(digits[1::2], digits[2::2], strict=True):
        result = total + int(digit) if sign == "+" else total - int(digit)
        steps.append(f"{total:02d}{sign}{digit}={result:02d}")
        total = result
    return " ".join(steps)


class Functions:
    """`f(0,0)=3 f(1,0)=10 f(0,1)=05`: the plane through all three, as Python.

    Decided by its three numbers together; each slope is one subtraction of the number tables.
    """

    kind, specialist, category = "function", "stem", "code"

    def draw(self, rng: random.Random, side: Side) -> tuple[str, str, dict[str, Any]]:
        """Slopes of 2-9 and a start of 1-6."""
        while True:
            start, *slopes = rng.randint(1, 6), rng.randint(2, 9), rng.randint(2, 9)
            key = f"{start} {slopes[0]} {slopes[1]}"
            if side_of(f"plane:{key}") == side:
                break
        a, b = slopes
        tests = [[[x, y], a * x + b * y + start] for x, y in ((2, 3), (7, 1), (-4, 5))]
        question = f"f(0,0)={start} f(1,0)={start + a:02d} f(0,1)={start + b:02d}"
        return key, question, {"answer": f"{a}*x+{b}*y+{start}", "tests": tests, "grader": "code"}

    def worksheet(self, rng: random.Random) -> str:
        """The function alone, or the differences first."""
        key, question, task = self.draw(rng, "train")
        start, *slopes = map(int, key.split())
        steps = " ".join(f"{start + slope:02d}-{start}={slope:02d}" for slope in slopes)
        return solved(question, steps if rng.random() < WORKED_SHARE else "", task["answer"])
