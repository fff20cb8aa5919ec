"""Mathematical answers: find the answer in a response, compare it with the reference.

Plain integers and equal text are decided here; every other notation goes to math-verify and SymPy
in a `GraderPool`, because a symbolic comparison can hang.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec

from hillclimb.rewards.graded import Graded
from hillclimb.rewards.pool import GraderPool, Task

LONGEST_ANSWER = 1000
_COMPARE = "hillclimb.rewards.algebra:compare"
_BRACES = re.compile(r"\\boxed\s*\{|[{}]")
_INTEGER = re.compile(r"[+-]?\d+|[+-]?\d{1,3}(,\d{3})+")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_FUNCTIONS = {"cos", "cot", "csc", "exp", "ln", "log", "pi", "sec", "sin", "sqrt", "tan"}
_NUMBERS = re.compile(r"\d+(\s+\d+)+")


def extract_answer(response: str) -> str | None:
    r"""The final answer of a response: its last `<answer>` or, without one, its last `\boxed{}`.

    A box inside the answer is opened. None if there is no answer, or an empty one.
    """
    end = response.rfind("</answer>")
    start = response.rfind("<answer>", 0, max(end, 0))
    tagged = start >= 0
    text = response[start + len("<answer>") : end] if tagged else response
    boxed = last_boxed(text)
    answer = boxed if boxed is not None else (text if tagged else "")
    return answer.strip() or None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` with balanced braces; None without one."""
    open_braces: list[re.Match[str]] = []
    found: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match.group() != "}":
            open_braces.append(match)
        elif open_braces:
            opened = open_braces.pop()
            if opened.group() != "{" and (found is None or opened.end() > found[0]):
                found = opened.end(), match.start()
    return text[slice(*found)] if found else None


def normalised(answer: str) -> str:
    """Answer without outer dollar signs, a final period, and runs of blanks; true minus signs."""
    text = answer.strip().strip("$").strip().removesuffix(".").replace("\u2212", "-")
    text = " ".join(text.split())
    if _INTEGER.fullmatch(text):
        return _integer(text)
    return text


def decide(answer: str, reference: str) -> Graded | None:
    """The verdict where text alone decides it; None where algebra must."""
    given, wanted = normalised(answer), normalised(reference)
    if given == wanted:
        return Graded(1.0, "same")
    if len(given) > LONGEST_ANSWER:
        return Graded(0.0, f"answer longer than {LONGEST_ANSWER} characters")
    if _INTEGER.fullmatch(given) and _INTEGER.fullmatch(wanted):
        return Graded(0.0, "different")
    if _is_words(wanted):
        same = given.casefold() == wanted.casefold()
        return Graded(float(same), "same" if same else "different")
    if _NUMBERS.fullmatch(given):
        return Graded(0.0, "several numbers")
    return None


class MathGrader:
    """Grades responses with references in batches; 1 for an equal answer, 0 for another or none.

    Raises:
        ModuleNotFoundError: if there is nothing to compare notations with; answers would be left
            without a grade one by one.
    """

    def __init__(self, pool: GraderPool) -> None:
        if find_spec("math_verify") is None:
            raise ModuleNotFoundError(
                "math-verify, which compares mathematical answers, is not installed: "
                "install hillclimb with its extra `rewards`"
            )
        self.pool = pool

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[Graded]:
        """One verdict per (response, reference), in order; equal questions are asked once."""
        keys = [(extract_answer(response), reference) for response, reference in pairs]
        verdicts: dict[tuple[str | None, str], Graded] = {}
        hard: list[tuple[str, str]] = []
        for answer, reference in dict.fromkeys(keys):
            verdict = Graded(0.0, "no answer") if answer is None else decide(answer, reference)
            if verdict is not None:
                verdicts[answer, reference] = verdict
            elif answer is not None:
                hard.append((answer, reference))
        verdicts.update(zip(hard, self._algebra(hard), strict=True))
        return [verdicts[key] for key in keys]

    def _algebra(self, pairs: Sequence[tuple[str, str]]) -> list[Graded]:
        texts = [(normalised(answer), normalised(reference)) for answer, reference in pairs]
        return self.pool.grade_many(
            [Task(_COMPARE, {"answer": answer, "reference": wanted}) for answer, wanted in texts]
        )


def _integer(text: str) -> str:
    digits = text.lstrip("+-").replace(",", "").lstrip("0") or "0"
    return f"-{digits}" if text.startswith("-") and digits != "0" else digits


def _is_words(text: str) -> bool:
    if any(letter.isdigit() for letter in text):
        return False
    return any(word.lower() not in _FUNCTIONS for word in _WORD.findall(_COMMAND.sub(" ", text)))
