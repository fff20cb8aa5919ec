"""Candidate programs in the warm sandboxed interpreter."""

from __future__ import annotations

import signal
import textwrap
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hillclimb.environments.sandbox.programs import CallResult, CodeRunner, ProgramLimits

LIMITS = ProgramLimits(wall_s=1.0, memory=128 * 2**20, output=10_000)


@pytest.fixture(scope="module")
def runner() -> Iterator[CodeRunner]:
    with CodeRunner(LIMITS) as started:
        yield started


def still_serves(runner: CodeRunner) -> bool:
    return runner.script("print(1)").stdout == "1\n"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=3), max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=PLAIN)
def test_plain_values_pass_both_ways_unchanged(runner: CodeRunner, value: object) -> None:
    run = runner.call("def f(x): return x", "f", [(value,)])
    assert run.results == (CallResult(value),)
    assert type(run.results[0].value) is type(value)


def test_types_that_compare_equal_stay_apart(runner: CodeRunner) -> None:
    values = [True, 1, 1.0, (1,), [1], {1}, {1: 2}, float("inf"), -(2**80), "1", None]
    run = runner.call("def f(x): return x", "f", [(value,) for value in values])
    assert repr([result.value for result in run.results]) == repr(values)


def test_calls_in_order_and_errors_by_name(runner: CodeRunner) -> None:
    run = runner.call("def f(a, b): return a / b", "f", [(6, 3), (1, 0), (2**70, 1)])
    assert run.ending == "exited"
    assert [result.value for result in run.results] == [2.0, None, float(2**70)]
    assert run.results[1].error == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def f(:", "SyntaxError"),
        ("g = 1", "KeyError"),
        ("import numpy", "ModuleNotFoundError"),
        ("def f(): return f", "TypeError: a function is not a plain value"),
        ("def f(): raise SystemExit", "SystemExit"),
        ("def f(): return [f() for _ in range(3)]", "RecursionError"),
    ],
)
def test_a_faulty_program_is_an_error_of_each_call(
    runner: CodeRunner, source: str, error: str
) -> None:
    run = runner.call(source, "f", [(), ()])
    assert run.ending == "exited"
    assert len(run.results) == 2
    assert all((result.error or "").startswith(error) for result in run.results)


def test_scripts_read_and_print(runner: CodeRunner) -> None:
    source = "import sys\nname = input()\nprint(f'hé {name}')\nprint(sys.stdin.read(), end='')"
    run = runner.script(source, "Zoë\n1\n2\n")
    assert (run.stdout, run.exit_code, run.ending) == ("hé Zoë\n1\n2\n", 0, "exited")


def test_a_long_input_arrives_whole(runner: CodeRunner) -> None:
    run = runner.script("import sys; print(len(sys.stdin.read()))", "x" * 3_000_000)
    assert run.stdout == "3000000\n"


@pytest.mark.parametrize(("source", "code"), [("exit(3)", 3), ("1 / 0", 1), ("quit()", 0)])
def test_exit_codes(runner: CodeRunner, source: str, code: int) -> None:
    assert runner.script(source).exit_code == code


KILLED = {
    "infinite loop": ("while True: pass", "timeout"),
    "sleep": ("import time; time.sleep(60)", "timeout"),
    "closed output": ("import os, time\nos.closerange(0, 256)\ntime.sleep(60)", "timeout"),
    "fork bomb": ("import os\nwhile True: os.fork()", "killed"),
    "stubborn fork bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        "timeout",
    ),
    "1 GB output": ("while True: print('x' * 1000)", "output"),
    "1 GB string": ("print('x' * 10**9)", "killed"),
    "memory": ("x = [0] * 10**9", "killed"),
    "signal": ("import os; os.kill(os.getpid(), 11)", "killed"),
}


@pytest.mark.parametrize("name", sorted(KILLED))
def test_a_limit_ends_a_program_and_the_next_one_runs(runner: CodeRunner, name: str) -> None:
    source, ending = KILLED[name]
    started = time.monotonic()
    run = runner.script(source)
    assert time.monotonic() - started < LIMITS.wall_s + 2
    assert run.ending == ending
    assert len(run.stdout) <= LIMITS.output
    assert still_serves(runner)


