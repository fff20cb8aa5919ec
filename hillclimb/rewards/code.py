"""Programs: run against unit tests in a sandbox.

The tests' expected results stay here; the sandbox sees inputs only (see `CodeRunner`). A program
that is killed at a limit is ungraded; one that answers wrongly or raises scores 0.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hillclimb.rewards.graded import Graded


class CallResult(Protocol):
    """What one call returned, or the error that it raised."""

    @property
    def value(self) -> object: ...
    @property
    def error(self) -> str | None: ...


class ProgramRun(Protocol):
    """How a program ended ("exited" by itself, or killed at a limit) and what it had produced."""

    @property
    def ending(self) -> str: ...
    @property
    def exit_code(self) -> int: ...
    @property
    def results(self) -> Sequence[CallResult]: ...
    @property
    def stdout(self) -> str: ...


class CodeRunner(Protocol):
    """Runs untrusted programs; `hillclimb.environments.sandbox.programs.CodeRunner` is one."""

    def call(self, source: str, entry: str, calls: Sequence[tuple[object, ...]]) -> ProgramRun: ...
    def script(self, source: str, stdin: str = "") -> ProgramRun: ...


@dataclass(frozen=True, slots=True)
class CallTest:
    """A function's arguments and what it must return (Python literals)."""

    arguments: tuple[object, ...]
    expected: object


@dataclass(frozen=True, slots=True)
class ScriptTest:
    """A standard input and the standard output that must follow, blanks at line ends apart."""

    stdin: str
    stdout: str


def grade_function(
    runner: CodeRunner, source: str, entry: str, tests: Sequence[CallTest]
) -> Graded:
    """1 if the function passes every test, 0 if it fails one, None if a limit ended it before."""
    run = runner.call(source, entry, [test.arguments for test in tests])
    for number, (test, result) in enumerate(zip(tests, run.results, strict=False), start=1):
        if result.error is not None:
            return Graded(0.0, f"test {number}: {result.error}")
        if not same_value(result.value, test.expected):
            return Graded(0.0, f"test {number}: wrong result")
    if len(run.results) == len(tests):
        return Graded(1.0, "all tests pass")
    return _unfinished(run, f"test {len(run.results) + 1}")


def grade_script(runner: CodeRunner, source: str, tests: Sequence[ScriptTest]) -> Graded:
    """1 if the program passes every test, 0 at the first that it fails, None at a limit."""
    for number, test in enumerate(tests, start=1):
        run = runner.script(source, test.stdin)
        if run.ending != "exited" or run.exit_code:
            return _unfinished(run, f"test {number}")
        if _lines(run.stdout) != _lines(test.stdout):
            return Graded(0.0, f"test {number}: wrong output")
    return Graded(1.0, "all tests pass")


def read_asserts(asserts: Iterable[str]) -> tuple[str, list[CallTest]]:
    """The function and tests in lines like `assert f(1, 2) == 3` (arguments must be literals).

    Raises ValueError for any other line, naming it.
    """
    tests: list[CallTest] = []
    names: dict[str, None] = {}
    for line in asserts:
        try:
            name, test = _call_test(line)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"not `assert function(literals) == literal`: {line!r}") from error
        names[name] = None
        tests.append(test)
    if len(names) != 1:
        raise ValueError(f"the tests must call one function, they call {sorted(names)}")
    return next(iter(names)), tests


def same_value(given: object, wanted: object) -> bool:
    """Python's equality over plain values, floats compared to 1e-9 relative."""
    if isinstance(given, float) or isinstance(wanted, float):
        return (
            isinstance(given, int | float)
            and isinstance(wanted, int | float)
            and (given == wanted or math.isclose(given, wanted, rel_tol=1e-9, abs_tol=1e-12))
        )
    if isinstance(given, list | tuple) and type(given) is type(wanted):
        pairs = list(zip(given, wanted, strict=False))  # type: ignore[call-overload]
        return len(given) == len(wanted) and all(same_value(*pair) for pair in pairs)  # type: ignore[arg-type]
    if isinstance(given, dict) and isinstance(wanted, dict):
        return given.keys() == wanted.keys() and all(
            same_value(item, wanted[key]) for key, item in given.items()
        )
    return given == wanted


def _unfinished(run: ProgramRun, where: str) -> Graded:
    if run.ending == "exited":
        return Graded(0.0, f"{where}: exit code {run.exit_code}")
    return Graded(None, f"{where}: killed ({run.ending})")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _call_test(line: str) -> tuple[str, CallTest]:
    match ast.parse(line.strip()).body:
        case [
            ast.Assert(
                test=ast.Compare(
                    left=ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]),
                    ops=[ast.Eq()],
                    comparators=[expected],
                )
            )
        ]:
            values = tuple(ast.literal_eval(argument) for argument in arguments)
            return name, CallTest(values, ast.literal_eval(expected))
    raise ValueError("another form of assertion")
