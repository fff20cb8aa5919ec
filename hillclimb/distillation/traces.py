"""Which rollouts become traces: filtered, then prompts before repetition (report §3.1.4)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hillclimb.rewards.format import think_answer, thoughts
from hillclimb.rewards.language import non_english_words


@dataclass(frozen=True)
class TraceFilter:
    """What makes a successful rollout unfit to learn from.

    Attributes:
        max_language_switches: non-English words allowed in the reasoning.
        max_repeat: largest share that one 4-gram of words may have.
    """

    max_language_switches: int
    max_repeat: float

    def fault(self, response: str) -> str | None:
        """Why a response is refused, in one word; None if it is fit."""
        last = response.rsplit("</tool_response><think>", 1)[-1]
        structure = think_answer(last, think_open=True)
        if not structure.ok:
            return "format"
        if non_english_words(thoughts(response)) > self.max_language_switches:
            return "language"
        if repetition(response) > self.max_repeat:
            return "degenerate"
        if _answers_in_bulk(structure.answer):
            return "reward_hack"
        return None


def repetition(text: str, n: int = 4) -> float:
    """Share of the most frequent n-gram of words among all of them; 0 for short texts."""
    words = text.split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(grams.values())
    return max(grams.values()) / total if total >= 2 * n else 0.0


def _answers_in_bulk(answer: str) -> bool:
    """Many candidate answers in one: a way to please a lenient grader."""
    return answer.count(",") + answer.count(" or ") > 8


def select_traces(
    rows: list[dict[str, Any]],
    keep: TraceFilter,
    traces: int,
    per_prompt: int,
    late_share: float,
    seed: int,
    accept: str = "passed",
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Pick traces at random from successes of the late updates, every prompt before any repeat.

    Args:
        rows: rollouts with `update`, `problem_id`, `prompt`, `response`, `task`, `graded`,
            `truncated`, `canary`.
        traces: most that are kept; per_prompt: most of one prompt.
        late_share: share of the climb's updates, counted from its end, that counts as late.
        accept: `passed` for successes only, `finished` for wrong answers too.

    Returns:
        The traces in random order, and why rollouts were refused.
    """
    first = (1.0 - late_share) * max((row["update"] for row in rows), default=0)
    refused: Counter[str] = Counter()
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        fault = _refusal(row, first, keep, accept)
        if fault:
            refused[fault] += 1
        else:
            by_prompt.setdefault(row["problem_id"], []).append(row)
    rng = random.Random(seed)
    prompts = sorted(by_prompt)
    rng.shuffle(prompts)
    for prompt in prompts:
        by_prompt[prompt] = _distinct(by_prompt[prompt])
        rng.shuffle(by_prompt[prompt])
    picked = [
        by_prompt[prompt][turn]
        for turn in range(per_prompt)
        for prompt in prompts
        if turn < len(by_prompt[prompt])
    ][:traces]
    rng.shuffle(picked)
    return picked, dict(sorted(refused.items()))


def _refusal(row: dict[str, Any], first: float, keep: TraceFilter, accept: str) -> str | None:
    if row["update"] < first:
        return "early"
    if not row["graded"] or (accept == "passed" and row["task"] <= 0):
        return "failed"
    if row["truncated"]:
        return "truncated"
    if row.get("canary"):
        return "reward_hack"
    fault = keep.fault(row["response"])
    return None if fault == "format" and accept == "finished" else fault


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with different responses, the first of each."""
    return list({row["response"]: row for row in rows}.values())
