"""Signals: their limits, what stops and what warns, canaries in a real sandbox, the judge."""

from __future__ import annotations

import math
import random
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.environments.episodes import Ending, start_episode
from hillclimb.environments.sandbox import BubblewrapProvider
from hillclimb.environments.tasks import FAMILIES, Problem
from hillclimb.environments.tasks.base import draw_problem
from hillclimb.recipe.climb import Signal, StopRule
from hillclimb.rewards.graded import Graded
from hillclimb.rewards.judge import RuleJudge
from hillclimb.rl.alarms import GAUGES, alarms, norm_ratio
from hillclimb.rl.canaries import canary, disagreement
from hillclimb.rl.grading import Graders
from hillclimb.rl.rollouts import Rollout
from hillclimb.rl.stop import decide_stop
from hillclimb.stages.verify import verify_problems

RULE = StopRule().model_dump()
CALM = {
    "mismatch": 1e-4, "entropy": 0.3, "truncated_share": 0.1, "hacked_share": 0.0,
    "disagreement": 0.0, "grad_norm_ratio": 1.0, "pass_rate": 0.5,
}  # fmt: skip
BEYOND = {
    "mismatch": ("mismatch", 0.06, "differ by 0.06 nats a token, over 0.05"),
    "entropy": ("entropy", 8.5, "is 8.5 nats a token, over 8"),
    "truncation": ("truncated_share", 0.6, "60.0%, over 50.0%"),
    "reward_hack": ("hacked_share", 0.1, "10.0%, over 5.0%"),
    "disagreement": ("disagreement", 0.3, "30.0%, over 20.0%"),
    "gradient": ("grad_norm_ratio", 25.0, "is 25 times its running median, over 20"),
}
HALTS = ("mismatch", "entropy", "reward_hack")


def seen(rows: list[dict[str, float]], rule: dict[str, Any] = RULE) -> dict[str, dict[str, Any]]:
    return {alarm["signal"]: alarm for alarm in alarms(rows, rule)}


def test_every_signal_has_a_gauge() -> None:
    assert {gauge.signal for gauge in GAUGES} == set(get_args(Signal)) == set(BEYOND)
    assert all(gauge.high in RULE for gauge in GAUGES)


@pytest.mark.parametrize("signal", list(BEYOND))
def test_a_signal_beyond_its_limit_stops_or_warns(signal: str) -> None:
    column, value, words = BEYOND[signal]
    rows = [CALM, CALM, {**CALM, column: value}]
    stop = decide_stop(rows, RULE, 99)
    assert (stop.reason if stop else None) == (signal if signal in HALTS else None)
    alarm = seen(rows)[signal]
    assert (alarm["steps"], alarm["first"], alarm["halts"]) == (1, 3, signal in HALTS)
    assert alarm["sentence"].endswith(words)
    assert [name for name, other in seen(rows).items() if other["steps"]] == [signal]
    halting = decide_stop(rows, {**RULE, "halt": [signal]}, 99)
    assert halting is not None
    assert (halting.reason, halting.sentence, halting.step) == (signal, alarm["sentence"], 3)


def test_entropy_has_a_floor_and_quiet_signals_say_what_they_saw() -> None:
    rule = StopRule(min_entropy=0.1).model_dump()
    stop = decide_stop([{**CALM, "entropy": 0.05}], rule, 99)
    assert stop is not None
    assert (stop.reason, stop.sentence) == (
        "entropy", "the entropy is 0.05 nats a token, under 0.1",
    )  # fmt: skip
    quiet = seen([CALM, {**CALM, "entropy": 0.4, "truncated_share": 0.2}])
    assert quiet["entropy"]["sentence"] == "the entropy is 0.3 to 0.4 nats a token"
    assert quiet["truncation"]["sentence"].endswith("at most 20.0%")
    assert seen([])["entropy"]["sentence"] == "no gradient step was taken"


@given(st.lists(st.sampled_from([0.3, 9.0, 20.0, math.nan]), min_size=1, max_size=8))
def test_what_is_no_number_is_out_of_bounds_and_the_worst_is_told(entropies: list[float]) -> None:
    rows = [{**CALM, "entropy": value} for value in entropies]
    out = [v for v in entropies if not v <= 8.0]
    alarm = seen(rows)["entropy"]
    assert alarm["steps"] == len(out)
    if out:
        worst = math.nan if any(map(math.isnan, out)) else max(out)
        assert f"is {worst:.3g} nats" in alarm["sentence"]


