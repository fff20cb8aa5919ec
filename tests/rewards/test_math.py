"""Mathematical answers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.rewards.math import MathGrader, decide, extract_answer, last_boxed, normalised
from hillclimb.rewards.pool import GraderPool


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with GraderPool(workers=1, deadline_s=2.0) as pool:
        yield MathGrader(pool)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>1</think><answer> 42 </answer>", "42"),
        ("<answer>1</answer> or <answer>2</answer>", "2"),
        (r"<answer>it is \boxed{\frac{1}{2}}</answer>", r"\frac{1}{2}"),
        (r"so \boxed{1} and then \boxed {x^{2}}.", "x^{2}"),
        (r"\boxed{1} but \boxed{2", "1"),
        (r"\boxed{3}<answer>4</answer>", "4"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"{ \boxed{6} } }", "6"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer> </answer>", None),
        (r"\boxed{}", None),
        ("<answer>42", None),
        ("42", None),
        ("", None),
    ],
)
def test_extraction(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@given(st.text("{}a\\boxed", max_size=60))
def test_a_box_is_balanced(text: str) -> None:
    box = last_boxed(text)
    assert box is None or (box.count("{") == box.count("}") and f"{{{box}}}" in text)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("007", "7"), ("+7", "7"), ("-0", "0"), ("1,234,567", "1234567"), ("$ 12 $", "12"),
        ("12.", "12"), ("−5", "-5"), ("12,34", "12,34"), ("1.50", "1.50"), ("a  b\nc", "a b c"),
    ],
)  # fmt: skip
def test_normalised(answer: str, text: str) -> None:
    assert normalised(answer) == text


@given(st.integers(), st.integers())
def test_integers_are_decided_without_algebra(given_: int, wanted: int) -> None:
    verdict = decide(f"{given_:,}", str(wanted))
    assert verdict is not None
    assert verdict.score == float(given_ == wanted)


def test_very_long_integers_are_only_text() -> None:
    digits = "9" * 20_000
    assert decide(digits, digits) is not None
    verdict = decide(digits, "9")
    assert verdict is not None
    assert verdict.score == 0.0


EQUAL = [
    ("1/2", "0.5"), (r"\frac{1}{2}", "1/2"), ("x+1", "1+x"), (r"\sqrt{2}", "2^{1/2}"),
    ("2**10", "1024.0"), ("2^10", "1024.0"), ("50\\%", "0.5"), ("x=5", "5"), ("(1, 2)", "(1,2)"),
    (r"\{2,1\}", r"\{1,2\}"), ("$3.0$", "3"), (r"\frac{\pi}{2}", "0.5\\pi"), ("Yes", "yes"),
    ("No.", "no"), ("2 (x+1)", "2x+2"), ("10", "10 cm"),
]  # fmt: skip
DIFFERENT = [
    ("1/3", "0.333"), ("x-1", "1-x"), ("3.14", r"\pi"), ("(2,1)", "(1,2)"), ("yes", "no"),
    ("1 2", "3"), ("3 or 4", "4.0"), ("abc", "cab"), (r"\frac{", "0.5"), ("???", "0.5"),
    ("x", "0.5"), (r"\{0.5, 0.6\}", "0.5"), ("[0,1]", "0.5"), ("9" * 2000 + ".5", "0.5"),
]  # fmt: skip


def test_other_notations_of_a_value(grader: MathGrader) -> None:
    results = grader.grade_many([(f"<answer>{given}</answer>", wanted) for given, wanted in EQUAL])
    wrong = [(pair, r) for pair, r in zip(EQUAL, results, strict=True) if r.score != 1.0]
    assert wrong == []


def test_other_values(grader: MathGrader) -> None:
    pairs = [(f"<answer>{given}</answer>", wanted) for given, wanted in DIFFERENT]
    results = grader.grade_many(pairs)
    wrong = [(pair, r) for pair, r in zip(DIFFERENT, results, strict=True) if r.score != 0.0]
    assert wrong == []


def test_no_answer_is_wrong_and_no_reference_is_ungraded(grader: MathGrader) -> None:
    results = grader.grade_many([("I do not know", "4"), ("<answer>4</answer>", "{[(+")])
    assert [result.score for result in results] == [0.0, None]
    assert results[1].reason == "the reference does not parse"


@pytest.mark.parametrize("tower", ["9^{9^{9^{9^{9}}}}", "1000000!"])
def test_a_hanging_expression_is_ungraded_in_its_limit(tower: str) -> None:
    with GraderPool(workers=1, deadline_s=1.0) as pool:
        grader = MathGrader(pool)
        grader.grade_many([("<answer>1/2</answer>", "0.5")])
        started = time.monotonic()
        pairs = [("<answer>1/2</answer>", "0.5"), (f"<answer>{tower}</answer>", "5/7"),
                 ("<answer>1/4</answer>", "0.5"), ("<answer>3</answer>", "3")]  # fmt: skip
        results = grader.grade_many(pairs)
        assert time.monotonic() - started < 10
        assert [result.score for result in results] == [1.0, None, 0.0, 1.0]
        assert "killed" in results[1].reason
        assert pool.lost == 1


def test_equal_questions_are_asked_once(grader: MathGrader) -> None:
    started = time.monotonic()
    results = grader.grade_many([("<answer>3/6</answer>", "0.5")] * 5000)
    assert {result.score for result in results} == {1.0}
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", r"\boxed{", "{", "}", "1 ", " ", "9"])
def test_a_hostile_response_costs_no_time(grader: MathGrader, piece: str) -> None:
    started = time.monotonic()
    verdict = grader.grade_many(
        [(piece * 100_000, "4"), (f"<answer>{piece * 100_000}</answer>", "4")]
    )
    assert [result.score for result in verdict] == [0.0, 0.0]
    assert time.monotonic() - started < 2


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hillclimb.rewards.math.find_spec", lambda name: None)
    with GraderPool() as pool, pytest.raises(ModuleNotFoundError, match="extra `rewards`"):
        MathGrader(pool)