def test_results_before_a_timeout_are_kept(runner: CodeRunner) -> None:
    source = "def f(n):\n    while n == 2: pass\n    return n"
    run = runner.call(source, "f", [(0,), (1,), (2,), (3,)])
    assert run.ending == "timeout"
    assert [result.value for result in run.results] == [0, 1]


def test_what_a_program_prints_is_no_result(runner: CodeRunner) -> None:
    source = "print('{\"value\": 5}', flush=True)\ndef f(): print('{\"value\": 6}'); return 7"
    assert runner.call(source, "f", [()]).results == (CallResult(7),)


def test_writing_to_every_descriptor_changes_only_ones_own_answer(runner: CodeRunner) -> None:
    source = textwrap.dedent(
        """
        import os
        for descriptor in range(256):
            unhashable = b'{"value": {"s": [{"l": []}]}}\\n'
            for junk in (b'{"value": 1}\\n', b'[]\\n', b'\\xff\\n', unhashable):
                try:
                    os.write(descriptor, junk)
                except OSError:
                    pass
        def f(): return 0
        """
    )
    run = runner.call(source, "f", [(), (), (), ()])
    assert [result.value for result in run.results] == [1, None, None, None]
    assert all("unreadable" in (result.error or "") for result in run.results[1:])
    assert runner.call("def f(): return 0", "f", [()]).results == (CallResult(0),)


def test_a_deep_or_endless_result_is_an_error(runner: CodeRunner) -> None:
    deep = "import os\nfor d in range(3, 9):\n    try: os.write(d, b'[' * 9000 + b'\\n')\n"
    deep += "    except OSError: pass\ndef f(): return 0"
    assert "unreadable" in (runner.call(deep, "f", [()]).results[0].error or "")


def test_programs_leave_nothing_to_each_other(runner: CodeRunner) -> None:
    runner.script(
        "import os, builtins, random\nbuiltins.leak = 1\nrandom.seed(7)\n"
        "for folder in ('/tmp', '/work', '/dev/shm', '.'):\n"
        "    try: open(folder + '/json.py', 'w').write('evil')\n"
        "    except OSError: pass\n"
        "if os.fork() == 0:\n    import time; time.sleep(60)"
    )
    source = (
        "import builtins, os, random\n"
        "print(hasattr(builtins, 'leak'), random.random(), os.listdir('/work'), "
        "os.listdir('/tmp'), len([p for p in os.listdir('/proc') if p.isdigit()]))"
    )
    run = runner.script(source)
    assert run.stdout == "False 0.8444218515250481 [] [] 2\n"


def test_the_server_cannot_be_looked_into_or_killed(runner: CodeRunner) -> None:
    source = textwrap.dedent(
        """
        import os, signal
        for path in ('/proc/1/mem', '/proc/1/environ', '/proc/1/fd/3'):
            try:
                open(path, 'rb').read(1)
                print('read', path)
            except OSError:
                pass
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            try:
                os.kill(1, number)
            except OSError:
                pass
        print('done')
        """
    )
    assert runner.script(source).stdout == "done\n"
    server = runner._server
    assert still_serves(runner)
    assert runner._server is server


def test_a_lost_server_is_replaced(runner: CodeRunner) -> None:
    assert still_serves(runner)
    assert runner._server is not None
    runner._server.stop()
    assert still_serves(runner)
    signal.pidfd_send_signal(runner._server.pidfd, signal.SIGKILL)
    assert still_serves(runner)


HARM = {
    **{
        name: f"import resource; resource.prlimit(1, resource.RLIMIT_{name}, (0, 0))"
        for name in ("NOFILE", "NPROC", "AS", "FSIZE", "STACK")
    },
    "CPU": "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))",
    "priority": "import os; os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "scheduler": "import os; os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
}


@pytest.mark.parametrize("name", sorted(HARM))
def test_a_server_that_a_program_harmed_serves_no_other(runner: CodeRunner, name: str) -> None:
    assert still_serves(runner)
    harmed = runner._server
    runner.script(HARM[name])
    assert still_serves(runner)
    assert runner._server is not harmed


def test_a_program_costs_milliseconds(runner: CodeRunner) -> None:
    assert still_serves(runner)
    started = time.monotonic()
    for _ in range(50):
        runner.call("def f(a): return a", "f", [(1,)])
    assert (time.monotonic() - started) / 50 < 0.05
