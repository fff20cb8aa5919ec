"""Programs graded against unit tests, over the real sandboxed interpreter."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hillclimb.environments.sandbox.programs import CodeRunner, ProgramLimits
from hillclimb.rewards.code import (
    CallTest,
    ScriptTest,
    grade_function,
    grade_script,
    read_asserts,
    same_value,
)

ADD = [CallTest((1, 2), 3), CallTest((-1, 1), 0)]


@pytest.fixture(scope="module")
def runner() -> Iterator[CodeRunner]:
    with CodeRunner(ProgramLimits(wall_s=1.0)) as started:
        yield started


@pytest.mark.parametrize(
    ("source", "score", "reason"),
    [
        ("def add(a, b): return a + b", 1.0, "all tests pass"),
        ("def add(a, b): return 3", 0.0, "test 2: wrong result"),
        ("def add(a, b): return a + ", 0.0, "test 1: SyntaxError"),
        ("def add(a): return a", 0.0, "test 1: TypeError"),
        ("def sub(a, b): return a", 0.0, "test 1: KeyError"),
        ("import sys\ndef add(a, b): sys.exit(0)", 0.0, "test 1: SystemExit"),
        ("import os\ndef add(a, b): os._exit(0)", 0.0, "test 1: exit code 0"),
        ("def add(a, b):\n  while True: pass", None, "test 1: killed (timeout)"),
        ("def add(a, b):\n  while a < 0: pass\n  return a + b", None, "test 2: killed (timeout)"),
        ("def add(a, b):\n  while a < 0: pass\n  return 7", 0.0, "test 1: wrong result"),
        ("import os\nwhile True: os.fork()", None, "test 1: killed (killed)"),
        ("def add(a, b):\n  while True: print('x' * 10**6)", None, "test 1: killed (timeout)"),
        ("x = 'x' * 10**9", None, "test 1: killed (killed)"),
        ("def add(a, b): return 'x' * 10**6", None, "test 1: killed (output)"),
        ("class T(int):\n  def __eq__(s, o): return True\ndef add(a, b): return T(9)", 0.0,
         "test 1: wrong result"),
    ],
)  # fmt: skip
def test_functions(runner: CodeRunner, source: str, score: float | None, reason: str) -> None:
    verdict = grade_function(runner, source, "add", ADD)
    assert verdict.score == score
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(
    ("source", "score", "reason"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", 1.0, "all tests pass"),
        ("print(3)", 0.0, "test 2: wrong output"),
        ("print(3, end='\\n\\n ')\nraise SystemExit", 0.0, "test 2: wrong output"),
        ("1 / 0", 0.0, "test 1: exit code 1"),
        ("while True: pass", None, "test 1: killed (timeout)"),
        ("while True: print('x' * 1000)", None, "test 1: killed (output)"),
        ("import os\nwhile True: os.fork()", None, "test 1: killed (killed)"),
    ],
)
def test_scripts(runner: CodeRunner, source: str, score: float | None, reason: str) -> None:
    tests = [ScriptTest("1 2\n", "3\n"), ScriptTest("2 2\n", "4")]
    verdict = grade_script(runner, source, tests)
    assert (verdict.score, verdict.reason) == (score, reason)


@pytest.mark.parametrize(
    ("given", "wanted", "same"),
    [
        (1, 1, True), (1, 1.0, True), (0.1 + 0.2, 0.3, True), (0.3001, 0.3, False),
        ([1, 2], [1, 2], True), ([1, 2], (1, 2), False), ([1], [1, 2], False), ("1", 1, False),
        ({1: [0.1 + 0.2]}, {1: [0.3]}, True), ({1: 1}, {1: 1, 2: 2}, False), ({1, 2}, {2, 1}, True),
        (None, False, False), ("0.3", 0.3, False), (float("inf"), float("inf"), True),
        ((0.1 + 0.2, "a"), (0.3, "a"), True), (None, 0.0, False),
    ],
)  # fmt: skip
def test_same_value(given: object, wanted: object, same: bool) -> None:
    assert same_value(given, wanted) is same


def test_asserts_become_tests() -> None:
    name, tests = read_asserts(["assert f((1, 2), 'a') == [3]", " assert f((), '') == []"])
    assert name == "f"
    assert tests == [CallTest(((1, 2), "a"), [3]), CallTest(((), ""), [])]


@pytest.mark.parametrize(
    "line", ["assert f(1)", "assert f(x) == 1", "f(1) == 1", "assert f(k=1) == 1", "assert ("]
)
def test_other_lines_are_refused_by_name(line: str) -> None:
    with pytest.raises(ValueError, match="not `assert function"):
        read_asserts([line])


def test_asserts_must_agree_on_the_function() -> None:
    with pytest.raises(ValueError, match=r"\['f', 'g'\]"):
        read_asserts(["assert f(1) == 1", "assert g(1) == 1"])


def test_reference_programs_of_real_problems_pass(runner: CodeRunner, shared_data: Path) -> None:
    with gzip.open(shared_data / "stem" / "mbpp_train.jsonl.gz", "rt") as rows:
        problems = [json.loads(row) for row in rows][:200]
    verdicts = []
    for problem in problems:
        try:
            name, tests = read_asserts(problem["test_list"])
        except ValueError:
            continue
        verdicts.append(grade_function(runner, problem["code"], name, tests))
    passed = sum(verdict.score == 1.0 for verdict in verdicts)
    assert len(verdicts) > 120
    assert passed / len(verdicts) > 0.97, [v for v in verdicts if v.score != 1.0]
