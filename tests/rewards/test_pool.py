"""The grader pool: real processes that hang, die and are replaced."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hillclimb.rewards.graded import Graded, ungraded
from hillclimb.rewards.pool import GraderPool, Task

sys.path.insert(0, str(Path(__file__).parent))  # workers inherit the path


def task(name: str, **arguments: object) -> Task:
    return Task(f"hostile_graders:{name}", arguments)


@pytest.fixture
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=2, deadline_s=1.0, memory=2 * 2**30) as started:
        yield started


def test_results_come_in_order(pool: GraderPool) -> None:
    results = pool.grade_many([task("fine", value=value) for value in range(20)])
    assert results == [Graded(float(value), "fine") for value in range(20)]
    assert pool.lost == 0


def test_no_tasks_no_workers(pool: GraderPool) -> None:
    assert pool.grade_many([]) == []
    assert pool._idle == []


def test_what_fails_is_ungraded_and_the_batch_goes_on(pool: GraderPool) -> None:
    tasks = [
        task("fine", value=1),
        task("hangs"),
        task("raises"),
        task("dies"),
        task("eats_memory"),
        Task("hostile_graders:absent", {}),
        Task("no.such.module:f", {}),
        task("fine", value=0),
    ]
    started = time.monotonic()
    results = pool.grade_many(tasks)
    assert time.monotonic() - started < 15
    assert [result.score for result in results] == [1.0, *[None] * 6, 0.0]
    assert [result.reason.split(":")[0] for result in results] == [
        "fine", "killed", "ValueError", "the grader's process ended", "MemoryError",
        "AttributeError", "ModuleNotFoundError", "fine",
    ]  # fmt: skip
    assert ungraded(results) == {
        result.reason: 1 for result in sorted(results[1:7], key=lambda item: item.reason)
    }
    assert pool.lost == 3
    assert pool.grade_many([task("fine", value=1)] * 5) == [Graded(1.0, "fine")] * 5


def test_a_flood_on_standard_output_is_no_verdict(pool: GraderPool) -> None:
    assert pool.grade_many([task("floods")]) == [Graded(1.0, "flooded")]


def test_a_killed_grader_leaves_no_process(pool: GraderPool) -> None:
    marker = f"6{uuid.uuid4().int % 10**12}"
    assert pool.grade_many([task("sleeps", marker=marker)])[0].score is None
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert marker not in listing.stdout


def test_workers_run_side_by_side_and_are_kept(pool: GraderPool) -> None:
    pool.grade_many([task("naps", seconds=0.1)] * 2)
    started = time.monotonic()
    results = pool.grade_many([task("naps", seconds=0.5)] * 4)
    assert time.monotonic() - started < 1.9
    assert len({result.reason for result in results}) == 2


def test_an_item_that_hangs_does_not_hold_up_another_threads_batch(tmp_path: Path) -> None:
    with GraderPool(workers=2, deadline_s=60.0) as pool, ThreadPoolExecutor(1) as other:
        waits = other.submit(pool.grade_many, [task("waits", path=str(tmp_path / "go"))])
        results = pool.grade_many([task("fine", value=value) for value in (1, 2, 3)])
        assert [result.score for result in results] == [1, 2, 3]
        assert not waits.done()
        (tmp_path / "go").touch()
        assert waits.result(60.0) == [Graded(1.0, "went on")]


def test_threads_share_one_worker() -> None:
    with GraderPool(workers=1) as pool, ThreadPoolExecutor(4) as threads:
        batches = [[task("fine", value=4 * n + i) for i in range(4)] for n in range(4)]
        found = list(threads.map(pool.grade_many, batches))
        assert [[each.score for each in batch] for batch in found] == [
            [4 * n + i for i in range(4)] for n in range(4)
        ]
        assert len(pool._idle) == 1


def test_a_worker_lost_between_batches_costs_no_item(pool: GraderPool) -> None:
    pool.grade_many([task("fine", value=1)])
    pool._idle[0].process.kill()
    pool._idle[0].process.wait()
    assert pool.grade_many([task("fine", value=1)]) == [Graded(1.0, "fine")]


def test_after_stop_a_batch_starts_new_workers(pool: GraderPool) -> None:
    pool.grade_many([task("fine", value=1)])
    worker = pool._idle[0].process
    pool.stop()
    assert worker.poll() is not None
    assert pool.grade_many([task("fine", value=1)]) == [Graded(1.0, "fine")]


@pytest.mark.parametrize("seconds", [0, 60])
def test_workers_end_when_their_owner_is_killed(seconds: float) -> None:
    """An idle worker sees its input close; a busy one is ended by its own alarm."""
    program = (
        "import sys, threading\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from hillclimb.rewards.pool import GraderPool, Task\n"
        "pool = GraderPool(workers=1, deadline_s=1)\n"
        "pool.grade_many([Task('hostile_graders:fine', {'value': 1})])\n"
        "print(pool._idle[0].process.pid, flush=True)\n"
        f"pool.grade_many([Task('hostile_graders:naps', {{'seconds': {seconds}}})])\n"
        "input()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    worker = Path("/proc") / owner.stdout.readline().decode().strip()
    assert _running(worker)
    time.sleep(0.2)
    owner.kill()
    owner.communicate()
    deadline = time.monotonic() + 8
    while _running(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _running(worker)


def _running(process: Path) -> bool:
    try:
        return ") Z " not in (process / "stat").read_text()
    except OSError:
        return False


def test_importing_rewards_stays_light() -> None:
    program = (
        "import sys, hillclimb.rewards.math, hillclimb.rewards.code, hillclimb.rewards.judge\n"
        "import hillclimb.environments.tools, hillclimb.environments.sandbox.programs\n"
        "heavy = {'torch', 'sympy', 'math_verify', 'numpy', 'dagster'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
