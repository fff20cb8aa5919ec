"""Which rollouts become traces, and what of a trace is learnt."""

from __future__ import annotations

from collections import Counter

from hillclimb.distillation.sft import tokenise_trace
from hillclimb.distillation.traces import TraceFilter, repetition, select_traces
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer

KEEP = TraceFilter(max_language_switches=0, max_repeat=0.5)


def row(problem: int, update: int, answer: str, task: float = 1.0, **changes):
    return {
        "update": update, "problem_id": f"p{problem}", "task": task, "graded": True,
        "truncated": False, "response": f"ok</think><answer>{answer}</answer>", **changes,
    }  # fmt: skip


def pick(rows, traces=100, per_prompt=4, late=0.5):
    return select_traces(rows, KEEP, traces, per_prompt, late, seed=1)


def test_only_late_graded_successes_are_taken():
    rows = [
        row(0, 1, "early"), row(1, 9, "good"), row(2, 9, "bad", task=0.0),
        row(3, 9, "lost", graded=False), row(4, 9, "cut", truncated=True),
        row(5, 10, "last"),
    ]  # fmt: skip
    kept, refused = pick(rows)
    assert sorted(r["problem_id"] for r in kept) == ["p1", "p5"]
    assert refused == {"early": 1, "failed": 2, "truncated": 1}


def test_switching_language_and_broken_format_are_refused():
    rows = [
        row(0, 4, "1", response="also dann nicht</think><answer>1</answer>"),
        row(1, 4, "1", response="no tags at all"),
        row(2, 4, "1"),
    ]  # fmt: skip
    _, refused = pick(rows)
    assert refused == {"format": 1, "language": 1}


def test_rollouts_that_set_off_a_canary_are_not_learnt_from():
    kept, refused = pick([row(0, 4, "1", canary="changed check"), row(1, 4, "1", canary="")])
    assert [r["problem_id"] for r in kept] == ["p1"]
    assert refused == {"reward_hack": 1}


def test_every_turn_of_a_session_is_read_for_its_language():
    session = (
        "also dann nicht</think><tool_call> bash ls</tool_call><tool_response> a</tool_response>"
        "<think>a</think><answer>a</answer>"
    )
    _, refused = pick([row(0, 4, "", response=session), row(1, 4, "1")])
    assert refused == {"language": 1}


def test_a_session_with_tools_is_fit():
    session = (
        "</think><tool_call> bash cat page</tool_call><tool_response> moon</tool_response><think>"
        "</think><answer> done</answer>"
    )
    assert len(pick([row(0, 4, "", response=session)])[0]) == 1


def test_every_prompt_comes_before_any_repeat():
    rows = [row(p, 8, f"{p}-{i}") for p in range(6) for i in range(5)]
    kept, _ = pick(rows, traces=8)
    counts = Counter(r["problem_id"] for r in kept)
    assert len(counts) == 6
    assert sorted(counts.values()) == [1, 1, 1, 1, 2, 2]


def test_the_same_response_counts_once_and_the_seed_decides():
    rows = [row(0, 8, "same")] * 9 + [row(1, 8, "other")]
    assert len(pick(rows)[0]) == 2
    many = [row(p, 8, str(p)) for p in range(40)]
    assert pick(many)[0] == pick(many)[0]
    assert pick(many)[0] != select_traces(many, KEEP, 100, 4, 0.5, seed=2)[0]


def test_repetition():
    assert repetition("one two three") == 0.0
    assert repetition("a b c d " * 4) > 0.25
    assert repetition("go go go go go go go go go go go") == 1.0


def test_tool_responses_are_read_and_not_learnt():
    tokenizer = TextTokenizer(train_tokenizer(["cat page says moon"] * 3, 300))
    response = (
        "</think><tool_call> bash cat page</tool_call><tool_response> moon</tool_response><think>"
        "</think><answer> moon</answer>"
    )
    trace = tokenise_trace("what", response, "chat", tokenizer)
    learnt = tokenizer.decode(trace.tokens[trace.learnt].tolist())
    assert learnt == ("</think><tool_call> bash cat page</tool_call></think><answer> moon</answer>")
    assert tokenizer.decode(trace.tokens.tolist()).endswith(response)
