"""Checkable instructions."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.rewards.instructions import CHECKS, Instruction, follows, grade_instructions

CASES: list[tuple[str, dict[str, object], str, bool]] = [
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "a b c", True),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "a b c", False),
    ("length_constraints:number_words", {"relation": "exactly", "num_words": 3}, "a, b. c!", True),
    ("length_constraints:number_words", {"relation": "at most", "num_words": 2}, "a b c", False),
    ("length_constraints:number_words", {"relation": "more than", "num_words": 2}, "a b c", True),
    ("length_constraints:number_sentences", {"relation": "exactly", "num_sentences": 3},
     "One is 1.5 here. Two! \"Three?\"", True),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2},
     "One. Two.", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\n\n***\n", False),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "It"}, "a b\n\n\"it is", True),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "is"}, "a b\n\nit is", False),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "is"}, "a b\n\nit is", False),
    ("keywords:existence", {"keywords": ["Cat", "dog"]}, "A dog, a cat.", True),
    ("keywords:existence", {"keywords": ["cat"]}, "concatenate", False),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Cat!", False),
    ("keywords:frequency", {"keyword": "a", "relation": "at least", "frequency": 2}, "a b A", True),
    ("keywords:frequency", {"keyword": "C++", "relation": "exactly", "frequency": 1}, "C++", True),
    ("keywords:letter_frequency",
     {"letter": "x", "let_relation": "at least", "let_frequency": 2}, "xX", True),
    ("keywords:letter_frequency",
     {"letter": "x", "let_relation": "less than", "let_frequency": 2}, "xX", False),
    ("keywords:only_repeated", {"keyword": "red", "times": 3}, " red red\nred ", True),
    ("keywords:only_repeated", {"keyword": "red", "times": 3}, "red red", False),
    ("change_case:english_lowercase", {}, "abc 1!", True),
    ("change_case:english_lowercase", {}, "aBc", False),
    ("change_case:english_capital", {}, "ABC 1!", True),
    ("change_case:english_capital", {}, "ABc", False),
    ("change_case:capital_word_frequency",
     {"capital_relation": "at least", "capital_frequency": 2}, "A big DOG", True),
    ("startend:start_checker", {"start_phrase": "Well,"}, " well, yes", True),
    ("startend:start_checker", {"start_phrase": "Well,"}, "oh well, yes", False),
    ("startend:end_checker", {"end_phrase": "The end."}, "x. the end. ", True),
    ("startend:end_checker", {"end_phrase": "The end."}, "The end. x", False),
    ("startend:quotation", {}, ' "a" ', True),
    ("startend:quotation", {}, '"', False),
    ("punctuation:no_comma", {}, "a b", True),
    ("punctuation:no_comma", {}, "a, b", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "x\n* a\n- b", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n**b**", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "* a\n* b", False),
    ("detectable_format:multiple_sections",
     {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\nx\nSECTION II\ny", True),
    ("detectable_format:multiple_sections",
     {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\nx", False),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', True),
    ("detectable_format:json_format", {}, '{"a": [1}', False),
    ("detectable_format:json_format", {}, "[" * 100_000, False),
    ("detectable_format:json_format", {}, "```\u00a0[1] \n```", True),
    ("detectable_format:json_format", {}, "{" + " " * 2_000_000 + "x", False),
    ("detectable_format:title", {}, "<<A title>>\ntext", True),
    ("detectable_format:title", {}, "<< >>", False),
    ("detectable_format:constrained_response", {}, "My answer is no.", True),
    ("detectable_format:constrained_response", {}, "No.", False),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [city]", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] []", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "x\nP.S. more", True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "x\nP.S.", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "say it. It.", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "say it", False),
    ("combination:two_responses", {}, "a\n******\nb", True),
    ("combination:two_responses", {}, "a\n******\na", False),
]  # fmt: skip


@pytest.mark.parametrize(("check", "arguments", "response", "expected"), CASES)
def test_cases_by_hand(
    check: str, arguments: dict[str, object], response: str, expected: bool
) -> None:
    assert follows(response, Instruction(check, arguments)) is expected


def test_every_check_has_a_case_that_passes() -> None:
    assert {check for check, _, _, expected in CASES if expected} == set(CHECKS)


@given(st.text(), st.integers(0, 5))
def test_every_check_answers_for_any_text(text: str, number: int) -> None:
    for check, arguments, _, _ in CASES:
        changed = {k: number if isinstance(v, int) else v for k, v in arguments.items()}
        assert follows(text, Instruction(check, changed)) in (True, False)


def test_unknown_checks_and_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'punctuation:no_comma'"):
        follows("a", Instruction("punctuation:no_commas"))
    with pytest.raises(ValueError, match=r"'keywords:existence'.*words"):
        follows("a", Instruction("keywords:existence", {"words": ["a"]}))
    rule = {"relation": "around", "num_words": 3}
    with pytest.raises(ValueError, match="relation 'around'"):
        follows("a", Instruction("length_constraints:number_words", rule))


def test_the_share_that_is_followed() -> None:
    rules = [Instruction("punctuation:no_comma"), Instruction("change_case:english_lowercase")]
    assert grade_instructions("a b", rules).score == 1.0
    assert grade_instructions("A b", rules).score == 0.5
    assert grade_instructions("A, b", rules).reason == (
        "broken: punctuation:no_comma, change_case:english_lowercase"
    )
    assert grade_instructions(" ", rules).score == 0.0
    with pytest.raises(ValueError, match="at least one"):
        grade_instructions("a", [])


def test_real_rows_can_be_graded_as_they_are(shared_data: Path) -> None:
    with gzip.open(shared_data / "helpfulness" / "ifeval_dev.jsonl.gz", "rt") as rows:
        prompts = [json.loads(row) for row in rows]
    graded = 0
    for row in prompts:
        pairs = zip(row["instruction_id_list"], row["kwargs"], strict=True)
        rules = [Instruction(name, kwargs) for name, kwargs in pairs]
        known = [rule for rule in rules if rule.id != "language:response_language"]
        if known:
            assert grade_instructions("An answer, in short.", known).score is not None
            graded += 1
    assert graded > 140


HOSTILE = [
    "\n",
    " ",
    "*",
    "* ",
    '"',
    ".",
    "P.S.",
    "[",
    "<<",
    "SECTION ",
    "a.",
    "-\n",
    "***\n",
    "\t\n",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_response_costs_no_time(piece: str) -> None:
    started = time.monotonic()
    for check, arguments, _, _ in CASES:
        follows(piece * 100_000, Instruction(check, arguments))
    assert time.monotonic() - started < 5
