"""Goodput: spans as they are written, accounts computed by hand, and a stage that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.artifacts import Artifact, ArtifactWriter
from hillclimb.stages.account import write_goodput
from hillclimb.stages.context import Context
from hillclimb.stages.reporting import SilentReporter
from hillclimb.stages.request import Request
from hillclimb.training import spans as recording
from hillclimb.training.goodput import STALLS, Goodput, summarise
from hillclimb.training.spans import Span, Spans, process_age, read_spans, read_sums

HERE = Path(__file__).parent


def row(attempt: int, *parts: tuple[str, float] | tuple[str, float, int], at: float) -> list[Span]:
    """Spans end to end, from `at`: kind, seconds, step."""
    found = []
    for kind, seconds, *step in parts:
        found.append(Span(kind, at, at + seconds, attempt, step[0] if step else None))
        at += seconds
    return found


def steps(*numbers: int, seconds: float = 2.0) -> list[tuple[str, float, int]]:
    return [("step", seconds, number) for number in numbers]


KILLED = [
    *row(0, ("start", 5.0), *steps(0, 1), ("checkpoint", 0.5, 1), *steps(2, 3), at=100.0),
    *row(1, ("start", 4.0), ("data", 1.0, 2), *steps(2, 3, 4), ("finish", 2.0), at=120.5),
]


def test_a_killed_run_by_hand():
    account = summarise(KILLED)
    assert account.stalls == {
        "start": 5.0, "restart": 7.0 + 4.0, "lost_steps": 4.0, "data": 1.0, "checkpoint": 0.5,
        "slow_steps": 0.0, "held_out": 0.0, "finish": 2.0, "other": 0.0,
    }  # fmt: skip
    assert (account.ideal, account.actual) == (10.0, 133.5 - 100.0)
    assert account.goodput == 10.0 / 33.5
    assert (account.attempts, account.steps, account.steps_again) == (2, 5, 2)


def test_a_slow_spell_is_a_stall_and_noise_around_the_median_is_none():
    slow = row(0, *steps(0, 1, 2, 3), *steps(4, seconds=6.0), at=0.0)
    assert summarise(slow).stalls["slow_steps"] == 4.0
    assert summarise(slow, even_steps=False).goodput == 1.0
    noisy = row(0, ("step", 1.5, 0), ("step", 2.0, 1), ("step", 2.5, 2), at=0.0)
    assert summarise(noisy).goodput == 1.0


def test_a_step_counts_whatever_is_cut_out_of_it():
    cut = row(0, ("step", 1.0, 0), ("data", 3.0, 0), ("step", 1.0, 0), *steps(1), at=0.0)
    account = summarise(cut)
    assert (account.ideal, account.stalls["data"], account.steps) == (4.0, 3.0, 2)


def test_time_that_no_span_covers_and_steps_that_two_deaths_made_vain():
    spans = [
        *row(0, ("start", 1.0), *steps(0, 1, 2, 3), at=0.0),
        *row(1, ("start", 1.0), *steps(2), at=9.0),
        *row(2, ("start", 1.0), at=12.0),
        *row(2, *steps(2), at=14.0),
    ]
    account = summarise(spans)
    assert (account.steps, account.steps_again, account.stalls["lost_steps"]) == (3, 3, 6.0)
    assert account.stalls["other"] == 1.0
    assert account.actual == 16.0


def test_an_attempt_on_a_clock_that_is_behind_leaves_no_gap():
    early = [*KILLED[:6], *row(1, ("start", 4.0), *steps(2, 3), at=90.0)]
    account = summarise(early)
    assert account.stalls["restart"] == 4.0
    assert account.actual == 13.5 + 8.0


def test_nothing_recorded_is_no_goodput():
    assert summarise([]) == Goodput(0.0, 0.0, dict.fromkeys(STALLS, 0.0))
    assert summarise([]).goodput == 0.0


moments = st.floats(0, 1e6, allow_nan=False)
any_span = st.builds(
    Span,
    st.sampled_from(["start", "data", "step", "checkpoint", "held_out", "finish", "unheard of"]),
    moments,
    moments,
    st.integers(0, 4),
    st.none() | st.integers(0, 20),
)


@given(st.lists(any_span, max_size=40), st.booleans(), st.randoms(use_true_random=False))
def test_parts_add_up_in_any_order_and_on_any_clock(spans, even, random):
    account = summarise(spans, even)
    assert 0.0 <= account.goodput <= 1.0
    assert all(seconds >= 0 for seconds in account.stalls.values())
    assert abs(account.ideal + sum(account.stalls.values()) - account.actual) < 1e-6
    shuffled = random.sample(spans, len(spans))
    again = summarise(shuffled, even)
    assert (again.attempts, again.steps, again.steps_again) == (
        account.attempts, account.steps, account.steps_again,
    )  # fmt: skip
    assert again.actual == pytest.approx(account.actual)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), st.floats(0, 5))
def test_actual_is_the_wall_clock_where_clocks_agree(seconds, gap):
    first = row(0, *[("step", s, i) for i, s in enumerate(seconds)], at=50.0)
    second = row(1, *[("step", s, i) for i, s in enumerate(seconds)], at=first[-1].end + gap)
    assert summarise(first + second).actual == pytest.approx(second[-1].end - 50.0)


def test_spans_of_an_attempt_never_overlap_and_begin_with_the_process(tmp_path):
    out = ArtifactWriter(str(tmp_path))
    spans = Spans(out)
    with spans.span("step", 0):
        time.sleep(0.01)
        with spans.span("data", 0):
            time.sleep(0.01)
    with spans.span("checkpoint", 0):
        pass
    found = read_spans(out)
    assert [s.kind for s in found] == ["start", "start", "step", "data", "step", "checkpoint"]
    assert all(a.end == b.start for a, b in pairwise(found[:5]))
    assert 0 < found[1].end - found[0].start <= process_age()


def test_every_attempt_has_files_of_its_own_from_its_first_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_PART_BYTES", 100)
    out = ArtifactWriter(str(tmp_path))
    for attempt in range(3):
        spans = Spans(out)
        assert spans.attempt == attempt
        assert max(span.attempt for span in read_spans(out)) == attempt
        for step in range(3):
            with spans.span("step", step), spans.span("checkpoint", step):
                pass
    assert len(out.list("resume")) > 6
    assert summarise(read_spans(out)).steps == 3
    assert summarise(read_spans(out)).steps_again == 6


def test_other_ranks_write_sums_and_only_with_checkpoints(tmp_path):
    out = ArtifactWriter(str(tmp_path))
    spans = Spans(out, rank=1)
    with spans.span("data", 0):
        time.sleep(0.01)
    assert out.list() == []
    with spans.span("checkpoint", 0):
        pass
    (sums,) = read_sums(out)
    assert sums["data"] >= 0.01
    assert read_spans(out) == []


class SlowStore(ArtifactWriter):
    """A store that takes 20 ms a write."""

    writes = 0

    def write_bytes(self, relative: str, data: bytes) -> None:
        self.writes += 1
        time.sleep(0.02)
        super().write_bytes(relative, data)


def test_a_slow_store_is_written_to_less_often(monkeypatch):
    monkeypatch.setattr(recording, "EVERY", 0.0)
    out = SlowStore(f"memory://{time.time_ns()}")
    spans = Spans(out)
    for step in range(100):
        with spans.span("step", step):
            pass
    assert out.writes == 1
    with spans.span("checkpoint", 99):
        pass
    assert out.writes == 2
    assert summarise(read_spans(out)).steps == 100


def test_a_stage_writes_its_account_and_loses_the_spans_at_the_commit(tmp_path):
    request = Request(
        name="toy", kind="base_phase", output=str(tmp_path / "out"), fingerprint="0" * 64,
        code_version="0", seed=0, inputs={}, config={},
    )  # fmt: skip
    context = Context(request, SilentReporter())
    spans = Spans(context.out)
    for step in range(2):
        with spans.span("step", step):
            time.sleep(0.005)
    context.commit(write_goodput(context, spans))
    made = Artifact(request.output)
    account = made.json("goodput.json")
    assert (account["steps"], account["attempts"]) == (2, 1)
    assert made.manifest.metrics["goodput"] == pytest.approx(account["goodput"])
    assert made.manifest.metrics["stall_start"] == pytest.approx(account["stalls"]["start"])
    assert [entry.path for entry in made.manifest.files] == ["goodput.json"]


TRAIN = """
import sys
sys.path.insert(0, {here!r})
import pretrain_once
from hillclimb.training import spans
spans.EVERY = spans._WORTH = 0
pretrain_once.main({out!r}, {die}, 2, 128, 0.0)
"""


@pytest.mark.slow("starts two training processes")
def test_a_phase_that_was_killed_has_lost_steps_and_a_restart_in_its_account(tmp_path):
    began = time.time()
    for die in (5, 0):
        code = TRAIN.format(here=str(HERE), out=str(tmp_path), die=die)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=300, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert (done.returncode == 0) == (die == 0), done.stderr.decode()[-2000:]
    took = time.time() - began
    out = ArtifactWriter(str(tmp_path))
    account = summarise(read_spans(out))
    assert (account.attempts, account.steps_again) == (2, 2)
    assert account.stalls["lost_steps"] > 0
    assert account.stalls["restart"] > account.ideal / account.steps
    assert account.stalls["checkpoint"] > 0
    assert account.actual <= took + 0.1
    assert json.loads(json.dumps(account.to_json()))["goodput"] == account.goodput
