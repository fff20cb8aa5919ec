"""The parts of the reward: structure, language, length, and how they are combined."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.rewards.combine import RewardParts, gated, lexicographic
from hillclimb.rewards.format import Structure, think_answer, think_then_reply, thoughts
from hillclimb.rewards.language import language_reward, non_english_words
from hillclimb.rewards.length import length_penalty


def test_total_by_hand() -> None:
    parts = RewardParts(task=1.0, language=0.9, length=0.4, w_language=0.5, w_length=0.25)
    assert parts.total == pytest.approx(1.0 + 0.45 - 0.1)
    assert RewardParts(0.0, 1.0, 1.0, 0.5, 0.0).total == 0.5


@pytest.mark.parametrize(
    ("levels", "rewards"),
    [
        ([[1, 0, 1], [5, 6, 7]], [1, 0, 1]),
        ([[1, 1, 1], [5, 6, 7]], [5, 6, 7]),
        ([[1, 1], [2, 2], [0.1, 0.2]], [0.1, 0.2]),
        ([[1, 1], [2, 2]], [2, 2]),
    ],
)
def test_lexicographic(levels: list[list[float]], rewards: list[float]) -> None:
    assert lexicographic(levels) == rewards


def test_lexicographic_needs_whole_levels() -> None:
    with pytest.raises(ValueError, match="one score per response"):
        lexicographic([[1, 2], [1]])
    with pytest.raises(ValueError, match="one score per response"):
        lexicographic([])


def test_gated() -> None:
    assert gated(0.7, True, minimum=-1.0) == 0.7
    assert gated(0.7, False, minimum=-1.0) == -1.0


def test_length_penalty_by_hand() -> None:
    assert length_penalty(500, 1000, 0.5) == 0.25
    assert length_penalty(2000, 1000, 1.0) == 1.0
    assert length_penalty(500, 1000, 0.0) == 0.0
    for wrong in [(1, 0, 0.5), (-1, 10, 0.5), (1, 10, 1.5)]:
        with pytest.raises(ValueError, match="length_penalty needs"):
            length_penalty(*wrong)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Let x = 5, so 2x + 1 = 11. \\frac{1}{2} for all i < n", 0),
        ("The naïve café owner's résumé", 0),
        ("the angle α and Δ, π r² in ℝ, 𝑥 = ﬁne", 0),
        ("∑ ∫ ≤ → 🙂 — “quoted”", 0),
        ("hence 因为 it is", 2),
        ("Поэтому ответ 5", 2),
        ("ありがとう", 5),
        ("그래서 답은", 2),
        ("λόγος", 1),
        ("", 0),
    ],
)
def test_non_english_words(text: str, count: int) -> None:
    assert non_english_words(text) == count


SENTENCES = [
    "Entonces el resultado es cinco porque la suma de los dos números está bien",
    "Donc la réponse est cinq, parce que nous avons deux nombres dans la liste",
    "Also ist die Antwort fünf, und das ist nicht schwer, wenn wir zwei Zahlen haben",
    "Quindi la risposta è cinque perché questo numero non sono due della lista",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_sentences_in_latin_script_are_seen(sentence: str) -> None:
    assert non_english_words(sentence) >= 3


def test_english_prose_is_english() -> None:
    text = (
        "We sum the terms; the total is what we want. For example, in the list below, the first "
        "number is the max, and the last is the min. Do not pour all of it in. My son has ten. "
        "As a result, the man can see that on his way he won more than one."
    )
    assert non_english_words(text) == 0


def test_thoughts_are_those_of_all_turns() -> None:
    assert thoughts("one</think><answer>1</answer>") == "one"
    assert thoughts("one</think><tool_call>x</tool_call><think>two</think><answer>2") == "one\ntwo"
    assert thoughts("never closed") == "never closed"


def test_language_reward_by_hand() -> None:
    assert language_reward("all in English") == 1.0
    assert language_reward("因" * 20) == pytest.approx(0.9)
    assert language_reward("因" * 500) == 0.0


GOOD = "<think>a</think> <answer>b</answer>\n"


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (GOOD, None),
        ("<think></think><answer>b</answer>", None),
        ("hm <think>a</think><answer>b</answer>", "text outside the tags"),
        ("<think>a</think> so <answer>b</answer>", "text outside the tags"),
        ("<think>a</think><answer>b</answer>.", "text outside the tags"),
        ("<think>a</think><answer> </answer>", "empty answer"),
        ("<think>a</think>b", "no <answer>"),
        ("<think>a", "no </think>"),
        ("b", "no <think>"),
        ("", "no <think>"),
        (GOOD + GOOD, "<think> more than once"),
        ("<think>a</think><answer>b</answer><answer>b</answer>", "<answer> more than once"),
        ("<answer>b</answer><think>a</think>", "tags out of order"),
    ],
)
def test_think_answer(response: str, fault: str | None) -> None:
    structure = think_answer(response)
    assert structure.fault == fault
    assert structure.ok is (fault is None)


def test_parts_of_a_structure() -> None:
    assert think_answer(GOOD) == Structure("a", "b")
    assert think_answer("a</think><answer>b</answer>", think_open=True) == Structure("a", "b")
    assert think_answer("<think>a</think>b").thought == "a"
    assert think_then_reply("<think>a</think> b ") == Structure("a", "b")
    assert think_then_reply("a</think>b", think_open=True) == Structure("a", "b")
    assert think_then_reply("<think>a</think>").fault == "empty answer"
    assert think_then_reply("x<think>a</think>b").fault == "text before the thought"
    assert think_then_reply("b").fault == "no <think>"
    assert think_then_reply("<think>a</think><answer>b</answer>").fault == "tags out of order"


@given(st.text("<>/thinkaswer ", max_size=60))
def test_any_text_has_a_structure(text: str) -> None:
    for structure in (think_answer(text), think_then_reply(text)):
        assert structure.ok == bool(structure.fault is None)
        assert not structure.ok or structure.answer.strip()