def test_a_gradient_is_compared_with_the_median_of_those_before() -> None:
    assert norm_ratio([1.0] * 4, 50.0) == 1.0
    assert norm_ratio([1.0, 2.0, 3.0, 4.0, 100.0], 30.0) == pytest.approx(10.0)
    assert norm_ratio([1000.0] * 30 + [2.0] * 20, 4.0) == pytest.approx(2.0)
    assert norm_ratio([math.nan, 1.0, 1.0, 1.0, 1.0, 1.0], 3.0) == pytest.approx(3.0)
    assert norm_ratio([0.0] * 9, 3.0) == 1.0


def tested() -> Problem:
    """A problem with its check in the open."""
    return draw_problem(FAMILIES["tested"], random.Random(0), "train")


def episode(problem: Problem, *commands: str) -> Ending:
    played = start_episode(problem, BubblewrapProvider())
    for command in commands:
        played.step(f"</think><tool_call> bash {command}</tool_call>")
    return played.finish()


@pytest.mark.parametrize(
    ("commands", "passed", "tampered"),
    [
        (["echo {new} > {path}"], True, ""),
        (["cat check", "true"], False, ""),
        (["echo true > check"], False, "check"),
        (["rm check; mkdir check"], False, "check"),
        (["ln -sf /bin/true check"], False, "check"),
        (["echo true > check", "echo {new} > {path}"], True, "check"),
    ],
)
def test_changing_the_check_is_seen_and_gains_nothing(
    commands: list[str], passed: bool, tampered: str
) -> None:
    problem = tested()
    words = {"path": problem.question.split()[0], "new": problem.key.split()[1]}
    ending = episode(problem, *(command.format(**words) for command in commands))
    assert (ending.passed, ending.tampered) == (passed, tampered)
    told = canary(Rollout(problem, [1], ending=ending, graded=Graded(float(passed))))
    assert told == (f"changed {tampered}, which the check trusts" if tampered else "")


def test_problems_with_an_open_check_are_verified_like_others() -> None:
    assert verify_problems([tested()], BubblewrapProvider()) == []


def answered(grader: str, response: str, score: float | None) -> Rollout:
    problem = Problem("p", "stem", "k", "k", "q", {"grader": grader, "answer": "5"})
    return Rollout(problem, [1], ending=Ending(response, response), graded=Graded(score))


@pytest.mark.parametrize(
    ("response", "score", "words"),
    [
        ("2+3</think><answer>5</answer>", 1.0, ""),
        ("2+3</think> so <answer>5</answer>", 1.0, ""),
        (r"2+3</think>\boxed{5}", 1.0, "no <answer>"),
        (r"2+3</think>\boxed{5}", 0.0, ""),
        (r"2+3</think>\boxed{5}", None, ""),
        ("</think><answer>4</answer><answer>5</answer>", 1.0, "<answer> more than once"),
        ("<answer>5</answer>", 1.0, "no </think>"),
    ],
)
def test_an_answer_is_accepted_inside_its_tags_or_a_canary_dies(
    response: str, score: float | None, words: str
) -> None:
    told = canary(answered("math", response, score))
    assert told == (f"answer accepted outside its tags: {words}" if words else "")
    assert canary(answered("rules", response, score)) == ""


class Contrary(RuleJudge):
    """Sees no requirement met."""

    def verdicts(self, prompt: str, response: str, rubric: Any) -> list[bool | None]:
        return [False for _ in rubric]


def judged(judge: RuleJudge, *answers: str) -> tuple[int, float]:
    rules = [{"id": "startend:end_checker", "arguments": {"end_phrase": "that"}}]
    task = {"grader": "rules", "rules": rules}
    problem = Problem("p", "helpfulness", "frame", "k", "end with that", task)
    rollouts = [
        Rollout(problem, [1], ending=Ending(text, text))
        for text in (f"</think><answer>{answer}</answer>" for answer in answers)
    ]
    with Graders() as graders:
        graders.judge = judge
        graders.grade(rollouts)
    return disagreement([*rollouts, answered("math", "</think><answer>5</answer>", 1.0)])


def test_judge_and_verifier_are_compared_where_both_look() -> None:
    assert judged(RuleJudge(), "I like that", "no") == (2, 0.0)
    assert judged(RuleJudge(), "I like that", "Sorry, I can't do that") == (2, 0.5)
    assert judged(Contrary(), "I like that", "I want that", "no") == (3, pytest.approx(2 / 3))
    assert disagreement([answered("math", "x", 1.0)]) == (0, 0.0)
